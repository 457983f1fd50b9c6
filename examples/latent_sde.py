"""Latent SDEs: a sine observed at few irregular times, and the stochastic Lorenz attractor.

Sine: 16 observations of 0.8 sin(2πt) at random times between 0.4 and 1.6, with noise of standard deviation 0.05.
The prior is a fixed Ornstein-Uhlenbeck process; the drift of the posterior is learned. Prior and noise are
Gaussian, so the evidence and the posterior are known in closed form, and the results are compared with them. In one
run with seed 0 on the julia engine the evidence lower bound ended 11 below the log evidence (1155 below it before the
training), the posterior's mean 0.011 from the exact one, and its standard deviation 15 % above the exact one.

Lorenz: paths on the attractor with multiplicative noise, observed at 41 times with noise of 0.1 standard
deviations. The latent state has the size of the data; the drifts of prior and posterior, the diffusion and the
encoder are learned. The weight of the divergence grows from 0 to 1 during the first tenth of the training. The
paths are chaotic, so the context of the posterior changes from one observation to the next. The results are the
evidence lower bound, the error of the posterior's mean on unseen series, and how far samples of the prior are from
the data: the mean distance of their quantiles, for the values and for their changes. The prior starts from a normal
distribution, so its samples are compared from a quarter of the time on, when they have reached the attractor. One
run with seed 0 on the julia engine gave, in standard deviations of the data's x, y and z:

    distance of      values               changes
    before           0.079 0.650 0.682    0.270 0.331 0.524
    after            0.081 0.060 0.109    0.106 0.087 0.096
    half the data    0.148 0.126 0.034    0.032 0.039 0.039

The last line is between two halves of the data.

    pip install "pynode-sciml[sde]"  # for the torch engine
    python examples/latent_sde.py

After X. Li, T.-K. L. Wong, R. T. Q. Chen, D. Duvenaud, "Scalable gradients for stochastic differential equations",
AISTATS 2020, section 7; with smaller networks, fewer series and fewer steps of the optimizer.
"""

from __future__ import annotations

import itertools
import math
import time

import torch
from _shared import arguments, minimise, write
from torch import nn
from torch.distributions import MultivariateNormal

from pynode import plot, solve_sde
from pynode.models import LatentSDE

NOISE, LORENZ_NOISE = 0.05, 0.1  # of an observation, standard deviations
RATE, STRENGTH = 1.0, 0.5  # of the process that is the sine's prior
SPREAD = STRENGTH / math.sqrt(2 * RATE)  # its standard deviation, which is the unit of its latent state
UNIT = 0.25  # of the model's time, in that of the Lorenz attractor
OBSERVED, FINER = 41, 4  # times of a Lorenz path that are observed, and how many of the drawn ones one such step has
DRAWS, UNSEEN = 500, 64  # series that are drawn; of the attractor's, those not to learn from
BEFORE = 4.0  # the time after which the paths are on the attractor


def sine(t):
    """What is observed."""
    return 0.8 * torch.sin(2 * math.pi * t)


def network(n_in, hidden, n_out):
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(n_in, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, n_out)
    )


class StateDrift(nn.Module):
    """A drift that depends on the state."""

    def __init__(self, latent, hidden):
        super().__init__()
        self.network = network(latent, hidden, latent)

    def forward(self, t, z):
        """h(z)."""
        return self.network(z)


class ClockDrift(nn.Module):
    """The prior's drift and a network of the state and of sines of the time, which is 0 at first: for one series."""

    def __init__(self, prior, hidden=64, frequencies=16):
        super().__init__()
        self.prior = prior
        self.register_buffer("frequencies", math.pi / 2 * torch.arange(1.0, 1 + frequencies))
        self.network = network(1 + 2 * frequencies, hidden, 1)
        nn.init.zeros_(self.network[-1].weight)
        nn.init.zeros_(self.network[-1].bias)

    def forward(self, t, z, context):
        """f(t, z)."""
        angle = self.frequencies * t
        clock = torch.cat([torch.sin(angle), torch.cos(angle)]).expand(len(z), -1)
        return self.prior(t, z) + self.network(torch.cat([z, clock], dim=1))


class ContextDrift(nn.Module):
    """A drift that depends on state and context.

    The prior's is no part of it: else the divergence would not depend on the prior, which would learn next to nothing.
    """

    def __init__(self, latent, context, hidden):
        super().__init__()
        self.network = network(latent + context, hidden, latent)

    def forward(self, t, z, context):
        """f(z, context)."""
        return self.network(torch.cat([z, context], dim=1))


def lorenz(t, x):
    """The drift of the attractor."""
    a, b, c = x.unbind(1)
    return torch.stack([10 * (b - a), 28 * a - b - a * c, a * b - 8 / 3 * c], dim=1)


def lorenz_noise(t, x):
    """Its diffusion, by coordinates."""
    return x * x.new_tensor([0.1, 0.28, 0.3])


@torch.no_grad()
def bound(model, x, t):
    """The mean of the evidence lower bound over series or paths."""
    return model.elbo(x, t).mean().item()


def train(model, x, t, iterations, batch, label):
    """Train on `batch` of the series in each step; returns the bound at some of the steps, and the seconds.

    The weight of the divergence grows from 0 to 1 in the first tenth.
    """
    step, bounds, start = itertools.count(), {}, time.perf_counter()

    def loss():
        i = next(step)
        some = torch.randperm(len(x))[:batch]
        if i % max(1, iterations // 40) == 0:
            bounds[i] = bound(model, x[some], t)
        return -model.elbo(x[some], t, kl_weight=min(1.0, 10 * i / iterations)).mean()

    minimise(model.parameters(), loss, iterations, label, 1e-2)
    bounds[iterations] = bound(model, x[:batch], t)
    return bounds, time.perf_counter() - start


def share_inside(draws, truth):
    """The share of the truth that lies in the band that holds nine tenths of the draws."""
    low, high = draws.quantile(torch.tensor([0.05, 0.95], dtype=draws.dtype), dim=0)
    return ((truth >= low) & (truth <= high)).double().mean().item()


def exact_posterior(t, x, at):
    """The log evidence, and the distribution of the process at the times `at`, in double."""

    def covariance(a, b):
        return SPREAD**2 * torch.exp(-RATE * (a[:, None] - b).abs())

    t, x, at = t.double(), x.double(), at.double()
    seen = covariance(t, t) + NOISE**2 * torch.eye(len(t), dtype=torch.double)
    weights = torch.linalg.solve(seen, covariance(t, at)).T
    left = covariance(at, at) - weights @ covariance(t, at)
    evidence = MultivariateNormal(torch.zeros_like(x), seen).log_prob(x).item()
    return evidence, MultivariateNormal(weights @ x, left + 1e-9 * torch.eye(len(at), dtype=torch.double))


def fit_sine(engine, seed, iterations, paths):
    """The measures of the sine, and what is drawn of it."""
    torch.manual_seed(seed)
    t = (0.4 + 1.2 * torch.rand(16)).sort().values
    x = sine(t) + NOISE * torch.randn(16)
    fine = torch.linspace(0, 2, 201)
    evidence, exact = exact_posterior(t, x, fine)

    def prior_drift(t, z):
        return -RATE * z

    model = LatentSDE(
        1,
        1,
        prior_drift=prior_drift,
        posterior_drift=ClockDrift(prior_drift),
        diffusion=lambda t, z: torch.full_like(z, math.sqrt(2 * RATE)),
        decoder=lambda z: SPREAD * z,
        noise_std=NOISE,
        solver="em",
        dt=0.02,
        engine=engine,
    )
    copies = x[None, :, None].expand(paths, -1, -1)  # each of which gets a path of its own
    many = x[None, :, None].expand(DRAWS, -1, -1)
    before = bound(model, many, t)
    bounds, seconds = train(model, copies, t, iterations, paths, "sine")
    with torch.no_grad():
        drawn = model.predict(x[None, :, None], t, fine, n_samples=DRAWS)[:, 0, :, 0]
        prior = model.sample(DRAWS, fine)[..., 0]
    exactly = exact.sample(torch.Size([DRAWS])).to(drawn)
    between = (fine >= t[0]) & (fine <= t[-1])
    truth = sine(fine)
    off = (drawn.mean(0) - exact.mean)[between]
    results = {
        "log evidence": evidence,
        "bound before": before,
        "bound": bound(model, many, t),
        "RMS distance to the exact mean": off.square().mean().sqrt().item(),
        "standard deviation over the exact one": (drawn.std(0) / exact.stddev)[between].mean().item(),
        "share in the 90 % band": share_inside(drawn[:, between], truth[between]),
        "share in the exact 90 % band": share_inside(exactly[:, between], truth[between]),
        "prior standard deviation": prior.std().item(),
        "exact prior standard deviation": SPREAD,
        "seconds": seconds,
    }
    panels = {"x, posterior": (fine, drawn), "x, exact posterior": (fine, exactly), "x, prior": (fine, prior)}
    gap = {i: evidence - b for i, b in bounds.items()}
    return results, panels, (t, x), (fine, truth), gap


def lorenz_paths(engine, seed, n, fine):
    """Paths on the attractor, `(n, time, 3)`."""
    with torch.no_grad():
        spans = torch.cat([torch.zeros(1), BEFORE + fine])
        start = torch.randn(n, 3)
        return (
            solve_sde(lorenz, lorenz_noise, start, spans, dt=2e-3, solver="em", seed=seed, engine=engine)
            .z[1:]
            .transpose(0, 1)
        )


def fit_lorenz(engine, seed, iterations, series, batch, hidden=64, context=16):
    """The measures of the Lorenz attractor, and what is drawn of it."""
    torch.manual_seed(seed)
    fine = torch.linspace(0, 1, (OBSERVED - 1) * FINER + 1)
    true = lorenz_paths(engine, seed, series + UNSEEN, fine)
    true = (true - true[:series].mean((0, 1))) / true[:series].std((0, 1))
    x, t = true[:, ::FINER] + LORENZ_NOISE * torch.randn(len(true), OBSERVED, 3), fine[::FINER] / UNIT
    seen, unseen = slice(0, series), slice(series, None)
    model = LatentSDE(
        3,
        3,
        prior_drift=StateDrift(3, hidden),
        posterior_drift=ContextDrift(3, context, hidden),
        decoder=nn.Identity(),
        context_dim=context,
        context="observations",
        hidden=hidden,
        noise_std=LORENZ_NOISE,
        solver="em",
        dt=0.05,
        engine=engine,
    )
    values = OBSERVED * 3
    before, untrained = bound(model, x[unseen], t), drawn_series(model, t)
    bounds, seconds = train(model, x[seen], t, iterations, batch, "Lorenz")
    with torch.no_grad():
        drawn = model.predict(x[unseen], t, fine / UNIT, n_samples=DRAWS // 10)
        samples = model.sample(DRAWS, fine / UNIT)
    data, half = true[:, ::FINER], len(true) // 2
    results = {
        "bound before, a value": before / values,
        "bound, a value": bound(model, x[unseen], t) / values,
        "RMSE of the posterior's mean": rmse(drawn.mean(0)[:, ::FINER], data[unseen]),
        "RMSE of the observations": rmse(x[unseen], data[unseen]),
        "share in the 90 % band": share_inside(drawn, true[unseen]),
        "samples": beside(samples[:, ::FINER], data),
        "samples before": beside(untrained, data),
        "half of the data": beside(data[:half], data[half:]),
        "seconds": seconds,
    }
    return results, fine, drawn[:, 0], true, x, samples, {i: b / values for i, b in bounds.items()}


@torch.no_grad()
def drawn_series(model, t):
    """Samples of the prior."""
    return model.sample(DRAWS, t)


def rmse(a, b):
    """The root of the mean square of a difference."""
    return (a - b).square().mean().sqrt().item()


def beside(samples, data):
    """Moments of samples, by coordinates, and how far they are from data, from a quarter of the time on.

    The distances are the mean ones of quantiles (Wasserstein's, of order 1) in standard deviations of the data: of the
    values, and of their changes over a tenth of a unit of time.
    """
    samples, data = samples[:, OBSERVED // 4 :], data[:, OBSERVED // 4 :]
    levels = torch.linspace(0.005, 0.995, 199)

    def apart(of):
        a, b = (of(x).flatten(0, 1) for x in (samples, data))
        off = torch.stack([(a[:, i].quantile(levels) - b[:, i].quantile(levels)).abs().mean() for i in range(3)])
        return (off / b.std(0)).tolist()

    flat = samples.flatten(0, 1)
    return {
        "mean": flat.mean(0).tolist(),
        "standard deviation": flat.std(0).tolist(),
        "correlation of xy, xz, yz": torch.corrcoef(flat.T)[[0, 0, 1], [1, 2, 2]].tolist(),
        "distance of the values": apart(lambda x: x),
        "distance of the changes": apart(lambda x: x[:, 4:] - x[:, :-4]),
    }


def run(out, engine="auto", seed=0, iterations=(600, 400), paths=64, series=256, batch=64):
    torch.set_num_threads(1)  # the networks are too small to share between threads
    results = {}
    results["sine"], panels, observed, truth, gap = fit_sine(engine, seed, iterations[0], paths)
    results["lorenz"], fine, drawn, true, x, samples, bounds = fit_lorenz(engine, seed, iterations[1], series, batch)

    for name, found in results.items():
        print(f"\n{name}")
        for key, value in found.items():
            print(f"  {key:<40}" + (f"{value:.3f}" if isinstance(value, float) else ""))
            for part, of in value.items() if isinstance(value, dict) else ():
                print(f"    {part:<38}" + "".join(f"{v:8.3f}" for v in of))

    def figures():
        there = {"observed": observed}
        first = len(x) - UNSEEN
        highest = -math.log(LORENZ_NOISE * math.sqrt(2 * math.pi))  # of an observation, where the path goes through it
        coordinates = {f"{name}, in standard deviations": i for i, name in enumerate("xyz")}
        shown = {"data": true, "samples of the prior": samples}
        return {
            "sine.png": plot.bands(panels, dict.fromkeys(panels, there), truth=dict.fromkeys(panels, truth)),
            "lorenz.png": plot.bands(
                {title: (fine, drawn[..., i]) for title, i in coordinates.items()},
                {title: {"observed": (fine[::FINER], x[first, :, i])} for title, i in coordinates.items()},
                truth={title: (fine, true[first, :, i]) for title, i in coordinates.items()},
            ),
            "lorenz_samples.png": plot.flow(
                {title: z[:40, len(fine) // 4 :, ::2].transpose(0, 1) for title, z in shown.items()},
                axes_names=("x, in standard deviations", "z, in standard deviations"),
            ),
            "training.png": plot.lines(
                {
                    "sine: log evidence less bound": {"latent SDE": (list(gap), list(gap.values()))},
                    "Lorenz: highest log density less bound, a value": {
                        "latent SDE": (list(bounds), [highest - b for b in bounds.values()])
                    },
                },
                xlabel="iteration",
            ),
        }

    write(out, results, figures, engine=engine, seed=seed)
    return results


if __name__ == "__main__":
    parser = arguments(__doc__, "latent_sde", on_torch="6 minutes", on_julia="2 minutes")
    parser.add_argument("--seed", type=int, default=0, help="of data, parameters and noise")
    parser.add_argument(
        "--iterations", type=int, nargs=2, default=(600, 400), help="steps of the optimizer: sine, Lorenz"
    )
    parser.add_argument("--paths", type=int, default=64, help="of the sine's posterior in each step")
    parser.add_argument("--series", type=int, default=256, help="of the Lorenz attractor to learn from")
    parser.add_argument("--batch", type=int, default=64, help="series in each step")
    run(**vars(parser.parse_args()))
