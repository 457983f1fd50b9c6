"""Tolerances, of all components or of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pynode.engine.protocol import StepChoice
from pynode.engine.solvers import SolverInfo
from pynode.errors import InputError
from pynode.numeric import real_tensor, tensors_in
from pynode.problem.inputs import check_number
from pynode.problem.state import State
from pynode.step_control import StepControl
from pynode.transforms import differentiated, example, is_mapped, untransformed

__all__ = ["Tolerance", "check_step_control", "check_tolerance", "check_unchosen", "first_step", "step_choice"]


class Tolerance(NamedTuple):
    """A tolerance that has been checked.

    Attributes:
        least: of all components.
        each: of each number of the state tensors; none where it is one for all.
    """

    least: float
    each: tuple[Tensor, ...] = ()


def check_step_control(control: Any, solver: SolverInfo) -> StepControl | None:
    """Refuse what is no step control, or one of a solver that has none.

    Raises:
        InputError: it is one of these.
    """
    if control is None:
        return None
    if not isinstance(control, StepControl):
        raise InputError(f"step_control must be a pynode.StepControl, got {type(control).__name__}")
    if not solver.adaptive:
        raise InputError(
            f"the fixed-step solver {solver.name!r} does not choose its steps: leave step_control out, and give dt"
        )
    return control


def first_step(dt: Any, control: Any) -> Any:
    """The first step, which `dt` or the step control may give.

    Raises:
        InputError: both do.
    """
    if not isinstance(control, StepControl) or control.dt_first is None:
        return dt
    if dt is not None:
        raise InputError("dt is the first step of an adaptive solver, as step_control's dt_first: give one of them")
    return control.dt_first


def check_unchosen(control: StepControl | None, *tolerances: Tolerance) -> None:
    """Refuse a choice of steps in a solve that `torch.jit.trace` records, whose steps are of equal length.

    Raises:
        InputError: there is one.
    """
    if control is not None or any(x.each for x in tolerances):
        raise InputError(
            "torch.jit.trace records steps of equal length, which no step_control and no component's tolerance choose: "
            "leave them out"
        )


def check_tolerance(name: str, value: Any, form: State, state: Sequence[Tensor]) -> Tolerance:
    """A tolerance of a solve, or of a part of one, for which it may have been checked before.

    Raises:
        InputError: it is not positive, or does not broadcast against the state.
    """
    if isinstance(value, Tolerance):
        pairs = zip(value.each, state, strict=False)  # of fewer samples all have the same
        return value._replace(each=tuple([x if len(x) == len(z) else x[:1].expand_as(z) for x, z in pairs]))
    if not isinstance(value, Tensor | tuple | list | dict) or (isinstance(value, Tensor) and value.dim() == 0):
        return Tolerance(check_number(name, value))
    try:
        parts = form.parts(value)
    except (KeyError, TypeError):
        parts = ()
    if len(parts) != len(form.names):
        raise InputError(
            f"{name} must be a number, or hold what the state holds, {', '.join(form.names)}, a number or a tensor for "
            f"each, got {type(value).__name__}"
        )
    found = [
        _of_each(name, part, z, of, is_complex)
        for part, z, of, is_complex in zip(parts, state, form.names, form.complex, strict=False)
    ]
    return Tolerance(min(float(x.min()) for x in found), tuple(found))


def _of_each(name: str, part: Any, z: Tensor, of: str, is_complex: bool) -> Tensor:
    """The tolerance of each number of a state's tensor; a transform that is under way has no part in it."""
    try:
        for x in tensors_in(part):
            if x.requires_grad or differentiated(x):
                raise TypeError("a tensor that requires a gradient would get none")
            if is_mapped(x):
                raise TypeError("torch.vmap maps over it, and all that is mapped over is solved with one tolerance")
        given = example(real_tensor(part, z.device))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"{name} must be a number or a tensor for {of}, got {type(part).__name__}: {error}") from None
    shape = z.shape[:-1] if is_complex else z.shape
    with untransformed():
        given = given.to(z.dtype)
        try:
            whole = given.expand(shape)
        except RuntimeError:
            raise InputError(
                f"{name} must broadcast against {of}, of shape {tuple(shape)}, got shape {tuple(given.shape)}"
            ) from None
        if not bool((torch.isfinite(given) & (given > 0)).all()):
            raise InputError(f"{name} must be positive and finite, got {given.tolist()}")
        return (whole.unsqueeze(-1).expand(z.shape) if is_complex else whole).contiguous()


def step_choice(
    control: StepControl | None,
    rtol: Tolerance,
    atol: Tolerance,
    state: Sequence[Tensor],
    independent: bool,
) -> StepChoice | None:
    """What an engine is told of the choice of steps beside two numbers; `None` where there is nothing more.

    Args:
        control: the user's.
        rtol: see `check_tolerance`.
        atol: see there.
        state: the tensors that are solved, among them the running cost, whose tolerances are the least.
        independent: whether the samples are.

    Raises:
        InputError: independent samples have tolerances of their own.
    """
    if control is None and not rtol.each and not atol.each:
        return None

    def whole(of: Tolerance) -> tuple[Tensor, ...]:
        each = of.each or tuple(torch.full_like(x, of.least) for x in state)
        return (*each, *(torch.full_like(x, of.least) for x in state[len(each) :]))

    tolerances = None
    if rtol.each or atol.each:
        tolerances = whole(rtol), whole(atol)
        if independent:
            if any(not bool((x == x[:1]).all()) for each in tolerances for x in each):
                raise InputError(
                    "rtol and atol of independent samples must be the same for each: a tensor that broadcasts against "
                    "one sample, of batch size 1"
                )
            tolerances = tuple(x[:1] for x in tolerances[0]), tuple(x[:1] for x in tolerances[1])
    return StepChoice(control or StepControl(), tolerances)
