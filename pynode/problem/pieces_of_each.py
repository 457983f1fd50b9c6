"""Independent samples from stop to stop, each within its own span; see `pieces`."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.engine.protocol import Retcode, Stats
from pynode.errors import InputError
from pynode.field._transforms import differentiated, example
from pynode.problem.counts import Joined, JoinedEach
from pynode.problem.independent import at_last_times, last_times
from pynode.problem.pieces import Piece, interpolated
from pynode.problem.state import as_tuple
from pynode.problem.stops import Stop

__all__ = ["solve_pieces_of_each"]


Solve = Callable[[Tensor, tuple[Tensor, ...], Tensor, Piece, int], Any]


def solve_pieces_of_each(
    solve: Solve, state: tuple[Tensor, ...], times: Tensor, stops: Sequence[Stop], like: Tensor, max_steps: int
) -> Any:
    """The solution over the whole span of each sample.

    Args:
        solve: solves a piece: takes the numbers of the samples, their states, their times, the piece and the greatest
            number of steps. It may return the states of more samples than it is given.
        state: the state tensors at the first times.
        times: `(batch, time)`, in double.
        stops: in increasing order.
        like: a tensor of the dtype in which the field gets the time.
        max_steps: for the whole span.

    Raises:
        InputError: some samples run forwards and others backwards.
    """
    t = example(times)
    batch, count = t.shape
    sign = 1 if last_times(t)[0] > t[0, 0] else -1
    t = t * sign
    first, last = t[:, 0], (sign * last_times(t * sign))
    if not bool((last > first).all()):
        raise InputError(
            "where the field jumps, or tstops are given, all rows of t must run in one direction: solve those that "
            "increase and those that decrease one after the other"
        )
    moved = differentiated(times)
    edges: list[Stop | None] = [None, *stops[::sign], None]
    alive = torch.ones(batch, dtype=torch.bool, device=t.device)
    retcodes = [Retcode.SUCCESS] * batch
    t_end, z_end = last_times(example(times)).clone(), [x.detach().clone() for x in state]
    used = torch.zeros(batch, dtype=torch.int64, device=t.device)  # steps
    parts: list[tuple[Tensor, Stats]] = []
    interpolants: list[Any] = []
    inner: list[float] = []
    states: list[Tensor] = []
    cost: Tensor | None = None
    solution: Any = None
    for a, b in itertools.pairwise(edges):
        low, high = -math.inf if a is None else sign * a.value, math.inf if b is None else sign * b.value
        rows = (alive & (first < high) & (last > low)).nonzero()[:, 0]
        if not len(rows):
            continue
        own, begins, ends = t[rows], first[rows] < low, last[rows] > high
        at_end = (own == high) & ends[:, None]
        within = (own >= low) & (own <= high) & ~((own == low) & begins[:, None]) & ~at_end
        columns = [x.t.expand(len(rows), 1) if x is not None else times.new_zeros(len(rows), 1) for x in (a, b)]
        whole = torch.cat([columns[0], times[rows], columns[1]], 1)
        taken = torch.cat([begins[:, None], within, ends[:, None]], 1)
        lengths = taken.sum(1)
        order = torch.argsort((~taken).long(), dim=1, stable=True)[:, : int(lengths.max())]
        given = torch.arange(order.shape[1], device=t.device) < lengths[:, None]
        piece_times = torch.where(given, whole.gather(1, order), math.nan)
        least, most = (None if x is None else x.value for x in ((a, b) if sign > 0 else (b, a)))
        piece = Piece.between(least, most, like)
        steps = max(1, max_steps - int(used[rows].min()))  # no sample less than it may take
        solution = solve(rows, tuple(x[rows] for x in state), piece_times, piece, steps)
        each = solution.stats.per_sample
        parts.append((rows, solution.stats))
        for n in (each.n_accepted, each.n_rejected):
            if n is not None:
                used.index_add_(0, rows, n[: len(rows)].to(used))
        z = tuple(x[:, : len(rows)] for x in as_tuple(solution.z))
        state = tuple(
            x.index_put((rows,), at_last_times(y, example(piece_times))) for x, y in zip(state, z, strict=True)
        )
        place = torch.where(at_end, lengths[:, None] - 1, taken.long().cumsum(1)[:, 1:-1] - 1)
        of, when = (within | at_end).nonzero(as_tuple=True)
        if bool(at_end.any()) and b is not None and (moved or differentiated(b.t)):
            # What is reported follows the time asked for, what comes after follows the stop.
            shared = at_end.any(1).nonzero()[:, 0]
            ends_at = lengths[shared] - 1
            before = piece_times[shared].gather(1, ends_at[:, None] - 1)
            asked = times[rows[shared]].gather(1, at_end[shared].long().argmax(1)[:, None])
            state_before = tuple(x[ends_at - 1, shared] for x in z)
            again = solve(rows[shared], state_before, torch.cat([before, asked], 1), piece, max_steps)
            parts.append((rows[shared], again.stats))
            z = tuple(
                x.index_put((ends_at, shared), y[1, : len(shared)]) for x, y in zip(z, as_tuple(again.z), strict=True)
            )
        if not states:
            states = [x.new_full((count, batch, *x.shape[2:]), math.nan) for x in z]
        states = [y.index_put((when, rows[of]), x[place[of, when], of]) for y, x in zip(states, z, strict=True)]
        if solution.running_cost is not None:
            cost = solution.running_cost.new_zeros(batch) if cost is None else cost
            cost = cost.index_add(0, rows, solution.running_cost[: len(rows)])
        failed = [k for k, code in enumerate(each.retcode[: len(rows)]) if code is not Retcode.SUCCESS]
        for k in failed:
            n = int(rows[k])
            retcodes[n], alive[n], t_end[n] = each.retcode[k], False, float(solution._failed_at[0][k])
            for x, y in zip(z_end, as_tuple(solution._failed_at[1]), strict=False):
                x[n] = y[k]
        if len(rows) == batch:
            if interpolants:
                inner.append(low)
            interpolants.append(solution._interpolant)
    stats = Joined([x for _, x in parts])
    counts = [(rows, x.per_sample) for rows, x in parts if x.per_sample is not None]
    stats.per_sample = JoinedEach(batch, counts, tuple(retcodes), t_end.cpu())
    failures = [code for code in retcodes if code is not Retcode.SUCCESS]
    reached = tuple(torch.where(_beside_features(alive, x), y.detach(), x) for x, y in zip(z_end, state, strict=True))
    return dataclasses.replace(
        solution,
        z=tuple(states) if isinstance(solution.z, tuple) else states[0],
        running_cost=cost,
        stats=stats,
        retcode=failures[0] if failures else Retcode.SUCCESS,
        _failed_at=(t_end, reached) if failures else None,
        _interpolant=None if failures or None in interpolants else interpolated(interpolants, inner, sign),
    )


def _beside_features(rows: Tensor, x: Tensor) -> Tensor:
    return rows.reshape(-1, *[1] * (x.dim() - 1))
