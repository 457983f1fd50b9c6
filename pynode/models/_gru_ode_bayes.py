"""GRU-ODE-Bayes: a filter for series that are observed sporadically, some channels at a time."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from pynode.errors import InputError
from pynode.models._layers import layers
from pynode.models._observed import Course, Entries, ObservedODE
from pynode.models._observed_model import ObservedModel
from pynode.problem.inputs import check_count, check_number

__all__ = ["GRUODEBayes"]


class GRUODEBayes(ObservedModel):
    """A hidden state that follows a GRU in continuous time, and takes in observations by a GRU cell.

    h' = (1 - z) ⊙ (g - h) from a learned h(t₀) on, with the gates r and z and the candidate g of a GRU without input:
    h stays within (-1, 1) where it starts there. Between observations the model predicts them: x_j ~ N(μ_j, σ_j²) with
    (μ, log σ²) = p(h). At one, the cell's input for each observed channel j is a learned function of x_j, μ_j, log σ_j²
    and (x_j - μ_j) / σ_j. Series may have times of their own, different lengths, and gaps in each channel; all are
    solved together.

    Args:
        obs_dim: channels of the observations.
        hidden: size of h.
        out_dim: channels of the output of `forward` and `trajectory`, linear in h; where it is `None` that is μ.
        prep: numbers that the cell gets for each channel.
        width: of the hidden layer of p.
        noise_std: standard deviation of the observations, in the posterior that `loss` holds the model to.
        t0: the first time.
        solver_keywords: as `pynode.solve` takes: `solver`, `rtol`, `atol`, `dt`, `sensitivity`, `max_steps`,
            `engine`, `throw`, … The time of the solve is one in which a unit leads from each observation to the next:
            `dt=0.25` takes four steps in between, and `max_steps` counts those.

    Attributes:
        initial: h(t₀), `(hidden,)`.
        stats: the `Stats` of the last call, `None` before it.

    Raises:
        InputError: an argument is not usable, or a name is unknown.

    Source:
        E. De Brouwer, J. Simm, A. Arany, Y. Moreau, "GRU-ODE-Bayes: Continuous Modeling of Sporadically-Observed Time
        Series", NeurIPS 2019: section 2.2 (the ODE), 2.3 (GRU-Bayes), 2.4 (the loss).
    """

    def __init__(
        self,
        obs_dim: int,
        hidden: int,
        out_dim: int | None = None,
        *,
        prep: int = 4,
        width: int = 32,
        noise_std: float = 1e-2,
        t0: float = 0.0,
        **solver_keywords: Any,
    ) -> None:
        n, d = check_count("hidden", hidden), check_count("obs_dim", obs_dim)
        observed = nn.Sequential(*layers(n, check_count("width", width), 2 * d))
        jump = _Bayes(observed, d, n, check_count("prep", prep))
        super().__init__(d, n, ObservedODE(_GRUField(n), jump), t0, solver_keywords)
        self.output_network = None if out_dim is None else nn.Linear(n, check_count("out_dim", out_dim))
        self.noise_std = check_number("noise_std", noise_std)

    @property
    def observed(self) -> nn.Module:
        """p, from h to (μ, log σ²) of the observations."""
        assert isinstance(self.flow.jump, _Bayes)
        return self.flow.jump.observed

    def _output(self, h: Tensor) -> Tensor:
        return self.observed(h).chunk(2, dim=-1)[0] if self.output_network is None else self.output_network(h)

    def distribution(self, x: Tensor, t: Tensor, t_new: Tensor, mask: Tensor | None = None) -> Normal:
        """What the model predicts at other times, each from the observations before it.

        Args:
            x: observations, as in `forward`.
            t: their times, as in `forward`.
            t_new: times, as in `trajectory`.
            mask: what was observed, as in `forward`.

        Returns:
            A distribution with mean and standard deviation of shape `(time_new, batch, obs_dim)`.
        """
        return _normal(self.observed(self._states(x, t, t_new, mask)))

    def log_prob(self, x: Tensor, t: Tensor, mask: Tensor | None = None) -> Tensor:
        """The log likelihood of each series, `(batch,)`, by the chain rule over its observations; see `forward`."""
        return self._log_prob(*self._course(x, t, mask))[0]

    def loss(self, x: Tensor, t: Tensor, mask: Tensor | None = None, mixing: float = 1e-4) -> Tensor:
        """The loss of each series: its negative log likelihood, and how far the jumps are from Bayes' rule.

        Args:
            x: observations, as in `forward`.
            t: their times, as in `forward`.
            mask: what was observed, as in `forward`.
            mixing: λ, the weight of the latter.

        Returns:
            `(batch,)`: -log p(x) + λ Σ KL(p_Bayes || p_post) over the observations, where p_post is what the model
            predicts after the jump, and p_Bayes ∝ p_pre(y) N(y | x, noise_std²) the posterior of what it predicts
            before.
        """
        if not 0 <= mixing < math.inf:
            raise InputError(f"mixing must be finite and at least 0, got {mixing!r}")
        entries, course = self._course(x, t, mask)
        log_prob, before = self._log_prob(entries, course)
        after = _normal(self.observed(course.after))
        seen, values = entries.series.mask.transpose(0, 1), entries.series.x.transpose(0, 1)
        noise, variance = self.noise_std**2, before.variance
        mean = (before.mean * noise + values * variance) / (variance + noise)
        bayes = Normal(mean, (noise * variance / (variance + noise)).sqrt(), validate_args=False)
        apart = kl_divergence(bayes, after).masked_fill(~seen, 0).sum((0, 2))
        return mixing * apart - log_prob

    def _log_prob(self, entries: Entries, course: Course) -> tuple[Tensor, Normal]:
        """`log_prob`, and what is predicted before each entry, `(time, batch, obs_dim)`."""
        before = _normal(self.observed(course.before))
        log_density = before.log_prob(entries.series.x.transpose(0, 1))
        return log_density.masked_fill(~entries.series.mask.transpose(0, 1), 0).sum((0, 2)), before


class _GRUField(nn.Module):
    """A GRU without input in continuous time, (1 - z) ⊙ (g - h)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.gates = nn.Linear(hidden, 2 * hidden)
        self.candidate = nn.Linear(hidden, hidden)

    def forward(self, h: Tensor) -> Tensor:
        r, z = torch.sigmoid(self.gates(h)).chunk(2, dim=1)
        return (1 - z) * (torch.tanh(self.candidate(r * h)) - h)


class _Bayes(nn.Module):
    """GRU-Bayes, the jump of the state at an observation."""

    def __init__(self, observed: nn.Module, obs_dim: int, hidden: int, prep: int) -> None:
        super().__init__()
        self.observed = observed
        self.weight = nn.Parameter(torch.randn(obs_dim, 4, prep) / math.sqrt(4))
        self.bias = nn.Parameter(torch.full((obs_dim, prep), 0.1))
        self.cell = nn.GRUCell(obs_dim * prep, hidden)

    def forward(self, h: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        mean, log_variance = self.observed(h).chunk(2, dim=1)
        error = (x - mean) * torch.exp(-0.5 * log_variance)
        features = torch.stack([x, mean, log_variance, error], 2)
        prepared = torch.relu(torch.einsum("bdi,dip->bdp", features, self.weight) + self.bias)
        return self.cell((prepared * mask.unsqueeze(2)).flatten(1), h)


def _normal(parameters: Tensor) -> Normal:
    mean, log_variance = parameters.chunk(2, dim=-1)
    return Normal(mean, torch.exp(0.5 * log_variance), validate_args=False)
