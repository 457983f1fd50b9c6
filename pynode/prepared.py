"""Solves of one field over the same times, again and again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from pynode.engine.choose import get_engine
from pynode.errors import InputError, unknown_name
from pynode.field._outside import is_recording, outside_of_compile
from pynode.problem.asked import Asked
from pynode.problem.event import events_of
from pynode.problem.inputs import check_state
from pynode.problem.settings import Settings, check_settings
from pynode.problem.state import state_of
from pynode.problem.tolerances import first_step
from pynode.repeated import Repeated
from pynode.solution import Solution
from pynode.solve import solution_of, solve
from pynode.torch_state import leaves_thread_state
from pynode.transforms import is_followed

__all__ = ["Prepared", "prepare"]

_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(solve).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name != "args"
}


class Prepared:
    """Solves as `pynode.solve` does; made by `prepare`.

    Attributes:
        field: the field, which is looked at in each call, as are all tensors that it reads.
    """

    def __init__(self, field: Callable[..., Any], z0: Any, settings: Settings, asked: Asked) -> None:
        self.field = field
        self._asked, self._settings = asked, settings
        self._form = state_of(z0)
        self._states = tuple([(x.shape, x.dtype, x.device) for x in self._form.tensors(z0)])
        each = settings.independent or settings.rtol.each or settings.atol.each
        self._first = 0 if each else 1  # of a shape's sizes the first that may not differ
        self._times = settings.given.double()
        self._repeated: dict[bool, Repeated] = {}  # what solves the like once more, by whether gradients are enabled

    def __getstate__(self) -> dict[str, Any]:
        # The engine, of which there is one, is left out, and what solves the like once more, which is of this field.
        settings: Any = self._settings
        rest = {x.name: getattr(settings, x.name) for x in fields(settings) if x.name != "engine"}
        return {**self.__dict__, "_settings": rest, "_repeated": {}, "_engine": settings.engine.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        engine = get_engine(state.pop("_engine"))
        vars(self).update({**state, "_settings": Settings(engine=engine, **state["_settings"])})

    @outside_of_compile
    def __call__(self, z0: Any, args: Sequence[Tensor] = ()) -> Solution:
        """Solve from another state.

        Args:
            z0: a state like the one that was prepared for, of another batch size maybe, where samples neither have
                steps of their own nor tolerances.
            args: tensors that condition the field.

        Returns:
            What `solve` returns.

        Raises:
            InputError: the state is not like the one that was prepared for.
            PyNODEError: as `solve`.
        """
        settings = self._settings
        repeated = self._repeated.get(torch.is_grad_enabled())
        if repeated is not None:
            solution = repeated.solve(self.field, z0, args, settings.given, self._times, settings.numbers)
            if solution is not None:
                return solution
        return self._solve(z0, args)

    @leaves_thread_state
    def _solve(self, z0: Any, args: Sequence[Tensor]) -> Solution:
        form = state_of(z0)
        if form != self._form:
            raise self._unlike(z0)
        for x, (shape, dtype, device) in zip(form.tensors(z0), self._states, strict=True):
            if x.dtype is not dtype or x.device != device or x.shape[self._first :] != shape[self._first :]:
                raise self._unlike(z0)
        settings = self._settings
        known = None if is_recording() else settings
        return solution_of(self.field, z0, settings.given, args, self._asked, known, self._repeated)

    def _unlike(self, z0: Any) -> InputError:
        def words(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> str:
            sizes = ", ".join([*(["batch"] if self._first else []), *map(str, shape[self._first :])])
            return f"({sizes}) of {dtype} on {device}"

        expected = "; ".join(words(*each) for each in self._states)
        try:
            form = state_of(z0)
            got = "; ".join(f"{tuple(x.shape)} of {x.dtype} on {x.device}" for x in form.tensors(z0))
            got = got if form == self._form else f"a {type(z0).__name__} of {got}"
        except (TypeError, AttributeError):
            got = type(z0).__name__
        return InputError(
            f"z0 must be like the state that the solve was prepared for, {expected}, got {got}. Prepare another solve"
        )


@leaves_thread_state
def prepare(field: Callable[..., Any], like: tuple[Any, Tensor | Sequence[float]], **keywords: Any) -> Prepared:
    """A callable that solves as `solve` does, without looking again at what does not change from call to call.

    For small problems that are solved again and again, whose solves take as long as looking at their arguments. Times,
    tolerances, names and numbers are looked at once, and taken as they are then. The field, its parameters and all else
    that it reads are looked at in each call, so that training changes them as ever.
    `solve` by itself spares most of that where a call differs from the one before in the state alone.

        solve = pynode.prepare(field, like=(z0, t), rtol=1e-6)
        for _ in range(100):
            loss = solve(z0).z.square().mean()

    Args:
        field: as `solve` takes.
        like: a state and the times; of the state only shapes, dtype and device matter.
        keywords: as `solve` takes, except `args`, which a call takes.

    Returns:
        The callable: `prepared(z0, args=()) -> Solution`.

    Raises:
        InputError: an argument is not usable, or the times are to have a gradient, which only `solve` gives.
        EngineUnavailable: the engine is not there, or lacks what is asked for.
    """
    if not isinstance(like, tuple | list) or len(like) != 2:
        raise InputError(f"like must be a pair of a state and the times, (z0, t), got {type(like).__name__}")
    for name in keywords:
        if name not in _DEFAULTS:
            raise unknown_name("keyword of prepare", name, list(_DEFAULTS))
    z0, t = like
    named = {**_DEFAULTS, **keywords}
    named |= {"events": events_of(named.pop("event")), "dt": first_step(named["dt"], named["step_control"])}
    asked = Asked(**named)
    with torch.inference_mode(False):
        form = state_of(z0)
        states = check_state(form, [x.detach() for x in form.tensors(z0)])
        settings = check_settings(form, states, t, asked)
        if is_followed(settings.given):
            raise InputError("a prepared solve takes its times as they are, without a gradient: detach t, or use solve")
        return Prepared(field, z0, _of_its_own(settings), asked)


def _of_its_own(settings: Settings) -> Settings:
    """The same, in tensors that nobody else can change."""
    rtol, atol = (x._replace(each=tuple(y.clone() for y in x.each)) for x in (settings.rtol, settings.atol))
    return replace(settings, given=settings.given.clone(), times=settings.times.clone(), rtol=rtol, atol=atol)
