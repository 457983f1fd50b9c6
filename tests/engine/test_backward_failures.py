"""A backward solve that fails is an error with its return code, whichever sensitivity makes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode import Backsolve, Gauss, Interpolating, Quadrature, Retcode

DOUBLE = torch.float64
julia = pytest.mark.julia


def continuous(**options: float) -> list[Any]:
    """Every continuous sensitivity of either engine."""
    made = [
        ("torch", Backsolve(**options)),
        ("julia", Backsolve(**options)),
        ("julia", Interpolating(**options)),
        ("julia", Interpolating(checkpointing=True, **options)),
        ("julia", Gauss(**options)),
        ("julia", Gauss(checkpointing=True, **options)),
        ("julia", Quadrature(**options)),
    ]
    return [pytest.param(*m, marks=[julia] if m[0] == "julia" else [], id=f"{m[0]}-{m[1]!r}") for m in made]


class Growth(nn.Module):
    """z' = k z."""

    def __init__(self) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(1.0, dtype=DOUBLE))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.k * z


class Spoilt(nn.Module):
    """z' = k z, whose derivative in the state or in the parameter is not a number."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.k = nn.Parameter(torch.tensor(0.5, dtype=DOUBLE))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.k * z + (0 * (z if self.where == "state" else self.k)).sqrt()


def backward(field: nn.Module, engine: str, how: pynode.Sensitivity, **keywords: Any) -> pynode.SolveError:
    z0 = torch.ones(1, 1, dtype=DOUBLE, requires_grad=True)
    z = pynode.solve(field, z0, [0.0, 1.0, 4.0], engine=engine, sensitivity=how, **keywords).z
    with pytest.raises(pynode.SolveError, match=r"the backward solve stopped at t=") as caught:
        z[1:].sum().backward()
    assert z0.grad is None
    return caught.value


@pytest.mark.parametrize(("engine", "how"), continuous(rtol=1e-10, atol=1e-10))
def test_max_steps(engine: str, how: pynode.Sensitivity) -> None:
    """It bounds the backward solve too, which at these tolerances takes more steps than the forward one."""
    error = backward(Growth(), engine, how, solver="dopri5", rtol=1e-4, atol=1e-6, max_steps=20)
    assert error.retcode is Retcode.MAX_STEPS
    assert "raise max_steps" in str(error)


@pytest.mark.parametrize("where", ["state", "parameter"])
@pytest.mark.parametrize(("engine", "how"), continuous())
def test_derivatives_that_are_not_finite(engine: str, how: pynode.Sensitivity, where: str) -> None:
    error = backward(Spoilt(where), engine, how, solver="dopri5")
    assert error.retcode in (Retcode.NON_FINITE, Retcode.STEP_UNDERFLOW)


@pytest.mark.parametrize(("engine", "how"), continuous(rtol=1e-30, atol=1e-30))
def test_steps_below_rounding(engine: str, how: pynode.Sensitivity) -> None:
    error = backward(Growth(), engine, how, solver="dopri5", max_steps=100)
    assert error.retcode in (Retcode.STEP_UNDERFLOW, Retcode.MAX_STEPS, Retcode.NON_FINITE)


@julia
@pytest.mark.parametrize(
    "solver",
    ["rodas5p", "fbdf", *(pytest.param(s, marks=pytest.mark.exhaustive) for s in ("kencarp4", "auto_stiff", "dopri8"))],
)
@pytest.mark.parametrize(
    "how",
    [
        Gauss(rtol=1e-12, atol=1e-14),
        pytest.param(Interpolating(rtol=1e-12, atol=1e-14), marks=pytest.mark.exhaustive),
    ],
    ids=repr,
)
def test_solvers(solver: str, how: pynode.Sensitivity) -> None:
    """The bound holds for solvers of every kind."""
    steps = 60 if solver == "fbdf" else 12  # which starts with short steps of low order
    error = backward(Growth(), "julia", how, solver=solver, rtol=1e-2, atol=1e-2, max_steps=steps)
    assert error.retcode is Retcode.MAX_STEPS


@pytest.mark.parametrize(("engine", "how"), continuous())
def test_as_many_fixed_steps_backward_as_forward(engine: str, how: pynode.Sensitivity) -> None:
    z0 = torch.ones(1, 1, dtype=DOUBLE, requires_grad=True)
    keywords: dict[str, Any] = {"solver": "rk4", "dt": 0.1, "max_steps": 40}
    pynode.solve(Growth(), z0, [0.0, 1.0, 4.0], engine=engine, sensitivity=how, **keywords).z[-1].sum().backward()
    assert z0.grad is not None
    assert z0.grad.item() == pytest.approx(54.598, rel=1e-3)


@julia
def test_quadrature_that_is_not_accurate() -> None:
    """The integral of a parameter's gradient is held to its tolerance, which here takes too many pieces."""

    class Rough(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k = nn.Parameter(torch.tensor(1.0, dtype=DOUBLE))

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return self.k * torch.sign(torch.sin(40 * t)) + 0 * z

    loose = {"rtol": 1e-2, "atol": 1e-2, "max_steps": 60, "tstops": None}  # else each piece between the jumps is smooth
    error = backward(Rough(), "julia", Quadrature(rtol=1e-13, atol=1e-13), **loose)
    assert error.retcode is Retcode.MAX_STEPS


class Relaxing(nn.Module):
    """Two numbers that are drawn to cos t, at rates up to the largest that is given: going back they part as fast."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.tensor([rate / 2, rate], dtype=DOUBLE))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return -self.rates * (z - torch.cos(t)) + torch.sin(z.flip(1))


@pytest.mark.parametrize("span", [1.0, -1.0])
def test_backsolve_stays_on_the_trajectory_or_says_so(engine: str, span: float) -> None:
    """At each of the times: at a mild rate its gradient is right, at a high one it would be wrong by its own size."""

    def gradients(rate: float, how: str, rtol: float) -> tuple[Tensor, ...]:
        field, z0 = Relaxing(rate * span), torch.ones(3, 2, dtype=DOUBLE, requires_grad=True)
        t = span * torch.tensor([0.0, 0.5, 1.0], dtype=DOUBLE)
        sol = pynode.solve(field, z0, t, engine=engine, solver="dopri5", sensitivity=how, rtol=rtol, atol=1e-2 * rtol)
        return torch.autograd.grad(sol.z[-1].square().sum(), [z0, field.rates])

    for rtol in (1e-3, 1e-6):
        for found, exact in zip(gradients(5, "backsolve", rtol), gradients(5, "discrete", 1e-9), strict=True):
            assert (found - exact).abs().max() < 30 * rtol * exact.abs().max()
    with pytest.raises(pynode.SolveError, match=r"at t=-?0(\.5)?: the state, which backsolve .* trajectory") as caught:
        gradients(30, "backsolve", 1e-6)
    assert caught.value.retcode is Retcode.OFF_TRAJECTORY
