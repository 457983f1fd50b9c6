"""What models have in common whose hidden state jumps at the observations of a series."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pynode.engine.protocol import Stats
from pynode.models._check import check_callables, check_solver_keywords
from pynode.models._observed import Course, Entries, ObservedODE, entries_of
from pynode.models._series import check_series, check_series_times, pack
from pynode.problem.inputs import check_count, check_finite

__all__ = ["ObservedModel"]


class ObservedModel(nn.Module):
    """A state h, from a learned h(t₀) on, that follows an ODE and jumps at observations; ŷ = h_y(h).

    Args:
        obs_dim: channels of the observations.
        hidden: size of h.
        flow: the ODE and its jumps.
        t0: the first time.
        solver_keywords: as `pynode.solve` takes.
    """

    def __init__(
        self,
        obs_dim: int,
        hidden: int,
        flow: ObservedODE,
        t0: float,
        solver_keywords: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.obs_dim, self.hidden = check_count("obs_dim", obs_dim), check_count("hidden", hidden)
        check_solver_keywords(solver_keywords, own=("control", "tstops"))
        check_callables(flow.field, jump=flow.jump)
        self.t0 = check_finite("t0", t0)
        self.flow = flow
        self.initial = nn.Parameter(torch.zeros(hidden))
        self.solver_keywords = dict(solver_keywords)
        self.stats: Stats | None = None

    @property
    def field(self) -> Callable[..., Any]:
        """What h follows between the observations."""
        return self.flow.field

    def _output(self, h: Tensor) -> Tensor:
        """h_y(h), `(batch, …)`, of states `(batch, hidden)`."""
        raise NotImplementedError

    def forward(self, x: Tensor, t: Tensor, mask: Tensor | None = None) -> Tensor:
        """The output after the last observation of each series.

        Args:
            x: observations `(batch, time, obs_dim)`, in the model's dtype; anything where the mask is False.
            t: their times, `(time,)` or `(batch, time)`, non-decreasing, from t₀ on; they must not require a gradient.
            mask: what was observed, bool, `(batch, time)` or `(batch, time, obs_dim)`; `None` for all.

        Returns:
            h_y(h), `(batch, …)`.

        Raises:
            InputError: a shape or value is not usable, or a series has no observation.
        """
        entries, course = self._course(x, t, mask)
        return self._output(course.after[entries.last, torch.arange(len(x), device=x.device)])

    def trajectory(self, x: Tensor, t: Tensor, t_new: Tensor, mask: Tensor | None = None) -> Tensor:
        """The output at other times, each from the observations before it.

        Args:
            x: observations, as in `forward`.
            t: their times, as in `forward`.
            t_new: the times to report at, `(time_new,)` or `(batch, time_new)`, non-decreasing, from t₀ on. At the time
                of an observation the output is that before it.
            mask: what was observed, as in `forward`.

        Returns:
            h_y(h(t)) for each t of `t_new`, `(time_new, batch, …)`.
        """
        return torch.stack([self._output(h) for h in self._states(x, t, t_new, mask)])

    def _states(self, x: Tensor, t: Tensor, t_new: Tensor, mask: Tensor | None) -> Tensor:
        """The states at other times, `(time_new, batch, hidden)`."""
        entries, course = self._course(x, t, mask, t_new)
        return course.before[entries.asked.T, torch.arange(len(x), device=x.device)]

    def _course(
        self, x: Tensor, t: Tensor, mask: Tensor | None, t_new: Tensor | None = None, to_end: bool = False
    ) -> tuple[Entries, Course]:
        """The states at the entries of each series; `to_end`: the last is that of `t`, and none need be observed."""
        self.stats = None
        series = check_series(x, t, mask, self.obs_dim, self.t0, self.initial.dtype, may_be_empty=to_end)
        asked = None if t_new is None else check_series_times("t_new", t_new, series.x, self.t0)
        packed, _ = pack(series)
        entries = entries_of(packed, self.t0, series.t[:, -1:] if to_end else asked)
        h0 = self.initial.expand(len(x), -1)
        course = self.flow.run(h0, entries.series, self.solver_keywords)
        self.stats = course.stats
        return entries, course

    def extra_repr(self) -> str:
        """The arguments that are not modules."""
        parts = [f"obs_dim={self.obs_dim}", f"hidden={self.hidden}", f"t0={self.t0:g}"]
        return ", ".join(parts + [f"{k}={v!r}" for k, v in self.solver_keywords.items()])
