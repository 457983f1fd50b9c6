"""What the rounds of a solve make together: one solution."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.engine.protocol import Retcode, Stats
from pynode.problem.counts import Joined, JoinedEach
from pynode.problem.units import Units
from pynode.transforms import numbers

__all__ = ["Joining"]

Array = np.ndarray


class Joining:
    """Takes what each round gives.

    Args:
        units: the units of the solve.
        times: how many times are asked for, at most.
        is_tuple: whether the state that is solved is a tuple.

    Attributes:
        retcode: how each unit ended.
        t_end: the time that each reached, as the user has it.
        z_end: the state there, without a gradient.
        found_by: evaluations of the field, of each unit, in searches for events.
    """

    def __init__(self, units: Units, times: int, is_tuple: bool, z0: Sequence[Tensor]) -> None:
        self.units, self.times, self.is_tuple = units, times, is_tuple
        self.retcode = [Retcode.SUCCESS] * units.count
        self.t_end = np.full(units.count, np.nan)
        self.z_end = [x.detach() for x in z0]
        self.found_by = np.zeros(units.count, np.int64)
        self._like = z0
        self._stats: list[tuple[Array, Stats]] = []
        self._rows: list[tuple[Array, Array, tuple[Tensor, ...]]] = []
        self._costs: list[tuple[Array, Tensor]] = []
        self._interpolants: list[tuple[Array, Any, Array, Array, Array]] = []
        self._events: list[tuple[Array, Tensor, tuple[Tensor, ...], Array]] = []

    def count(self, rows: Array, stats: Stats) -> None:
        """A solve of these units has cost so much."""
        self._stats.append((rows, stats))

    def report(self, columns: Array, rows: Array, z: Sequence[Tensor]) -> None:
        """Units have these states, `(n, …)`, at the times asked for in these columns."""
        if len(rows):
            self._rows.append((columns, rows, tuple(z)))

    def add_cost(self, rows: Array, cost: Tensor) -> None:
        """The running cost of a piece, `(units, batch of a unit)`."""
        self._costs.append((rows, cost))

    def interpolate(self, rows: Array, interpolant: Any, start: Array, solved: Array, end: Array) -> None:
        """Units are interpolated so between two times along the solve.

        A piece is solved to `solved` and ends at `end`: they differ by what makes the time of an event exact.
        """
        self._interpolants.append((rows, interpolant, start, solved, end))

    def end(self, rows: Array, t: Tensor | Array, z: Sequence[Tensor], retcode: Retcode = Retcode.SUCCESS) -> None:
        """Units have come to their end."""
        self.t_end[rows] = numbers(t) if isinstance(t, Tensor) else t
        for b in rows:
            self.retcode[b] = retcode
        which = torch.from_numpy(rows)
        pairs = zip(self.z_end, z, strict=False)
        self.z_end = [whole.index_put((which.to(whole.device),), x.detach()) for whole, x in pairs]

    def end_at_event(self, rows: Array, t: Tensor, z: Sequence[Tensor], index: Array) -> None:
        """Units have come to an event that ends the solve."""
        self._events.append((rows, t, tuple(z), index))
        self.end(rows, t, z)

    def solution(self, last: Any, has_events: bool, sign: Array) -> Any:
        """The solution over the whole span.

        Args:
            last: the solution of a piece.
            has_events: whether there is anything that may end the solve.
            sign: `(units,)`, the directions of time.
        """
        units = self.units
        z = tuple(units.join(x, 1) for x in self._states())
        failures = [code for code in self.retcode if code is not Retcode.SUCCESS]
        failed_at = None
        if failures:
            reached = torch.from_numpy(self.t_end).to(z[0].device)
            failed_at = (reached[0] if units.joint else reached), tuple(units.join(x) for x in self.z_end)
        found = self._event() if has_events else {}
        return dataclasses.replace(
            last,
            z=z if self.is_tuple else z[0],
            running_cost=self._cost(),
            stats=self._joined(),
            retcode=failures[0] if failures else Retcode.SUCCESS,
            _failed_at=failed_at,
            _interpolant=None if failures else self._interpolant(sign),
            **found,
        )

    def _states(self) -> list[Tensor]:
        found = []
        columns, rows = (np.concatenate([part[i] for part in self._rows]) for i in (0, 1))
        place = columns * self.units.count + rows
        order = np.argsort(place, kind="stable")
        whole = self.times * self.units.count
        in_order = len(place) == whole and bool((place[order] == np.arange(whole)).all())
        for i, like in enumerate(self._like):
            flat = torch.cat([part[2][i] for part in self._rows])
            where = torch.from_numpy(order if in_order else place).to(flat.device)
            if in_order:
                flat = flat if bool((order == np.arange(whole)).all()) else flat[where]
            else:
                flat = flat.new_full((whole, *flat.shape[1:]), torch.nan).index_put((where,), flat)
            found.append(flat.reshape(self.times, self.units.count, *like.shape[1:]))
        return found

    def _cost(self) -> Tensor | None:
        if not self._costs:
            return None
        first = self._costs[0][1]
        total = first.new_zeros(self.units.count, *first.shape[1:])
        for rows, cost in self._costs:
            if len(rows) == self.units.count:
                total = total + cost
            else:
                total = total.index_add(0, torch.from_numpy(rows).to(cost.device), cost)
        return self.units.join(total)

    def _joined(self) -> Stats:
        parts = [stats for _, stats in self._stats]
        if self.units.joint:
            stats = parts[0] if len(parts) == 1 else Joined(parts)
            stats.nfe += int(self.found_by.sum())
            return stats
        stats = Joined(parts)
        counts = [(torch.from_numpy(rows), x.per_sample) for rows, x in self._stats if x.per_sample is not None]
        t_end = torch.from_numpy(self.t_end.copy())
        stats.per_sample = JoinedEach(self.units.count, counts, tuple(self.retcode), t_end)
        stats.per_sample.nfe += torch.from_numpy(self.found_by)
        stats.nfe = int(stats.per_sample.nfe.sum())
        return stats

    def _event(self) -> dict[str, Any]:
        """The event that ended each unit, by the names in `Solution`."""
        units = self.units
        if units.joint:
            if not self._events:
                return {}
            _, t, z, index = self._events[0]
            end = tuple(units.join(x) for x in z)
            return {"event_t": t[0], "event_z": end if self.is_tuple else end[0], "event_index": int(index[0])}
        index = np.full(units.count, -1)
        t = torch.full((units.count,), torch.nan, dtype=torch.float64, device=self._like[0].device)
        ends = [torch.full_like(x, torch.nan).detach() for x in self._like]
        if self._events:
            rows = np.concatenate([part[0] for part in self._events])
            index[rows] = np.concatenate([part[3] for part in self._events])
            where = (torch.from_numpy(rows).to(t.device),)
            t = t.index_put(where, torch.cat([part[1] for part in self._events]))
            ends = [x.index_put(where, torch.cat([p[2][i] for p in self._events])) for i, x in enumerate(ends)]
        end = tuple(units.join(x) for x in ends)
        return {
            "event_t": t,
            "event_z": end if self.is_tuple else end[0],
            "event_index": torch.from_numpy(index),
        }

    def _interpolant(self, sign: Array) -> Callable[[Tensor], tuple[Tensor, ...]] | None:
        """Each unit's, of its pieces: at a time where two meet, that of the first."""
        parts, units = self._interpolants, self.units
        if any(part is None for _, part, _, _, _ in parts):
            return None
        firsts = np.full(units.count, np.inf)
        for rows, _, start, _, _ in parts:
            firsts[rows] = np.minimum(firsts[rows], start)

        def interpolate(times: Tensor) -> tuple[Tensor, ...]:
            """At `(n,)` times, or `(units, n)`."""
            asked = numbers(times)
            along = np.broadcast_to(asked, (units.count, asked.shape[-1])) * sign[:, None]
            found: list[Tensor] = []
            for rows, part, start, solved, end in parts:
                own = along[rows]
                first = (start <= firsts[rows])[:, None] & (own <= firsts[rows][:, None])
                here = ((own > start[:, None]) | first) & (own <= end[:, None])
                if not here.any():
                    continue
                clipped = np.clip(own, start[:, None], solved[:, None]) * sign[rows][:, None]
                at = torch.from_numpy(clipped).to(times)
                z = [units.split(x, 1) for x in part(at[0] if units.joint else at)]
                if not found:
                    found = [x.new_full((asked.shape[-1], units.count, *x.shape[2:]), torch.nan) for x in z]
                which, column = np.nonzero(here)
                to = torch.from_numpy(column), torch.from_numpy(rows[which])
                for whole, x in zip(found, z, strict=True):
                    whole[tuple(i.to(x.device) for i in to)] = x[torch.from_numpy(column), torch.from_numpy(which)]
            return tuple(units.join(x, 1) for x in found)

        return interpolate
