"""The engine contract on values: exact solutions, directions of time, accuracy of every solver."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from problems import Driven, Linear, draw, settings, solver_cases
from torch import Tensor, nn

import pynode
from pynode.engine import SolverInfo

DOUBLE = torch.float64


@pytest.mark.parametrize("direction", [1.0, -1.0])
@pytest.mark.parametrize(("engine", "info"), solver_cases())
def test_linear_system(engine: str, info: SolverInfo, direction: float) -> None:
    chosen = settings(info)
    field, z0, _ = draw("linear")
    t = 0.3 + direction * chosen.span * torch.tensor([0.0, 0.1, 0.37, 1.0], dtype=DOUBLE)
    sol = pynode.solve(field, z0, t, solver=info.name, engine=engine, max_steps=100_000, **chosen.keywords)
    assert sol.solver == info.name
    assert sol.engine == engine
    assert sol.z.shape == (4, 2, 2)
    assert torch.equal(sol.z[0], z0)
    torch.testing.assert_close(sol.z, field.exact(z0, t), rtol=0, atol=chosen.error)


class Struck(nn.Module):
    """An oscillator that is struck at time zero; with `sign` -1 the same course backwards in time."""

    def __init__(self, sign: int) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        x, v = z.unbind(-1)
        force = torch.sin(self.sign * t) + 20 * torch.exp(-((30 * t) ** 2)) - 4 * x - 0.1 * v * x**2
        return self.sign * torch.stack([v, force], -1)


@pytest.mark.parametrize(("engine", "info"), solver_cases())
def test_the_same_steps_backwards_in_time(engine: str, info: SolverInfo) -> None:
    """QNDF took fifty times as many as forwards, and FBDF others."""
    chosen, z0 = settings(info), torch.tensor([[1.0, 0.5]], dtype=DOUBLE)
    forwards, backwards = (
        pynode.solve(
            Struck(sign),
            z0,
            sign * chosen.span * torch.tensor([-0.5, 0.1, 0.5], dtype=DOUBLE),
            solver=info.name,
            engine=engine,
            max_steps=100_000,
            **chosen.keywords,
        )
        for sign in (1, -1)
    )
    torch.testing.assert_close(backwards.z, forwards.z, rtol=1e-12, atol=1e-12)
    if not info.name.startswith("rock"):  # which look for the largest eigenvalue from where they found it before
        assert backwards.stats.nfe == forwards.stats.nfe
    assert backwards.stats.n_accepted == forwards.stats.n_accepted
    assert backwards.stats.n_rejected == forwards.stats.n_rejected


@pytest.mark.parametrize(("engine", "info"), solver_cases())
def test_time_dependent_field_with_args(engine: str, info: SolverInfo) -> None:
    chosen = settings(info)
    field, z0, (u,) = draw("driven")
    t = 0.3 + chosen.span * torch.tensor([0.0, 0.1, 0.37, 1.0], dtype=DOUBLE)
    sol = pynode.solve(field, z0, t, args=(u,), solver=info.name, engine=engine, max_steps=100_000, **chosen.keywords)
    torch.testing.assert_close(sol.z, field.exact(z0, t, u), rtol=0, atol=chosen.error)


@pytest.mark.parametrize(
    ("engine", "info"), [c for c in solver_cases() if not c.values[1].adaptive and c.values[1].name != "adams"]
)
def test_order_of_convergence(engine: str, info: SolverInfo) -> None:
    """Halving the step of a fixed-step solver divides the error by 2 to the order."""
    field, z0, _ = draw("linear")
    t = torch.tensor([0.0, 1.0], dtype=DOUBLE)
    errors = []
    for steps in (20, 40):
        z = pynode.solve(field, z0, t, solver=info.name, dt=1 / steps, engine=engine).z
        errors.append((z[-1] - field.exact(z0, t)[-1]).abs().max().item())
    order = torch.tensor(errors[0] / errors[1]).log2().item()
    assert order == pytest.approx(info.order, abs=0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(engine: str, dtype: torch.dtype) -> None:
    field, z0, _ = draw("mlp", dtype)
    # The other dtype for t: it keeps its own.
    t = torch.linspace(0, 1, 3, dtype=DOUBLE if dtype == torch.float32 else torch.float32, requires_grad=True)
    z0.requires_grad_()
    sol = pynode.solve(field, z0, t, engine=engine)
    assert sol.z.dtype == dtype
    assert sol.t.dtype == t.dtype
    sol.z.sum().backward()
    assert z0.grad is not None
    assert z0.grad.dtype == dtype
    assert t.grad is not None
    assert t.grad.dtype == t.dtype


def test_float32_agrees_with_float64(engine: str) -> None:
    wide, narrow = Linear(DOUBLE), Linear(torch.float32)
    z0 = draw("linear")[1]
    exact = pynode.solve(wide, z0, [0.0, 1.0], engine=engine, rtol=1e-8, atol=1e-10).z
    z = pynode.solve(narrow, z0.float(), [0.0, 1.0], engine=engine, rtol=1e-5, atol=1e-6).z
    torch.testing.assert_close(z.double(), exact, rtol=1e-4, atol=1e-5)


def test_several_features(engine: str) -> None:
    """A state of shape (batch, channel, height, width), each entry decaying by itself."""
    rate = torch.nn.Parameter(torch.linspace(0.1, 1.0, 24, dtype=DOUBLE).reshape(2, 3, 4))

    class Decay(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate = rate

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return -self.rate * z

    z0 = torch.randn(5, 2, 3, 4, dtype=DOUBLE)
    sol = pynode.solve(Decay(), z0, [0.0, 0.5, 1.0], engine=engine, rtol=1e-8, atol=1e-10)
    assert sol.z.shape == (3, 5, 2, 3, 4)
    exact = z0 * torch.exp(-rate * sol.t.reshape(-1, 1, 1, 1, 1))
    torch.testing.assert_close(sol.z, exact, rtol=0, atol=1e-7)
    (gradient,) = torch.autograd.grad(sol.z[-1].sum(), rate)
    torch.testing.assert_close(gradient, -(z0 * torch.exp(-rate)).sum(0), rtol=1e-5, atol=1e-6)


@pytest.mark.julia
@pytest.mark.parametrize("problem", ["linear", "driven", "mlp", "pair"])
def test_engines_agree(problem: str) -> None:
    field, z0, args = draw(problem)
    states = z0 if isinstance(z0, tuple) else (z0,)
    inputs = [*states, *args, *field.parameters()]
    found = []
    for engine in ("torch", "julia"):
        t = torch.tensor([0.1, 0.4, 1.1], dtype=DOUBLE, requires_grad=True)
        for x in inputs:
            x.requires_grad_()
        sol = pynode.solve(field, z0, t, args=args, solver="dopri5", engine=engine, rtol=1e-9, atol=1e-11)
        z = sol.z if isinstance(sol.z, tuple) else (sol.z,)
        loss = sum((x**2).sum() for x in z)
        found.append((z, torch.autograd.grad(loss, [t, *inputs])))
    for a, b in zip(*(z for z, _ in found), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    for a, b in zip(*(g for _, g in found), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_adams_between_steps() -> None:
    """The multistep solver keeps its fourth order where the reported times lie anywhere between its steps."""
    field = Driven()
    z0, u = torch.tensor([[1.0]], dtype=DOUBLE), torch.tensor([[-0.5]], dtype=DOUBLE)
    t = torch.tensor([0.0, 0.113, 0.457, 0.9031, 1.0], dtype=DOUBLE)
    z = pynode.solve(field, z0, t, args=(u,), solver="adams", dt=0.01, rtol=1e-9, atol=1e-11, engine="torch").z
    torch.testing.assert_close(z, field.exact(z0, t, u), rtol=0, atol=1e-8)


@pytest.mark.parametrize("solver", ["bosh3", "dopri8"])
def test_accuracy_after_a_step_that_ends_on_a_reported_time(solver: str) -> None:
    field, z0, _ = draw("linear")
    t = torch.linspace(0, 1, 9, dtype=DOUBLE)
    z = pynode.solve(field, z0, t, solver=solver, dt=0.125, engine="torch", rtol=1e-5, atol=1e-6).z
    torch.testing.assert_close(z, field.exact(z0, t), rtol=0, atol=2e-5)


def test_field_without_a_derivative_at_the_start(engine: str) -> None:
    """z' = 1 - |z| from the origin, where |z| has no derivative: each of the two is (1 - exp(-√2 t)) / √2."""
    z0 = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    z = pynode.solve(lambda t, z: 1 - z.square().sum(1, keepdim=True).sqrt() + 0 * z, z0, [0.0, 1.0], engine=engine).z
    torch.testing.assert_close(
        z[-1], torch.full_like(z0, (1 - math.exp(-math.sqrt(2))) / math.sqrt(2)), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve"])
def test_complex_numbers_within_a_field(engine: str, sensitivity: str) -> None:
    """A quantum system of two levels, -i w H ψ: at time t the other level is found with probability sin²(w t)."""
    w = torch.tensor(0.6, dtype=DOUBLE, requires_grad=True)
    H = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.complex128)

    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.view_as_real(-1j * w * torch.complex(*z.unbind(-1)) @ H.T)

    start = torch.view_as_real(torch.tensor([[1.0, 0.0]], dtype=torch.complex128))
    keywords: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11, "engine": engine, "sensitivity": sensitivity}
    z = torch.view_as_complex(pynode.solve(field, start, [0.0, 1.0], **keywords).z[-1])
    probability = z[0, 1].abs() ** 2
    probability.backward()
    assert probability.item() == pytest.approx(math.sin(0.6) ** 2, abs=1e-7)
    assert w.grad is not None
    assert w.grad.item() == pytest.approx(math.sin(1.2), abs=1e-6)


def test_a_field_that_takes_its_state_for_complex_numbers(engine: str) -> None:
    """torch.view_as_complex takes even places in memory, where parts of a flat adjoint state need not begin."""
    w = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
    z0 = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]], dtype=DOUBLE, requires_grad=True)
    keywords: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-10, "sensitivity": "backsolve", "engine": engine}
    z = pynode.solve(lambda t, z: torch.view_as_real(1j * w * torch.view_as_complex(z)), z0, [0.0, 1.0], **keywords).z
    of_w, of_z = torch.autograd.grad(z[-1, 0, 0, 0], (w, z0))
    assert of_w.item() == pytest.approx(-math.sin(0.7), abs=1e-7)
    assert of_z.flatten().tolist() == pytest.approx([math.cos(0.7), -math.sin(0.7), 0, 0], abs=1e-7)


def test_views_that_hold_their_numbers_with_the_other_sign(engine: str) -> None:
    """As `z.conj().imag`: the state, a conditioning tensor, what the field reads, the times, and a cotangent."""

    def negated(*numbers: float) -> Tensor:
        return torch._neg_view(-torch.tensor(numbers, dtype=DOUBLE))

    z0, a, b, t = negated(2.0)[None], negated(-1.0), negated(0.5), negated(0.0, 1.0)
    z0, a = z0.detach().requires_grad_(), a.detach().requires_grad_()
    sol = pynode.solve(lambda t, z, a: a * z + b, z0, t, args=(a,), engine=engine, rtol=1e-9, atol=1e-9)
    plain = [x.detach().resolve_neg().clone().requires_grad_() for x in (z0, a)]
    exact = plain[0] * plain[1].exp() + 0.5 * (plain[1].exp() - 1) / plain[1]
    torch.testing.assert_close(sol.z[-1], exact, rtol=1e-7, atol=0)
    found = torch.autograd.grad(torch._neg_view(sol.z[-1]).sum(), (z0, a))
    torch.testing.assert_close(found, torch.autograd.grad(-exact.sum(), plain), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("engine", "solver"),
    [("torch", "dopri5"), *(pytest.param("julia", s, marks=pytest.mark.julia) for s in ("tsit5", "dopri5", "vern7"))],
)
def test_a_field_that_ends_a_little_further_on(engine: str, solver: str) -> None:
    """Where the field is not finite at the end of the step by which the first one is found, that is a shorter one."""
    t = torch.tensor([0.0, 0.13], dtype=DOUBLE)
    z0 = torch.ones(1, 1, dtype=DOUBLE)
    sol = pynode.solve(lambda t, z: (1.005 - z).sqrt(), z0, t, solver=solver, engine=engine, rtol=1e-8, atol=1e-8)
    exact = 1.005 - (math.sqrt(0.005) - 0.065) ** 2
    assert sol.z[-1].item() == pytest.approx(exact, abs=1e-6)
