"""Hamiltonian and Lagrangian networks against motions that are known in closed form."""

import copy
import io
import math

import pytest
import torch
from scipy.special import ellipj
from torch import nn

from pynode import solve
from pynode.errors import FieldError, InputError
from pynode.models import HamiltonianNN, LagrangianNN
from pynode.nn import HamiltonianField, LagrangianField, SeparableHamiltonian

TIGHT = {"rtol": 1e-10, "atol": 1e-10}
SLOW_ON_JULIA = ("torch", pytest.param("julia", marks=[pytest.mark.julia, pytest.mark.slow]))


def states(batch=3, n=1):
    return torch.randn(batch, 2 * n, dtype=torch.float64)


def network(n, width=5):
    return nn.Sequential(nn.Linear(2 * n, width), nn.Tanh(), nn.Linear(width, 1)).double()


def quadratic(z):
    return z.square().sum(1) / 2


def pendulum(z):
    q, p = z.unbind(1)
    return p**2 / 2 - torch.cos(q)


class DoublePendulum(nn.Module):
    """Two unit masses on unit rods: the angles from the vertical, and their velocities."""

    def __init__(self, g=9.8):
        super().__init__()
        self.g = nn.Parameter(torch.tensor(g, dtype=torch.float64))

    def forward(self, z):
        a, b, u, v = z.unbind(1)
        kinetic = u**2 + v**2 / 2 + u * v * torch.cos(a - b)
        return kinetic + self.g * (2 * torch.cos(a) + torch.cos(b))


def double_pendulum_accelerations(z, g=9.8):
    """In the form in which textbooks have them."""
    a, b, u, v = z.unbind(1)
    d = a - b
    below = 3 - torch.cos(2 * d)
    first = -3 * g * torch.sin(a) - g * torch.sin(a - 2 * b) - 2 * torch.sin(d) * (v**2 + u**2 * torch.cos(d))
    second = 2 * torch.sin(d) * (2 * u**2 + 2 * g * torch.cos(a) + v**2 * torch.cos(d))
    return torch.stack([first / below, second / below], 1)


# ---- Hamilton's equations ---------------------------------------------------------------------------


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("separable", [False, True])
def test_harmonic_oscillator(separable):
    z, t = states(), torch.linspace(0, 2, 5, dtype=torch.float64)
    model = HamiltonianNN(SeparableHamiltonian(quadratic, quadratic) if separable else quadratic, **TIGHT)
    q, p = z.unbind(1)
    cos, sin = torch.cos(t)[:, None], torch.sin(t)[:, None]
    got = model.trajectory(z, t)
    torch.testing.assert_close(got, torch.stack([q * cos + p * sin, p * cos - q * sin], 2), atol=1e-8, rtol=0)
    assert model.energy_drift(got).max() < 1e-8
    assert model.stats.n_accepted > 0
    assert model.field.separable is separable


def test_pendulum_is_an_elliptic_function():
    """From rest at the angle q₀: sin(q/2) = k cd(t), k = sin(q₀/2)."""
    start, t = torch.tensor([0.5, 1.5, 3.0], dtype=torch.float64), torch.linspace(0, 5, 6, dtype=torch.float64)
    model = HamiltonianNN(pendulum, **TIGHT)
    got = model.trajectory(torch.stack([start, 0 * start], 1), t)
    k = torch.sin(start / 2)
    sn, cn, dn, _ = map(torch.from_numpy, ellipj(t[:, None].numpy(), (k**2)[None].numpy()))
    q = 2 * torch.asin(k * cn / dn)
    p = -2 * k * (1 - k**2) * sn / dn**2 / torch.sqrt(1 - (k * cn / dn) ** 2)
    torch.testing.assert_close(got, torch.stack([q, p], 2), atol=1e-7, rtol=0)


@pytest.mark.parametrize("diagonal", [True, False])
def test_friction_and_forces_of_a_linear_system(diagonal):
    """ż = (J - R) S z + [0, F]: a matrix exponential."""
    n, z = 2, states(3, 2)
    root = torch.randn(2 * n, 2 * n, dtype=torch.float64)
    s, factor, force = root @ root.T, torch.randn(n, n, dtype=torch.float64), torch.randn(n, dtype=torch.float64)
    factor = factor.diag() if diagonal else factor
    model = HamiltonianNN(
        lambda z: ((z @ s) * z).sum(1, keepdim=True) / 2,
        dissipation=lambda z: factor.expand(len(z), *factor.shape),
        forcing=lambda t, z: force.expand(len(z), n),
        **TIGHT,
    )
    eye, zero = torch.eye(n, dtype=torch.float64), torch.zeros(n, n, dtype=torch.float64)
    friction = factor.diag() ** 2 if diagonal else factor @ factor.T
    generator = torch.zeros(2 * n + 1, 2 * n + 1, dtype=torch.float64)
    generator[:-1, :-1] = torch.cat([torch.cat([zero, eye], 1), torch.cat([-eye, -friction], 1)]) @ s
    generator[n:-1, -1] = force
    expected = torch.cat([z, torch.ones(3, 1, dtype=torch.float64)], 1) @ torch.matrix_exp(generator).T
    torch.testing.assert_close(model(z), expected[:, :-1], atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("model", [HamiltonianNN, LagrangianNN])
def test_energy_falls_with_friction_and_stays_without(model):
    n, z, t = 2, states(4, 2), torch.linspace(0, 2, 9, dtype=torch.float64)
    net, factor = network(n), nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (2, 2))).double()

    def function(z):
        return net(z).squeeze(1) + z[:, n:].square().sum(1) / 2

    kept = model(function, **TIGHT)
    assert kept.energy_drift(kept.trajectory(z, t)).max() < 1e-7
    lost = model(function, dissipation=factor, **TIGHT)
    energy = lost.energy(lost.trajectory(z, t))
    assert energy.shape == (9, 4)
    assert (energy.diff(dim=0) < 0).all()


def test_separable_field_is_split():
    field = HamiltonianField(SeparableHamiltonian(quadratic, lambda q: torch.cos(q).sum(1)))
    assert field.separable
    q, p = torch.randn(2, 3, 2, dtype=torch.float64)
    expected = torch.cat([p, torch.sin(q)], 1)
    torch.testing.assert_close(field(torch.zeros(()), torch.cat([q, p], 1)), expected)
    assert not HamiltonianField(field.hamiltonian, forcing=lambda t, z: z[:, :1]).separable
    assert not HamiltonianField(field.hamiltonian, dissipation=lambda z: z[:, :1]).separable
    assert not HamiltonianField(quadratic).separable


def test_a_lagrangian_with_a_layer_norm_has_the_right_gradient():
    """It is a third derivative of the network, which PyTorch's own of `layer_norm` gets wrong."""
    net = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 1)).double()
    field = LagrangianField(lambda z: net(z).squeeze(1) + z[:, 2:].square().sum(1))
    t = torch.zeros((), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: field(t, z), states(2, 2).requires_grad_())


def test_control_conditions_the_forcing():
    """q̈ = x from rest: q = x t² / 2."""
    x = torch.randn(4, 1, dtype=torch.float64)
    model = HamiltonianNN(
        lambda z: z[:, 1].square() / 2,
        forcing=lambda t, z, x: x,
        control=True,
        input_network=lambda x: torch.zeros(len(x), 2, dtype=x.dtype),
        **TIGHT,
    )
    torch.testing.assert_close(model(x), torch.cat([x / 2, x], 1))


# ---- the Euler-Lagrange equations -------------------------------------------------------------------


def test_double_pendulum_accelerations():
    z = states(50, 2)
    found = LagrangianField(DoublePendulum())(torch.zeros(()), z)
    torch.testing.assert_close(found, torch.cat([z[:, 2:], double_pendulum_accelerations(z)], 1))


@pytest.mark.parametrize("engine", SLOW_ON_JULIA)
def test_double_pendulum_moves_as_its_accelerations_say(engine):
    z, t = states(3, 2), torch.linspace(0, 1, 3, dtype=torch.float64)
    model = LagrangianNN(DoublePendulum(), **TIGHT)
    known = solve(
        lambda t, z: torch.cat([z[:, 2:], double_pendulum_accelerations(z)], 1), z, t, engine="torch", **TIGHT
    )
    got = model.trajectory(z, t)
    torch.testing.assert_close(got, known.z, atol=1e-6, rtol=1e-6)
    assert model.energy_drift(got).max() < 1e-6


def test_a_free_particle_in_polar_coordinates_goes_straight():
    """ℒ = (ṙ² + r² φ̇²) / 2, whose mass matrix depends on the coordinates."""
    z = torch.tensor([[1.0, 0.3, 0.2, 0.7], [2.0, -1.0, -0.5, 0.4]], dtype=torch.float64)
    r, phi, dr, dphi = z.unbind(1)
    place = torch.stack([r * torch.cos(phi), r * torch.sin(phi)], 1)
    velocity = torch.stack(
        [dr * torch.cos(phi) - r * torch.sin(phi) * dphi, dr * torch.sin(phi) + r * torch.cos(phi) * dphi], 1
    )
    model = LagrangianNN(lambda z: (z[:, 2] ** 2 + (z[:, 0] * z[:, 3]) ** 2) / 2, **TIGHT)
    end = model(z)
    got = torch.stack([end[:, 0] * torch.cos(end[:, 1]), end[:, 0] * torch.sin(end[:, 1])], 1)
    torch.testing.assert_close(got, place + velocity, atol=1e-8, rtol=0)
    torch.testing.assert_close(model.energy(z), velocity.square().sum(1) / 2)


def test_damped_and_driven_oscillator():
    """q̈ + 2 c q̇ + q = sin t, from the solution by hand."""
    c, z = 0.3, states()
    w = math.sqrt(1 - c**2)
    model = LagrangianNN(
        lambda z: (z[:, 1] ** 2 - z[:, 0] ** 2) / 2,
        dissipation=lambda z: math.sqrt(2 * c) + 0 * z[:, :1],
        forcing=lambda t, z: torch.sin(t) + 0 * z[:, :1],
        t=(0.0, 2.0),
        **TIGHT,
    )
    a = z[:, 0] + 1 / (2 * c)  # the particular solution is -cos(t) / (2 c)
    b = (z[:, 1] + c * a) / w
    expected = math.exp(-2 * c) * (a * math.cos(2 * w) + b * math.sin(2 * w)) - math.cos(2) / (2 * c)
    torch.testing.assert_close(model(z)[:, 0], expected, atol=1e-8, rtol=0)


# ---- both ---------------------------------------------------------------------------------------------


def hamiltonian(**keywords):
    parts = SeparableHamiltonian(nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)), quadratic)
    return HamiltonianNN(parts, dissipation=nn.Linear(2, 1), forcing=nn.Linear(2, 1), **keywords).double()


def lagrangian(**keywords):
    class Lagrangian(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 4), nn.Softplus(), nn.Linear(4, 1))

        def forward(self, z):
            return self.net(z).squeeze(1) + z[:, 1] ** 2 / 2

    return LagrangianNN(Lagrangian(), dissipation=nn.Linear(2, 1), forcing=nn.Linear(2, 1), **keywords).double()


RARELY = [pytest.mark.julia, pytest.mark.exhaustive]


@pytest.mark.parametrize(
    ("engine", "make"),
    [
        ("torch", hamiltonian),
        pytest.param("torch", lagrangian, marks=pytest.mark.slow),
        *(pytest.param("julia", make, marks=RARELY) for make in (hamiltonian, lagrangian)),
    ],
)
def test_gradcheck(engine, make):
    model = make(solver="rk4", dt=0.5, sensitivity="discrete")
    names, parameters = zip(*model.named_parameters(), strict=True)

    def call(x, *values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))

    inputs = [states().requires_grad_(), *(p.detach().requires_grad_() for p in parameters)]
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.julia
def test_engines_agree():
    z, found = states(), []
    for engine in ("torch", "julia"):
        torch.manual_seed(0)
        model = hamiltonian(engine=engine, sensitivity="discrete", **TIGHT)
        x = z.clone().requires_grad_()
        model(x).square().sum().backward()
        found.append([model(z), x.grad, *(p.grad for p in model.parameters())])
    torch.testing.assert_close(*found, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("make", [hamiltonian, lagrangian])
def test_a_used_model_copies_and_saves_and_solves_without_gradients(make):
    model, z = make(), states()
    before = model(z)
    before.sum().backward()
    file = io.BytesIO()
    torch.save(copy.deepcopy(model).state_dict(), file)
    file.seek(0)
    other = make()
    other.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        torch.testing.assert_close(other(z), before)
        assert not other(z).requires_grad
        assert not other.energy(z).requires_grad
    assert other.energy(z).requires_grad


def test_float32():
    model = hamiltonian().float()
    assert model(states().float()).dtype == torch.float32
    model = lagrangian().float()
    assert model(states().float()).dtype == torch.float32


def test_a_hamiltonian_of_the_momenta_alone_and_a_constant():
    z = states()
    torch.testing.assert_close(HamiltonianNN(lambda z: z[:, 1])(z), z + torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(HamiltonianNN(lambda z: torch.ones(len(z), dtype=z.dtype))(z), z)


# ---- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [HamiltonianNN, LagrangianNN])
def test_wrong_arguments(model):
    with pytest.raises(InputError, match=r"the energy must be an nn\.Module or a callable, got int"):
        model(3)
    with pytest.raises(InputError, match="dissipation must be"):
        model(quadratic, dissipation=0.1)
    with pytest.raises(InputError, match="order must be 1"):
        model(quadratic, order=2)
    with pytest.raises(InputError, match="there is none: pass forcing=F"):
        model(quadratic, control=True)
    with pytest.raises(InputError, match="unknown solver 'verlett'"):
        model(quadratic, solver="verlett")


@pytest.mark.parametrize("model", [HamiltonianNN, LagrangianNN])
def test_wrong_shapes(model):
    for shape in ((3, 3), (3, 2, 2)):
        with pytest.raises(InputError, match=r"a mechanical state is \(batch, 2n\)"):
            model(quadratic)(torch.randn(shape))
    with pytest.raises(FieldError, match=r"must return a tensor of shape \(3,\) or \(batch, 1\), got \(3, 2\)"):
        model(lambda z: z)(states())
    with pytest.raises(FieldError, match=r"dissipation must return .* \(3, 1\) or \(batch, n, n\), got \(3, 2\)"):
        model(quadratic, dissipation=lambda z: z)(states())
    with pytest.raises(FieldError, match=r"forcing must return .* \(3, 1\), got \(3, 2\)"):
        model(quadratic, forcing=lambda t, z: z)(states())


def test_args_without_a_forcing_are_refused():
    t, z = torch.tensor([0.0, 1.0]), states().float()
    with pytest.raises(FieldError, match="condition the forcing of this field, and it has none"):
        solve(HamiltonianField(quadratic), z, t, args=(z,), engine="torch")
