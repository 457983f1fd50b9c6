"""Neural and latent SDEs."""

import math
import pickle

import pytest
import torch
from torch import nn

import pynode
from pynode.models import LatentSDE, NeuralSDE

ENGINES = ["torch", pytest.param("julia", marks=[pytest.mark.julia, pytest.mark.slow])]


class Scaled(nn.Module):
    """The factor times the state."""

    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def forward(self, t, z):
        return self.factor * z


@pytest.mark.parametrize("engine", ENGINES)
def test_a_neural_sde_is_the_solve_of_its_fields(engine):
    model = NeuralSDE(Scaled(-0.5), Scaled(0.3), dt=0.1, solver="em", engine=engine, output_network=lambda z: 2 * z)
    x = torch.ones(3, 2, dtype=torch.float64)
    t = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    same = pynode.solve_sde(model.drift, model.diffusion, x, t, dt=0.1, solver="em", engine=engine, seed=4)
    assert torch.equal(model.trajectory(x, t, seed=4), 2 * same.z)
    assert model.stats.nfe == same.stats.nfe
    assert torch.equal(model.trajectory(x, t[1:], seed=4), 2 * same.z[1:])
    end = model(x, seed=4)
    assert not torch.equal(end, model(x))
    end.sum().backward()
    assert model.drift.factor.grad.isfinite()
    assert model.diffusion.factor.grad != 0
    copied = pickle.loads(pickle.dumps(NeuralSDE(Scaled(1.5), Scaled(1.0), dt=0.1)))
    assert copied.drift.factor.item() == 1.5


def test_a_neural_sde_refuses():
    with pytest.raises(pynode.InputError, match="step dt"):
        NeuralSDE(Scaled(1.0), Scaled(1.0))
    with pytest.raises(pynode.InputError, match="unknown solver keyword 'lowering'"):
        NeuralSDE(Scaled(1.0), Scaled(1.0), dt=0.1, lowering="trace")
    with pytest.raises(pynode.InputError, match="noise"):
        NeuralSDE(Scaled(1.0), Scaled(1.0), dt=0.1, noise="white")
    with pytest.raises(pynode.InputError, match="increasing"):
        NeuralSDE(Scaled(1.0), Scaled(1.0), dt=0.1, t=(1.0, 0.0))


class Ornstein(nn.Module):
    def forward(self, t, z):
        return -z


class Shifted(nn.Module):
    """The posterior drift -z + σ u of a constant u: its divergence from the prior is u²/2 for each unit of time."""

    def forward(self, t, z, context):
        return -z + 0.5 * 0.8


class Constant(nn.Module):
    def forward(self, t, z):
        return torch.full_like(z, 0.5)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_divergence_of_paths_is_girsanovs(engine):
    model = LatentSDE(
        1,
        2,
        prior_drift=Ornstein(),
        posterior_drift=Shifted(),
        diffusion=Constant(),
        dt=0.1,
        solver="em",
        engine=engine,
    )
    x, t = torch.randn(4, 3, 1), torch.tensor([0.5, 1.0, 1.5])
    torch.manual_seed(1)
    weighted = model.elbo(x, t, seed=2)
    torch.manual_seed(1)
    free = model.elbo(x, t, kl_weight=0.0, seed=2)
    q = model.posterior(x, t)
    initial = torch.distributions.kl_divergence(q, torch.distributions.Normal(torch.zeros(4, 2), torch.ones(4, 2)))
    path = 2 * 1.5 * 0.8**2 / 2  # two features, for 1.5 units of time
    assert torch.allclose(free - weighted, initial.sum(1) + path, atol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_bound_of_a_gaussian_process_is_below_its_likelihood(engine):
    # The prior is an Ornstein-Uhlenbeck process seen with noise, whose likelihood is that of a Gaussian vector.
    t = torch.tensor([0.3, 0.8, 1.4], dtype=torch.float64)
    model = LatentSDE(
        1,
        1,
        prior_drift=Ornstein(),
        diffusion=Constant(),
        decoder=nn.Identity(),
        noise_std=0.4,
        dt=0.05,
        solver="em",
        engine=engine,
    ).double()
    x = torch.tensor([[[0.6], [0.4], [0.1]]], dtype=torch.float64)
    start, end = torch.minimum(t[:, None], t), torch.maximum(t[:, None], t)
    covariance = torch.exp(-(start + end)) * (1 + 0.125 * (torch.exp(2 * start) - 1)) + 0.16 * torch.eye(3)
    exact = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=torch.float64), covariance).log_prob(x[0, :, 0])
    with torch.no_grad():
        bound = model.elbo(x.expand(500, -1, -1), t, seed=1)
    assert bound.mean() < exact + 3 * bound.std() / math.sqrt(500)


@pytest.mark.parametrize("context", ["series", "observations"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_latent_sde_learns_and_predicts(engine, context):
    model = LatentSDE(1, 2, hidden=8, context_dim=2, context=context, dt=0.2, solver="em", engine=engine)
    t = torch.tensor([[0.1, 0.5, 1.0], [0.2, 0.4, 0.4]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    x = torch.randn(2, 3, 1)
    loss = -model.elbo(x, t, mask).mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    y = model.predict(x, t, torch.tensor([0.0, 0.3, 1.0, 2.0]), mask, n_samples=5, seed=3)
    assert y.shape == (5, 2, 4, 1)
    assert torch.equal(model.sample(3, torch.tensor([0.0, 1.0])).isfinite().all(), torch.tensor(True))
    assert model.stats.nfe > 0
    with pytest.raises(pynode.InputError, match="step dt"):
        LatentSDE(1, 2)
    with pytest.raises(pynode.InputError, match="unknown context 'path'"):
        LatentSDE(1, 2, context="path", dt=0.1)


class ContextAlone(nn.Module):
    def forward(self, t, z, context):
        return context


class Still(nn.Module):
    def forward(self, t, z):
        return torch.full_like(z, 1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_context_changes_from_one_observation_to_the_next(engine):
    model = LatentSDE(
        1,
        2,
        posterior_drift=ContextAlone(),
        diffusion=Still(),
        context_dim=2,
        context="observations",
        dt=0.2,
        solver="em",
        engine=engine,
    ).double()
    t = torch.tensor([[0.1, 0.5, 0.7, 1.0], [0.2, 0.3, 0.4, 0.4]], dtype=torch.double)
    mask = torch.tensor([[True, True, False, True], [True, True, True, False]])
    series = model._series(torch.randn(2, 4, 1, dtype=torch.double), t, mask)
    out, times = model.encoder.along(series, 0.0)
    assert times.tolist() == [[0.1, 0.5, 1.0], [0.2, 0.3, 0.4]]
    assert torch.allclose(out[:, 0], model.encoder(series, 0.0))
    c = out[..., -2:]
    # Steps end at all these times, among which are those of the observations.
    asked = torch.tensor([[0.05, 0.1, 0.5, 1.0], [0.2, 0.3, 0.4, 0.6]], dtype=torch.double)
    z0, context = torch.zeros(2, 2, dtype=torch.double), model._encoded(series)[1]
    ends = asked.new_full((2, 1), 1.0)
    z, _ = model._latent(z0, asked, context, ends, 1, divergence=False)
    spent = torch.tensor(
        [
            [[0.05, 0, 0], [0.1, 0, 0], [0.1, 0.4, 0], [0.1, 0.4, 0.5]],
            [[0.2, 0, 0], [0.2, 0.1, 0], [0.2, 0.1, 0.1], [0.2, 0.1, 0.3]],
        ],
        dtype=torch.double,
    )
    assert torch.allclose(z, spent @ c, atol=1e-9)
    z.sum().backward()
    assert model.encoder.head.weight.grad[-2:].abs().min() > 0


class Slope(nn.Module):
    """A constant drift, with or without a context."""

    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, t, z, *context):
        return torch.full_like(z, self.slope)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_series_follows_the_prior_from_its_last_observation_on(engine):
    """Whatever the others of its batch do: the posterior falls, the prior rises, and the noise is next to none."""
    model = LatentSDE(
        1,
        1,
        prior_drift=Slope(1.0),
        posterior_drift=Slope(-1.0),
        diffusion=Still(),
        decoder=nn.Identity(),
        dt=0.2,
        solver="em",
        engine=engine,
    ).double()
    t = torch.tensor([[0.1, 0.5, 0.7, 0.9], [0.2, 0.3, 0.4, 0.4], [0.1, 0.5, 0.7, 0.9]], dtype=torch.double)
    mask = torch.tensor([[True, True, True, True], [True, True, True, False], [True, False, False, False]])
    x, ends = torch.randn(3, 4, 1, dtype=torch.double), torch.tensor([0.9, 0.4, 0.1], dtype=torch.double)
    asked = torch.tensor([0.0, 0.05, 0.3, 0.6, 0.9, 2.0], dtype=torch.double)
    torch.manual_seed(0)
    z0 = model.posterior(x, t, mask).rsample(torch.Size([1]))
    torch.manual_seed(0)
    y = model.predict(x, t, asked, mask, seed=1)
    fallen = torch.minimum(asked, ends[:, None])
    expected = z0.unsqueeze(2) + (asked - 2 * fallen).unsqueeze(-1)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-9)
    assert model.stats.nfe >= 10


@pytest.mark.parametrize("engine", ENGINES)
def test_the_divergence_of_a_series_is_that_up_to_its_last_observation(engine):
    model = LatentSDE(
        1, 1, prior_drift=Slope(0.0), posterior_drift=Slope(0.4), diffusion=Slope(0.5), dt=0.1, engine=engine
    )
    t = torch.tensor([[0.1, 0.5, 0.7, 0.9], [0.2, 0.3, 0.4, 0.4], [0.1, 0.5, 0.7, 0.9]])
    mask = torch.tensor([[True, True, True, True], [True, True, True, False], [True, False, False, False]])
    x = torch.randn(3, 4, 1)

    def divergence(rows):
        bounds = []
        for weight in (0.0, 1.0):
            torch.manual_seed(0)
            bounds.append(model.elbo(x[rows], t[rows], mask[rows], kl_weight=weight, seed=2))
        q = model.posterior(x[rows], t[rows], mask[rows])
        standard = torch.distributions.Normal(torch.zeros_like(q.mean), torch.ones_like(q.mean))
        return bounds[0] - bounds[1] - torch.distributions.kl_divergence(q, standard).sum(1)

    exact = torch.tensor([0.9, 0.4, 0.1]) * (0.4 / 0.5) ** 2 / 2
    torch.testing.assert_close(divergence(slice(None)), exact, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(divergence(slice(1, 2)), exact[1:2], rtol=1e-3, atol=1e-4)


def test_no_part_of_a_path_has_the_noise_of_another_path(monkeypatch):
    """The second part of the path of seed 0 had that of the first of seed 1."""
    from pynode.models import _latent_sde

    seeds, solve = [], _latent_sde.solve_sde

    def recorded(*args, seed, **keywords):
        seeds.append(seed)
        return solve(*args, seed=seed, **keywords)

    monkeypatch.setattr(_latent_sde, "solve_sde", recorded)
    model = LatentSDE(
        1, 1, prior_drift=Slope(0.0), posterior_drift=Slope(0.4), diffusion=Slope(0.5), dt=0.1, engine="torch"
    )
    t, mask = torch.tensor([[0.1, 0.9], [0.2, 0.4], [0.1, 0.6]]), torch.ones(3, 2, dtype=torch.bool)
    for seed in range(4):
        model.elbo(torch.zeros(3, 2, 1), t, mask, seed=seed)
    assert seeds[::3] == [0, 1, 2, 3]
    assert len(set(seeds)) == len(seeds) == 12
    before = list(seeds)
    seeds.clear()
    model.elbo(torch.zeros(3, 2, 1), t, mask, seed=0)
    assert seeds == before[:3]
    with pytest.raises(pynode.InputError, match="seed must be"):
        model.elbo(torch.zeros(3, 2, 1), t, mask, seed=-1)


class Counted(Ornstein):
    """A drift that knows whether it was evaluated."""

    def __init__(self):
        super().__init__()
        self.evaluated = False

    def forward(self, t, z):
        self.evaluated = True
        return super().forward(t, z)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_divergence_does_not_change_the_path(engine):
    model = LatentSDE(1, 2, dt=0.2, solver="em", engine=engine)
    x, t = torch.randn(2, 3, 1), torch.tensor([0.2, 0.6, 1.0])
    z0, context = model._encoded(model._series(x, t, None))
    paths = [
        model._latent(z0.mean, t.expand(2, -1), context, t[None, -1:].expand(2, 1), 3, divergence=d)[0]
        for d in (True, False)
    ]
    assert torch.allclose(*paths, atol=1e-5)


def test_predictions_solve_no_divergence():
    prior = Counted()
    model = LatentSDE(1, 2, prior_drift=prior, dt=0.2, solver="em", engine="torch")
    x, t = torch.randn(2, 3, 1), torch.tensor([0.2, 0.6, 1.0])
    z0, context = model._encoded(model._series(x, t, None))
    times, ends = t.expand(2, -1), torch.ones(2, 1)
    z, divergence = model._latent(z0.mean, times, context, ends, 3)
    assert prior.evaluated
    assert (divergence > 0).all()
    prior.evaluated = False
    same, none = model._latent(z0.mean, times, context, ends, 3, divergence=False)
    assert torch.equal(same, z)
    assert not none.any()
    model.predict(x, t, torch.tensor([0.0, 0.7, 1.0]))
    assert not prior.evaluated
    model.predict(x, t, torch.tensor([0.0, 0.7, 1.1]))
    assert prior.evaluated
