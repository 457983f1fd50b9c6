"""When something is due in the course of a solve: the times asked for, stops and doses, and the pieces in between.

Times are counted along the solve, as numbers that increase whichever its direction, but for tensors of times, which are
the user's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from pynode.errors import EngineUnavailable
from pynode.problem.stops import Stop
from pynode.problem.units import Units
from pynode.transforms import every_number, is_followed, is_mapped, numbers

__all__ = ["Pieces", "Schedule"]

Array = np.ndarray
_STOP = -1  # what is due, else the number of the `At`


@dataclass
class Pieces:
    """The next piece of each of some units: from where it is to what is due next.

    Attributes:
        t: `(units, time)`, the times to solve for: where it is, those asked for within, what is due; NaN behind.
        v: the same as numbers along the solve.
        column: `(units, time)`, of the times within which they are of those asked for; -1 for the others.
        length: how many times there are of each.
        target: what is due next, a number along the solve.
        at_last: whether that is the last time.
        asked: which of the times asked for is there; -1: none.
        edge: which of the stops and doses is there, unless it is the last time.
        sign: of the directions of time.
    """

    t: Tensor
    v: Array
    column: Array
    length: Array
    target: Array
    at_last: Array
    asked: Array
    edge: Array
    sign: Array

    def of(self, which: Array) -> Pieces:
        """Those of some units."""
        arrays = {f.name: getattr(self, f.name)[which] for f in fields(self) if f.name != "t"}
        return Pieces(self.t[torch.from_numpy(which).to(self.t.device)], **arrays)

    def to_events(self, at: Array) -> Pieces:
        """These, cut at the times of events, numbers along the solve; infinity: none."""
        met = np.isfinite(at)
        if not met.any():
            return self
        with np.errstate(invalid="ignore"):
            before = self.v < at[:, None]
        place = np.arange(self.v.shape[1])[None]
        length = np.where(met, before.sum(1) + 1, self.length)
        is_end = met[:, None] & (place == length[:, None] - 1)
        inside = place < length[:, None]
        width = int(length.max())
        v = np.where(is_end, at[:, None], np.where(inside, self.v, np.nan))[:, :width]
        column = np.where(inside & ~is_end, self.column, -1)[:, :width]
        sign = self.sign[:, None]
        whole, ends, within = (
            torch.from_numpy(x[:, :width]).to(self.t.device)
            for x in (np.broadcast_to(at[:, None] * sign, is_end.shape).copy(), is_end, inside)
        )
        t = torch.where(ends, whole, torch.where(within, self.t[:, :width], torch.nan))
        return replace(self, t=t, v=v, column=column, length=length)


class Schedule:
    """What is due when, for each unit.

    Args:
        times: `(units, time)`, those asked for, in double.
        stops: times at which all start afresh.
        doses: the number of each `At` and its times, `(n,)` or `(units, n)`.
        units: the units.

    Raises:
        EngineUnavailable: `torch.vmap` maps over times that come in several orders.

    Attributes:
        sign: `(units,)`, 1 forwards in time, -1 backwards.
        asked: `(units, time)`, the times asked for; NaN behind.
        first: `(units,)`, the first.
        last: `(units,)`, the last.
        stops: the stops, as the user has them, in increasing order.
    """

    def __init__(self, times: Tensor, stops: Sequence[Stop], doses: Sequence[tuple[int, Tensor]], units: Units) -> None:
        count = units.count
        self.times = times
        t: Array = numbers(times)
        rows = np.arange(count)
        self.lengths = (~np.isnan(t)).sum(1)
        self.sign = np.where(t[rows, self.lengths - 1] > t[:, 0], 1.0, -1.0)
        self.asked = t * self.sign[:, None]
        self.first, self.last = self.asked[:, 0], self.asked[rows, self.lengths - 1]
        self.stops = np.array(sorted(stop.value for stop in stops))
        columns = [stop.t.reshape(1, 1).expand(count, 1) for stop in stops]
        kinds, ordinals = [np.full(len(stops), _STOP)], [np.zeros(len(stops), np.int64)]
        for dose, x in doses:
            columns.append(x.expand(count, -1) if x.dim() == 1 else x)
            kinds.append(np.full(x.shape[-1], dose))
            ordinals.append(np.arange(x.shape[-1]))
        self.edges = torch.cat(columns, 1) if columns else times[:, :0]
        if is_mapped(times) or is_mapped(self.edges):
            _check_one_order(torch.cat([times, self.edges], 1))
        kind, ordinal = np.concatenate(kinds), np.concatenate(ordinals)
        v = numbers(self.edges) * self.sign[:, None]
        with np.errstate(invalid="ignore"):
            here = (np.where(kind == _STOP, v > self.first[:, None], v >= self.first[:, None])) & (
                v < self.last[:, None]
            )
        v = np.where(here, v, np.inf)
        # A last column of infinity, for units that have nothing due any more.
        self._order = np.argsort(np.concatenate([v, np.full((count, 1), np.inf)], 1), axis=1, kind="stable")
        self._due = np.take_along_axis(np.concatenate([v, np.full((count, 1), np.inf)], 1), self._order, 1)
        self._kind, self._number = np.append(kind, _STOP), np.append(ordinal, 0)
        self._next = np.zeros(count, np.int64)
        self.tracked = is_followed(times) or is_followed(self.edges)

    def due(self, rows: Array, now: Array) -> tuple[Array, Array, Array, Array]:
        """What is due at once: which of the units, the number of the `At` or -1, the number of its time, the column."""
        at = self._next[rows]
        which = np.flatnonzero(self._due[rows, at] <= now)
        column = self._order[rows[which], at[which]]
        self._next[rows[which]] += 1
        return which, self._kind[column], self._number[column], column

    def time_of(self, rows: Array, column: Array) -> Tensor:
        """The times of what is due, `(units,)`."""
        device = self.edges.device
        return self.edges[torch.from_numpy(rows).to(device), torch.from_numpy(column).to(device)]

    def pieces(self, rows: Array, now: Array, now_t: Tensor) -> Pieces:
        """The next pieces of units that are at these times."""
        n, T = len(rows), self.asked.shape[1]
        here = np.arange(n)
        due, at = self._due[rows, self._next[rows]], self._order[rows, self._next[rows]]
        last, asked = self.last[rows], self.asked[rows]
        at_last = due >= last
        target = np.where(at_last, last, due)
        with np.errstate(invalid="ignore"):
            start = (asked <= now[:, None]).sum(1)
            stop = (asked < target[:, None]).sum(1)
            met = asked == target[:, None]
        width = int((stop - start).max()) + 2
        inner = np.arange(width)[None] - 1 + start[:, None]  # the column of each time but the first and the last
        within = (inner >= start[:, None]) & (inner < stop[:, None])
        column = np.where(within, inner, -1)
        length = stop - start + 2
        index = np.where(within, inner + 1, -1)
        index[:, 0] = 0
        index[here, length - 1] = np.where(at_last, self.lengths[rows], 1 + T + at)
        which = torch.from_numpy(rows).to(now_t.device)
        pool = torch.cat([now_t[:, None], self.times[which], self.edges[which]], 1)
        place = torch.from_numpy(index).to(now_t.device)
        t = torch.where(place < 0, torch.nan, pool.gather(1, place.clamp(min=0)))
        v = numbers(t) * self.sign[rows][:, None]
        at_asked = np.where(met.any(1), met.argmax(1), -1)
        return Pieces(t, v, column, length, target, at_last, at_asked, at, self.sign[rows])


def _check_one_order(times: Tensor) -> None:
    """Refuse times, `(units, n)`, those asked for first, that `torch.vmap` maps over and that have no one order."""
    first, *others = every_number(times)
    ranks = [np.unique(row, return_inverse=True)[1] for row in first]
    for other in others:
        for row, rank in zip(other, ranks, strict=True):
            if not np.array_equal(np.unique(row, return_inverse=True)[1], rank):
                raise EngineUnavailable(
                    "torch.vmap over the times of doses, or of a solve that has doses, takes those that come in one "
                    "order in all solves, between one another and between the times asked for, got other orders: call "
                    "solve once for each, or make a batch of them, with times (batch, n) in At"
                )
