"""Events: where a solve ends because a function of time and state changes its sign.

An engine finds the time, without a gradient. The problem is then solved to that time like any other, and one Newton
step on the event function, which autograd sees, makes the time exact and differentiable: with t* the time that was
found and z* = z(t*), t_event = t* - g(t*, z*) / (dg/dt along the solution), whose derivative is that of the implicit
function theorem (Chen, Amos & Nickel 2021, "Learning neural event functions for ordinary differential equations").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pynode.engine.protocol import Crossing, Engine, EventSearch, Problem, Retcode
from pynode.engine.refused import once_differentiable
from pynode.errors import InputError, SolveError
from pynode.field._time import reads_time, time_as_asked, time_dtype
from pynode.problem.state import State

__all__ = ["NO_FURTHER", "Event", "event_reads_time", "event_values"]

# A value counts as zero at the start if the solution leaves or meets zero within this many roundings of the time, in
# its dtype, and of the span, in the state's.
_ROUNDINGS = 16
NO_FURTHER = (
    "an event's time, and the state there,",
    "solve over fixed times for second derivatives",
)


class Event:
    """The event of one solve, found when this is made.

    Args:
        function: the user's `g(t, z, *args)`.
        engine: what finds it.
        problem: the problem over the whole span.
        form: the form of the state that `function` takes.
        before: the signs of the values before the start, where this goes on with a solve; `None`: not known.

    Attributes:
        at_start: which value has another sign than in `before`, as one that jumps or is zero there may; `None`: none.

    Raises:
        InputError: `function` does not return a number, or a vector of them.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        engine: Engine,
        problem: Problem,
        form: State,
        before: Sequence[float] | None = None,
    ) -> None:
        if not callable(function):
            raise InputError(f"event must be a callable g(t, z, *args), got {type(function).__name__}")
        self.user, self.problem, self.form = function, problem, form
        self.n_states, self.is_tuple = len(form.names), form.is_tuple
        self.crossing = Crossing(None, -1, 0)
        self.signs: tuple[float, ...] = ()
        self.at_start: int | None = None
        if problem.z0[0].shape[0]:
            self.signs = self._signs()
            if before is not None:
                changed = [i for i, (old, new) in enumerate(zip(before, self.signs, strict=True)) if old * new < 0]
                self.at_start = changed[0] if changed else None
                self.signs = tuple(new or old for old, new in zip(before, self.signs, strict=True))
            if self.at_start is None:
                search = EventSearch(self.values, function, self.n_states, form, self.signs)
                self.crossing = engine.find_event(problem, search)
        self.stop, self.before = problem.t[-1], len(problem.t)  # the event's time, and how many entries of t lie before
        if self.crossing.t is not None:
            first, last = problem.t[0], problem.t[-1]
            sign = torch.sign(last - first)
            self.stop = first.new_tensor(self.crossing.t)
            if not sign * self.stop > sign * first:
                self.stop = torch.nextafter(first, last)
            self.before = int((sign * problem.t < sign * self.stop).sum())

    def values(self, t: Tensor, z: Sequence[Tensor], args: Sequence[Tensor]) -> Tensor:
        """See `event_values`."""
        return event_values(self.user, self.form, t, z, args)

    def reads_time(self) -> bool:
        """See `event_reads_time`."""
        return event_reads_time(self.user, self.form, self.problem)

    def _signs(self) -> tuple[float, ...]:
        """The sign of each value at the start, or, where that is zero, the one that it is about to take."""
        problem = self.problem
        values, slopes = self._slopes(problem.t[0], problem.z0, None)
        if not bool(torch.isfinite(values).all()):
            raise InputError(
                f"event must return finite numbers, got {values.tolist()} at t[0]. Look at what computes them"
            )
        direction = torch.sign(problem.t[-1] - problem.t[0])
        at_zero = self._are_zero(values, slopes)
        return tuple(torch.where(at_zero, torch.sign(direction * slopes), torch.sign(values)).tolist())

    def _are_zero(self, values: Tensor, slopes: Tensor) -> Tensor:
        """Which values at the start are zero but for rounding."""
        problem = self.problem
        span = (problem.t[-1] - problem.t[0]).abs()
        of_time, of_state = torch.finfo(problem.t.dtype).eps, torch.finfo(problem.z0[0].dtype).eps
        resolution = _ROUNDINGS * (of_time * problem.t.abs().max() + of_state * span)
        return values.abs() <= resolution * slopes.abs()

    def signs_after(self, z: Sequence[Tensor]) -> tuple[float, ...]:
        """The signs at the last time, where no event was met before it and the state is `z`."""
        if all(self.signs):
            return self.signs
        with torch.no_grad():
            values = self.values(self.problem.t[-1], z, self.problem.args).tolist()
        return tuple(sign or (value > 0) - (value < 0) for sign, value in zip(self.signs, values, strict=True))

    def met_at_start(self, t: Tensor, z: Sequence[Tensor], args: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The time and the state of the event of value `at_start`, differentiable in the start, `t` and `z`."""
        index = self.at_start
        assert index is not None
        values, slopes = self._slopes(t.detach(), [x.detach() for x in z], None)
        if not bool(self._are_zero(values, slopes)[index]):
            return t.clone(), *(x.clone() for x in z)  # the value jumps there
        with torch.no_grad():
            rates = self.problem.field(t.detach(), tuple(x.detach() for x in z), self.problem.args)
        span = (self.problem.t[-1] - self.problem.t[0]).abs()
        delay = _newton(self.values(t, z, args)[index], slopes[index], 1e-2 * span)
        moved = (t + delay, *(x + rate * delay for x, rate in zip(z, rates, strict=True)))
        return tuple(x.clone() for x in once_differentiable(*NO_FURTHER, moved))

    def _slopes(self, t: Tensor, z: Sequence[Tensor], rates: Sequence[Tensor] | None) -> tuple[Tensor, Tensor]:
        """The values and their derivatives in time along the solution, without a graph."""
        problem = self.problem
        if rates is None:
            with torch.no_grad():
                rates = problem.field(t, tuple(z), problem.args)
        with torch.inference_mode(False), torch.enable_grad():
            t, *states = (x.detach().clone().requires_grad_() for x in (t, *z[: self.n_states]))
            values = self.values(t, states, problem.args)
            slopes = torch.zeros_like(values)
            for i, value in enumerate(values):
                if not value.requires_grad:
                    continue
                found = torch.autograd.grad(value, [t, *states], retain_graph=True, allow_unused=True)
                for g, rate in zip(found, (torch.ones_like(t), *rates), strict=False):
                    slopes[i] += 0 if g is None else (g * rate).sum().detach()
        return values.detach(), slopes.detach()

    def cut(self, t: Tensor) -> Tensor:
        """The times to solve for: those before the event, and its own."""
        if self.crossing.t is None:
            return t
        return torch.cat([t[: self.before], self.stop[None]])

    def complete(self, solution: Any, args: Sequence[Tensor]) -> Any:
        """The solution over the user's times, with the event, from that over the times of `cut`.

        Raises:
            SolveError: the search failed before any event, and the solve did not.
        """
        solution.stats.nfe += self.crossing.nfe
        if self.crossing.t is None:
            if self.crossing.failed and solution.retcode is Retcode.SUCCESS:
                raise SolveError(
                    "the search for the event did not reach the last time, though the solve itself does: tighten rtol "
                    "and atol, or raise max_steps",
                    Retcode.FAILURE,
                )
            return solution
        z, cost, t = solution.z if self.is_tuple else (solution.z,), solution.running_cost, self.stop
        if solution.retcode is not Retcode.SUCCESS:
            return dataclasses.replace(solution, t=self.problem.t, z=self._state(self._spread(z, ())))
        last = (*(x[-1] for x in z), *(() if cost is None else (cost,)))
        with torch.no_grad():
            rates = self.problem.field(t, tuple(x.detach() for x in last), self.problem.args)
        index = self.crossing.index
        _, slopes = self._slopes(t, last, rates)
        delay = _newton(self.values(t, last, args)[index], slopes[index], 1e-2 * (t - solution.t[-2]).abs())
        last = tuple(x + rate * delay for x, rate in zip(last, rates, strict=True))
        marked = once_differentiable(*NO_FURTHER, (t + delay, *last))  # the rate and the slope are held
        stop, *end = (x.clone() for x in marked)  # for the user to change in place
        last = tuple(end)
        return dataclasses.replace(
            solution,
            t=self.problem.t,
            z=self._state(self._spread(z, last)),
            running_cost=None if cost is None else last[-1],
            event_t=stop,
            event_z=self._state(last[: self.n_states]),
            event_index=index,
            _interpolant=_within(solution._interpolant, solution.t[0], t),
        )

    def _state(self, z: tuple[Tensor, ...]) -> Any:
        return z if self.is_tuple else z[0]

    def _spread(self, z: Sequence[Tensor], last: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The states at the user's times, `last` if one is the event's, NaN after the event."""
        total, before = len(self.problem.t), self.before
        reported = before + (bool(last) and before < total and bool(self.problem.t[before] == self.stop))
        parts = []
        for i, x in enumerate(z):
            nan = x.new_full((total - reported, *x.shape[1:]), float("nan"))
            parts.append(torch.cat([x[:before], *([last[i][None]] if reported > before else []), nan]))
        return tuple(parts)


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
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
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
    if slope == 0:
        return _Undefined.apply(value)
    delay = -value / slope
    return delay if delay.detach().abs() <= limit else delay - delay.detach()


class _Undefined(torch.autograd.Function):
    """Zero, with an error for a derivative."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return torch.zeros_like(value)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        raise InputError(
            "the event's time has no derivative: the event function does not change along the solution at the event. "
            "Use a function that crosses zero with a slope rather than one that jumps, e.g. z[0] - 1, not its sign. "
            "One that calls torch.autograd.grad has to do so with create_graph=True"
        )


def _within(interpolant: Callable[[Tensor], Any] | None, first: Tensor, last: Tensor) -> Callable[[Tensor], Any] | None:
    """The interpolant, asked for nothing beyond its span, which the event's time may exceed by its correction."""
    low, high = (first, last) if first < last else (last, first)
    return None if interpolant is None else lambda times: interpolant(times.clamp(low, high))
