"""A hidden state that follows an ODE and jumps at the observations of a series, all series of a batch side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pynode.engine.protocol import Retcode, Stats
from pynode.errors import InputError
from pynode.models._failed import failed_samples, spread
from pynode.models._series import Series
from pynode.nn._signature import with_time
from pynode.problem.counts import Joined
from pynode.solve import solve

__all__ = ["Course", "Entries", "ObservedODE", "entries_of"]

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

    The i-th entries of all series are reached together. From each to the next is a solve of the whole batch, in a time
    s of its own from 0 to 1: T(s) is the time of each series, linear in s, and dh/ds = f(T(s), h) T'(s). So there are
    as many solves and jumps as the longest series has entries, however many different times there are.

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

    def forward(self, s: Tensor, h: Tensor, start: Tensor, gap: Tensor) -> Tensor:
        """dh/ds, the field of the solve over the times from `start` to `start + gap`, both `(batch, 1)`."""
        if not self.takes_time:
            return self.field(h) * gap

        def one(t: Tensor, h: Tensor) -> Tensor:
            return self.field(t, h.unsqueeze(0)).squeeze(0)

        return torch.vmap(one)((start + s * gap).squeeze(-1), h) * gap

    def _cost(self, s: Tensor, h: Tensor, start: Tensor, gap: Tensor) -> Tensor:
        assert self.cost is not None
        return self.cost(h) * gap.squeeze(-1)

    def _jumped(self, h: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        found = self.jump(h, x, mask)
        if not isinstance(found, Tensor) or found.shape != h.shape:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InputError(f"the jump must return the state, expected shape {tuple(h.shape)}, got {got}")
        return torch.where((mask > 0).any(1, keepdim=True), found, h)

    def run(self, h: Tensor, series: Series, keywords: Mapping[str, Any]) -> Course:
        """The states at all entries; NaN from where the solve of a series has failed on.

        Args:
            h: `(batch, hidden)`, at the first entries.
            series: the entries.
            keywords: of the solver.

        Raises:
            InputError: the times cannot be told apart in the dtype of the state.
        """
        x, mask = series.x, series.mask.to(h)
        starts, gaps = series.t.to(h), series.t.diff(dim=1).to(h)
        if self.takes_time:
            self._check_told_apart(series.t, starts)
        ends, cost = h.new_tensor([0.0, 1.0]), None if self.cost is None else self._cost
        failed = torch.zeros(len(h), 1, dtype=torch.bool, device=h.device)
        before, after, parts = [h], [self._jumped(h, x[:, 0], mask[:, 0])], []
        h = after[0]
        for i in range(1, series.t.shape[1]):
            times = starts[:, i - 1 : i], gaps[:, i - 1 : i]
            part = solve(self, h, ends, args=times, running_cost=cost, **keywords)
            parts.append(part)
            h = part.z[-1]
            if part.retcode is not Retcode.SUCCESS:
                failed = failed | spread(failed_samples(h), h)
            h = h.masked_fill(failed, 0.0)  # from which what has failed goes on, unseen, beside the others
            before.append(h.masked_fill(failed, torch.nan))
            h = self._jumped(h, x[:, i], mask[:, i])
            after.append(h.masked_fill(failed, torch.nan))
        costs = [part.running_cost for part in parts if part.running_cost is not None]
        whole = torch.stack(costs).sum(0) if costs else h.new_zeros(len(h))
        return Course(
            torch.stack(before),
            torch.stack(after),
            None if cost is None else whole.masked_fill(failed.squeeze(1), torch.nan),
            Joined([part.stats for part in parts]) if parts else None,
        )

    def _check_told_apart(self, t: Tensor, held: Tensor) -> None:
        gap, found = t.diff(dim=1), held.double().diff(dim=1)
        if bool(((found - gap).abs() > _HELD * gap).any()):
            raise InputError(
                f"the field takes the time, and the state's dtype {held.dtype} does not hold the differences between "
                "the times. Subtract a reference from the times, or use a model in torch.float64"
            )
