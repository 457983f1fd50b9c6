"""The solves that a round of a course takes: several units side by side, each to its next event or to what is due."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.engine.protocol import Crossing, Engine, EventSearch, Problem
from pynode.field import Field
from pynode.field._piece import PieceField
from pynode.problem.crossing import ROUNDINGS
from pynode.problem.joined import Joining
from pynode.problem.pieces import sides
from pynode.problem.schedule import Pieces, Schedule
from pynode.problem.state import as_tuple
from pynode.problem.units import Args, Units
from pynode.transforms import example, numbers

__all__ = ["SideBySide"]

Array = np.ndarray


class SideBySide:
    """Solves units of a problem side by side.

    Args:
        again: solves a piece, see `solve_course`.
        engine: what finds events.
        problem: the problem of the whole, on plain tensors.
        args: the conditioning tensors.
        units: the units.
        plan: what is due when.
        joining: takes what the solves cost.
        max_steps: for the whole span.

    Attributes:
        field: the field that is solved.
        last: the solution of the latest piece.
    """

    def __init__(
        self,
        again: Callable[..., Any],
        engine: Engine,
        problem: Problem,
        args: tuple[Tensor, ...],
        units: Units,
        plan: Schedule,
        joining: Joining,
        max_steps: int,
    ) -> None:
        self._again, self.engine, self.problem, self._args = again, engine, problem, args
        self.units, self.plan, self.joining, self.max_steps = units, plan, joining, max_steps
        self.field: Field = PieceField(problem.field) if len(plan.stops) else problem.field
        self.last: Any = None
        self._used = np.zeros(units.count, np.int64)  # steps

    def args(self, rows: Array, low: Array, high: Array) -> Args:
        """The conditioning tensors of units whose pieces have these ends, numbers along the solve."""
        own = self.units.own(self._args, self._tensor(rows))
        if not len(self.plan.stops):
            return own
        sign = self.plan.sign[rows]
        ends = np.stack([low * sign, high * sign])
        like = self.problem.t.new_empty((), dtype=self.problem.field.time_dtype)
        a, b = sides(self.plan.stops, ends.min(0), ends.max(0), like)
        joint = self.units.joint
        return Args((*own.tensors, *((a[0], b[0]) if joint else (a, b))), (*own.has_rows, not joint, not joint))

    def with_cost(self, z: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """States with the running cost of a piece that begins there."""
        if len(self.problem.z0) == len(z):
            return tuple(z)
        return (*z, z[0].detach().new_zeros(z[0].shape[:2]))

    def find(
        self, rows: Array, z: Sequence[Tensor], args: Args, pieces: Pieces, search: EventSearch, known: Array
    ) -> tuple[Array, Array, Array]:
        """The next event of each unit: its time along the solve, infinite if there is none, its value, and failures.

        Args:
            rows: the units.
            z: their states.
            args: their conditioning tensors.
            pieces: where they are to be solved.
            search: what is looked for.
            known: `(units, values)`, the signs.
        """
        now = pieces.v[:, 0]
        signs = [tuple(x) for x in known.tolist()]
        joint = self.units.joint
        more = self._padding(len(rows))
        states = [
            self.units.join(example(x))[more] if not joint else self.units.join(example(x)) for x in self.with_cost(z)
        ]
        own = [example(a)[more] if has else example(a) for a, has in zip(args.tensors, args.has_rows, strict=True)]
        t = example(pieces.t)
        problem = dataclasses.replace(
            self.problem, field=self.field, z0=tuple(states), t=t[0] if joint else t[more], args=tuple(own),
            max_steps=self._steps_left(rows),
        )  # fmt: skip
        found: Sequence[Crossing]
        if joint:
            found = [self.engine.find_event(problem, dataclasses.replace(search, signs=signs[0]))]
        else:
            found = self.engine.find_event_each(problem, search, [signs[i] for i in more.tolist()])[: len(rows)]
        sign = self.plan.sign[rows]
        at = np.array([np.inf if x.t is None else x.t * s for x, s in zip(found, sign, strict=True)])
        with np.errstate(under="ignore"):  # as beside zero
            at = np.where(at > now, at, np.nextafter(now, np.inf))
            at = np.where(np.isinf(at), at, np.minimum(at, pieces.target))
            # What is as good as at a time that is asked for, or due, is there: no piece is left of a few roundings.
            near = np.nanargmin(np.abs(pieces.v - np.where(np.isinf(at), 0, at)[:, None]), 1)
            close = pieces.v[np.arange(len(rows)), near]
            snaps = (close > now) & (np.abs(close - at) <= ROUNDINGS * np.spacing(np.abs(close)))
        at = np.where(snaps, close, at)
        self.joining.found_by[rows] += [x.nfe for x in found]
        return at, np.array([x.index for x in found]), np.array([x.failed for x in found])

    def solve(
        self, rows: Array, z: Sequence[Tensor], args: Args, t: Tensor
    ) -> tuple[Any, tuple[Tensor, ...], Tensor | None]:
        """Solve for units: the solution, its states, `(time, units, …)`, and the running cost."""
        units, n = self.units, len(rows)
        states = tuple(units.join(x) for x in z)
        own = args.tensors
        batching, more = "joint", self._padding(n)
        if units.joint:
            t = t[0]
        else:
            batching = "independent"
            if len(more) > n:
                states, t = tuple(x[more] for x in states), t[more]
                own = tuple(a[more] if has else a for a, has in zip(own, args.has_rows, strict=True))
        solution = self._again(states, t, own, batching=batching, max_steps=self._steps_left(rows), on_field=self.field)
        self.last = solution
        self.joining.count(rows, solution.stats)
        steps = solution.stats if units.joint else solution.stats.per_sample
        for x in (steps.n_accepted, steps.n_rejected):
            if x is not None:
                self._used[rows] += x if units.joint else numbers(x)[:n]
        part = solution._interpolant
        if part is not None and not units.joint and len(more) > n:
            own_part = functools.partial(_of_first, part, more, n)
            solution = dataclasses.replace(solution, _interpolant=own_part)
        found = tuple(units.split(x, 1)[:, :n] for x in as_tuple(solution.z))
        cost = solution.running_cost
        return solution, found, None if cost is None else units.split(cost)[:n]

    def _padding(self, n: int) -> Tensor:
        """Which of `n` units to solve for: all, and the first again as often as a shared tensor has as many rows."""
        batch = self.units.batch
        shared = {a.shape[0] for a in self._args if a.dim() and a.shape[0] != batch} if n < batch else set()
        rows = list(range(n))
        while len(rows) in shared:
            rows.append(0)
        return self._tensor(np.array(rows))

    def _steps_left(self, rows: Array) -> int:
        return max(1, self.max_steps - int(self._used[rows].min()))  # no unit less than it may take

    def _tensor(self, rows: Array) -> Tensor:
        return torch.from_numpy(rows).to(self.problem.t.device)


def _of_first(part: Callable[[Tensor], tuple[Tensor, ...]], more: Tensor, n: int, times: Tensor) -> tuple[Tensor, ...]:
    """The interpolant of the first `n` of units that some others were added to, at times `(n, …)`."""
    return tuple(x[:, :n] for x in part(times[more.to(times.device)]))
