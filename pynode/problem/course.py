"""The course of a solve with events, doses and stops: from one to the next, in rounds.

In each round every unit (the batch, or a sample) that has not come to its end goes on from where it is to its next
event, dose or stop, all side by side in one solve; then its state jumps, and it takes part in the next round. What is
reported at a time is the state before a jump there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.engine.protocol import Engine, Problem, Retcode
from pynode.errors import SolveError
from pynode.problem.event import Events
from pynode.problem.event_log import EventLogs, Happened
from pynode.problem.joined import Joining
from pynode.problem.jump import jumped
from pynode.problem.schedule import Pieces, Schedule
from pynode.problem.side_by_side import SideBySide
from pynode.problem.state import State, as_tuple
from pynode.problem.stops import Stop
from pynode.problem.units import Args, Units
from pynode.problem.watch import Watch
from pynode.transforms import differentiated, example, numbers

__all__ = ["solve_course"]

Array = np.ndarray


def solve_course(
    again: Callable[..., Any],
    engine: Engine,
    problem: Problem,
    form: State,
    state: tuple[Tensor, ...],
    times: Tensor,
    args: tuple[Tensor, ...],
    stops: Sequence[Stop],
    events: Events | None,
    max_steps: int,
    max_events: int,
) -> tuple[Any, str]:
    """The solution over the whole span, and where it has failed at an event, which one.

    Args:
        again: solves a piece: takes the state tensors, the times, the conditioning tensors, and by name the batching,
            the greatest number of steps and the field.
        engine: what finds events.
        problem: the problem of the whole, on plain tensors.
        form: the form of the user's state.
        state: the state tensors at the first time.
        times: `(time,)`, or `(batch, time)` for independent samples.
        args: the conditioning tensors.
        stops: where it starts afresh, and at its ends, in increasing order.
        events: what is to happen.
        max_steps: for the whole span.
        max_events: the greatest number of events of one unit.

    Raises:
        InputError: an event function or an `affect` does not return what it should.
        SolveError: a search for an event failed where the solve did not.
        EngineUnavailable: there are derivatives to be taken that an event does not have.
    """
    course = _Course(again, engine, problem, form, state, times, args, stops, events, max_steps, max_events)
    while bool(course.alive.any()):
        course.give(np.flatnonzero(course.alive))
        course.go_on(np.flatnonzero(course.alive))
    return course.solution(), course.culprit


class _Course:
    """Where each unit of a solve is; see `solve_course`.

    Attributes:
        alive: which units go on.
        now: where each is, a number along the solve.
        culprit: the event at which the first of them failed.
    """

    def __init__(
        self,
        again: Callable[..., Any],
        engine: Engine,
        problem: Problem,
        form: State,
        state: tuple[Tensor, ...],
        times: Tensor,
        args: tuple[Tensor, ...],
        stops: Sequence[Stop],
        events: Events | None,
        max_steps: int,
        max_events: int,
    ) -> None:
        self.problem, self.form, self.args, self.max_events = problem, form, args, max_events
        units = self.units = Units(times.dim() == 1, len(state[0]))
        self.events = Events(()) if events is None else events
        doses = [(k, self.events.given[k].in_double(state[0], units.joint)) for k in self.events.preset]  # type: ignore[union-attr]
        t = times[None] if units.joint else times
        self.plan = Schedule(t, stops, doses, units)
        self.tracked = differentiated(times) or differentiated(self.plan.edges)
        self.alive = np.ones(units.count, bool)
        self.now, self.now_t = self.plan.first.copy(), t[:, 0]
        self.from_edge = np.full(units.count, -1)  # the column of the stop or dose that `now` is
        self.z = tuple(units.split(x) for x in state)
        self.happened: list[Happened] = []
        self.culprit = ""
        self.joining = Joining(units, t.shape[1], form.is_tuple, self.z)
        self.solves = SideBySide(again, engine, problem, args, units, self.plan, self.joining, max_steps)
        rows = np.arange(units.count)
        self.joining.report(np.zeros_like(rows), rows, self.z)
        self.watch: Watch | None = None
        if self.events.function is not None:
            on_sides = len(self.plan.stops) > 0
            self.watch = Watch(self.events.function, self.events, form, self.solves.field, units, on_sides)
            first = self._tensor(np.zeros(1, np.int64))
            self.watch.measure(self.now_t[:1], [x[:1] for x in self.z], units.own(args, first))

    def _tensor(self, rows: Array) -> Tensor:
        return torch.from_numpy(rows).to(self.now_t.device)

    def give(self, rows: Array) -> None:
        """Let what is due at once happen, by the schedule."""
        while len(rows):
            which, kind, number, column = self.plan.due(rows, self.now[rows])
            rows = rows[which]
            for k in sorted(set(kind.tolist()) - {-1}):
                some = kind == k
                self._dose(rows[some], k, number[some], column[some])

    def _dose(self, rows: Array, k: int, number: Array, column: Array) -> None:
        which = self._tensor(rows)
        t = self.plan.time_of(rows, column)
        z = tuple(x[which] for x in self.z)
        args = self.units.own(self.args, which)
        if (differentiated(t) or differentiated(self.now_t)) and bool((self.from_edge[rows] != column).any()):
            z = self._moved(rows, z, t)
        at = self.events.given[k]
        assert at.affect is not None
        index = self._tensor(number) if at.takes_index else None
        after = jumped(at.affect, self.form, self.units, t, z, args, index)
        if self.watch is not None:
            self.watch.jump(rows, t, z, after, self.solves.args(rows, self.now[rows], self.plan.last[rows]))
        self.happened.append(Happened(rows, np.full(len(rows), k), number, t, z, after))
        self._go_to(rows, self.now[rows], t, after)
        self.from_edge[rows] = column

    def _moved(self, rows: Array, z: tuple[Tensor, ...], t: Tensor) -> tuple[Tensor, ...]:
        """The states at times that are those where the units are, and move by themselves."""
        which = self._tensor(rows)
        own = self.solves.args(rows, self.now[rows], self.plan.last[rows])
        plain = Args(tuple(map(example, own.tensors)), own.has_rows)
        n = len(rows)
        more = [self.units.split(example(x))[:1].expand(n, *[-1] * x.dim()) for x in self.problem.z0[len(z) :]]
        with torch.no_grad():
            given = [*(example(x) for x in z), *more]
            rates = self.units.over(self.solves.field, example(t), given, plain, self.solves.field.key)
        delay = t - self.now_t[which]
        return tuple(
            x + rate * delay.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1)) for x, rate in zip(z, rates, strict=False)
        )

    def _go_to(self, rows: Array, now: Array, t: Tensor, z: Sequence[Tensor]) -> None:
        """Units are at these times, in these states."""
        self.now[rows] = now
        self.from_edge[rows] = -1
        if len(rows) == self.units.count:
            self.now_t, self.z = t, tuple(z)
            return
        which = (self._tensor(rows),)
        self.now_t = self.now_t.index_put(which, t)
        self.z = tuple(x.index_put(which, y) for x, y in zip(self.z, z, strict=True))

    def go_on(self, rows: Array) -> None:
        """Solve for units from where they are to what is next, and let that happen if it is an event."""
        which = self._tensor(rows)
        pieces = self.plan.pieces(rows, self.now[rows], self.now_t[which])
        args = self.solves.args(rows, self.now[rows], pieces.target)
        z = tuple(x[which] for x in self.z)
        at, index = np.full(len(rows), np.inf), np.full(len(rows), -1)
        failed = np.zeros(len(rows), bool)
        if self.watch is not None:
            full, sign = self.solves.with_cost(z), self.plan.sign[rows]
            met = self.watch.start(rows, self.now_t[which], full, args, self.now[rows], pieces.target, sign)
            if (met >= 0).any():
                some = met >= 0
                self._meet_at_start(rows[some], met[some], pieces.target[some])
                rows = rows[~some]
                if not len(rows):
                    return
                which = self._tensor(rows)
                pieces, z = pieces.of(~some), tuple(x[which] for x in self.z)
                args = self.solves.args(rows, self.now[rows], pieces.target)
            at, index, failed = self.solves.find(rows, z, args, pieces, self.watch.search, self.watch.signs.known[rows])
        self._solve(rows, z, args, pieces.to_events(at), at, index, failed)

    def _solve(
        self, rows: Array, z: Sequence[Tensor], args: Args, pieces: Pieces, at: Array, index: Array, failed: Array
    ) -> None:
        """Solve to what is next: an event of the value `index` at `at`, or what is due."""
        solution, states, cost = self.solves.solve(rows, z, args, pieces.t)
        n, here = len(rows), np.arange(len(rows))
        codes = (solution.retcode,) if self.units.joint else solution.stats.per_sample.retcode[:n]
        good = np.array([code is Retcode.SUCCESS for code in codes])
        if bool((failed & good).any()):
            raise SolveError(
                "the search for the event did not reach the last time, though the solve itself does: tighten rtol "
                "and atol, or raise max_steps",
                Retcode.FAILURE,
            )
        row, place = np.nonzero(pieces.column >= 0)
        self.joining.report(
            pieces.column[row, place], rows[row], [x[self._tensor(place), self._tensor(row)] for x in states]
        )
        ends = self._tensor(pieces.length - 1), self._tensor(here)
        last = tuple(x[ends] for x in states)
        t_last = pieces.t[ends[1], ends[0]]
        if not good.all():
            self._fail(rows, solution, codes, good)
        met = good & np.isfinite(at)
        on = good & ~met
        end = pieces.v[here, pieces.length - 1]
        if met.any():
            end[met] = self._meet_after(met, rows, states, last, cost, args, pieces, at, index)
        if self.problem.dense and good.all():
            self.joining.interpolate(
                rows, solution._interpolant, pieces.v[:, 0], pieces.v[here, pieces.length - 1], end
            )
        if not on.any():
            return
        some = self._tensor(np.flatnonzero(on))
        units, last, t_last = rows[on], tuple(x[some] for x in last), t_last[some]
        if cost is not None:
            self.joining.add_cost(units, cost[some])
        self._report_ends(on, rows, args, pieces, states, last)
        if self.watch is not None:
            self.watch.pass_on(units, t_last, last, _some(args, on, some))
        self._go_to(units, pieces.target[on], t_last, last)
        done = pieces.at_last[on]
        self.from_edge[units] = np.where(done, -1, pieces.edge[on])
        if done.any():
            of = self._tensor(np.flatnonzero(done))
            self.alive[units[done]] = False
            self.joining.end(units[done], t_last[of], [x[of] for x in last])

    def _report_ends(
        self, on: Array, rows: Array, args: Args, pieces: Pieces, states: Sequence[Tensor], last: Sequence[Tensor]
    ) -> None:
        """Report the states at the ends of pieces that are asked for."""
        asked = on & (pieces.asked >= 0)
        apart = asked & ~pieces.at_last if self.tracked else np.zeros_like(asked)
        same = asked & ~apart
        of = self._tensor(np.flatnonzero(same[on]))
        self.joining.report(pieces.asked[same], rows[same], [x[of] for x in last])
        if apart.any():
            self._report_apart(apart, pieces.asked[apart], rows, args, pieces, states)

    def _report_apart(
        self, apart: Array, column: Array, rows: Array, args: Args, pieces: Pieces, states: Sequence[Tensor]
    ) -> None:
        """Report the states at the ends of pieces, which follow the times asked for, and not what else is there."""
        some = self._tensor(np.flatnonzero(apart))
        before = self._tensor(pieces.length[apart] - 2)
        asked_t = self.plan.times[self._tensor(rows[apart]), self._tensor(column)]
        t = torch.stack([pieces.t[some, before], asked_t], 1)
        z = tuple(x[before, some] for x in states)
        _, again, _ = self.solves.solve(rows[apart], z, _some(args, apart, some), t)
        self.joining.report(column, rows[apart], [x[1] for x in again])

    def _fail(self, rows: Array, solution: Any, codes: Sequence[Retcode], good: Array) -> None:
        t_end, z_end = solution._failed_at
        t_end = numbers(t_end.reshape(-1).double())
        z_end = [self.units.split(x) for x in as_tuple(z_end)]
        for i in np.flatnonzero(~good).tolist():
            self.alive[rows[i]] = False
            self.joining.end(rows[i : i + 1], t_end[i : i + 1], [x[i : i + 1] for x in z_end], codes[i])

    def _meet_at_start(self, rows: Array, index: Array, target: Array) -> None:
        """Units have an event where they are."""
        which = self._tensor(rows)
        z = self.solves.with_cost(tuple(x[which] for x in self.z))
        args = self.solves.args(rows, self.now[rows], target)
        jumps = self._tensor(np.isin(self.now[rows] * self.plan.sign[rows], self.plan.stops))
        limit = torch.zeros_like(jumps, dtype=torch.float64)  # no time before the present
        self._meet(rows, self.now_t[which], z, args, index, limit, jumps)

    def _meet_after(
        self,
        met: Array,
        rows: Array,
        states: Sequence[Tensor],
        last: Sequence[Tensor],
        cost: Tensor | None,
        args: Args,
        pieces: Pieces,
        at: Array,
        index: Array,
    ) -> Array:
        """Units have an event at the end of their pieces; the times of these along the solve."""
        some = self._tensor(np.flatnonzero(met))
        units, at = rows[met], at[met]
        z = [x[some] for x in last]
        if cost is not None:
            z.append(cost[some])
        asked = self.plan.asked[units]
        with np.errstate(invalid="ignore"):
            ahead = np.where(asked > at[:, None], asked, np.inf).min(1)
            reported = asked == at[:, None]
        ahead = np.minimum(ahead, pieces.target[met])
        back = at - pieces.v[met, pieces.length[met] - 2]
        limit = np.minimum(1e-2 * back, 0.5 * (ahead - at))
        limit[reported.any(1)] = 0
        t = self._tensor(at * self.plan.sign[units])
        found = _some(args, met, some)
        self._meet(units, t, z, found, index[met], self._tensor(limit), torch.zeros_like(t, dtype=torch.bool))
        if reported.any():  # at a time of its own, which does not move as the event does
            here = met.copy()
            here[met] = reported.any(1)
            column = reported.argmax(1)[reported.any(1)]
            if self.tracked:
                self._report_apart(here, column, rows, args, pieces, states)
            else:
                of = self._tensor(np.flatnonzero(here))
                self.joining.report(column, rows[here], [x[of] for x in last])
        return self.now[units]

    def _meet(
        self,
        rows: Array,
        t: Tensor,
        z: Sequence[Tensor],
        args: Args,
        index: Array,
        limit: Tensor,
        jumps: Tensor,
    ) -> None:
        """Let the events of these values happen."""
        assert self.watch is not None
        events, m = self.events, len(self.z)
        arrival = self.watch.values.arrive(t, z, args, self._tensor(index), limit, jumps)
        before = arrival.z[:m]
        if len(arrival.z) > m:
            self.joining.add_cost(rows, arrival.z[m])
        now = numbers(arrival.t) * self.plan.sign[rows]
        source, entry = np.array(events.source)[index], np.array(events.entry)[index]
        after = self._after(source, entry, arrival.t, before, args)
        self.happened.append(Happened(rows, source, entry, arrival.t, before, after))
        self._go_to(rows, now, arrival.t, after)
        self.watch.jump(rows, arrival.t, before, after, self.solves.args(rows, now, self.plan.last[rows]))
        ends = self.watch.met(rows, index, arrival)
        if ends.any():
            of = self._tensor(np.flatnonzero(ends))
            number = source if len(events.given) > 1 else entry
            self.alive[rows[ends]] = False
            self.joining.end_at_event(rows[ends], arrival.t[of], [x[of] for x in before], number[ends])
        done = (now >= self.plan.last[rows]) & ~ends
        if done.any():
            of = self._tensor(np.flatnonzero(done))
            self.alive[rows[done]] = False
            self.joining.end(rows[done], arrival.t[of], [x[of] for x in before])
        stuck = self.watch.stuck(rows, index, now)
        many = self.watch.count[rows].sum(1) >= self.max_events
        for i in np.flatnonzero((stuck | many) & ~ends & ~done).tolist():
            self.culprit = self.culprit or events.named(int(index[i]))
            self.alive[rows[i]] = False
            code = Retcode.ZENO if stuck[i] else Retcode.MAX_EVENTS
            self.joining.end(rows[i : i + 1], arrival.t[i : i + 1], [x[i : i + 1] for x in before], code)

    def _after(
        self, source: Array, entry: Array, t: Tensor, before: tuple[Tensor, ...], args: Args
    ) -> tuple[Tensor, ...]:
        """The states after events of these numbers."""
        after = before
        own = Args(args.tensors[: len(self.args)], args.has_rows[: len(self.args)])
        for k in np.unique(source):
            event = self.events.given[k]
            if event.affect is None:
                continue
            some = source == k
            which = self._tensor(np.flatnonzero(some))
            z, index = tuple(x[which] for x in before), self._tensor(entry[some]) if event.takes_index else None
            found = jumped(event.affect, self.form, self.units, t[which], z, _some(own, some, which), index)
            after = found if some.all() else tuple(x.index_put((which,), y) for x, y in zip(after, found, strict=True))
        return after

    def solution(self) -> Any:
        """The solution of all pieces."""
        found = self.joining.solution(self.solves.last, self.watch is not None, self.plan.sign)
        like = [self.units.join(x) for x in self.z]
        logs = EventLogs(self.happened, self.units.count, self.form, like, self.units.joint)
        return dataclasses.replace(found, _logs=logs if self.events.given else None)


def _some(args: Args, among: Array, which: Tensor) -> Args:
    """The conditioning tensors of some of the units that they are of."""
    if among.all():
        return args
    return Args(tuple(a[which] if has else a for a, has in zip(*args, strict=True)), args.has_rows)
