"""Independent samples: `solve(batching="independent")`, and times of each sample's own."""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pynode.engine.each import is_per_sample, sample_of
from pynode.engine.protocol import Engine, Problem, Stats
from pynode.errors import FieldError, InputError, unknown_name
from pynode.field import Field
from pynode.field._time import first_time
from pynode.problem.event import Event
from pynode.problem.state import State, as_tuple

__all__ = [
    "EventOfEach",
    "at_last_times",
    "check_batching",
    "check_unmixed",
    "last_times",
    "per_sample_times",
    "side_by_side",
    "span",
]

_BATCHINGS = ("joint", "independent")
# Fields of which it has been seen that they treat each sample by itself.
_UNMIXED: weakref.WeakSet[object] = weakref.WeakSet()


def check_batching(batching: str) -> None:
    """Refuse another name than one of the two."""
    if batching not in _BATCHINGS:
        raise unknown_name("batching", batching, _BATCHINGS)


def per_sample_times(times: Tensor, state: Tensor) -> Tensor:
    """The times as `(batch, time)`."""
    batch = state.shape[0]
    if times.dim() == 1:
        return times.expand(batch, -1)
    if times.shape[0] != batch:
        raise InputError(
            f"t of shape (batch, time) must have a row for each of the {batch} samples, got shape "
            f"{tuple(times.shape)}. Pass shape (time,) for times that all samples share"
        )
    return times


def check_unmixed(field: Field, z0: Sequence[Tensor], t: Tensor, args: Sequence[Tensor]) -> None:
    """Refuse a field that gives a sample another derivative alone than among the others; looks once per field.

    Raises:
        FieldError: it does, as with statistics over the batch.
    """
    batch = z0[0].shape[0]
    if batch < 2 or field.key in _UNMIXED:
        return
    t0 = first_time(t)
    with torch.no_grad():
        joint = field(t0, z0, args)
        for b in (0, batch - 1):
            own = tuple(a[b : b + 1] if is_per_sample(a, batch) else a for a in args)
            alone = field(t0, tuple(z[b : b + 1] for z in z0), own)
            for whole, x in zip(joint, alone, strict=True):
                tolerance = 1e-3 if x.dtype == torch.float32 else 1e-8
                scale = max(whole.abs().max().item(), 1.0)
                if x.shape != whole[b : b + 1].shape or not torch.allclose(
                    whole[b : b + 1], x, rtol=tolerance, atol=tolerance * scale, equal_nan=True
                ):
                    raise FieldError(
                        f"the field mixes samples: dz/dt of sample {b} is another when it is evaluated alone than in "
                        "the batch. Use batching='joint', or take what combines samples (batch statistics, attention "
                        "over the batch) out of the field. A tensor in args whose first dimension is the batch size "
                        "is taken to have a row for each sample"
                    )
    _UNMIXED.add(field.key)


def last_times(t: Tensor) -> Tensor:
    """The last entry of each row that is not NaN."""
    count = (~t.isnan()).sum(1)
    return t.gather(1, count[:, None] - 1)[:, 0]


def at_last_times(x: Tensor, t: Tensor) -> Tensor:
    """The entries of `(time, batch, …)` numbers at the last time of each row of `t`, `(batch, …)`."""
    count = (~t.isnan()).sum(1)
    return x[count - 1, torch.arange(len(t), device=t.device)]


class EventOfEach:
    """One event for each sample; see `Event`, which it has one of for each."""

    def __init__(self, function: Callable[..., Tensor], engine: Engine, problem: Problem, form: State) -> None:
        self.problem, self.is_tuple = problem, form.is_tuple
        samples = [sample_of(problem, b) for b in range(problem.z0[0].shape[0])]
        self.events = [Event(function, engine, sample, form) for sample in samples]

    def reads_time(self) -> bool:
        """As `Event.reads_time`."""
        return bool(self.events) and self.events[0].reads_time()

    def cut(self, t: Tensor) -> Tensor:
        """The times to solve for, `(batch, time)`: of each sample those before its event, and its event's."""
        rows = [event.cut(row[~row.isnan()]) for event, row in zip(self.events, t, strict=True)]
        longest = max(map(len, rows), default=t.shape[1])
        padded = [nn.functional.pad(row, (0, longest - len(row)), value=math.nan) for row in rows]
        return torch.stack(padded) if rows else t

    def complete(self, solution: Any, args: Sequence[Tensor]) -> Any:
        """The solution over the user's times, with the events, from that over the times of `cut`."""
        each = solution.stats.per_sample
        if not self.events:
            return solution
        batch, time = self.problem.t.shape
        parts = []
        for b, event in enumerate(self.events):
            asked = ~solution.t[b].isnan()
            own = tuple(a[b : b + 1] if is_per_sample(a, batch) else a for a in args)
            z = tuple(x[asked, b : b + 1] for x in as_tuple(solution.z))
            part = dataclasses.replace(
                solution,
                t=solution.t[b, asked],
                z=z if self.is_tuple else z[0],
                running_cost=None if solution.running_cost is None else solution.running_cost[b : b + 1],
                stats=Stats(int(each.nfe[b])),
                retcode=each.retcode[b],
                _interpolant=None,
            )
            parts.append(event.complete(part, own))
            each.nfe[b] = parts[-1].stats.nfe
        solution.stats.nfe = int(each.nfe.sum())
        return dataclasses.replace(
            solution, **side_by_side(parts, solution.t, time), _interpolant=_within(solution._interpolant, solution.t)
        )


def side_by_side(parts: Sequence[Any], like: Tensor, time: int) -> dict[str, Any]:
    """What the solutions of samples, each of a batch of one and to an event of its own, are together.

    Args:
        parts: the solutions.
        like: a tensor of the dtype of the times.
        time: how many times there are.

    Returns:
        The states, the running cost and the event, by their names in `Solution`.
    """
    z = _beside([as_tuple(part.z) for part in parts], time)
    missed = [x[:1] * math.nan for x in z]  # (1, batch, …), where no event was met
    ends = [
        tuple(x[:, b : b + 1] for x in missed) if p.event_t is None else tuple(x[None] for x in as_tuple(p.event_z))
        for b, p in enumerate(parts)
    ]
    end = tuple(x[0] for x in _beside(ends, 1))
    nan, is_tuple = like.new_tensor(math.nan), isinstance(parts[0].z, tuple)
    return {
        "z": z if is_tuple else z[0],
        "running_cost": None if parts[0].running_cost is None else torch.cat([p.running_cost for p in parts]),
        "event_t": torch.stack([nan if p.event_t is None else p.event_t for p in parts]),
        "event_z": end if is_tuple else end[0],
        "event_index": torch.tensor([-1 if p.event_index is None else p.event_index for p in parts]),
    }


def _beside(parts: Sequence[tuple[Tensor, ...]], time: int) -> tuple[Tensor, ...]:
    """Samples' states `(at most time, 1, …)` as `(time, batch, …)`, with NaN where a sample has fewer."""

    def long(x: Tensor) -> Tensor:
        return torch.cat([x, x.new_full((time - len(x), *x.shape[1:]), math.nan)])

    return tuple(torch.cat([long(x) for x in of_all], 1) for of_all in zip(*parts, strict=True))


def _within(interpolant: Callable[[Tensor], Any] | None, t: Tensor) -> Callable[[Tensor], Any] | None:
    """The interpolant, asked for nothing beyond each sample's span."""
    first, last = t[:, :1], last_times(t)[:, None]
    low, high = torch.minimum(first, last), torch.maximum(first, last)
    return None if interpolant is None else lambda times: interpolant(times.expand(len(t), -1).clamp(low, high))


def span(t: Tensor, event_t: Tensor | None) -> tuple[float, float]:
    """The times within the span of every sample."""
    rows = t if t.dim() == 2 else t[None]
    first, last = rows[:, 0], last_times(rows)
    if event_t is not None:
        last = torch.where(event_t.isnan(), last, event_t.detach())
    return torch.minimum(first, last).max().item(), torch.maximum(first, last).min().item()
