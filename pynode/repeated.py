"""A solve like one that was made before, of the same field and at as many times, for other numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from pynode.derivatives import Failed, Run, differentiable
from pynode.engine.protocol import Engine, Problem
from pynode.field._field import Latest
from pynode.field._outside import is_eager
from pynode.nn._signature import of_state
from pynode.outcome import outcome
from pynode.problem.state import State
from pynode.solution import Solution

__all__ = ["Repeated"]


_NUMBERS = ("field", "z0", "t", "args", "parameters")  # of a problem what is another each time


class Repeated:
    """Solves by what a solve has found out, as long as nothing that it has looked at is another.

    That solve was a plain one: of a module all of whose places are watched, by a graph, in one piece; and without what
    wraps tensors or records operations.

    Args:
        latest: the field.
        problem: what was solved.
        engine: what solves.
        throw: whether a failed integration raises.
        form: the form of the state.
        function: the user's field.
        state: the tensors that were solved.
        args: the conditioning tensors.

    Attributes:
        tracked: whether gradients were enabled.
    """

    def __init__(
        self,
        latest: Latest,
        problem: Problem,
        engine: Engine,
        throw: bool,
        form: State,
        function: Callable[..., Any],
        state: Sequence[Tensor],
        args: Sequence[Tensor],
    ) -> None:
        self.latest, self.engine, self.throw, self.form = latest, engine, throw, form
        self.of_state = problem.field.function is not function  # which had to be given the time
        self.is_tuple, self.tracked = form.is_tuple, torch.is_grad_enabled()
        self.known = problem.known
        self.rest = {x.name: getattr(problem, x.name) for x in fields(problem) if x.init and x.name not in _NUMBERS}
        self.states, self.args = _Outlines(state), _Outlines(args)
        self.followed = any(problem.wanted)
        self.levels = [frozenset[int]()] * len(problem.inputs)

    def solve(
        self,
        function: Callable[..., Any],
        z0: Any,
        args: Any,
        given: Tensor,
        times: Tensor,
        numbers: Sequence[float],
    ) -> Solution | None:
        """The solution, or `None` where something is not as it was.

        Args:
            function: the user's field.
            z0: a state.
            args: conditioning tensors.
            given: times, as many as before, in their own dtype, which is the same too.
            times: the same, in double, in memory that nobody changes.
            numbers: what they are.
        """
        if torch.is_grad_enabled() is not self.tracked or torch._C._is_any_autocast_enabled():
            return None
        if not is_eager():
            return None
        if self.is_tuple and type(z0) is not tuple:
            return None
        state = z0 if self.is_tuple else (z0,)
        if type(args) not in (tuple, list) or not (self.states.are_of(state) and self.args.are_of(args)):
            return None
        field = self.latest.again(of_state(function) if self.of_state else function, state[0].dtype)
        if field is None:
            return None
        inputs = (*state, times, *args, *field.parameters)
        z0, args = tuple([x.detach() for x in state]), tuple([x.detach() for x in args])
        problem = Problem(field=field, z0=z0, t=times, args=args, parameters=field.parameters, **self.rest)
        problem.known = self.known
        run = Run(self.engine, problem, self.levels, self.throw)
        run.bare = True
        z: tuple[Tensor, ...] = ()
        try:  # noqa: SIM105 # which takes less time
            z = differentiable(run, inputs) if self.followed else run.solve(inputs)
        except Failed:
            pass  # the run tells of it
        return outcome(run, z, function, self.form, given, times, numbers)


_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
_outline = attrgetter("dtype", "requires_grad", "shape", "device")


class _Outlines:
    """What some tensors are like, but for their numbers."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.kinds, self.outlines = list(map(type, tensors)), list(map(_outline, tensors))

    def are_of(self, tensors: Sequence[Any]) -> bool:
        """Whether others are like them, and autograd may save them."""
        if not self.kinds:
            return not tensors
        if list(map(type, tensors)) != self.kinds or list(map(_outline, tensors)) != self.outlines:
            return False
        if any(map(_is_wrapped, tensors)):  # that a transform has left
            return False
        return torch.is_inference_mode_enabled() or not any(map(Tensor.is_inference, tensors))
