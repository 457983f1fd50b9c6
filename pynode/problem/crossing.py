"""Where event functions cross zero: their values and slopes along the solution, and the step that makes a time exact.

An engine finds the time, without a gradient. The problem is then solved to that time like any other, and one Newton
step on the event function, which autograd sees, makes the time exact and differentiable: with t* the time that was
found and z* = z(t*), t_event = t* - g(t*, z*) / (dg/dt along the solution), whose derivative is that of the implicit
function theorem (Chen, Amos & Nickel 2021, "Learning neural event functions for ordinary differential equations").
A solve that goes on at that time from that state, or from one that an `affect` makes of it, has the derivative that the
saltation matrix gives (Kong, Payne, Zhu & Johnson 2024, "Saltation matrices: the essential tool for linearizing hybrid
dynamical systems").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pynode.engine.protocol import Problem
from pynode.engine.refused import once_differentiable
from pynode.errors import InputError
from pynode.field import Field
from pynode.field._time import reads_time, time_as_asked, time_dtype
from pynode.problem.state import State
from pynode.problem.units import Args, Units
from pynode.transforms import is_active

__all__ = ["NO_FURTHER", "ROUNDINGS", "Arrival", "Watched", "event_reads_time", "event_values"]

# A value counts as zero at the start if the solution leaves or meets zero within this many roundings of the time, in
# its dtype, and of the span, in the state's.
ROUNDINGS = 16
NO_FURTHER = (
    "an event's time, and the state there,",
    "solve over fixed times for second derivatives",
)


class Arrival(NamedTuple):
    """Units at their events.

    Attributes:
        t: `(units,)`, the times.
        z: the states there, and the running cost.
        residual: `(units,)`, how far the value was from zero at the time that was found.
    """

    t: Tensor
    z: tuple[Tensor, ...]
    residual: Tensor


class Watched:
    """The values of event functions on the units of a solve, `(units, n_values)`.

    Args:
        function: the event function, `function(t, z, *args)`.
        user: the user's part of it.
        form: the form of the state that it takes.
        field: the vector field, of those states and the running cost.
        units: the units.
    """

    def __init__(self, function: Callable[..., Any], user: object, form: State, field: Field, units: Units) -> None:
        self.function, self.user, self.form, self.field, self.units = function, user, form, field, units
        self.n_states = len(form.names)

    def values(self, t: Tensor, z: Sequence[Tensor], args: Args) -> Tensor:
        """The values at `(units,)` times."""

        def evaluate(t: Tensor, z: tuple[Tensor, ...], args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (event_values(self.function, self.form, t, z, args),)

        return self.units.over(evaluate, t, z[: self.n_states], args, self.user)[0]

    def rates(self, t: Tensor, z: Sequence[Tensor], args: Args) -> tuple[Tensor, ...]:
        """The derivatives of the state, without a graph."""
        with torch.no_grad():
            plain = Args(tuple(a.detach() for a in args.tensors), args.has_rows)
            return self.units.over(self.field, t.detach(), [x.detach() for x in z], plain, self.field.key)

    def slopes(self, t: Tensor, z: Sequence[Tensor], args: Args, rates: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The values and their derivatives in time along the solution, without a graph."""
        with torch.inference_mode(False), torch.enable_grad():
            t, *states = (x.detach().clone().requires_grad_() for x in (t, *z[: self.n_states]))
            plain = Args(tuple(a.detach().clone() for a in args.tensors), args.has_rows)
            values = self.values(t, states, plain)
            slopes = torch.zeros_like(values)
            for i, value in enumerate(values.unbind(1)):
                if not value.requires_grad:
                    continue
                found = torch.autograd.grad(value.sum(), [t, *states], retain_graph=True, allow_unused=True)
                for g, rate in zip(found, (torch.ones_like(t), *rates), strict=False):
                    if g is not None:
                        slopes[:, i] += (g * rate).reshape(len(t), -1).sum(1).detach()
        return values.detach(), slopes.detach()

    def arrive(
        self, t: Tensor, z: Sequence[Tensor], args: Args, index: Tensor, limit: Tensor, jumps: Tensor
    ) -> Arrival:
        """Units at the zero that a value has near a time.

        Args:
            t: `(units,)`, the times.
            z: the states there, and the running cost.
            args: the conditioning tensors.
            index: which value.
            limit: `(units,)`, the longest correction of the times that is believed.
            jumps: `(units,)`, where the values may jump at the times, which are then what they are.
        """
        rates = self.rates(t, z, args)
        known, slopes = self.slopes(t, z, args, rates)
        pick = index[:, None]
        slope, residual = slopes.gather(1, pick)[:, 0], known.gather(1, pick)[:, 0].abs()
        value = self.values(t, z, args).gather(1, pick)[:, 0]
        if bool(jumps.any()):
            small = ROUNDINGS * torch.finfo(value.dtype).eps * (1 + t.detach().abs().to(value.dtype)) * slope.abs()
            held = jumps & (residual > small)
            value = torch.where(held, torch.zeros_like(value), value)
            slope = torch.where(held, torch.ones_like(slope), slope)
        delay = _newton(value, slope, limit)
        moved = [x + rate * _beside(delay.to(x.dtype), x) for x, rate in zip(z, rates, strict=True)]  # the rate is held
        t, *end = (x.clone() for x in once_differentiable(*NO_FURTHER, (t + delay, *moved)))
        return Arrival(t, tuple(end), residual)  # clones, for the user to change in place


def _beside(x: Tensor, features: Tensor) -> Tensor:
    return x.reshape(-1, *[1] * (features.dim() - 1))


def event_values(
    function: Callable[..., Any], form: State, t: Tensor, z: Sequence[Tensor], args: Sequence[Tensor]
) -> Tensor:
    """An event function as `(n_events,)`; `z` may have further tensors at its end.

    Raises:
        InputError: it does not return a number, or a vector of them.
    """

    def evaluate(t: Tensor, z: Sequence[Tensor]) -> Any:
        states = form.state(z[: len(form.names)])
        return function(time_as_asked(function, t, z[0].dtype), states, *form.args(args))

    try:
        out = evaluate(t, z)
    except RuntimeError:
        # It may be a function that differentiates by what it is given, which has to require a gradient then.
        if is_active():
            raise
        tracked = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            t, *z = (x if tracked and x.requires_grad else x.detach().clone().requires_grad_() for x in (t, *z))
            out = evaluate(t, z)
        out = out if tracked or not isinstance(out, Tensor) else out.detach()
    if not isinstance(out, Tensor) or not out.is_floating_point() or out.dim() > 1 or out.numel() == 0:
        got = f"{out.dtype}, shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise InputError(
            "event must return floating-point numbers that change sign, of shape () or (n_events,), got "
            f"{got}. For a batch, combine the samples, e.g. z[:, 0].amin()"
        )
    return out.reshape(-1)


def event_reads_time(function: Callable[..., Any], form: State, problem: Problem) -> bool:
    """Whether an event function computes with the time in the state's dtype."""
    z0, args, dtype = problem.z0, problem.args, problem.z0[0].dtype
    t0 = problem.t.reshape(-1)[0].to(dtype)
    return time_dtype(function, dtype) == dtype and reads_time(lambda t: event_values(function, form, t, z0, args), t0)


def _newton(value: Tensor, slope: Tensor, limit: Tensor) -> Tensor:
    """`-value / slope`; zero, with that derivative, where it is too long a step to be a correction."""
    undefined = slope == 0
    delay = -value / torch.where(undefined, torch.ones_like(slope), slope)
    delay = torch.where(delay.detach().abs() <= limit, delay, delay - delay.detach())
    if bool(undefined.any()):
        delay = torch.where(undefined, _Undefined.apply(value, undefined), delay)
    return delay


class _Undefined(torch.autograd.Function):
    """Zero, with an error for a derivative where there is none."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, undefined: Tensor) -> Tensor:
        ctx.undefined = undefined
        return torch.zeros_like(value)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        if not bool((cotangent[ctx.undefined] != 0).any()):
            return torch.zeros_like(cotangent), None
        raise InputError(
            "the event's time has no derivative: the event function does not change along the solution at the event. "
            "Use a function that crosses zero with a slope rather than one that jumps, e.g. z[0] - 1, not its sign. "
            "One that calls torch.autograd.grad has to do so with create_graph=True"
        )
