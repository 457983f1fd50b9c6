"""ODE-RNN, GRU-ODE-Bayes and jump ODE: states that jump at observations."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

from pynode.errors import InputError
from pynode.models import ODERNN, GRUODEBayes, JumpODE
from pynode.nn import TimeConcat, TimeSequential

DOUBLE = torch.float64
TIGHT = {"rtol": 1e-7, "atol": 1e-8}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
on_every_engine = pytest.mark.usefixtures("engine")


def of_time():
    return TimeSequential(TimeConcat(nn.Linear(5, 6)), nn.Tanh(), nn.Linear(6, 4))


MODELS = {
    "ODERNN": lambda **k: ODERNN(2, 4, 3, width=6, **k),
    "ODERNN of time": lambda **k: ODERNN(2, 4, 3, field=of_time(), t0=-0.5, **k),
    "GRUODEBayes": lambda **k: GRUODEBayes(2, 4, prep=2, width=6, noise_std=0.3, **k),
    "JumpODE": lambda **k: JumpODE(2, 4, marks=True, width=6, **k),
}
each_model = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if "time" in name else ()) for name in MODELS]
)


def make(name, **keywords):
    torch.manual_seed(1)
    model = MODELS[name](**{**TIGHT, **keywords}).double()
    with torch.no_grad():
        model.initial.normal_(0, 0.3)
    return model


def ragged():
    """Three series with times of their own, gaps in their channels, and 4, 2 and 3 observations, padded."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 2, dtype=DOUBLE, generator=generator)
    t = (2 * torch.rand(3, 4, dtype=DOUBLE, generator=generator)).sort(1).values
    mask = torch.ones(3, 4, 2, dtype=torch.bool)
    mask[0, 1, 0] = mask[2, 0, 1] = mask[0, 2, 1] = False
    for i, n in enumerate((4, 2, 3)):
        t[i, n:], mask[i, n:], x[i, n:] = t[i, n - 1], False, math.nan
    return x, t, mask


def by_hand(model, x, t, mask, until=None):
    """States of one series before and after each of its observations, each from a Runge-Kutta method of its own."""
    jump, h, now = model.flow.jump, model.initial.unsqueeze(0), model.t0
    found = []
    for x1, t1, m1 in zip(x, t, mask, strict=True):
        if not m1.any() or (until is not None and t1 >= until):
            continue
        h = flowed(model, h, now, float(t1))
        m = m1.to(x).unsqueeze(0)
        after = jump(h, x1.masked_fill(~m1, 0).unsqueeze(0), m)
        found.append((h, after, x1, m1))
        h, now = after, float(t1)
    return found if until is None else flowed(model, h, now, until)


def flowed(model, h, start, end, steps=20):
    """The classical Runge-Kutta method in real time."""
    dt = (end - start) / steps

    def f(t, h):
        return model.field(torch.tensor(t, dtype=DOUBLE), h) if model.flow.takes_time else model.field(h)

    for i in range(steps):
        t = start + i * dt
        k1 = f(t, h)
        k2 = f(t + dt / 2, h + dt / 2 * k1)
        k3 = f(t + dt / 2, h + dt / 2 * k2)
        k4 = f(t + dt, h + dt * k3)
        h = h + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return h


@each_model
def test_functional_call_puts_everything_back(name):
    model, (x, t, mask) = make(name, engine="torch", solver="rk4", dt=0.5), ragged()
    before = copy.deepcopy(model.state_dict())
    assert list(before) == [n for n, _ in model.named_parameters()]  # each under one name
    functional_call(model, {n: 0.5 * p for n, p in before.items()}, (x.nan_to_num(), t, mask))
    assert all(isinstance(p, nn.Parameter) and torch.equal(p, before[n]) for n, p in model.named_parameters())


@on_every_engine
@each_model
def test_as_restarted_by_hand_at_each_observation(name):
    model, (x, t, mask) = make(name), ragged()
    with torch.no_grad():
        out = model(x, t, mask)
        for i in range(3):
            after = by_hand(model, x[i], t[i], mask[i])[-1][1]
            torch.testing.assert_close(out[i : i + 1], model._output(after), **CLOSE)


@on_every_engine
@each_model
def test_a_trajectory_is_from_the_observations_before(name):
    model, (x, t, mask) = make(name), ragged()
    new = torch.tensor([0.1, float(t[0, 1]), 1.0, 3.0], dtype=DOUBLE)
    with torch.no_grad():
        out = model.trajectory(x, t, new, mask)
        assert out.shape[:2] == (4, 3)
        for i in range(3):
            for k, at in enumerate(new.tolist()):
                h = by_hand(model, x[i], t[i], mask[i], until=at)
                torch.testing.assert_close(out[k, i : i + 1], model._output(h), **CLOSE)
        own = model.trajectory(x, t, new.expand(3, -1), mask)
        assert torch.equal(own, out)


@on_every_engine
@each_model
def test_gradcheck(name):
    model, (x, t, mask) = make(name, solver="rk4", dt=1.0), ragged()
    x = x[:2, :3].nan_to_num(0.0).requires_grad_()
    t, mask = t[:2, :3], mask[:2, :3]
    parameters = dict(model.named_parameters())

    def outputs(x, *values):
        state = dict(zip(parameters, values, strict=True))
        method = _Method(model, "loss" if name == "GRUODEBayes" else "log_prob" if name == "JumpODE" else "forward")
        return functional_call(method, {f"model.{k}": v for k, v in state.items()}, (x, t, mask))

    assert torch.autograd.gradcheck(outputs, (x, *parameters.values()), fast_mode=True)


class _Method(nn.Module):
    """A method of a model as a module's forward."""

    def __init__(self, model, method):
        super().__init__()
        self.model, self.method = model, method

    def forward(self, *args):
        return getattr(self.model, self.method)(*args)


@on_every_engine
def test_gradients_of_adaptive_steps_are_those_by_hand():
    model, (x, t, mask) = make("ODERNN"), ragged()
    found = torch.autograd.grad(model(x, t, mask).sum(), tuple(model.parameters()))
    ends = torch.cat([by_hand(model, x[i], t[i], mask[i])[-1][1] for i in range(3)])
    expected = torch.autograd.grad(model._output(ends).sum(), tuple(model.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.slow
@pytest.mark.julia
@pytest.mark.parametrize("engine", ["julia"], indirect=True)
@pytest.mark.parametrize("name", ["ODERNN of time", "JumpODE"])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_independent_samples_are_as_joint_ones(name, engine):
    x, t, mask = ragged()
    joint, each = make(name), make(name, batching="independent")
    method = "log_prob" if name == "JumpODE" else "forward"
    torch.testing.assert_close(getattr(each, method)(x, t, mask), getattr(joint, method)(x, t, mask), **CLOSE)


# -- the loss of GRU-ODE-Bayes -------------------------------------------------------------------------------


@on_every_engine
def test_the_loss_of_gru_ode_bayes():
    model, (x, t, mask) = make("GRUODEBayes"), ragged()
    with torch.no_grad():
        loss, likelihood = model.loss(x, t, mask, mixing=0.5), model.log_prob(x, t, mask)
        for i in range(3):
            nll, apart = 0.0, 0.0
            for before, after, values, seen in by_hand(model, x[i], t[i], mask[i]):
                for j in seen.nonzero()[:, 0].tolist():
                    p, q = (model.observed(h)[0] for h in (before, after))
                    y = torch.linspace(-12, 12, 40_001, dtype=DOUBLE)
                    pre, post = density(y, p[j], p[j + 2]), density(y, q[j], q[j + 2])
                    nll -= density(values[j], p[j], p[j + 2]).log()
                    bayes = pre * torch.exp(-0.5 * ((y - values[j]) / 0.3) ** 2)
                    bayes = bayes / torch.trapezoid(bayes, y)
                    ratio = torch.where(bayes > 1e-200, bayes * (bayes / post).log(), 0.0)
                    apart += torch.trapezoid(ratio, y)
            torch.testing.assert_close(likelihood[i], -nll, **CLOSE)
            torch.testing.assert_close(loss[i], nll + 0.5 * apart, **CLOSE)


def density(y, mean, log_variance):
    variance = log_variance.exp()
    return torch.exp(-0.5 * (y - mean) ** 2 / variance) / (2 * math.pi * variance).sqrt()


def test_the_prediction_of_gru_ode_bayes_is_a_distribution():
    model, (x, t, mask) = make("GRUODEBayes"), ragged()
    new = torch.tensor([0.5, 2.5], dtype=DOUBLE)
    predicted = model.distribution(x, t, new, mask)
    torch.testing.assert_close(predicted.mean, model.trajectory(x, t, new, mask))
    assert bool((predicted.stddev > 0).all())
    assert GRUODEBayes(2, 4, 5).double()(x, t, mask).shape == (3, 5)


# -- jump ODEs -----------------------------------------------------------------------------------------------


class Decay(nn.Module):
    """z' = -β z."""

    def __init__(self, beta):
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(beta, dtype=DOUBLE))

    def forward(self, z):
        return -self.beta * z


@on_every_engine
def test_a_hawkes_process_has_its_likelihood():
    """λ(t) = μ + α Σ exp(-β (t - t_i)), whose log likelihood has a closed form."""
    mu, alpha, beta, end = 0.4, 0.8, 1.3, 5.0
    model = JumpODE(
        1, 1, field=Decay(beta), jump=lambda z, x, m: alpha * m, log_intensity=lambda z: (mu + z[:, :1]).log(), **TIGHT
    ).double()
    events = [[0.3, 0.7, 2.0, 4.1], [1.0, 1.1], []]
    t = torch.tensor([[*e, *[end] * (5 - len(e))] for e in events], dtype=DOUBLE)
    mask = torch.tensor([[True] * len(e) + [False] * (5 - len(e)) for e in events])
    x = torch.zeros(3, 5, 1, dtype=DOUBLE)
    exact = []
    for e in events:
        value = -mu * end
        for i, at in enumerate(e):
            value += math.log(mu + alpha * sum(math.exp(-beta * (at - s)) for s in e[:i]))
            value -= alpha / beta * (1 - math.exp(-beta * (end - at)))
        exact.append(value)
    found = model.log_prob(x, t, mask)
    torch.testing.assert_close(found, torch.tensor(exact, dtype=DOUBLE), **CLOSE)
    for n in (1, 5):  # and that of series without events alone
        nothing = torch.zeros(2, n, dtype=torch.bool)
        alone = model.log_prob(x[:2, :n], torch.linspace(0.0, end, n + 1, dtype=DOUBLE)[1:], nothing)
        torch.testing.assert_close(alone, torch.full((2,), -mu * end, dtype=DOUBLE), **CLOSE)
    (slope,) = torch.autograd.grad(found.sum(), model.field.beta)
    step = 1e-5
    with torch.no_grad():
        model.field.beta += step
        more = model.log_prob(x, t, mask).sum()
        model.field.beta -= 2 * step
        less = model.log_prob(x, t, mask).sum()
    torch.testing.assert_close(slope, (more - less) / (2 * step), **CLOSE)


def test_values_do_not_matter_without_marks():
    model = JumpODE(2, 4, **TIGHT).double()
    x, t, mask = ragged()
    assert torch.equal(model.log_prob(x, t, mask), model.log_prob(x * 3, t, mask))


# -- series --------------------------------------------------------------------------------------------------


@each_model
def test_observations_at_one_time_and_at_the_start(name):
    model = make(name)
    x = torch.ones(2, 2, 2, dtype=DOUBLE)
    with torch.no_grad():
        only = model(x[:, :1], torch.tensor([model.t0], dtype=DOUBLE))  # no time to solve over
        assert model.stats is None
        mask = torch.ones(2, 1, 2, dtype=DOUBLE)
        h = model.flow.jump(model.initial.expand(2, -1), x[:, 0], mask[:, 0])
        torch.testing.assert_close(only, model._output(h))
        twice = model(x, torch.tensor([1.0, 1.0], dtype=DOUBLE))  # one after the other
        h = flowed(model, model.initial.expand(2, -1), model.t0, 1.0)
        for _ in range(2):
            h = model.flow.jump(h, x[:, 0], mask[:, 0])
        torch.testing.assert_close(twice, model._output(h), **CLOSE)


def test_what_the_mask_leaves_out_does_not_matter():
    model, (x, t, mask) = make("GRUODEBayes"), ragged()
    found = []
    for value in (0.0, math.nan, 1e30):
        model.zero_grad()
        loss = model.loss(x.masked_fill(~mask, value), t, mask)
        loss.sum().backward()
        found.append((loss.detach(), model.flow.jump.weight.grad))
    for loss, gradient in found[1:]:
        assert torch.equal(loss, found[0][0])
        assert torch.equal(gradient, found[0][1])
    assert bool(found[0][1].isfinite().all())


def test_a_failed_solve_is_nan_where_it_does_not_raise():
    model = ODERNN(2, 4, 3, field=lambda h: 50 * (h + 1) ** 3, throw=False, max_steps=200)
    x, t, mask = ragged()
    out = model(x.float(), t.float(), mask)
    assert out.shape == (3, 3)
    assert bool(out.isnan().all())


@torch.no_grad()
def test_a_series_that_fails_leaves_the_others_alone():
    """z' = z², which blows up from the 10 that is observed, and from -1 is at -1 / (1 + 0.5) after half a unit."""
    keywords = {"field": lambda z: z**2, "throw": False, "batching": "independent", "max_steps": 300, **TIGHT}
    t = torch.tensor([0.1, 0.6, 0.8])
    x = torch.tensor([-1.0, 10.0, -1.0], dtype=DOUBLE)[:, None, None].expand(3, 3, 1)
    model = ODERNN(1, 1, 1, cell=lambda x, h: x[:, :1], output_network=lambda h: h, **keywords).double()
    found = model.trajectory(x, t, torch.tensor([0.05, 0.6, 1.0]))[..., 0]
    expected = torch.tensor([[0.0] * 3, [-1 / 1.5, math.nan, -1 / 1.5], [-1 / 1.2, math.nan, -1 / 1.2]], dtype=DOUBLE)
    torch.testing.assert_close(found, expected, equal_nan=True, **CLOSE)
    jumps = JumpODE(1, 1, marks=True, jump=lambda z, x, m: x - z, log_intensity=lambda z: z, **keywords).double()
    likelihood = jumps.log_prob(x, t)
    assert likelihood.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(likelihood[[0, 2]], jumps.log_prob(x[[0, 2]], t))


def test_copies_after_a_call():
    model, (x, t, mask) = make("ODERNN"), ragged()
    out = model(x, t, mask)
    assert torch.equal(copy.deepcopy(model)(x, t, mask), out)
    assert model.stats.nfe > 0


# -- refused -------------------------------------------------------------------------------------------------


def test_times_that_the_dtype_does_not_hold_are_refused_for_a_field_of_time():
    x = torch.zeros(1, 3, 2)
    t = 1.7e9 + torch.tensor([0.0, 1.0, 2.5], dtype=DOUBLE)
    model = ODERNN(2, 4, 3, field=of_time(), t0=1.7e9)
    with pytest.raises(InputError, match="Subtract a reference"):
        model(x, t)
    autonomous = ODERNN(2, 4, 3, t0=1.7e9, **TIGHT).double()
    torch.testing.assert_close(autonomous(x.double(), t), _moved(autonomous)(x.double(), t - 1.7e9), **CLOSE)


def _moved(model):
    other = copy.deepcopy(model)
    other.t0 = 0.0
    return other


def test_a_jump_of_a_wrong_shape_is_refused():
    model = ODERNN(2, 4, 3, cell=lambda x, h: h[:, :1])
    with pytest.raises(InputError, match=r"expected shape \(2, 4\), got \(2, 1\)"):
        model(torch.zeros(2, 1, 2), torch.tensor([0.0]))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [({"control": None}, "control"), ({"solver": "rk5"}, "rk"), ({"t0": math.inf}, "t0"), ({"rtolerance": 1}, "rtol")],
)
@each_model
def test_bad_arguments_are_refused(name, keywords, message):
    if name == "ODERNN of time" and "t0" in keywords:
        pytest.skip("it has a t0")
    with pytest.raises(InputError, match=message):
        MODELS[name](**keywords)


def test_bad_numbers_are_refused():
    with pytest.raises(InputError, match="hidden"):
        ODERNN(2, 0, 1)
    with pytest.raises(InputError, match="noise_std"):
        GRUODEBayes(2, 3, noise_std=0.0)
    with pytest.raises(InputError, match="jump"):
        JumpODE(2, 3, jump=1)
    with pytest.raises(InputError, match="mixing"):
        GRUODEBayes(2, 3).loss(torch.zeros(1, 2, 2), torch.arange(2.0), mixing=-1)


@each_model
def test_times_that_require_a_gradient_are_refused(name):
    model, (x, t, mask) = make(name), ragged()
    with pytest.raises(InputError, match=r"t requires a gradient.*t\.detach\(\)"):
        model(x, t.requires_grad_(), mask)
    with torch.no_grad():
        model(x, t, mask)
