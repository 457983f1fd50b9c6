"""Hypersolvers against their steps, taken one by one."""

import copy

import pytest
import torch
from torch import nn

from pynode.errors import FieldError, InputError
from pynode.models import Hypersolver
from pynode.nn import DataControl, TimeConcat, TimeSequential

ORDERS = {"euler": 1, "midpoint": 2, "rk4": 4}


class Correction(nn.Module):
    """Of everything that it gets."""

    def __init__(self, features=2):
        super().__init__()
        self.layer = nn.Linear(2 * features + 2, features)

    def forward(self, h, t, z, dz):
        column = z.new_zeros(len(z), 1)
        return torch.tanh(self.layer(torch.cat([z, dz, column + h, column + t], 1)))


def none(h, t, z, dz):
    return torch.zeros_like(z)


def field():
    return TimeSequential(TimeConcat(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)).double()


def points(n=3):
    return torch.randn(n, 2, dtype=torch.float64)


def stepped(f, g, method, h, times, z):
    """What the paper's equation 4 says, by hand."""
    for s in times:
        k1 = f(s, z)
        if method == "euler":
            psi = k1
        elif method == "midpoint":
            psi = f(s + h / 2, z + h / 2 * k1)
        else:
            k2 = f(s + h / 2, z + h / 2 * k1)
            k3 = f(s + h / 2, z + h / 2 * k2)
            psi = (k1 + 2 * k2 + 2 * k3 + f(s + h, z + h * k3)) / 6
        z = z + h * psi + h ** (ORDERS[method] + 1) * g(h, s, z, k1)
    return z


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("method", list(ORDERS))
@pytest.mark.parametrize("span", [(0.0, 1.0), (1.5, 0.5)])
def test_each_step_is_the_papers(method, span):
    f, g, z = field(), Correction().double(), points()
    model = Hypersolver(f, g, solver=method, dt=0.1, t=span)
    h = torch.tensor(0.1 if span[1] > span[0] else -0.1, dtype=torch.float64)
    expected = stepped(f, g, method, h, span[0] + h * torch.arange(10), z)
    torch.testing.assert_close(model(z), expected, atol=1e-12, rtol=1e-12)
    stages = {"euler": 1, "midpoint": 2, "rk4": 4}[method]
    assert model.stats.nfe in (10 * stages, 11 * stages)  # julia looks at the field once more at the end
    assert model.stats.n_accepted in (10, None)


@pytest.mark.parametrize("method", list(ORDERS))
def test_without_a_correction_it_has_the_order_of_its_base_method(method):
    f, z = field(), points()
    model = Hypersolver(f, none, solver=method, dt=0.1)
    end, errors = model.reference(z, rtol=1e-11, atol=1e-11)[-1], []
    for dt in (0.2, 0.1):
        model.dt = dt
        errors.append((model(z) - end).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(2 ** ORDERS[method], rel=0.35)


def test_the_best_correction_of_euler_raises_the_order():
    """For ż = z the residual of Euler's step is z / 2 + h z / 6 + …: with g = z / 2 the order is 2."""
    z, exact, errors = points(), torch.tensor(1.0, dtype=torch.float64).exp(), []
    for dt in (0.1, 0.05):
        model = Hypersolver(lambda t, z: z, lambda h, t, z, dz: z / 2, dt=dt)
        errors.append((model(z) - exact * z).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert model.residual_loss(z) < 0.02 * Hypersolver(lambda t, z: z, none, dt=0.05).residual_loss(z)


def test_losses_by_hand():
    f, g, z = field(), Correction().double(), points()
    model = Hypersolver(f, g, solver="midpoint", dt=0.25)
    reference = model.reference(z)
    assert reference.shape == (5, 3, 2)
    residuals, errors, now, h = [], [], z, torch.tensor(0.25, dtype=torch.float64)
    for k in range(4):
        s = k * h
        base = stepped(f, none, "midpoint", h, [s], reference[k])
        residuals.append((reference[k + 1] - base) / h**3 - g(h, s, reference[k], f(s, reference[k])))
        now = stepped(f, g, "midpoint", h, [s], now)
        errors.append(reference[k + 1] - now)
    for loss, parts in ((model.residual_loss, residuals), (model.trajectory_loss, errors)):
        torch.testing.assert_close(loss(z), torch.stack(parts).norm(dim=2).mean(), atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(loss(z, reference), loss(z))


@pytest.mark.parametrize("loss", ["residual_loss", "trajectory_loss"])
def test_training_makes_the_error_smaller(loss):
    f, g, z = field(), Correction().double(), points(16)
    for p in f.parameters():
        p.requires_grad_(False)
    nn.init.zeros_(g.layer.weight)
    nn.init.zeros_(g.layer.bias)
    model = Hypersolver(f, g, dt=0.25)
    reference = model.reference(z)

    def error():
        return (model(z) - reference[-1]).norm(dim=1).mean().item()

    before, optimizer = error(), torch.optim.Adam(g.parameters(), 0.03)
    for _ in range(120):
        optimizer.zero_grad()
        getattr(model, loss)(z, reference).backward()
        optimizer.step()
    assert error() < before / 3


@pytest.mark.parametrize("engine", ["torch", pytest.param("julia", marks=[pytest.mark.julia, pytest.mark.slow])])
@pytest.mark.parametrize("method", list(ORDERS))
def test_gradcheck(engine, method):
    model = Hypersolver(field(), Correction(), solver=method, dt=0.5, engine=engine).double()
    names, parameters = zip(*model.named_parameters(), strict=True)

    def call(x, *values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))

    inputs = [points().requires_grad_(), *(p.detach().requires_grad_() for p in parameters)]
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)


def test_control_networks_order_and_copies():
    torch.manual_seed(0)
    controlled = TimeSequential(DataControl(nn.Linear(4, 2)), nn.Tanh())
    model = Hypersolver(controlled, Correction(), dt=0.5, control=True, output_network=nn.Linear(2, 1))
    x = torch.randn(3, 2)
    assert model(x).shape == (3, 1)
    assert model.residual_loss(x) > 0
    model.trajectory_loss(x).backward()
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    second = Hypersolver(lambda t, z: -z[:, :1], Correction(), dt=0.5, order=2, input_network=nn.Identity())
    assert second(x).shape == (3, 2)


def test_trajectory():
    f, g, z = field(), Correction().double(), points()
    model = Hypersolver(f, g, dt=0.1)
    t = torch.tensor([0.0, 0.2, 0.3, 0.7, 1.0], dtype=torch.float64)
    out = model.trajectory(z, t)
    h = torch.tensor(0.1, dtype=torch.float64)
    torch.testing.assert_close(out[2], stepped(f, g, "euler", h, h * torch.arange(3), z), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(out[-1], model(z))
    torch.testing.assert_close(model.trajectory(z, t.float()), out, atol=1e-6, rtol=1e-6)


def test_parts_of_steps_are_refused():
    model, z = Hypersolver(field(), none, dt=0.3), points()
    with pytest.raises(InputError, match=r"whole steps of dt=0\.3 apart"):
        model(z)
    model.dt = 0.25
    model(z)
    with pytest.raises(InputError, match="whole steps"):
        model.trajectory(z, torch.tensor([0.0, 0.1, 0.25]))
    with pytest.raises(InputError, match="whole steps"):  # less than one step
        model.trajectory(z, torch.tensor([0.0, 1e-7]))
    with pytest.raises(InputError, match=r"no gradient to the depths.*t\.detach\(\)"):
        model.trajectory(z, torch.tensor([0.0, 0.5]).requires_grad_())


def test_wrong_arguments():
    with pytest.raises(InputError, match="unknown base method of a hypersolver 'dopri5'"):
        Hypersolver(field(), none, solver="dopri5", dt=0.1)
    with pytest.raises(InputError, match="dt must be positive"):
        Hypersolver(field(), none, dt=-0.1)
    with pytest.raises(InputError, match="correction must be"):
        Hypersolver(field(), 3, dt=0.1)
    with pytest.raises(InputError, match="tstops is no keyword of Hypersolver"):
        Hypersolver(field(), none, dt=0.1, tstops=[0.5])
    with pytest.raises(
        FieldError, match=r"correction must return a tensor of the state's shape, \(3, 2\), got \(3, 1\)"
    ):
        Hypersolver(field(), lambda h, t, z, dz: z[:, :1], dt=0.1)(points())
