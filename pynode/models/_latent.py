"""Latent ODEs: a generative model of time series that are observed at irregular times."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from pynode.engine.protocol import Stats
from pynode.errors import InputError, unknown_name
from pynode.models._check import check_callables, check_solver_keywords
from pynode.models._encoders import GRUEncoder, ODERNNEncoder
from pynode.models._failed import failed_samples, may_fail, spread
from pynode.models._layers import layers
from pynode.models._node import NODE
from pynode.models._series import Series, check_series, check_series_times
from pynode.nn import TimeSequential
from pynode.nn._signature import with_time
from pynode.problem.inputs import check_count, check_finite, check_number

__all__ = ["LatentODE"]

_LIKELIHOODS = ("gaussian", "gaussian+poisson", "poisson")
_LEAST_STD = 1e-4  # of the posterior, so that its log density stays finite


class LatentODE(nn.Module):
    """A variational autoencoder of time series whose latent state follows an ODE.

    z(t₀) ~ N(0, 1), ż = f(t, z), and the observations of a series depend on z at their times. A recognition network
    reads a series backwards in time and gives q(z(t₀) | x), a Gaussian.

    Series may have times of their own, and different lengths: pad them with `mask` False and the last time. All
    series of a call are solved together, reported at the union of their times, of which each takes its own.

    Args:
        obs_dim: channels of the observations.
        latent_dim: size of z.
        field: f, a callable `f(t, z)`; a network with two hidden layers that does not depend on t where `None`.
        encoder: `"gru"`, or `"ode_rnn"`, which takes one solve per observation.
        decoder: from z `(…, latent_dim)` to `(…, obs_dim)`: the mean of the observations, or for
            `likelihood="poisson"` the logarithm of the intensities. A network with one hidden layer where `None`.
        likelihood: `"gaussian"`, of the values; `"poisson"`, of the times alone: the observed entries of each channel
            are the events of an inhomogeneous Poisson process, watched from t₀ to the last entry of the series' `t`,
            whether observed or not; or `"gaussian+poisson"`, of both.
        hidden: width of the networks that are made here.
        noise_std: standard deviation of the observations; learned for each channel where `None`.
        t0: the time of the latent initial state, before which no series has an entry.
        solver_keywords: as `pynode.solve` takes: `solver`, `rtol`, `atol`, `dt`, `sensitivity`, `max_steps`,
            `engine`, `throw`.

    Attributes:
        field: f, and with a Poisson process the field of z beside the integrals of its intensities.
        stats: the `Stats` of the last solve of the latent state, `None` before it.

    Raises:
        InputError: an argument is not usable, or a name is unknown.

    Source:
        R. T. Q. Chen et al., "Neural Ordinary Differential Equations", NeurIPS 2018, section 5; Y. Rubanova,
        R. T. Q. Chen, D. Duvenaud, "Latent ODEs for Irregularly-Sampled Time Series", NeurIPS 2019 (ODE-RNN
        encoder, Poisson process).
    """

    log_noise_std: Tensor | None

    def __init__(
        self,
        obs_dim: int,
        latent_dim: int,
        *,
        field: Callable[..., Any] | None = None,
        encoder: str = "gru",
        decoder: Callable[[Tensor], Tensor] | None = None,
        likelihood: str = "gaussian",
        hidden: int = 32,
        noise_std: float | None = None,
        t0: float = 0.0,
        **solver_keywords: Any,
    ) -> None:
        super().__init__()
        self.obs_dim, self.latent_dim = check_count("obs_dim", obs_dim), check_count("latent_dim", latent_dim)
        check_count("hidden", hidden)
        check_solver_keywords(solver_keywords, own=("control",))
        if likelihood not in _LIKELIHOODS:
            raise unknown_name("likelihood", likelihood, _LIKELIHOODS)
        if encoder not in ("gru", "ode_rnn"):
            raise unknown_name("encoder", encoder, ("gru", "ode_rnn"))
        self.likelihood = likelihood
        self.t0 = check_finite("t0", t0)
        field = TimeSequential(*layers(latent_dim, hidden, hidden, latent_dim)) if field is None else field
        decoder = nn.Sequential(*layers(latent_dim, hidden, obs_dim)) if decoder is None else decoder
        check_callables(field, decoder=decoder)
        self.decoder = decoder
        if likelihood != "gaussian":
            alone = likelihood == "poisson"
            log_intensity = decoder if alone else nn.Sequential(*layers(latent_dim, hidden, obs_dim))
            field = _WithIntensity(field, log_intensity, latent_dim)
        self.dynamics = NODE(field, t=(self.t0, self.t0 + 1), **solver_keywords)
        self.encoder: nn.Module
        if encoder == "gru":
            self.encoder = GRUEncoder(obs_dim, 2 * latent_dim, hidden)
        else:
            self.encoder = ODERNNEncoder(obs_dim, 2 * latent_dim, hidden, **solver_keywords)
        if likelihood == "poisson" and noise_std is not None:
            raise InputError('noise_std is the noise of the values, which likelihood="poisson" does not model')
        start = math.log(0.3 if noise_std is None else check_number("noise_std", noise_std))
        log_std = None if likelihood == "poisson" else torch.full((obs_dim,), start)
        if noise_std is None:
            self.register_parameter("log_noise_std", None if log_std is None else nn.Parameter(log_std))
        else:
            self.register_buffer("log_noise_std", log_std)

    @property
    def field(self) -> Callable[..., Any]:
        """What is solved."""
        return self.dynamics.field

    @property
    def stats(self) -> Stats | None:
        """The `Stats` of the last solve of the latent state."""
        return self.dynamics.stats

    def posterior(self, x: Tensor, t: Tensor, mask: Tensor | None = None) -> Normal:
        """q(z(t₀) | x), with mean and standard deviation of shape `(batch, latent_dim)`; arguments as in `elbo`."""
        return self._posterior(self._series(x, t, mask))

    def elbo(self, x: Tensor, t: Tensor, mask: Tensor | None = None, kl_weight: float = 1.0) -> Tensor:
        """The evidence lower bound on the log likelihood of each series, by one draw from the posterior.

        Args:
            x: observations `(batch, time, obs_dim)`, float32 or float64; anything where the mask is False.
            t: their times, `(time,)` or `(batch, time)`, non-decreasing; they must not require a gradient.
            mask: what was observed, bool, `(batch, time)` or `(batch, time, obs_dim)`; `None` for all.
            kl_weight: weight of the Kullback-Leibler divergence from the prior, 1 for the bound; grows from 0 in
                training with annealing.

        Returns:
            `(batch,)`: E_q[log p(x | z(t₀))] - kl_weight · KL(q || p).

        Raises:
            InputError: a shape or value is not usable, or a series has no observation.
            TraceError: the field draws random numbers.
        """
        if not 0 <= kl_weight < math.inf:
            raise InputError(f"kl_weight must be finite and at least 0, got {kl_weight!r}")
        series = self._series(x, t, mask)
        q = self._posterior(series)
        state = self._latent(q.rsample(), series.t)
        kl = kl_divergence(q, Normal(torch.zeros_like(q.mean), torch.ones_like(q.mean))).sum(1)
        return self._log_likelihood(series, state) - kl_weight * kl

    def reconstruct(self, x: Tensor, t: Tensor, mask: Tensor | None = None) -> Tensor:
        """The series at its own times, those of missing observations too, from the mean of the posterior.

        Args:
            x: observations, as in `elbo`.
            t: times, as in `elbo`.
            mask: what was observed, as in `elbo`.

        Returns:
            `(batch, time, obs_dim)`: means of the observations; for `likelihood="poisson"` intensities.
        """
        series = self._series(x, t, mask)
        return self._output(self._latent(self._posterior(series).mean, series.t))

    def predict(
        self, x: Tensor, t: Tensor, t_new: Tensor, mask: Tensor | None = None, n_samples: int = 1, noise: bool = False
    ) -> Tensor:
        """Draws of the series at other times, each from a draw of the posterior.

        Their mean is the prediction, their spread its uncertainty.

        Args:
            x: observations, as in `elbo`.
            t: their times, as in `elbo`.
            t_new: the times to predict at, `(time_new,)` or `(batch, time_new)`, non-decreasing, from t₀ on.
            mask: what was observed, as in `elbo`.
            n_samples: number of draws.
            noise: whether the draws have the noise of observations, as what a new observation is to be compared
                with has; not for `likelihood="poisson"`.

        Returns:
            `(n_samples, batch, time_new, obs_dim)`: means of the observations, or observations with `noise`; for
            `likelihood="poisson"` intensities.
        """
        return self._predict(*self._asked(x, t, t_new, mask), n_samples, noise)

    def interpolate(
        self, x: Tensor, t: Tensor, t_new: Tensor, mask: Tensor | None = None, n_samples: int = 1, noise: bool = False
    ) -> Tensor:
        """`predict` between the first and the last observation of each series.

        Raises:
            InputError: a time lies outside of them.
        """
        series, times = self._asked(x, t, t_new, mask)
        # A grid made from the first to the last observation may end one rounding past it.
        eps = max(torch.finfo(x.dtype).eps for x in (times, series.t))
        slack = 4 * eps * torch.maximum(series.first.abs(), series.last.abs())
        outside = (times < series.first - slack) | (times > series.last + slack)
        _refuse(outside, times, series, "within the observations", "predict")
        return self._predict(series, times, n_samples, noise)

    def extrapolate(
        self, x: Tensor, t: Tensor, t_new: Tensor, mask: Tensor | None = None, n_samples: int = 1, noise: bool = False
    ) -> Tensor:
        """`predict` after the last observation of each series.

        Raises:
            InputError: a time does not lie after it.
        """
        series, times = self._asked(x, t, t_new, mask)
        _refuse(times <= series.last, times, series, "after the last observation", "interpolate or predict")
        return self._predict(series, times, n_samples, noise)

    def intensity(self, x: Tensor, t: Tensor, t_new: Tensor, mask: Tensor | None = None, n_samples: int = 1) -> Tensor:
        """Draws of the intensities of the Poisson process, `(n_samples, batch, time_new, obs_dim)`, as `predict`."""
        state = self._draws(*self._asked(x, t, t_new, mask), n_samples)
        return self._log_intensity(state[..., : self.latent_dim]).exp()

    def sample(self, n: int, t: Tensor) -> Tensor:
        """New series from the prior.

        Args:
            n: number of series.
            t: times `(time,)`, or `(n, time)`, non-decreasing, from t₀ on.

        Returns:
            `(n, time, obs_dim)`: means of the observations; for `likelihood="poisson"` intensities.
        """
        z0 = next(self.encoder.parameters()).new_empty(check_count("n", n), self.latent_dim).normal_()
        return self._output(self._latent(z0, check_series_times("t", t, z0, self.t0)))

    def _series(self, x: Tensor, t: Tensor, mask: Tensor | None) -> Series:
        return check_series(x, t, mask, self.obs_dim, self.t0, next(self.encoder.parameters()).dtype)

    def _asked(self, x: Tensor, t: Tensor, t_new: Tensor, mask: Tensor | None) -> tuple[Series, Tensor]:
        series = self._series(x, t, mask)
        return series, check_series_times("t_new", t_new, series.x, self.t0)

    def _posterior(self, series: Series) -> Normal:
        mean, spread = self.encoder(series, self.t0).chunk(2, dim=1)
        return Normal(mean, nn.functional.softplus(spread) + _LEAST_STD, validate_args=False)

    def _draws(self, series: Series, times: Tensor, n_samples: int) -> Tensor:
        """States `(n_samples, batch, time, …)` at `times`, `(batch, time)`, from draws of the posterior."""
        z0 = self._posterior(series).rsample(torch.Size([check_count("n_samples", n_samples)]))
        return self._latent(z0.flatten(0, 1), times.repeat(n_samples, 1)).unflatten(0, z0.shape[:2])

    def _latent(self, z0: Tensor, times: Tensor) -> Tensor:
        """States `(n, time, …)` of each of `z0`, `(n, latent_dim)`, at its own `times`, `(n, time)`."""
        if self.likelihood != "gaussian":
            z0 = torch.cat([z0, z0.new_zeros(len(z0), self.obs_dim)], dim=1)
        if len(z0) == 0:
            return z0.unsqueeze(1).expand(-1, times.shape[1], -1)
        union, index = times.unique(return_inverse=True)
        failed: Tensor | None = None
        if may_fail(self.dynamics.solver_keywords):  # the encoder's may have
            failed = failed_samples(z0)
            z0 = z0.masked_fill(spread(failed, z0), 0.0)
        states = self.dynamics.trajectory(z0, union)
        found = states[index, torch.arange(len(z0), device=z0.device).unsqueeze(1)]
        return found if failed is None else found.masked_fill(spread(failed, found), torch.nan)

    def _output(self, state: Tensor) -> Tensor:
        y = self.decoder(state[..., : self.latent_dim])
        if y.shape != (*state.shape[:-1], self.obs_dim):
            raise InputError(
                f"decoder must map z (…, {self.latent_dim}) to (…, {self.obs_dim}), got {tuple(y.shape)} for "
                f"z of shape {(*state.shape[:-1], self.latent_dim)}"
            )
        return y.exp() if self.likelihood == "poisson" else y

    def _predict(self, series: Series, times: Tensor, n_samples: int, noise: bool) -> Tensor:
        if noise and self.log_noise_std is None:
            raise InputError('noise=True draws values, which likelihood="poisson" does not model: leave it out')
        y = self._output(self._draws(series, times, n_samples))
        return y + self.log_noise_std.exp() * torch.randn_like(y) if noise and self.log_noise_std is not None else y

    def _log_intensity(self, z: Tensor) -> Tensor:
        if not isinstance(self.dynamics.field, _WithIntensity):
            raise InputError('intensities need likelihood="poisson" or "gaussian+poisson", got "gaussian"')
        return self.dynamics.field.log_intensity(z)

    def _log_likelihood(self, series: Series, state: Tensor) -> Tensor:
        """The logarithm of p(x | z), `(batch,)`."""
        found = state.new_zeros(len(state))
        if self.log_noise_std is not None:
            log_density = Normal(self._output(state), self.log_noise_std.exp(), validate_args=False).log_prob(series.x)
            found = found + log_density.masked_fill(~series.mask, 0).sum((1, 2))
        if self.likelihood != "gaussian":
            z, integral = state.split([self.latent_dim, self.obs_dim], dim=2)
            log_intensity = self._log_intensity(z).masked_fill(~series.mask, 0)
            found = found + log_intensity.sum((1, 2)) - integral[:, -1].sum(1)
        return found

    def extra_repr(self) -> str:
        """The arguments that are not modules."""
        return f"obs_dim={self.obs_dim}, latent_dim={self.latent_dim}, likelihood={self.likelihood!r}, t0={self.t0:g}"


class _WithIntensity(nn.Module):
    """The field of z beside Λ, the integrals of the intensities of each channel: Λ' = λ(z)."""

    def __init__(self, field: Callable[..., Any], log_intensity: Callable[[Tensor], Tensor], latent_dim: int) -> None:
        super().__init__()
        self.field = field
        self.log_intensity = log_intensity
        self.latent_dim = latent_dim

    @property
    def time_dtype(self) -> torch.dtype | None:
        """As the field's."""
        return getattr(self.field, "time_dtype", None)

    def forward(self, t: Tensor, state: Tensor) -> Tensor:
        z = state[:, : self.latent_dim]
        return torch.cat([with_time(self.field)(t, z), self.log_intensity(z).exp()], dim=1)


def _refuse(bad: Tensor, times: Tensor, series: Series, where: str, instead: str) -> None:
    if bool(bad.any()):
        i, j = bad.nonzero()[0].tolist()
        raise InputError(
            f"t_new must lie {where} of each series, got {times[i, j].item():g} for series {i}, observed from "
            f"{series.first[i].item():g} to {series.last[i].item():g}. Use {instead} for other times"
        )
