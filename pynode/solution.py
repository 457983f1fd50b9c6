"""`Solution`: what `solve` returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from pynode.engine.protocol import Retcode, Stats
from pynode.engine.refused import never_differentiable
from pynode.errors import InputError
from pynode.numeric import real_tensor
from pynode.problem.event_log import EventLog, EventLogs
from pynode.problem.independent import at_last_times, last_times, span
from pynode.problem.saving import saved
from pynode.problem.state import TENSOR, State
from pynode.torch_state import leaves_thread_state
from pynode.transforms import is_active

__all__ = ["Solution", "at_given_times", "dtype_of_found_times", "in_dtype_of", "in_form", "saved_of", "times_of"]


@dataclass(frozen=True, eq=False, repr=False, init=False)
class Solution:
    """The solution of an initial value problem.

    Attributes:
        t: `(time,)`, the times asked for, in their own dtype; `(batch, time)` where each sample has its own.
        z: `(time, batch, *features)`, or what holds such as the state its tensors, a tuple for example; at the first
            time it is `z0`, and at the time of a jump the state before it. Entries after the solve has ended are NaN.
            Where `save` is a callable, what that makes of the states.
        running_cost: `(batch,)`, the integral of the running cost over `t`, or to the event; `None` where none was
            given.
        stats: what the solve cost.
        retcode: how it ended; entries of `z` after a failure are NaN.
        engine: name of the engine that solved.
        solver: name of the solver that was used.
        event_t: 0-d, the time of the event that ended the solve, in the dtype of the times or of the state, whichever
            is wider; `None` where none was asked for or none was met.
        event_z: `(batch, *features)`, the state there, before any jump, or a tuple of such, or `None`.
        event_index: which entry of the event function changed sign, or, where `solve` was given several events, which
            of them it was; or `None`.
        events: the `EventLog` of all events and doses that happened, with their times and the states before and after
            them; of independent samples a sequence of these, one for each; `None` where `solve` was given no event.
        t_end: 0-d, the time that was reached: the last one or the event's, or where the integration failed.
        z_end: `(batch, *features)`, the state there, or a tuple of such; without a gradient after a failure.
        seed: of the noise of a stochastic differential equation; else `None`.

    A solution can be pickled and copied: its numbers, without their graph and without the interpolant.

    Tensors that carry a gradient keep the field alive. Python's garbage collector does not look into a graph that
    several tensors share, so a module that stores such tensors of its own solution (those of a tuple, a running cost or
    an event, or what was computed from `z`) is never freed unless `backward` is called: store `z.detach()` there.

    Of independent samples each has its own event: `event_t` and `event_index` are `(batch,)`, with NaN and -1 for a
    sample that meets none; and each has reached a time of its own: `t_end` is `(batch,)`.
    """

    t: Tensor
    z: Any
    running_cost: Tensor | None
    stats: Stats
    retcode: Retcode
    engine: str
    solver: str
    event_t: Tensor | None = None
    event_z: Any = None
    event_index: Any = None
    seed: int | None = None
    _logs: EventLogs | None = None
    _interpolant: Callable[[Tensor], tuple[Tensor, ...]] | None = None
    _failed_at: tuple[Tensor, tuple[Tensor, ...]] | None = None
    _form: State = TENSOR
    _again: Callable[[Tensor], tuple[Tensor, ...]] | None = None
    _last: Any = None  # `z_end`, where `z` does not have it
    _followed: Tensor | None = None  # `t`, where PyTorch may have to see what becomes of it

    def __init__(
        self,
        t: Tensor,
        z: Any,
        running_cost: Tensor | None,
        stats: Stats,
        retcode: Retcode,
        engine: str,
        solver: str,
        **others: Any,
    ) -> None:
        """What a dataclass does, in a quarter of the time."""
        vars(self).update(
            t=t,
            z=z,
            running_cost=running_cost,
            stats=stats,
            retcode=retcode,
            engine=engine,
            solver=solver,
            **others,
        )

    @property
    def events(self) -> EventLog | EventLogs | None:
        """What happened: one log, or of independent samples one for each; `None` where nothing was to happen."""
        logs = self._logs
        return logs[0] if logs is not None and logs.joint else logs

    @property
    def t_end(self) -> Tensor:
        """The time that was reached."""
        if self._failed_at is not None:
            return self._failed_at[0]
        t = self.t if self._followed is None else self._followed
        last = last_times(t) if t.dim() == 2 else t[-1]
        if self.stats.per_sample is not None:
            last = last.expand(len(self.stats.per_sample.t_end))
        return last if self.event_t is None else torch.where(self.event_t.isnan(), last, self.event_t)

    @property
    def z_end(self) -> Any:
        """The state at `t_end`."""
        if self._failed_at is not None:
            return self._form.state(self._failed_at[1])
        if self._last is not None:
            return self._last
        form = self._form
        ends = [x[-1] if self.t.dim() == 1 else at_last_times(x, self.t) for x in form.tensors(self.z, leading=1)]
        if self.event_t is not None:
            missed = self.event_t.isnan()
            pairs = zip(ends, form.tensors(self.event_z), strict=True)
            ends = [torch.where(missed.reshape(-1, *[1] * (x.dim() - 1)), x, y) for x, y in pairs]
        return form.state(ends)

    def __getstate__(self) -> dict[str, Any]:
        # A tensor with its graph is not copied by PyTorch, and an interpolant belongs to the engine.
        state = tree_map_only(Tensor, Tensor.detach, dict(self.__dict__))
        interpolant = None if self._interpolant is None else _not_saved
        return {**state, "_again": None, "_followed": None, "_interpolant": interpolant}

    @leaves_thread_state
    def __call__(self, t: Tensor | float | Sequence[float]) -> Any:
        """The state between the reported times.

        Where the states of the solution have a gradient, so have these, to all that was solved with and to `t`. For
        that the solve is made once more, of a fixed-step solver by steps that end at these times too; under
        `torch.no_grad()` it is not. Of independent samples, of a solve of which nothing requires a gradient, and of
        one that started afresh or ended at an event, there is no such gradient, and whoever asks for it gets an error:
        report the times in `solve(t=…)`.

        Args:
            t: a time or a 1-d tensor or sequence of times within the span that was solved, in any order.

        Returns:
            `(batch, *features)` for one time, `(time, batch, *features)` for several, in the form of the state.

        Raises:
            InputError: the solve was made without `dense=True`, a time lies outside of the span, or what was solved
                with has been changed in place since.
        """
        if self._interpolant is None:
            raise InputError(
                "sol(t) needs an interpolant, and this solution has none. Call solve(..., dense=True)"
                if self.retcode is Retcode.SUCCESS
                else "sol(t) needs an interpolant, and a failed solve has none"
            )
        try:
            times = real_tensor(t, self.t.device)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise InputError(f"sol(t) takes a time or several, got {type(t).__name__}: {error}") from None
        low, high = span(self.t, self.event_t)
        slack = torch.finfo(self.t.dtype).eps * max(abs(low), abs(high))  # for what rounding takes beyond an end
        if not bool(((times >= low - slack) & (times <= high + slack)).all()):
            raise InputError(
                f"sol(t) takes times within [{low:g}, {high:g}], got {times.tolist()}. "
                "Solve over a span that contains them"
            )
        times = times.clamp(low, high)
        states = [z.reshape(*times.shape, *z.shape[1:]) for z in self._between(times.reshape(-1))]
        return self._form.state(states[: len(self._form.names)], leading=times.dim())

    def _between(self, times: Tensor) -> tuple[Tensor, ...]:
        """The tensors that are solved at `(n,)` times."""
        assert self._interpolant is not None
        tracked = [x for x in tree_leaves(self.z) if isinstance(x, Tensor) and x.requires_grad]
        if not (torch.is_grad_enabled() and (tracked or times.requires_grad)):
            return self._interpolant(times.detach())
        if self._again is not None:
            return self._again(times)
        message = (
            "sol(t) has no gradient for independent samples, where nothing that was solved with requires one, nor "
            "where the solve started afresh at a stop or ended at an event: report the times in solve(t=…), or "
            "interpolate under torch.no_grad()"
        )
        return never_differentiable(message, self._interpolant(times.detach()), tracked[0] if tracked else times)

    def __repr__(self) -> str:
        shapes = ", ".join(str(tuple(z.shape)) for z in tree_leaves(self.z))
        times = f"{float(self.t[0]):g} to {float(self.t[-1]):g}" if self.t.dim() == 1 else tuple(self.t.shape)
        return f"Solution({self.retcode.name}, {self.solver} on {self.engine}, z: {shapes}, t: {times}, {self.stats})"


def _not_saved(times: Tensor) -> tuple[Tensor, ...]:
    """Stands for the interpolant in a copy of a solution."""
    raise InputError(
        "sol(t) needs an interpolant, and a solution that was pickled or copied has lost its own. Interpolate before "
        "that, or report more times in solve(t=…)"
    )


def times_of(given: Tensor) -> dict[str, Any]:
    """The times of a solution, by its names for them: in memory of their own, since theirs may be changed in place."""
    own = given.clone()
    followed = own.requires_grad or is_active()
    return {"t": own.detach() if followed else own, "_followed": own if followed else None}


def dtype_of_found_times(t: Tensor, state: Sequence[Tensor]) -> torch.dtype:
    """The dtype of times that a solve finds."""
    return torch.promote_types(t.dtype, state[0].dtype)


def at_given_times(solution: Solution, t: Tensor, state: Sequence[Tensor]) -> Solution:
    """The solution with the user's times, and that of the event in the dtype that it is to have."""
    found_at = solution.event_t
    dtype, logs = dtype_of_found_times(t, state), solution._logs
    event_t = None if found_at is None else found_at.to(dtype)
    failed_at = solution._failed_at
    return replace(
        solution,
        **times_of(t),
        event_t=event_t,
        _logs=None if logs is None else logs.in_dtypes(dtype, [x.dtype for x in state]),
        _failed_at=None if failed_at is None else (failed_at[0].to(dtype), failed_at[1]),
    )


def in_dtype_of(state: tuple[Tensor, ...], solution: Solution) -> Solution:
    """The solution with states of the dtype of the state that was given."""

    def cast(z: Any) -> Any:
        if isinstance(z, tuple):
            return tuple(x.to(like.dtype) for x, like in zip(z, state, strict=True))
        return None if z is None else z.to(state[0].dtype)

    failed_at = solution._failed_at
    if failed_at is not None:
        failed_at = failed_at[0], cast(failed_at[1])
    logs = solution._logs
    return replace(
        solution,
        z=cast(solution.z),
        event_z=cast(solution.event_z),
        _logs=None if logs is None else logs.in_dtypes(logs.time_dtype, [x.dtype for x in state]),
        _failed_at=failed_at,
    )


def in_form(form: State, solution: Solution) -> Solution:
    """The solution with states of the user's form in the place of the tensors that were solved."""

    def whole(x: Any, leading: int = 0) -> Any:
        return None if x is None else form.state(x if form.is_tuple else (x,), leading)

    cost = solution.running_cost
    return replace(
        solution,
        z=whole(solution.z, leading=1),
        event_z=whole(solution.event_z),
        running_cost=cost[0] if cost is not None and form.is_single else cost,
    )


def saved_of(solution: Solution, save: Callable[[Tensor, Any], Any]) -> Solution:
    """The solution with what a callable makes of its states in their place."""
    form, leading = solution._form, solution._form.tensors(solution.z, leading=1)
    t = solution.t if solution._followed is None else solution._followed

    def states(i: int, sample: int | None = None) -> Any:
        return form.state([x[i] if sample is None else x[i, sample : sample + 1] for x in leading])

    z = saved(save, t, states)
    return replace(solution, z=z, _last=None if solution._failed_at is not None else solution.z_end)
