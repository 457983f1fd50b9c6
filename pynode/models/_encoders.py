"""Recognition networks: from a series to the distribution of its latent initial state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pynode.models._failed import failed_samples, may_fail, spread
from pynode.models._series import Series, pack
from pynode.solve import solve

__all__ = ["GRUEncoder", "ODERNNEncoder"]


class GRUEncoder(nn.Module):
    """A GRU that runs over the observations from the last to the first.

    Each step takes the values, zero where they are missing, what was observed, the time that passed since the
    observation before it (since `t0`, for the first), and the time since `t0`, across which an observation tells of the
    initial state. Times at which nothing was observed are skipped.

    Args:
        obs_dim: channels of the observations.
        out_dim: numbers to be returned for each series.
        hidden: size of the GRU's state.

    Source:
        R. T. Q. Chen et al., "Neural Ordinary Differential Equations", NeurIPS 2018, section 5 and figure 6.
    """

    def __init__(self, obs_dim: int, out_dim: int, hidden: int = 32) -> None:
        super().__init__()
        self.gru = nn.GRU(2 * obs_dim + 2, hidden, batch_first=True)
        self.head = nn.Linear(hidden, out_dim)

    def forward(self, series: Series, t0: float) -> Tensor:
        """`(batch, out_dim)` for a batch of series."""
        states, counts = self._states(series, t0)
        return self.head(states[torch.arange(len(counts), device=counts.device), counts - 1])

    def along(self, series: Series, t0: float) -> tuple[Tensor, Tensor]:
        """What it says after each observation, of those from there on, and the times of these.

        Returns:
            `(batch, time, out_dim)` and `(batch, time)`, in the order of time; as long as the longest series, the rest
            of the shorter ones that of their last observation.
        """
        states, counts = self._states(series, t0)
        index = (counts[:, None] - 1 - torch.arange(states.shape[1], device=counts.device)).clamp(min=0)
        states = states.gather(1, index.unsqueeze(2).expand_as(states))
        return self.head(states), pack(series)[0].t

    def _states(self, series: Series, t0: float) -> tuple[Tensor, Tensor]:
        """The GRU's, from the last observation to the first, and how many of these a series has."""
        steps, counts = _backwards(series, t0)
        # Not as a PackedSequence, whose backward pass costs several times this one's.
        return self.gru(steps)[0], counts


class ODERNNEncoder(nn.Module):
    """An ODE-RNN that runs over the observations from the last to the first.

    Its state follows an ODE, backwards in time, from each observation to the one before it (to `t0`, from the
    first), where a GRU cell takes the observation in. The gaps of a batch are solved together, each as its own
    share of a unit of time, which takes as many solves as the longest series has observations, however many
    different times there are.

    Args:
        obs_dim: channels of the observations.
        out_dim: numbers to be returned for each series.
        hidden: size of the state.
        solver_keywords: as `pynode.solve` takes.

    Source:
        Y. Rubanova, R. T. Q. Chen, D. Duvenaud, "Latent ODEs for Irregularly-Sampled Time Series", NeurIPS 2019,
        algorithm 1 and section 3.2.
    """

    def __init__(self, obs_dim: int, out_dim: int, hidden: int = 32, **solver_keywords: Any) -> None:
        super().__init__()
        self.evolution = _Rescaled(nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, hidden)))
        self.cell = nn.GRUCell(2 * obs_dim, hidden)
        self.head = nn.Linear(hidden, out_dim)
        self.solver_keywords = solver_keywords

    def forward(self, series: Series, t0: float) -> Tensor:
        """`(batch, out_dim)` for a batch of series; NaN for those of which a solve has failed, where it may."""
        steps, counts = _backwards(series, t0)
        h = series.x.new_zeros(len(steps), self.cell.hidden_size)
        failed: Tensor | None = None
        for i in range(steps.shape[1]):
            values, gap = steps[:, i, :-2], steps[:, i, -2:-1]
            h = torch.where((i < counts).unsqueeze(1), self.cell(values, h), h)
            if bool((gap > 0).any()):
                h = solve(self.evolution, h, (0.0, 1.0), args=(-gap,), **self.solver_keywords).z[-1]
                if may_fail(self.solver_keywords):
                    lost = failed_samples(h)
                    failed = lost if failed is None else failed | lost
                    # What has failed goes on from zeros, unseen, beside the others.
                    h = h.masked_fill(spread(failed, h), 0.0)
        out: Tensor = self.head(h)
        return out if failed is None else out.masked_fill(spread(failed, out), torch.nan)


class _Rescaled(nn.Module):
    """dh/ds = f(h) Δt, with Δt for each series, so that s from 0 to 1 takes all of them over their gaps."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, s: Tensor, h: Tensor, gap: Tensor) -> Tensor:
        return self.network(h) * gap


def _backwards(series: Series, t0: float) -> tuple[Tensor, Tensor]:
    """Steps `(batch, time, 2 obs_dim + 2)` from the last observation to the first, padded on the right, and counts.

    A step is the values, the mask, the gap to the observation before, and the time since `t0`; all zero where a series
    is over.
    """
    packed, counts = pack(series)
    start = packed.t.new_full((len(counts), 1), t0)
    gap = torch.cat([start, packed.t], dim=1).diff(dim=1)
    times = torch.stack([gap, packed.t - t0], dim=2)
    steps = torch.cat([packed.x, packed.mask.to(packed.x), times.to(packed.x)], dim=2)
    index = counts[:, None] - 1 - torch.arange(steps.shape[1], device=counts.device)
    over = (index < 0).unsqueeze(2)
    steps = steps.gather(1, index.clamp(min=0).unsqueeze(2).expand(-1, -1, steps.shape[2]))
    return steps.masked_fill(over, 0), counts
