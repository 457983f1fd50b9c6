"""Latent SDEs: a generative model of irregular time series whose latent state is a diffusion."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from pynode.engine.protocol import Stats
from pynode.errors import InputError, unknown_name
from pynode.models._check import check_callables
from pynode.models._encoders import GRUEncoder
from pynode.models._sde import check_sde_keywords
from pynode.models._series import Series, check_series, check_series_times
from pynode.problem.counts import Joined
from pynode.problem.inputs import check_count, check_finite, check_number
from pynode.solution import Solution
from pynode.solve_sde import solve_sde

__all__ = ["LatentSDE"]

_CONTEXTS = ("series", "observations")
_LEAST_STD = 1e-4  # of the posterior, so that its log density stays finite


class LatentSDE(nn.Module):
    """A variational autoencoder of time series whose latent state follows an SDE.

    Prior: z(t₀) ~ N(0, 1), dz = h(t, z) dt + σ(t, z) dW. Posterior: z(t₀) ~ q(· | x), dz = f(t, z, c) dt + σ(t, z) dW
    with the same diffusion, which is diagonal, and a context c(x); a recognition network that reads the series
    backwards in time gives q and c. The context is one for all times, or, with `context="observations"`, between two
    observations that of the series from the later one on. The divergence of the two processes is the mean of
    ∫ ½ |(f - h) / σ|² dt (Girsanov), which is solved for beside z. From its last observation on, a series follows the
    prior.

    Series may have times of their own, and different lengths: pad them with `mask` False and the last time. All
    series of a call are solved together, reported at the union of their times, of which each takes its own.

    Args:
        obs_dim: channels of the observations.
        latent_dim: size of z.
        prior_drift: h, a callable `h(t, z)`; a network with one hidden layer that does not depend on t where `None`.
        posterior_drift: f, a callable `f(t, z, c)`, c of shape `(batch, context_dim)`, at the time t; a network where
            `None`.
        diffusion: σ, a callable `σ(t, z)` in the shape of z, positive, entry i of which depends on entry i of z alone;
            a small network of each entry, between 0 and 1, where `None`.
        decoder: from z `(…, latent_dim)` to the means of the observations `(…, obs_dim)`; a network with one hidden
            layer where `None`.
        context_dim: size of c.
        context: `"series"`, c is one vector for each series; or `"observations"`, it changes from one observation to
            the next, as in Li et al., who need it where the path is long beside what can be foreseen. On the julia
            engine a new kernel is made for each number of observations, rounded up to a power of 2.
        hidden: width of the networks that are made here.
        noise_std: standard deviation of the observations; learned for each channel where `None`.
        t0: the time of the latent initial state, before which no series has an entry.
        solver_keywords: as `pynode.solve_sde` takes: `solver`, `dt`, `rtol`, `atol`, `sensitivity`, `max_steps`,
            `engine`; `dt` or a tolerance is needed.

    Attributes:
        stats: the `Stats` of the last call's solves of the latent state, `None` before it.

    Raises:
        InputError: an argument is not usable, or a name is unknown.

    Source:
        X. Li, T.-K. L. Wong, R. T. Q. Chen, D. Duvenaud, "Scalable gradients for stochastic differential equations",
        AISTATS 2020, section 5; P. Kidger, J. Foster, X. Li, T. Lyons, "Efficient and accurate gradients for neural
        SDEs", NeurIPS 2021.
    """

    log_noise_std: Tensor

    def __init__(
        self,
        obs_dim: int,
        latent_dim: int,
        *,
        prior_drift: Callable[..., Any] | None = None,
        posterior_drift: Callable[..., Any] | None = None,
        diffusion: Callable[..., Any] | None = None,
        decoder: Callable[[Tensor], Tensor] | None = None,
        context_dim: int = 8,
        context: str = "series",
        hidden: int = 32,
        noise_std: float | None = None,
        t0: float = 0.0,
        **solver_keywords: Any,
    ) -> None:
        super().__init__()
        self.obs_dim, self.latent_dim = check_count("obs_dim", obs_dim), check_count("latent_dim", latent_dim)
        self.context_dim = check_count("context_dim", context_dim)
        check_count("hidden", hidden)
        if context not in _CONTEXTS:
            raise unknown_name("context", context, _CONTEXTS)
        self.context = context
        check_sde_keywords(solver_keywords)
        self.t0 = check_finite("t0", t0)
        self.prior_drift = _OfState(latent_dim, hidden) if prior_drift is None else prior_drift
        self.posterior_drift = (
            _OfContext(latent_dim, context_dim, hidden) if posterior_drift is None else posterior_drift
        )
        self.diffusion = _Entrywise(latent_dim, hidden) if diffusion is None else diffusion
        self.decoder = _layers(latent_dim, hidden, obs_dim) if decoder is None else decoder
        check_callables(
            self.prior_drift, posterior_drift=self.posterior_drift, diffusion=self.diffusion, decoder=self.decoder
        )
        self.encoder = GRUEncoder(obs_dim, 2 * latent_dim + context_dim, hidden)
        start = torch.full((obs_dim,), math.log(0.3 if noise_std is None else check_number("noise_std", noise_std)))
        if noise_std is None:
            self.log_noise_std = nn.Parameter(start)
        else:
            self.register_buffer("log_noise_std", start)
        self.solver_keywords = solver_keywords
        self.stats: Stats | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "stats": None}

    def posterior(self, x: Tensor, t: Tensor, mask: Tensor | None = None) -> Normal:
        """q(z(t₀) | x), with mean and standard deviation of shape `(batch, latent_dim)`; arguments as in `elbo`."""
        return self._encoded(self._series(x, t, mask))[0]

    def elbo(
        self, x: Tensor, t: Tensor, mask: Tensor | None = None, kl_weight: float = 1.0, seed: int | None = None
    ) -> Tensor:
        """The evidence lower bound on the log likelihood of each series, by one path of the posterior.

        Args:
            x: observations `(batch, time, obs_dim)`, float32 or float64; anything where the mask is False.
            t: their times, `(time,)` or `(batch, time)`, non-decreasing; they must not require a gradient.
            mask: what was observed, bool, `(batch, time)` or `(batch, time, obs_dim)`; `None` for all.
            kl_weight: weight of both divergences from the prior, 1 for the bound; grows from 0 in training with
                annealing.
            seed: of the path; a new one at each call where `None`. The initial state is PyTorch's generator's.

        Returns:
            `(batch,)`: E_q[log p(x | z)] - kl_weight · (KL of z(t₀) + KL of the path up to the last observation).

        Raises:
            InputError: a shape or value is not usable, or a series has no observation.
        """
        if not 0 <= kl_weight < math.inf:
            raise InputError(f"kl_weight must be finite and at least 0, got {kl_weight!r}")
        series = self._series(x, t, mask)
        q, context = self._encoded(series)
        kl = kl_divergence(q, Normal(torch.zeros_like(q.mean), torch.ones_like(q.mean))).sum(1)
        times = torch.minimum(series.t, series.last)
        z, path = self._latent(q.rsample(), times, context, series.last, seed)
        log_density = Normal(self._output(z), self.log_noise_std.exp(), validate_args=False).log_prob(series.x)
        return log_density.masked_fill(~series.mask, 0).sum((1, 2)) - kl_weight * (kl + path)

    def predict(
        self,
        x: Tensor,
        t: Tensor,
        t_new: Tensor,
        mask: Tensor | None = None,
        n_samples: int = 1,
        noise: bool = False,
        seed: int | None = None,
    ) -> Tensor:
        """Draws of the series at other times, each from a path of the posterior, which the prior's goes on from.

        That is from the last observation of the series on.

        Args:
            x: observations, as in `elbo`.
            t: their times, as in `elbo`.
            t_new: the times to predict at, `(time_new,)` or `(batch, time_new)`, non-decreasing, from t₀ on.
            mask: what was observed, as in `elbo`.
            n_samples: number of draws.
            noise: whether the draws have the noise of observations.
            seed: of the paths; a new one at each call where `None`. The initial states are PyTorch's generator's.

        Returns:
            `(n_samples, batch, time_new, obs_dim)`: means of the observations, or observations with `noise`.
        """
        series = self._series(x, t, mask)
        times = check_series_times("t_new", t_new, series.x, self.t0)
        q, context = self._encoded(series)
        n = check_count("n_samples", n_samples)
        z0 = q.rsample(torch.Size([n])).flatten(0, 1)
        c = tuple(x.repeat(n, *[1] * (x.dim() - 1)) for x in context)
        z, _ = self._latent(z0, times.repeat(n, 1), c, series.last.repeat(n, 1), seed, divergence=False)
        y = self._output(z).unflatten(0, (n, len(times)))
        return y + self.log_noise_std.exp() * torch.randn_like(y) if noise else y

    def sample(self, n: int, t: Tensor, seed: int | None = None) -> Tensor:
        """New series from the prior.

        Args:
            n: number of series.
            t: times `(time,)`, or `(n, time)`, non-decreasing, from t₀ on.
            seed: of the paths; a new one at each call where `None`. The initial states are PyTorch's generator's.

        Returns:
            `(n, time, obs_dim)`: means of the observations.
        """
        z0 = next(self.encoder.parameters()).new_empty(check_count("n", n), self.latent_dim).normal_()
        return self._output(self._latent(z0, check_series_times("t", t, z0, self.t0), None, None, seed)[0])

    def _series(self, x: Tensor, t: Tensor, mask: Tensor | None) -> Series:
        return check_series(x, t, mask, self.obs_dim, self.t0, next(self.encoder.parameters()).dtype)

    def _encoded(self, series: Series) -> tuple[Normal, tuple[Tensor, ...]]:
        """The distribution of the initial state, and the context, see `_context_at`."""
        sizes = [self.latent_dim, self.latent_dim, self.context_dim]
        if self.context == "series":
            mean, spread, *context = self.encoder(series, self.t0).split(sizes, dim=1)
        else:
            out, times = self.encoder.along(series, self.t0)
            mean, spread, _ = out[:, 0].split(sizes, dim=1)
            more = 2 ** math.ceil(math.log2(times.shape[1])) - times.shape[1]
            values = torch.cat([out, out[:, -1:].expand(-1, more, -1)], dim=1)[..., -self.context_dim :]
            context = [values, torch.cat([times, times[:, -1:].expand(-1, more)], dim=1).to(values)]
        return Normal(mean, nn.functional.softplus(spread) + _LEAST_STD, validate_args=False), tuple(context)

    def _context_at(self, t: Tensor, context: Sequence[Tensor]) -> Tensor:
        """The context c at time t.

        Args:
            t: 0-d.
            context: c `(batch, context_dim)`; or what it is before each of the times `(batch, time)` that come second,
                `(batch, time, context_dim)`.
        """
        if self.context == "series":
            return context[0]
        values, times = context
        last = times.shape[1] - 1
        index = torch.searchsorted(times[:, :last].contiguous(), t.expand(len(times), 1).contiguous(), right=True)
        return values.gather(1, index.unsqueeze(-1).expand(-1, -1, self.context_dim)).squeeze(1)

    def _posterior(self, t: Tensor, z: Tensor, *context: Tensor) -> Tensor:
        """The posterior's drift."""
        drift: Tensor = self.posterior_drift(t, z, self._context_at(t, context))
        return drift

    def _output(self, z: Tensor) -> Tensor:
        y = self.decoder(z)
        if y.shape != (*z.shape[:-1], self.obs_dim):
            raise InputError(
                f"decoder must map z (…, {self.latent_dim}) to (…, {self.obs_dim}), got {tuple(y.shape)} for "
                f"z of shape {tuple(z.shape)}"
            )
        return y

    def _path_cost(self, t: Tensor, z: Tensor, *context: Tensor) -> Tensor:
        """The rate of the divergence of the posterior's path from the prior's."""
        u = (self._posterior(t, z, *context) - self.prior_drift(t, z)) / self.diffusion(t, z)
        return 0.5 * (u**2).sum(1)

    def _drift_of_some(self, t: Tensor, z: Tensor, going: Tensor, *context: Tensor) -> Tensor:
        """The posterior's drift of series that are `going` on, not 0 in `(batch, 1)`; the prior's of the others."""
        return torch.where(going > 0, self._posterior(t, z, *context), self.prior_drift(t, z))

    def _cost_of_some(self, t: Tensor, z: Tensor, going: Tensor, *context: Tensor) -> Tensor:
        """The rate of the divergence of those that are going on."""
        return torch.where(going.squeeze(1) > 0, self._path_cost(t, z, *context), 0.0)

    def _latent(
        self,
        z0: Tensor,
        times: Tensor,
        context: tuple[Tensor, ...] | None,
        ends: Tensor | None,
        seed: int | None,
        *,
        divergence: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """States `(n, time, …)` at the times `(n, time)` of each, by the posterior up to `ends`, then by the prior.

        Without a context, by the prior alone. Also the divergence of the posterior's path, `(n,)`; 0 where it is not
        asked for.
        """
        first, found = times.new_tensor([self.t0]), times.detach()
        ends = None if ends is None else ends.to(found)
        within = first if ends is None else ends[ends < found.max()]
        union, index = torch.cat([found.flatten(), first, within]).unique(return_inverse=True)
        index, cuts = index[: found.numel()].reshape(found.shape), index[found.numel() :].unique().tolist()
        path, states, counts = z0.new_zeros(len(z0)), [z0.unsqueeze(0)], list[Stats]()
        self.stats = None
        for a, b in itertools.pairwise([*cuts, len(union) - 1]):
            if a == b:
                continue
            going = None if ends is None or context is None else (ends > union[a]).to(z0)
            own = _seed_of_piece(seed, len(counts))
            solution = self._piece(states[-1][-1], union[a : b + 1], context, going, own, divergence)
            states.append(solution.z[1:])
            counts.append(solution.stats)
            if solution.running_cost is not None:
                path = path + solution.running_cost
        self.stats = Joined(counts)
        return torch.cat(states)[index, torch.arange(len(z0), device=z0.device).unsqueeze(1)], path

    def _piece(
        self,
        z: Tensor,
        t: Tensor,
        context: tuple[Tensor, ...] | None,
        going: Tensor | None,
        seed: int | None,
        divergence: bool,
    ) -> Solution:
        """A solve within which no series ends."""
        if context is None or going is None or not going.any():
            return self._solve(self.prior_drift, self.diffusion, z, t, seed)
        drift: Callable[..., Tensor] = self._posterior
        cost: Callable[..., Tensor] = self._path_cost
        if not going.all():
            drift, cost, context = self._drift_of_some, self._cost_of_some, (going, *context)
        running_cost = cost if divergence else None
        return self._solve(drift, self._of_state, z, t, seed, args=context, running_cost=running_cost)

    def _solve(self, drift: Any, diffusion: Any, z0: Tensor, t: Tensor, seed: int | None, **more: Any) -> Solution:
        return solve_sde(drift, diffusion, z0, t, seed=seed, **more, **self.solver_keywords)

    def _of_state(self, t: Tensor, z: Tensor, *context: Tensor) -> Tensor:
        """The diffusion beside a context."""
        sigma: Tensor = self.diffusion(t, z)
        return sigma

    def extra_repr(self) -> str:
        """The arguments that are not modules."""
        parts = [f"obs_dim={self.obs_dim}", f"latent_dim={self.latent_dim}", f"context={self.context!r}"]
        parts.append(f"t0={self.t0:g}")
        return ", ".join(parts + [f"{k}={v!r}" for k, v in self.solver_keywords.items()])


def _layers(a: int, hidden: int, b: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(a, hidden), nn.Softplus(), nn.Linear(hidden, b))


class _OfState(nn.Module):
    """A drift that depends on the state alone."""

    def __init__(self, latent_dim: int, hidden: int) -> None:
        super().__init__()
        self.network = _layers(latent_dim, hidden, latent_dim)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        out: Tensor = self.network(z)
        return out


class _OfContext(nn.Module):
    """A drift that depends on time, state and context."""

    def __init__(self, latent_dim: int, context_dim: int, hidden: int) -> None:
        super().__init__()
        self.network = _layers(latent_dim + context_dim + 3, hidden, latent_dim)

    def forward(self, t: Tensor, z: Tensor, context: Tensor) -> Tensor:
        clock = torch.stack([t, torch.sin(t), torch.cos(t)]).expand(len(z), 3)
        out: Tensor = self.network(torch.cat([z, context, clock], dim=1))
        return out


class _Entrywise(nn.Module):
    """A diffusion each entry of which is a network of one entry of the state, between 0 and 1."""

    def __init__(self, latent_dim: int, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(hidden, latent_dim))
        self.bias = nn.Parameter(torch.randn(hidden, latent_dim))
        self.out = nn.Parameter(torch.randn(hidden, latent_dim) / hidden)
        self.shift = nn.Parameter(torch.zeros(latent_dim))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        features = torch.tanh(z.unsqueeze(1) * self.weight + self.bias)
        return torch.sigmoid((features * self.out).sum(1) + self.shift)


def _seed_of_piece(seed: int | None, number: int) -> int | None:
    """The seed of a part of a path: that of the first is the path's, and no other's noise is that of another path."""
    if seed is None or number == 0:
        return seed
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0] >> np.uint64(1))
