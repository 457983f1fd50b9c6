"""A span that is solved piece by piece, from stop to stop, and what the pieces make together.

Within a piece the field gets no time beyond it, nor the very time of a stop: at a stop it is evaluated on the side of
the piece, where `t >= stop` still is what it is in all of the piece.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pynode.engine.protocol import Retcode, Stats
from pynode.field._derived import derived_field
from pynode.field._piece import within
from pynode.field._transforms import differentiated, example
from pynode.problem.counts import Joined, steps_left
from pynode.problem.state import as_tuple
from pynode.problem.stops import Stop

__all__ = ["MetAtStop", "Piece", "interpolated", "on_side", "solve_pieces"]


@dataclass
class Piece:
    """What one solve of a piece is told of it.

    Attributes:
        low: 0-d, the least time that the field gets.
        high: the greatest.
        signs: of the event function's values before the piece, and once it is solved after it; `None`: not known.
    """

    low: Tensor
    high: Tensor
    signs: tuple[float, ...] | None = None

    @staticmethod
    def between(a: float | None, b: float | None, like: Tensor) -> Piece:
        """The piece between two stops, a < b; `None` where there is none."""
        most = torch.finfo(like.dtype).max
        low, high = (like.new_tensor(x) for x in (-most if a is None else a, most if b is None else b))
        return Piece(
            low if a is None else torch.nextafter(low, like.new_tensor(math.inf)),
            high if b is None else torch.nextafter(high, like.new_tensor(-math.inf)),
        )


def on_side(function: Callable[..., Any]) -> Callable[..., Any]:
    """The event function that takes the ends of a piece as its last two conditioning tensors; see `PieceField`."""
    return derived_field(_on_side, function)


def _on_side(function: Callable[..., Any], owner: object, t: Tensor, z: Any, *args: Tensor) -> Any:
    *own, low, high = args
    return function(within(t, low, high), z, *own)


class MetAtStop(Exception):
    """An event function has another sign after a stop than before it."""

    def __init__(self, t: Tensor, *z: Tensor, index: int, costs: bool) -> None:
        super().__init__("an event was met")
        self.t, self.index = t, index
        self.z, self.cost = z[: len(z) - costs], z[-1] if costs else None


Solve = Callable[[Any, Tensor, Piece, int, bool], Any]


def solve_pieces(solve: Solve, state: Any, times: Tensor, stops: Sequence[Stop], like: Tensor, max_steps: int) -> Any:
    """The solution over the whole span.

    Args:
        solve: solves a piece: takes the state, the times, the piece, the greatest number of steps, and whether the
            event counts.
        state: the state tensors at the first time.
        times: `(time,)`, in double.
        stops: in increasing order, within the span or at its ends.
        like: a tensor of the dtype in which the field gets the time.
        max_steps: for the whole span.
    """
    values = example(times).tolist()
    sign = 1 if values[-1] > values[0] else -1
    at = {stop.value for stop in stops}
    inner = [stop for stop in stops[::sign] if stop.value not in (values[0], values[-1])]
    ends = [Stop(values[0], times[0]), *inner, Stop(values[-1], times[-1])]
    moved = differentiated(times)
    solutions: list[Any] = []  # of the pieces
    stats: list[Stats] = []
    rows: list[tuple[Tensor, ...]] = []  # of states at the times asked for
    reported, met, signs = 0, None, None
    for a, b in itertools.pairwise(ends):
        low, high = (x.value if x.value in at else None for x in ((a, b) if sign > 0 else (b, a)))
        piece = Piece.between(low, high, like)
        piece.signs = signs
        until = next((i for i in range(reported, len(values)) if sign * values[i] >= sign * b.value), len(values))
        first = 0 if reported else 1  # the first time is reported by the first piece
        between = times[reported + first : until]
        piece_times = torch.cat([a.t[None], between, b.t[None]])
        try:
            solution = solve(state, piece_times, piece, steps_left(max_steps, stats), True)
        except MetAtStop as event:
            met = event
            break
        solutions.append(solution)
        stats.append(solution.stats)
        signs = piece.signs
        z = as_tuple(solution.z)
        ended = solution.retcode is not Retcode.SUCCESS or solution.event_t is not None
        rows.append(tuple(x[1 - first : len(x) - 1] for x in z))
        reported = until
        if until < len(values) and values[until] == b.value:
            last = tuple(x[-1:] for x in z)
            if b is not ends[-1] and not ended and (moved or differentiated(b.t)):
                # What is reported follows the time asked for, what comes after follows the stop.
                before = (a.t if not len(between) else between[-1])[None]
                state_before = tuple(x[-2] for x in z)
                again = solve(state_before, torch.cat([before, times[until : until + 1]]), piece, max_steps, False)
                stats.append(again.stats)
                last = tuple(x[-1:] for x in as_tuple(again.z))
            rows.append(last)
            reported += 1
        if ended:
            break
        state = tuple(x[-1] for x in z)
    return _join(solutions, stats, rows, len(values), met, [stop.value * sign for stop in inner], sign)


def _join(
    solutions: Sequence[Any],
    stats: Sequence[Stats],
    rows: Sequence[tuple[Tensor, ...]],
    count: int,
    met: MetAtStop | None,
    inner: Sequence[float],
    sign: int,
) -> Any:
    """One solution of several."""
    last = solutions[-1]
    is_tuple = isinstance(last.z, tuple)
    states = []
    for parts in zip(*rows, strict=True):
        missing = count - sum(map(len, parts))
        states.append(torch.cat([*parts, parts[0].new_full((missing, *parts[0].shape[1:]), math.nan)]))
    costs = [s.running_cost for s in solutions]
    cost = None if costs[0] is None else sum(costs[1:], costs[0])
    if met is not None and cost is not None and met.cost is not None:
        cost = cost + met.cost
    found = {"event_t": last.event_t, "event_z": last.event_z, "event_index": last.event_index}
    if met is not None:
        found = {"event_t": met.t, "event_z": met.z if is_tuple else met.z[0], "event_index": met.index}
    interpolants = [s._interpolant for s in solutions]
    return dataclasses.replace(
        last,
        z=tuple(states) if is_tuple else states[0],
        running_cost=cost,
        stats=Joined(stats),
        _interpolant=None if None in interpolants else interpolated(interpolants, inner[: len(solutions) - 1], sign),
        **found,
    )


def interpolated(
    parts: Sequence[Callable[[Tensor], tuple[Tensor, ...]]], inner: Sequence[float], sign: int
) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """The interpolant of pieces that meet at `inner`, times the sign of the direction."""

    def interpolate(times: Tensor) -> tuple[Tensor, ...]:
        of = torch.searchsorted(torch.tensor(inner, dtype=times.dtype, device=times.device), sign * times)
        found: list[Tensor] = []
        for k, part in enumerate(parts):
            here = of == k
            if bool(here.any()):
                states = part(times[here])
                if not found:
                    found = [x.new_empty((len(times), *x.shape[1:])) for x in states]
                for whole, x in zip(found, states, strict=True):
                    whole[here.to(x.device)] = x
        return tuple(found)

    return interpolate
