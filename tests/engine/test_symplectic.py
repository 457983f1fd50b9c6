"""Symplectic solvers: order, energy over long times, exact gradients, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode.errors import EngineUnavailable, FieldError, InputError

DOUBLE = torch.float64
SYMPLECTIC = [s for s in pynode.solvers() if s.separable]
NAMES = [s.name for s in SYMPLECTIC]
julia = pytest.mark.julia


class Driven(nn.Module):
    """q'' = -w² q + cos t, of which the exact solution is a sum of two cosines."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.3, 0.6], dtype=DOUBLE))

    def forward(self, t: Tensor, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        q, p = z
        return p, torch.cos(t) - self.w**2 * q

    def exact(self, q: Tensor, p: Tensor, t: float) -> Tensor:
        w = self.w
        own = 1 / (w**2 - 1)
        return (q - own) * torch.cos(w * t) + p / w * torch.sin(w * t) + own * math.cos(t)


class Pendula(nn.Module):
    """A nonlinear field, separable and dependent on time on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.tensor([[0.5, -0.4], [0.2, 0.8]], dtype=DOUBLE))

    def forward(self, t: Tensor, z: tuple[Tensor, Tensor], u: Tensor) -> tuple[Tensor, Tensor]:
        q, p = z
        return torch.tanh(p) * (1 + 0.1 * torch.sin(t)), -torch.sin(q @ self.W) + u * torch.cos(t)


def kepler(t: Tensor, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    q, p = z
    return p, -q / q.square().sum(-1, keepdim=True) ** 1.5


def energy(q: Tensor, p: Tensor) -> Tensor:
    return p.square().sum(-1) / 2 - 1 / q.square().sum(-1).sqrt()


def start(eccentricity: float = 0.2) -> tuple[Tensor, Tensor]:
    e = eccentricity
    q, p = [[1 - e, 0.0]], [[0.0, math.sqrt((1 + e) / (1 - e))]]
    return torch.tensor(q, dtype=DOUBLE), torch.tensor(p, dtype=DOUBLE)


def pair() -> tuple[Tensor, Tensor]:
    return torch.tensor([[0.3, -0.2]], dtype=DOUBLE), torch.tensor([[0.5, 0.1]], dtype=DOUBLE)


@julia
@pytest.mark.parametrize("info", SYMPLECTIC, ids=NAMES)
def test_order_of_convergence(info: pynode.SolverInfo) -> None:
    """Of a field that depends on time too."""
    field, (q, p) = Driven(), pair()
    steps = {2: (40, 80), 4: (30, 60), 6: (20, 40), 8: (16, 32)}[info.order]
    errors = []
    for n in steps:
        z = pynode.solve(field, (q, p), [0.0, 4.0], solver=info.name, dt=4 / n, engine="julia").z
        errors.append((z[0][-1] - field.exact(q, p, 4.0)).abs().max().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(info.order, abs=0.35)


@julia
@pytest.mark.parametrize("solver", NAMES)
def test_gradients(solver: str) -> None:
    """Of all inputs, the times too, where the last step before each is cut."""
    field = Pendula()
    inputs = (*pair(), torch.tensor([0.1, 0.45, 1.2], dtype=DOUBLE), torch.tensor([[0.4, -0.3]], dtype=DOUBLE))

    def call(q: Tensor, p: Tensor, t: Tensor, u: Tensor, W: Tensor) -> tuple[Tensor, ...]:
        def f(t: Tensor, z: tuple[Tensor, Tensor], u: Tensor) -> Any:
            return torch.func.functional_call(field, {"W": W}, (t, z, u))

        z: tuple[Tensor, ...] = pynode.solve(f, (q, p), t, args=(u,), solver=solver, dt=0.23, engine="julia").z
        return z

    x = tuple(y.requires_grad_() for y in (*inputs, field.W.detach().clone()))
    assert torch.autograd.gradcheck(call, x, eps=1e-6, atol=1e-8, rtol=1e-6)


@julia
def test_gradients_with_little_memory() -> None:
    """The steps are made again, from checkpoints, and the gradient is the same number for number."""
    field, u = Pendula(), torch.tensor([[0.4, -0.3]], dtype=DOUBLE)
    found = []
    for how in ("discrete", pynode.Discrete(memory="1KiB")):
        z0 = tuple(x.requires_grad_() for x in pair())
        z = pynode.solve(field, z0, [0.0, 3.0, 7.0], args=(u,), solver="kahan_li8", dt=0.05, sensitivity=how).z
        found.append(torch.autograd.grad(z[0].sin().sum() + z[1].square().sum(), [*z0, field.W]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)


@julia
@pytest.mark.parametrize("solver", NAMES)
def test_reversible(solver: str) -> None:
    """Back by the same steps: the methods are symmetric."""
    z0 = start()
    there = pynode.solve(kepler, z0, [0.0, 10.0], solver=solver, dt=0.05, engine="julia").z
    back = pynode.solve(kepler, tuple(x[-1] for x in there), [10.0, 0.0], solver=solver, dt=0.05, engine="julia").z
    for a, b in zip(back, z0, strict=True):
        torch.testing.assert_close(a[-1], b, rtol=0, atol=1e-11)


@julia
@pytest.mark.parametrize(("solver", "per_period", "bound"), [("verlet", 200, 4e-4), ("kahan_li8", 50, 1e-9)])
def test_energy_over_many_periods(solver: str, per_period: int, bound: float) -> None:
    """The error of the energy does not grow, where that of a Runge-Kutta method does."""
    t = 2 * math.pi * 0.37 * torch.arange(600, dtype=DOUBLE)  # all over the orbit
    first, last = slice(1, 200), slice(400, None)
    keywords: dict[str, Any] = {"dt": 2 * math.pi / per_period, "max_steps": 10**8, "engine": "julia"}

    def errors(solver: str) -> Tensor:
        return (energy(*pynode.solve(kepler, start(), t, solver=solver, **keywords).z) - energy(*start())).abs()

    symplectic, other = errors(solver), errors("rk4")
    assert symplectic.max() < bound
    assert symplectic[last].max() < 1.1 * symplectic[first].max() + 1e-12
    assert other[last].max() > 2 * other[first].max()


@julia
@pytest.mark.slow
@pytest.mark.parametrize(("solver", "per_period", "bound"), [("verlet", 200, 2e-4), ("kahan_li8", 50, 1e-9)])
def test_energy_over_ten_thousand_periods(solver: str, per_period: int, bound: float) -> None:
    t = 2 * math.pi * torch.arange(0, 10_001, 100, dtype=DOUBLE)
    dt = 2 * math.pi / per_period
    q, p = pynode.solve(kepler, start(), t, solver=solver, dt=dt, max_steps=10**8, engine="julia").z
    errors = (energy(q, p) - energy(*start())).abs().flatten()
    assert errors.max() < bound


@julia
def test_independent_samples_and_forms() -> None:
    """Each sample by its own steps is as in the joint batch; a dictionary and complex tensors are pairs as well."""
    field = Driven()
    q, p = torch.randn(3, 2, dtype=DOUBLE), torch.randn(3, 2, dtype=DOUBLE)
    keywords: dict[str, Any] = {"solver": "yoshida6", "dt": 0.1, "engine": "julia"}
    found = []
    for batching in ("joint", "independent"):
        z0 = (q.clone().requires_grad_(), p.clone().requires_grad_())
        z = pynode.solve(field, z0, [0.0, 1.0, 2.5], batching=batching, **keywords).z
        found.append((*z, *torch.autograd.grad(z[0].square().sum(), [*z0, field.w])))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)

    def named(t: Tensor, z: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(z, field(t, tuple(z.values())), strict=True))

    z = pynode.solve(named, {"q": q, "p": p}, [0.0, 1.0, 2.5], **keywords).z
    torch.testing.assert_close(z["q"], found[0][0], rtol=0, atol=0)


@julia
def test_steps_and_jumps() -> None:
    field, z0 = Driven(), pair()
    sol = pynode.solve(field, z0, [0.0, 1.0], solver="verlet", dt=0.25, save="steps", engine="julia")
    torch.testing.assert_close(sol.t, torch.linspace(0, 1, 5, dtype=DOUBLE))
    kick = pynode.At([0.5], lambda t, z: (z[0], z[1] + 1))
    keywords: dict[str, Any] = {"solver": "verlet", "dt": 0.25, "engine": "julia"}
    z = pynode.solve(field, z0, [0.0, 1.0], event=kick, **keywords).z
    half = pynode.solve(field, z0, [0.0, 0.5], **keywords).z
    whole = pynode.solve(field, (half[0][-1], half[1][-1] + 1), [0.5, 1.0], **keywords).z
    torch.testing.assert_close(z[0][-1], whole[0][-1], rtol=1e-14, atol=1e-14)


def damped(t: Tensor, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return z[1], -z[0] - 0.1 * z[1]


def dragged(t: Tensor, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return z[1] + 0.1 * z[0], -z[0]


def coupled(t: Tensor, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The Hamiltonian field of H = q² p² / 2, by autograd."""
    dq, dp = torch.func.grad(lambda q, p: (q * p).square().sum() / 2, argnums=(0, 1))(*z)
    return dp, -dq


@julia
@pytest.mark.parametrize(("field", "name"), [(damped, "p"), (dragged, "q"), (coupled, "q")])
def test_fields_that_are_not_separable(field: Any, name: str) -> None:
    with pytest.raises(FieldError, match=f"d{name}/dt reads {name}"):
        pynode.solve(field, pair(), [0.0, 1.0], solver="verlet", dt=0.1, engine="julia")


@julia
def test_separable_hamiltonian() -> None:
    """The gradient of T(p) + V(q) by autograd within the field: its graph shows that it is separable."""

    def hamiltonian(q: Tensor, p: Tensor) -> Tensor:
        return (p.square() / 2 + 1 - torch.cos(q)).sum()

    def field(t: Tensor, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        dq, dp = torch.func.grad(hamiltonian, argnums=(0, 1))(*z)
        return dp, -dq

    keywords: dict[str, Any] = {"solver": "yoshida6", "dt": 0.1, "engine": "julia"}
    plain = pynode.solve(lambda t, z: (z[1], -torch.sin(z[0])), pair(), [0.0, 2.0], **keywords).z
    z = pynode.solve(field, pair(), [0.0, 2.0], **keywords).z
    torch.testing.assert_close(z, plain, rtol=1e-14, atol=1e-14)


@julia
@pytest.mark.parametrize("lowering", ["callback", "auto"])
def test_fields_without_a_graph(lowering: str) -> None:
    def field(t: Tensor, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return z[1], torch.as_tensor(-z[0].detach().numpy()) if lowering == "auto" else -z[0]

    with pytest.raises(FieldError, match="lowering='trace'"):
        pynode.solve(field, pair(), [0.0, 1.0], solver="verlet", dt=0.1, lowering=lowering, engine="julia")


@julia
def test_second_derivatives_are_refused() -> None:
    q, p = (x.requires_grad_() for x in pair())
    z = pynode.solve(Driven(), (q, p), [0.0, 1.0], solver="verlet", dt=0.1, engine="julia").z
    (g,) = torch.autograd.grad(z[0].square().sum(), q, create_graph=True)
    with pytest.raises(EngineUnavailable, match="no forward and no second derivatives of verlet"):
        g.sum().backward()


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (torch.zeros(1, 2, dtype=DOUBLE), {}, "pair"),
    ((torch.zeros(1, 2, dtype=DOUBLE), torch.zeros(1, 3, dtype=DOUBLE)), {}, "pair"),
    ((torch.zeros(1, 2, dtype=DOUBLE),) * 3, {}, "pair"),
    (pair(), {"running_cost": lambda t, z: z[0].sum(-1)}, "running_cost"),
    (pair(), {"event": lambda t, z: z[0].sum()}, "events"),
    (pair(), {"dense": True}, "interpolant"),
    (pair(), {"dt": None}, "needs its step"),
]


@julia
@pytest.mark.parametrize(("z0", "keywords", "match"), REFUSED, ids=range(len(REFUSED)))
def test_refused(z0: Any, keywords: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        pynode.solve(lambda t, z: z, z0, [0.0, 1.0], **{"solver": "verlet", "dt": 0.1, "engine": "julia"} | keywords)


def test_the_torch_engine_names_the_one_that_has_them() -> None:
    with pytest.raises(EngineUnavailable, match='it is on engine="julia"'):
        pynode.solve(kepler, start(), [0.0, 1.0], solver="verlet", dt=0.1, engine="torch")
