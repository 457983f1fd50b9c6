"""`EventLog`: the events of a solve."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from pynode.problem.state import State

__all__ = ["EventLog", "EventLogs", "Happened"]


@dataclass(frozen=True, eq=False)
class Happened:
    """What has happened in several units, once in each.

    Attributes:
        units: their numbers, an array.
        index: which of the events.
        value: which entry of the event function, or which time of an `At`.
        t: `(units,)`, in double.
        before: the tensors of the state, `(units, batch of a unit, *features)` each.
        after: the same after the jump.
    """

    units: np.ndarray
    index: np.ndarray
    value: np.ndarray
    t: Tensor
    before: tuple[Tensor, ...]
    after: tuple[Tensor, ...]


class EventLog:
    """The events that happened in a solve, in their order; all tensors are differentiable.

    Attributes:
        t: `(n,)`, their times.
        index: `(n,)`, which of the events that `solve` was given; 0 where it was given one alone.
        value: `(n,)`, which entry of its event function, or which of its times an `At`.
        before: the states at the events, `(n, batch, *features)`, in the form of the state; of one of several
            independent samples `(n, *features)`.
        after: the states that the solve went on with: the same where there was no `affect`.
    """

    def __init__(self, t: Tensor, index: Tensor, value: Tensor, before: Any, after: Any) -> None:
        self.t, self.index, self.value, self.before, self.after = t, index, value, before, after

    def __len__(self) -> int:
        return len(self.t)

    def __repr__(self) -> str:
        return f"EventLog(t={self.t.tolist()}, index={self.index.tolist()}, value={self.value.tolist()})"


class EventLogs(Sequence[EventLog]):
    """The log of each unit of a solve, made when it is asked for.

    Args:
        parts: what has happened, in its order.
        count: the number of units.
        form: the form of the state.
        like: a tensor of each of the state, `(batch, *features)`.
        joint: whether the one unit is the whole batch.
        time_dtype: that of the times.
    """

    def __init__(
        self,
        parts: Sequence[Happened],
        count: int,
        form: State,
        like: Sequence[Tensor],
        joint: bool,
        time_dtype: torch.dtype = torch.float64,
    ) -> None:
        self._parts, self._count, self._form, self.joint = parts, count, form, joint
        self._like = tuple(x.detach()[:1] for x in like) if not joint else tuple(x.detach() for x in like)
        self.time_dtype = time_dtype

    def in_dtypes(self, time: torch.dtype, state: Sequence[torch.dtype]) -> EventLogs:
        """The same in other dtypes, for the times and for each tensor of the state."""
        like = [x.to(dtype) for x, dtype in zip(self._like, state, strict=False)]
        return EventLogs(self._parts, self._count, self._form, like, self.joint, time)

    def __getstate__(self) -> dict[str, Any]:
        def plain(part: Happened) -> Happened:
            before, after = (tuple(x.detach() for x in z) for z in (part.before, part.after))
            return dataclasses.replace(part, t=part.t.detach(), before=before, after=after)

        known = {k: v for k, v in self.__dict__.items() if not k.startswith("_of")}
        return {**known, "_parts": [plain(part) for part in self._parts]}

    def __len__(self) -> int:
        return self._count

    @functools.cached_property
    def _of(self) -> list[list[tuple[int, int]]]:
        """For each unit the number of the part and of the row in it, of each of its events."""
        found: list[list[tuple[int, int]]] = [[] for _ in range(self._count)]
        for k, part in enumerate(self._parts):
            for row, unit in enumerate(part.units.tolist()):
                found[unit].append((k, row))
        return found

    @overload
    def __getitem__(self, unit: int) -> EventLog: ...

    @overload
    def __getitem__(self, unit: slice) -> list[EventLog]: ...

    def __getitem__(self, unit: int | slice) -> EventLog | list[EventLog]:
        if isinstance(unit, slice):
            return [self[i] for i in range(self._count)[unit]]
        places = [(self._parts[k], row) for k, row in self._of[range(self._count)[unit]]]
        device = self._like[0].device
        t = [part.t[row] for part, row in places]
        index, value = (
            torch.tensor([int(getattr(part, name)[row]) for part, row in places], dtype=torch.int64, device=device)
            for name in ("index", "value")
        )
        return EventLog(
            torch.stack(t).to(self.time_dtype) if t else torch.zeros(0, dtype=self.time_dtype, device=device),
            index,
            value,
            self._states([(part.before, row) for part, row in places]),
            self._states([(part.after, row) for part, row in places]),
        )

    def _states(self, places: Sequence[tuple[tuple[Tensor, ...], int]]) -> Any:
        stacked = []
        for i, like in enumerate(self._like):
            rows = [z[i][row] for z, row in places]
            stacked.append(torch.stack(rows).to(like.dtype) if rows else like.new_zeros(0, *like.shape))
        state = self._form.state(stacked, leading=1)
        if self.joint:
            return state
        pairs = zip(self._form.parts(state), self._form.scalar, strict=True)
        return self._form.whole([x if is_scalar else x[:, 0] for x, is_scalar in pairs])

    def __iter__(self) -> Iterator[EventLog]:
        return (self[i] for i in range(self._count))

    def __repr__(self) -> str:
        return f"EventLogs of {self._count}: {[len(x) for x in self._of]} events"
