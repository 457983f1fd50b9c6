"""A hidden state that follows an ODE and jumps at the observations of a series, all series of a batch in one solve."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pynode import control
from pynode.engine.protocol import Stats
from pynode.errors import InputError
from pynode.models._series import Series
from pynode.nn._signature import with_time
from pynode.problem.event import At
from pynode.problem.event_log import EventLogs
from pynode.solution import Solution
from pynode.solve import solve

__all__ = ["Course", "Entries", "ObservedODE", "entries_of"]

_MOST = 1000  # jumps of a series: as many as a solve starts afresh at
_HELD = 1e-3  # a dtype holds times if it moves none by more than this part of the distance between them


class Entries(NamedTuple):
    """What happens to each series, in the order of time: observations, and times that are asked for.

    Attributes:
        series: the entries, at times in double; one that is asked for has a mask of False.
        asked: `(batch, n_asked)`, the position of each time that is asked for.
        last: `(batch,)`, the position of each last observation.
    """

    series: Series
    asked: Tensor
    last: Tensor


class Course(NamedTuple):
    """The states of a batch at its entries.

    Attributes:
        before: `(time, batch, hidden)`, before the jump of each entry.
        after: `(time, batch, hidden)`, after it.
        running_cost: `(batch,)`, the integral over time of a cost from t₀ to the last entry; `None` without one.
        stats: of the solve; `None` where there is no time to solve over.
    """

    before: Tensor
    after: Tensor
    running_cost: Tensor | None
    stats: Stats | None


def entries_of(series: Series, t0: float, asked: Tensor | None = None) -> Entries:
    """Observations and times asked for in one; a time asked for goes before an observation of the same time.

    The first entry of all series is at `t0`, an unobserved one unless all begin there anyway.

    Args:
        series: packed.
        t0: the first time.
        asked: `(batch, n_asked)`, non-decreasing.
    """
    x, t, mask = series.x, series.t.double(), series.mask
    batch, n = t.shape
    late = bool((t[:, 0] > t0).any())
    extra = [t.new_full((batch, 1), t0)] if late else []
    extra += [] if asked is None else [asked.double()]
    m = sum(e.shape[1] for e in extra)
    all_t = torch.cat([*extra, t], 1)
    order = all_t.argsort(dim=1, stable=True)
    place = order.argsort(dim=1)
    x, mask = (nn.functional.pad(v, (0, 0, m, 0)) for v in (x, mask))
    wide = order.unsqueeze(2).expand(-1, -1, x.shape[2])
    last = torch.where(series.mask.any(2), torch.arange(n, device=t.device), -1).amax(1)
    return Entries(
        Series(x.gather(1, wide), all_t.gather(1, order), mask.gather(1, wide)),
        place[:, int(late) : m],
        place.gather(1, m + last[:, None])[:, 0],
    )


class ObservedODE(nn.Module):
    """h' = f(t, h) between the entries of a series, h = jump(h, x, mask) at those where something was observed.

    The solve is in a time s of its own, in which the i-th entry of every series is at s = i: T(s) are the times of the
    series, T is linear in between, and dh/ds = f(T(s), h) T'(s). So there are as many jumps as the longest series has
    entries, however many different times there are, and each is one of the whole batch.

    Args:
        field: f, a callable `f(t, h)` or `f(h)`. The former gets the time of each series, which `torch.vmap` maps.
        jump: a callable `jump(h, x, mask)` that returns h, `(batch, hidden)`, where x is `(batch, obs_dim)`, zero where
            nothing was observed, and mask 1 or 0 in the same shape and dtype.
        cost: `cost(h)`, `(batch,)`, to be integrated over time; `None` for none.
    """

    def __init__(
        self,
        field: Callable[..., Any],
        jump: Callable[[Tensor, Tensor, Tensor], Tensor],
        cost: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.field, self.jump, self.cost = field, jump, cost

    @property
    def takes_time(self) -> bool:
        """Whether the field depends on the time."""
        return with_time(self.field) is self.field

    def forward(self, s: Tensor, h: Tensor, time: control.Control, t0: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        """dh/ds, the field of the solve."""
        if not self.takes_time:
            return self.field(h) * time.derivative(s)
        t = time(s).squeeze(-1) + t0

        def one(t: Tensor, h: Tensor) -> Tensor:
            return self.field(t, h.unsqueeze(0)).squeeze(0)

        return torch.vmap(one)(t, h) * time.derivative(s)

    def _affect(
        self, s: Tensor, h: Tensor, time: control.Control, t0: Tensor, x: Tensor, mask: Tensor, *, index: Tensor
    ) -> Tensor:
        i = index.reshape(1)
        return self._jumped(h, x.index_select(1, i).squeeze(1), mask.index_select(1, i).squeeze(1))

    def _jumped(self, h: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        found = self.jump(h, x, mask)
        if not isinstance(found, Tensor) or found.shape != h.shape:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InputError(f"the jump must return the state, expected shape {tuple(h.shape)}, got {got}")
        return torch.where((mask > 0).any(1, keepdim=True), found, h)

    def _cost(self, s: Tensor, h: Tensor, time: control.Control, t0: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        assert self.cost is not None
        return self.cost(h) * time.derivative(s).squeeze(-1)

    def run(self, h: Tensor, series: Series, t0: float, keywords: Mapping[str, Any]) -> Course:
        """The states at all entries.

        Args:
            h: `(batch, hidden)`, at `t0`.
            series: the entries, the first of which are at `t0`.
            t0: the first time.
            keywords: of the solver.

        Raises:
            InputError: there are too many entries, or their times cannot be told apart in the dtype of the state.
        """
        n = series.t.shape[1]
        if n > _MOST:
            raise InputError(
                f"a series may have {_MOST} entries, observations and times that are asked for together, got {n}. "
                "Split it, or observe it less often"
            )
        x, mask = series.x, series.mask.to(h)
        since = (series.t - t0).to(h)
        start = h.new_full((), t0)
        if self.takes_time:
            self._check_told_apart(series.t, since + start)
        if n == 1 or not len(h):
            cost = None if self.cost is None else h.new_zeros(len(h))
            before = h.unsqueeze(0).expand(n, -1, -1)
            return Course(before, self._jumped(h, x[:, 0], mask[:, 0]).unsqueeze(0).expand(n, -1, -1), cost, None)
        s = torch.arange(n, dtype=h.dtype, device=h.device)
        solution = solve(
            self,
            h,
            s,
            control=control.Linear(s, since.unsqueeze(-1)),
            args=(start, x, mask),
            event=At(s[:-1], self._affect),
            running_cost=None if self.cost is None else self._cost,
            **keywords,
        )
        last = self._jumped(solution.z[-1], x[:, -1], mask[:, -1]).unsqueeze(0)
        return Course(solution.z, torch.cat([_after(solution, n - 1), last]), solution.running_cost, solution.stats)

    def _check_told_apart(self, t: Tensor, held: Tensor) -> None:
        gap, found = t.diff(dim=1), held.double().diff(dim=1)
        if bool(((found - gap).abs() > _HELD * gap).any()):
            raise InputError(
                f"the field takes the time, and the state's dtype {held.dtype} does not hold the differences between "
                "the times. Subtract a reference from the times, or use a model in torch.float64"
            )


def _after(solution: Solution, n: int) -> Tensor:
    """The states after the first `n` entries, `(n, batch, hidden)`; NaN where the solve has failed before."""
    logs = solution.events
    if isinstance(logs, EventLogs):
        each = [nn.functional.pad(log.after, (0, 0, 0, n - len(log)), value=torch.nan) for log in logs]
        return torch.stack(each, 1)
    assert logs is not None
    return nn.functional.pad(logs.after, (0, 0, 0, 0, 0, n - len(logs)), value=torch.nan)
