import copy
import io
import math

import pytest
import torch
from torch import nn

from pynode import data
from pynode.errors import InputError, TraceError
from pynode.models import LatentODE
from pynode.nn import TimeSequential

on_every_engine = pytest.mark.usefixtures("engine")
TIGHT = {"rtol": 1e-9, "atol": 1e-9}
ENCODERS = ("gru", "ode_rnn")


def model(**keywords):
    torch.manual_seed(0)
    return LatentODE(2, 3, **{"hidden": 8, **TIGHT, **keywords}).double()


def ragged(seed=0):
    """Three series with times of their own and 5, 3 and 4 observations, padded; and each of them alone."""
    generator = torch.Generator().manual_seed(seed)
    lengths = (5, 3, 4)
    x = torch.full((3, 5, 2), math.nan, dtype=torch.float64)
    t = torch.zeros(3, 5, dtype=torch.float64)
    mask = torch.zeros(3, 5, dtype=torch.bool)
    alone = []
    for i, n in enumerate(lengths):
        t[i] = (2 * torch.rand(5, dtype=torch.float64, generator=generator)).sort().values
        t[i, n:] = t[i, n - 1]
        x[i, :n] = torch.randn(n, 2, dtype=torch.float64, generator=generator)
        mask[i, :n] = True
        alone.append((x[i : i + 1, :n], t[i : i + 1, :n]))
    return x, t, mask, alone


@pytest.fixture
def still(monkeypatch):
    """The posterior's draws are the same for every series of a batch."""

    def rsample(self, shape=()):
        return self.loc + self.scale * torch.linspace(-1, 1, self.loc.shape[-1], dtype=self.loc.dtype).expand(
            *shape, *self.loc.shape
        )

    monkeypatch.setattr(torch.distributions.Normal, "rsample", rsample)


# -- one batch, several grids --------------------------------------------------------------------------------


@on_every_engine
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("likelihood", ["gaussian", "poisson", "gaussian+poisson"])
def test_different_grids_in_one_batch_are_as_one_by_one(encoder, likelihood, still):
    m = model(encoder=encoder, likelihood=likelihood)
    x, t, mask, alone = ragged()
    new = torch.tensor([0.5, 2.5, 4.0], dtype=torch.float64)
    elbo, fit = m.elbo(x, t, mask, kl_weight=0.7), m.reconstruct(x, t, mask)
    later = m.predict(x, t, new, mask, n_samples=2)
    assert later.shape == (2, 3, 3, 2)
    for i, (x1, t1) in enumerate(alone):
        close = {"atol": 1e-7, "rtol": 1e-7}
        torch.testing.assert_close(elbo[i : i + 1], m.elbo(x1, t1, kl_weight=0.7), **close)
        torch.testing.assert_close(fit[i : i + 1, : t1.shape[1]], m.reconstruct(x1, t1), **close)
        torch.testing.assert_close(later[:, i : i + 1], m.predict(x1, t1, new, n_samples=2), **close)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_union_grid_with_masks_is_as_packed_times(encoder):
    m = model(encoder=encoder)
    x, t, mask, _ = ragged()
    union, where = t.unique(return_inverse=True)
    wide = torch.full((3, len(union), 2), math.nan, dtype=torch.float64)
    seen = torch.zeros(3, len(union), dtype=torch.bool)
    for i in range(3):
        wide[i, where[i][mask[i]]] = x[i][mask[i]]
        seen[i, where[i][mask[i]]] = True
    q, p = m.posterior(wide, union, seen), m.posterior(x, t, mask)
    torch.testing.assert_close(q.mean, p.mean)
    torch.testing.assert_close(q.stddev, p.stddev)
    fit = m.reconstruct(wide, union, seen)
    assert fit.shape == wide.shape  # also where nothing was observed
    torch.testing.assert_close(fit[0, where[0]], m.reconstruct(x, t, mask)[0], atol=1e-7, rtol=0)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_what_the_mask_leaves_out_does_not_matter(encoder):
    m = model(encoder=encoder)
    x, t, _, _ = ragged()
    mask = x.isfinite()
    mask[0, 1, 0] = False  # one channel of an entry, and a whole entry
    mask[0, 2] = False
    results = []
    for value in (0.0, math.nan, math.inf):
        m.zero_grad()
        torch.manual_seed(1)
        elbo = m.elbo(x.masked_fill(~mask, value), t, mask)
        elbo.sum().backward()
        results.append((elbo.detach(), m.encoder.head.weight.grad))
    for elbo, grad in results[1:]:
        assert torch.equal(elbo, results[0][0])
        assert torch.equal(grad, results[0][1])
    assert results[0][1].isfinite().all()


def test_each_missing_channel_counts():
    m = model()
    x, t = data.spirals(2, 10).tensors[:2]
    x, t = x.double(), t.double()
    mask = torch.ones_like(x, dtype=torch.bool)
    mask[:, 4, 1] = False
    full, part = m.posterior(x, t).mean, m.posterior(x, t, mask).mean
    assert not torch.allclose(full, part)
    whole = m.posterior(x, t, torch.ones(2, 10, dtype=torch.bool)).mean
    assert torch.equal(full, whole)


def test_the_gru_is_told_the_gaps_and_the_times_since_t0():
    m = model(t0=-1.0)
    x, t, mask, _ = ragged()
    seen = []
    m.encoder.gru.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    m.posterior(x, t, mask)
    for i, n in enumerate((5, 3, 4)):  # from the last observation to the first
        steps, backwards = seen[0][i, :n], t[i, :n].flip(0)
        torch.testing.assert_close(steps[:, :2], x[i, :n].flip(0))
        torch.testing.assert_close(steps[:, -1], backwards + 1)
        before = torch.cat([backwards[1:], torch.tensor([-1.0]).double()])
        torch.testing.assert_close(steps[:, -2], backwards - before)


# -- values --------------------------------------------------------------------------------------------------


class Known(nn.Module):
    """ż = -z / 2, and an encoder that says N(μ, σ²) whatever the series."""

    def __init__(self, mean, std):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean, dtype=torch.float64))
        self.spread = nn.Parameter(torch.tensor(std, dtype=torch.float64).expm1().log())

    def forward(self, series, t0):
        return torch.cat([self.mean.expand(len(series.x), -1), self.spread.expand(len(series.x), -1)], dim=1)


def decay(t, z):
    return -0.5 * z


def known(mean=(1.0, -2.0), std=(1e-12, 1e-12), **keywords):
    keywords = {"field": decay, "decoder": nn.Identity(), "noise_std": 0.5, **TIGHT, **keywords}
    m = LatentODE(2, 2, **keywords).double()
    m.encoder = Known(mean, std)
    return m


@on_every_engine
def test_reconstruction_follows_the_latent_state():
    t = torch.tensor([[0.0, 1.0, 3.0], [0.5, 0.5, 7.0]], dtype=torch.float64)
    fit = known().reconstruct(torch.zeros(2, 3, 2, dtype=torch.float64), t)
    exact = torch.exp(-0.5 * t).unsqueeze(2) * torch.tensor([1.0, -2.0], dtype=torch.float64)
    torch.testing.assert_close(fit, exact, atol=1e-7, rtol=0)


def test_t0_shifts_the_latent_initial_state():
    t = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    fit = known(t0=-2.0).reconstruct(torch.zeros(1, 2, 2, dtype=torch.float64), t)
    torch.testing.assert_close(fit[0, :, 0], torch.exp(-0.5 * (t + 2)), atol=1e-7, rtol=0)


def test_elbo_of_a_known_posterior():
    """E log N(x; z e^{-t/2}, s²) - w KL(N(μ, σ²) || N(0, 1)), averaged over many draws against the formula."""
    mean, std, s = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.3, 0.6]).double(), 0.5
    m = known(mean.tolist(), std.tolist(), noise_std=s)
    n = 20_000
    t = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    x = torch.tensor([[1.0, -1.0], [0.5, -1.5], [0.0, 0.2]], dtype=torch.float64)
    mask = torch.tensor([[True, True], [False, True], [True, True]])
    factor = torch.exp(-0.5 * t).unsqueeze(1)
    spread = (x - factor * mean) ** 2 + (factor * std) ** 2
    expected = (-spread / (2 * s * s) - math.log(s) - 0.5 * math.log(2 * math.pi))[mask].sum()
    kl = 0.5 * (std**2 + mean**2 - 1 - 2 * std.log()).sum()
    for weight in (0.0, 0.3, 1.0):
        draws = m.elbo(x.expand(n, -1, -1), t, mask.expand(n, -1, -1), kl_weight=weight).detach()
        error = 5 * draws.std() / math.sqrt(n)
        assert abs(draws.mean() - (expected - weight * kl)) < error < 0.3


@on_every_engine
@pytest.mark.parametrize("slope", [0.0, -0.6])
def test_poisson_process_log_likelihood(slope):
    """λ_d = exp(z_d), z_d = r_d + a s: log L = Σ z_d(tᵢ) - ∫ exp(z_d(s)) ds, to the last of t, observed or not."""
    drift = {"field": lambda t, z: torch.full_like(z, slope), "noise_std": None}
    m = known(mean=(0.7, 0.2), likelihood="poisson", **drift)
    t = torch.tensor([[0.5, 1.0, 4.0], [1.0, 2.0, 3.0]], dtype=torch.float64)
    mask = torch.tensor([[[True, False], [True, True], [False, False]], [[True, True], [True, True], [True, True]]])
    x = torch.zeros(2, 3, 2, dtype=torch.float64)
    z = torch.tensor([0.7, 0.2], dtype=torch.float64) + slope * t.unsqueeze(2)
    span = t[:, -1] if slope == 0 else (slope * t[:, -1]).expm1() / slope  # ∫ exp(a s) ds
    exact = (mask * z).sum((1, 2)) - span * (math.exp(0.7) + math.exp(0.2))
    torch.testing.assert_close(m.elbo(x, t, mask, kl_weight=0.0).detach(), exact, atol=3e-3, rtol=0)  # the draw's
    intensity = m.predict(x, t, t, mask)[0]
    torch.testing.assert_close(intensity.detach(), z.exp(), atol=3e-3, rtol=0)
    torch.testing.assert_close(m.intensity(x, t, t, mask)[0], intensity, atol=3e-3, rtol=0)


def test_gaussian_and_poisson_add_up():
    x, t, mask, _ = ragged()
    torch.manual_seed(0)
    both = known(likelihood="gaussian+poisson")
    log_intensity = both.dynamics.field.log_intensity
    values = known()
    times = known(likelihood="poisson", decoder=log_intensity, noise_std=None)
    parts = [m.elbo(x, t, mask, kl_weight=0.0) for m in (values, times, both)]
    torch.testing.assert_close(parts[0] + parts[1], parts[2], atol=2e-2, rtol=0)  # the draws'


@pytest.mark.slow
def test_poisson_learns_a_constant_rate():
    """Events of rate 3 on [0, 2]: the intensity of the trained model is the mean count over the length."""
    torch.manual_seed(0)
    n, length = 64, 2.0
    counts = torch.poisson(torch.full((n,), 6.0)).clamp(1, 20).long()
    width = 21
    t = (length * torch.rand(n, width)).mul(20).round() / 20
    over = torch.arange(width) >= counts[:, None]
    t = t.masked_fill(over, length).sort(1).values
    mask = ~over
    m = LatentODE(1, 1, hidden=8, likelihood="poisson", field=lambda t, z: torch.zeros_like(z), rtol=1e-3)
    optimizer = torch.optim.Adam(m.parameters(), 5e-2)
    x = torch.ones(n, width, 1)
    for _ in range(60):
        optimizer.zero_grad()
        (-m.elbo(x, t, mask).mean()).backward()
        optimizer.step()
    intensity = m.predict(x, t, torch.tensor([1.0]), mask, n_samples=20).mean().item()
    assert intensity == pytest.approx(counts.float().mean().item() / length, rel=0.1)


def test_predictions_spread_as_the_posterior_and_the_noise():
    m = known(mean=(1.0, -2.0), std=(0.3, 0.6), noise_std=0.5)
    x, t, mask, _ = ragged()
    new = torch.tensor([0.0, 2.0], dtype=torch.float64)
    torch.manual_seed(0)
    for noise, extra in ((False, 0.0), (True, 0.25)):
        draws = m.predict(x, t, new, mask, n_samples=4000, noise=noise).detach()
        std = torch.exp(-0.5 * new).unsqueeze(1) * torch.tensor([0.3, 0.6], dtype=torch.float64)
        torch.testing.assert_close(draws.std(0), (std**2 + extra).sqrt().expand(3, -1, -1), atol=0.02, rtol=0.05)
        torch.testing.assert_close(draws[:, 0, 0].mean(0), torch.tensor([1.0, -2.0]).double(), atol=0.05, rtol=0)


def test_sample_is_from_the_prior():
    m = known()
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    draws = m.sample(5000, t).detach()
    assert draws.shape == (5000, 2, 2)
    torch.testing.assert_close(draws[:, 0].std(0), torch.ones(2).double(), atol=0.05, rtol=0)
    torch.testing.assert_close(draws[:, 1], draws[:, 0] * math.exp(-0.5), atol=1e-6, rtol=0)
    own = torch.rand(3, 4, dtype=torch.float64).sort(1).values
    assert m.sample(3, own).shape == (3, 4, 2)


def test_interpolate_and_extrapolate_are_predict_where_they_may_be():
    m = model()
    x, t, mask, _ = ragged()
    inside = t[:, :1] + (t[:, -1:] - t[:, :1]) * torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    outside = t[:, -1:] + torch.tensor([0.1, 1.0], dtype=torch.float64)
    for helper, times in ((m.interpolate, inside), (m.extrapolate, outside)):
        torch.manual_seed(3)
        got = helper(x, t, times, mask, n_samples=2)
        torch.manual_seed(3)
        assert torch.equal(got, m.predict(x, t, times, mask, n_samples=2))


def test_a_grid_to_the_last_observation_may_round_past_it():
    m = LatentODE(2, 3, hidden=8)
    t = torch.tensor([[0.246276, 1.74287], [0.1, 0.3]])
    grid = t[:, -1:].nextafter(torch.tensor(9.0))
    assert m.interpolate(torch.zeros(2, 2, 2), t, torch.cat([t[:, :1], grid], dim=1)).shape == (1, 2, 2, 2)
    assert m.interpolate(torch.zeros(2, 2, 2), t, t[:, :1].nextafter(torch.tensor(0.0))).shape == (1, 2, 1, 2)
    with pytest.raises(InputError, match="t_new must lie within the observations"):
        m.interpolate(torch.zeros(2, 2, 2), t, t[:, -1:] + 1e-5)


# -- gradients -----------------------------------------------------------------------------------------------


@on_every_engine
@pytest.mark.parametrize(
    ("encoder", "likelihood"),
    [("gru", "gaussian+poisson"), pytest.param("ode_rnn", "gaussian", marks=pytest.mark.slow)],
)
def test_gradcheck(encoder, likelihood):
    m = model(encoder=encoder, likelihood=likelihood, hidden=3, sensitivity="discrete")
    x, t, mask, _ = ragged()
    x = x.nan_to_num(0.0).requires_grad_()
    names, parameters = zip(*m.named_parameters(), strict=True)

    class Elbo(nn.Module):
        def __init__(self):
            super().__init__()
            self.m = m

        def forward(self, x):
            torch.manual_seed(5)  # the same draw at every evaluation
            return self.m.elbo(x, t, mask, kl_weight=0.3)

    elbo = Elbo()

    def call(x, *values):
        return torch.func.functional_call(elbo, {f"m.{n}": v for n, v in zip(names, values, strict=True)}, (x,))

    values = tuple(p.detach().clone().requires_grad_() for p in parameters)
    assert torch.autograd.gradcheck(call, (x, *values), atol=1e-4, rtol=1e-3, fast_mode=True)


@pytest.mark.julia
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("likelihood", ["gaussian", "gaussian+poisson"])
def test_engines_agree(encoder, likelihood, still):
    x, t, mask, _ = ragged()
    found = []
    for engine in ("torch", "julia"):
        m = model(encoder=encoder, likelihood=likelihood, engine=engine)
        elbo = m.elbo(x, t, mask)
        elbo.sum().backward()
        found.append((elbo.detach(), *(p.grad for p in m.parameters())))
        assert all(g.abs().max() > 0 for g in found[-1][1:])
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-6)


@pytest.mark.slow
@on_every_engine
def test_training_fits_damped_oscillations():
    """Two fifths of the points of each series are missing; the model finds them, and goes on after the last one."""
    torch.manual_seed(0)
    t = torch.linspace(0, 5, 20)
    phase = 2 * math.pi * torch.rand(64, 1)
    signal = torch.exp(-0.1 * t) * torch.cos(2 * t + phase)
    x, mask = signal.unsqueeze(2), torch.rand(64, 20) < 0.6
    mask[:, 0], mask[:, 14:] = True, False
    m = LatentODE(1, 2, hidden=16, noise_std=0.05)
    optimizer = torch.optim.Adam(m.parameters(), 3e-2)
    for i in range(125):
        optimizer.zero_grad()
        (-m.elbo(x, t, mask, kl_weight=min(1.0, i / 100)).mean()).backward()
        optimizer.step()
    with torch.no_grad():
        error = (m.reconstruct(x, t, mask) - x)[:, :, 0]
    assert error[:, :14][~mask[:, :14]].pow(2).mean().sqrt() < 0.2  # the signal's is 0.56
    assert error[:, 14:].pow(2).mean().sqrt() < 0.2  # 0.46


# -- batches of one, of none; life of a module ---------------------------------------------------------------


@on_every_engine
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("n", [0, 1])
def test_small_batches(encoder, n):
    m = model(encoder=encoder, likelihood="gaussian+poisson")
    x = torch.randn(n, 4, 2, dtype=torch.float64)
    t = torch.linspace(0, 1, 4, dtype=torch.float64)
    elbo = m.elbo(x, t)
    assert elbo.shape == (n,)
    elbo.sum().backward()
    assert all(p.grad is not None for p in m.parameters() if n)
    assert m.reconstruct(x, t).shape == (n, 4, 2)
    assert m.predict(x, t, t + 1, n_samples=3).shape == (3, n, 4, 2)


def test_a_series_of_one_observation_at_t0():
    m = model()
    x = torch.randn(2, 1, 2, dtype=torch.float64)
    assert m.elbo(x, [0.0]).isfinite().all()
    assert m.reconstruct(x, [0.0]).shape == (2, 1, 2)


def _saved(m):
    buffer = io.BytesIO()
    torch.save(m, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("again", [copy.deepcopy, _saved])
def test_a_used_model_copies_and_saves(again):
    m = model(likelihood="gaussian+poisson", encoder="ode_rnn")
    x, t, mask, _ = ragged()
    assert m.stats is None
    m.elbo(x, t, mask).sum().backward()
    assert m.stats.nfe > 0
    assert m.stats.nfe_backward > 0
    twin = again(m)
    assert torch.equal(twin.reconstruct(x, t, mask), m.reconstruct(x, t, mask))


@pytest.mark.parametrize("likelihood", ["gaussian", "poisson", "gaussian+poisson"])
def test_state_dict_round_trip(likelihood):
    m = model(likelihood=likelihood)
    torch.manual_seed(7)
    other = LatentODE(2, 3, hidden=8, likelihood=likelihood, **TIGHT).double()
    other.load_state_dict(m.state_dict())
    x, t, mask, _ = ragged()
    assert torch.equal(other.reconstruct(x, t, mask), m.reconstruct(x, t, mask))
    noise = "log_noise_std" in m.state_dict()
    assert noise == (likelihood != "poisson")
    fixed = model(noise_std=0.2)
    assert "log_noise_std" not in dict(fixed.named_parameters())
    assert fixed.state_dict()["log_noise_std"].exp().tolist() == pytest.approx([0.2, 0.2])


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"obs_dim": 0}, "obs_dim must be a positive int, got 0"),
        ({"latent_dim": 1.5}, "latent_dim must be a positive int, got 1.5"),
        ({"encoder": "odernn"}, "unknown encoder 'odernn': expected one of 'ode_rnn'"),
        ({"likelihood": "poison"}, "unknown likelihood 'poison': expected one of 'poisson'"),
        ({"noise_std": 0.0}, "noise_std must be positive"),
        ({"noise_std": 1.0, "likelihood": "poisson"}, "noise_std is the noise of the values"),
        ({"t0": math.nan}, "t0 must be finite, got nan"),
        ({"field": 3}, "field must be an nn.Module or a callable, got int"),
        ({"decoder": "mlp"}, "decoder must be an nn.Module or a callable, got str"),
        ({"rtoll": 1e-3}, "unknown solver keyword 'rtoll'"),
        ({"save": "steps"}, "unknown solver keyword 'save'"),
        ({"hidden": 0}, r"hidden must be a positive int, got 0\. Pass e\.g\. 1$"),
        ({"control": True}, "unknown solver keyword 'control'"),  # which the first state was, for the field
    ],
)
def test_wrong_arguments_are_refused_when_the_model_is_built(keywords, message):
    with pytest.raises(InputError, match=message):
        LatentODE(**{"obs_dim": 2, "latent_dim": 3, **keywords})


T = torch.linspace(0.5, 1, 4, dtype=torch.float64)
X = torch.zeros(3, 4, 2, dtype=torch.float64)


def changed(x, index, value):
    x = x.clone()
    x[index] = value
    return x


@pytest.mark.parametrize(
    ("x", "t", "mask", "message"),
    [
        (X.float(), T, None, r"x must be a tensor of the model's dtype, torch\.float64, got torch\.float32"),
        (X.tolist(), T, None, r"x must be a tensor of the model's dtype, torch\.float64, got list"),
        (X[0], T, None, r"x must have shape .* \(batch, time, 2\).* got \(4, 2\)"),
        (X[:, :0], T[:0], None, r"at least one time, got \(3, 0, 2\)"),
        (X[:, :, :1], T, None, r"got \(3, 4, 1\)"),
        (X, T[:3], None, "one time per entry of x: expected 4, got 3"),
        (X, T.expand(2, 4), None, r"t must have shape .*\(3, time\).* got \(2, 4\)"),
        (X, "soon", None, "t must be a 1-d tensor or a sequence of real numbers, got str"),
        (
            X,
            T.flip(0),
            None,
            r"t must be non-decreasing within each series, got 0\.833333 after 1 at series 0, entry 1",
        ),
        (X, changed(T.repeat(3, 1), (1, 2), 0.1), None, "got 0.1 after 0.666667 at series 1, entry 2"),
        (X, changed(T, 1, math.nan), None, "t must be finite, got nan at series 0, entry 1"),
        (X, T - 0.6, None, "t must be within the model's span, from t0 = 0 on, got -0.1 at series 0, entry 0"),
        (changed(X, (1, 2, 1), math.nan), T, None, r"got nan at series 1, entry 2, channel 1 .*mask=x\.isfinite"),
        (X, T, torch.ones(3, 4), r"mask must be a tensor of dtype bool.*got torch\.float32.*mask\.bool"),
        (X, T, torch.ones(4, 2).bool(), r"\(3, 4, 2\), or that of its times, \(3, 4\), got \(4, 2\)"),
        (X, T, changed(torch.ones(3, 4).bool(), 1, False), "at least one observation, .* none to series 1"),
    ],
)
def test_series_that_are_refused(x, t, mask, message):
    for call in (model().elbo, model().reconstruct):
        with pytest.raises(InputError, match=message):
            call(x, t, mask)


def test_times_that_are_refused():
    m = model()
    for call, t, message in (
        (m.predict, T - 1, r"t_new must be within the model's span, from t0 = 0 on, got -0\.5"),
        (m.predict, T.flip(0), "t_new must be non-decreasing"),
        (
            m.interpolate,
            T + 0.1,
            r"t_new must lie within the observations .* got 1\.1 for series 0, .*0\.5 to 1\. .*predict",
        ),
        (m.extrapolate, T, r"t_new must lie after the last observation .* got 0\.5 for series 0"),
    ):
        with pytest.raises(InputError, match=message):
            call(X, T, t)


def test_times_that_require_a_gradient_are_refused():
    m, (x, t, mask, _) = model(), ragged()
    new = torch.tensor([0.5, 1.0], dtype=t.dtype, requires_grad=True)
    with pytest.raises(InputError, match="t_new requires a gradient"):
        m.predict(x, t, new, mask)
    with pytest.raises(InputError, match="t requires a gradient"):
        m.sample(2, new)


def test_other_refusals():
    m = model()
    with pytest.raises(InputError, match="kl_weight must be finite and at least 0, got -1"):
        m.elbo(X, T, kl_weight=-1.0)
    with pytest.raises(InputError, match="n_samples must be a positive int, got 0"):
        m.predict(X, T, T, n_samples=0)
    with pytest.raises(InputError, match="n must be a positive int, got 0"):
        m.sample(0, T)
    with pytest.raises(InputError, match="intensities need likelihood="):
        m.intensity(X, T, T)
    with pytest.raises(InputError, match="noise=True draws values"):
        model(likelihood="poisson").predict(X, T, T, noise=True)
    with pytest.raises(InputError, match=r"decoder must map z .* to \(…, 2\), got \(3, 4, 3\)"):
        model(decoder=nn.Identity()).reconstruct(X, T)


@on_every_engine
def test_a_stochastic_layer_in_the_field():
    field = TimeSequential(nn.Linear(3, 3), nn.Dropout(), nn.Linear(3, 3))
    m = model(field=field)
    with pytest.raises(TraceError, match=r"draws random numbers.*field\.eval\(\)"):
        m.elbo(X, T)
    assert m.eval().elbo(X, T).shape == (3,)


def test_series_whose_encoder_fails():
    """What comes after refused it as an initial state, and all other series with it."""
    torch.manual_seed(0)
    keywords = {"encoder": "ode_rnn", "engine": "torch", "batching": "independent", "rtol": 1e-6, "atol": 1e-7}
    model, usual = LatentODE(1, 2, **keywords, throw=False, max_steps=6), LatentODE(1, 2, **keywords)
    usual.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 1)
    t = torch.tensor([[0.0, 0.1, 0.2], [0.0, 40.0, 80.0]])
    encoded = model.posterior(x, t).mean
    assert encoded.isnan().any(1).tolist() == [False, True]
    torch.manual_seed(1)
    found = model.predict(x, t, torch.tensor([0.1]))
    torch.manual_seed(1)
    expected = usual.predict(x, t, torch.tensor([0.1]))
    assert found[0, :, 0, 0].isnan().tolist() == [False, True]
    torch.testing.assert_close(found[:, 0], expected[:, 0])
