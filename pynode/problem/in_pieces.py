"""A solve that starts afresh at stops: of one span, of samples with spans of their own, to an event of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.engine.each import is_per_sample
from pynode.engine.protocol import Retcode
from pynode.field._transforms import example
from pynode.problem.counts import Joined, JoinedEach
from pynode.problem.independent import side_by_side
from pynode.problem.pieces import Piece, solve_pieces
from pynode.problem.pieces_of_each import solve_pieces_of_each
from pynode.problem.state import as_tuple
from pynode.problem.stops import Stop

__all__ = ["solve_in_pieces"]


def solve_in_pieces(
    again: Callable[..., Any],
    state: tuple[Tensor, ...],
    times: Tensor,
    args: tuple[Tensor, ...],
    stops: Sequence[Stop],
    like: Tensor,
    event: Callable[..., Any] | None,
    max_steps: int,
) -> Any:
    """The solution over the whole span.

    Args:
        again: solves a part: takes the state tensors, the times, the conditioning tensors, and by name the rest.
        state: the state tensors at the first time.
        times: `(time,)`, or `(batch, time)` for independent samples.
        args: the conditioning tensors.
        stops: where it starts afresh, in increasing order.
        like: a tensor of the dtype in which the field gets the time.
        event: the event function.
        max_steps: for the whole span.
    """
    if times.dim() == 1:

        def joint(z: Any, t: Tensor, piece: Piece, steps: int, to_event: bool) -> Any:
            function = event if to_event else None
            return again(z, t, args, event=function, batching="joint", max_steps=steps, stops=(), piece=piece)

        return solve_pieces(joint, state, times, stops, like, max_steps)
    batch = len(times)

    def of(rows: Any) -> tuple[Tensor, ...]:
        return tuple(a[rows] if is_per_sample(a, batch) else a for a in args)

    if event is not None:
        samples = []
        for b in range(batch):
            own = slice(b, b + 1)
            t = times[b][~example(times)[b].isnan()]
            low, high = (float(x) for x in (example(t).min(), example(t).max()))
            within = [stop for stop in stops if low <= stop.value <= high]
            z = tuple(x[own] for x in state)
            samples.append(again(z, t, of(own), event=event, batching="joint", max_steps=max_steps, stops=within))
        return _side_by_side(samples, times)

    def independent(rows: Tensor, z: tuple[Tensor, ...], t: Tensor, piece: Piece, steps: int) -> Any:
        # A conditioning tensor that all share is not to have as many rows as samples are left.
        shared = {a.shape[0] for a in args if a.dim() and a.shape[0] != batch}
        while len(rows) in shared:
            rows, t = torch.cat([rows, rows[:1]]), torch.cat([t, t[:1]])
            z = tuple(torch.cat([x, x[:1]]) for x in z)
        return again(z, t, of(rows), event=None, batching="independent", max_steps=steps, stops=(), piece=piece)

    return solve_pieces_of_each(independent, state, times, stops, like, max_steps)


def _side_by_side(solutions: Sequence[Any], times: Tensor) -> Any:
    """One solution of those of the samples, each of which was solved by itself, to an event of its own.

    Args:
        solutions: of batches of one.
        times: `(batch, time)`.
    """
    first = solutions[0]
    retcodes = tuple(s.retcode for s in solutions)
    t_end = torch.stack([s.t_end.detach().to(times) for s in solutions])
    stats = Joined([s.stats for s in solutions])
    counts = [(torch.tensor([b]), s.stats) for b, s in enumerate(solutions)]
    stats.per_sample = JoinedEach(len(solutions), counts, retcodes, t_end.cpu())
    failures = [code for code in retcodes if code is not Retcode.SUCCESS]
    failed_at = None
    if failures:
        ends = [s._failed_at[1] if s._failed_at is not None else _end(s) for s in solutions]
        failed_at = t_end, tuple(torch.cat(x).detach() for x in zip(*ends, strict=True))
    parts = [s._interpolant for s in solutions]
    return dataclasses.replace(
        first,
        **side_by_side(solutions, times, times.shape[1]),
        stats=stats,
        retcode=failures[0] if failures else Retcode.SUCCESS,
        _failed_at=failed_at,
        _interpolant=None if None in parts else _of_each(parts),
    )


def _end(solution: Any) -> tuple[Tensor, ...]:
    if solution.event_t is not None:
        return as_tuple(solution.event_z)
    return tuple(x[-1] for x in as_tuple(solution.z))


def _of_each(parts: Sequence[Callable[[Tensor], tuple[Tensor, ...]]]) -> Callable[[Tensor], tuple[Tensor, ...]]:
    def interpolate(times: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.cat(x, 1) for x in zip(*(part(times) for part in parts), strict=True))

    return interpolate
