"""Gradients do not depend on the units of the loss, of the state, or of a parameter."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pynode

D = torch.float64
TORCH = [("torch", {"sensitivity": "backsolve"}), ("torch", {"solver": "bdf"})]
JULIA = [
    *({"sensitivity": s} for s in ("backsolve", "interpolating", "gauss", "quadrature")),
    *({"solver": s} for s in ("rodas5p", "kencarp4", "fbdf", "vcabm")),
]
CONTINUOUS = [*TORCH, *[pytest.param("julia", how, marks=pytest.mark.julia) for how in JULIA]]


class Field(nn.Module):
    """Two numbers that change at different paces, in a unit of the state."""

    def __init__(self, unit: float = 1.0) -> None:
        super().__init__()
        self.unit = unit
        self.p = nn.Parameter(torch.tensor([2.0, 0.5], dtype=D))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        x, y = (z / self.unit).unbind(-1)
        a, b = self.p.unbind()
        return self.unit * torch.stack([-a * (x - torch.cos(t)) + y * x, -y + b * x], -1)


def gradient(engine: str, how: dict[str, Any], loss: float = 1.0, unit: float = 1.0) -> tuple[Tensor, int | None]:
    """In units of 1, and the evaluations that it took."""
    field = Field(unit)
    z0 = unit * torch.tensor([[1.0, 0.5]], dtype=D)
    z0.requires_grad_()
    t = torch.linspace(0, 2, 3, dtype=D)
    sol = pynode.solve(field, z0, t, engine=engine, rtol=1e-6, atol=1e-8 * unit, **how)
    found = torch.autograd.grad(loss * ((sol.z / unit) ** 2).sum(), [z0, field.p])
    return torch.cat([found[0].flatten() * unit, found[1]]) / loss, sol.stats.nfe_backward


@pytest.mark.parametrize(("engine", "how"), CONTINUOUS)
def test_units_of_the_loss(engine: str, how: dict[str, Any]) -> None:
    expected, evaluations = gradient(engine, how, 2.0**-10)
    found, taken = gradient(engine, how, 2.0**-60)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
    assert taken == evaluations


@pytest.mark.parametrize(("engine", "how"), CONTINUOUS)
def test_units_of_the_state(engine: str, how: dict[str, Any]) -> None:
    expected, _ = gradient(engine, how)
    # SciPy's finds no first step where the gradient is larger than the tolerance by twenty orders.
    far = 2.0**20 if how.get("solver") == "bdf" else 2.0**40
    for unit in (1 / far, far):
        found, _ = gradient(engine, how, unit=unit)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_an_absolute_tolerance_of_its_own_is_one_of_the_cotangents(engine: str) -> None:
    _, evaluations = gradient(engine, {"sensitivity": "backsolve"}, 1e-8)
    _, taken = gradient(engine, {"sensitivity": pynode.Backsolve(atol=1.0)}, 1e-8)
    assert taken is not None
    assert evaluations is not None
    assert taken < evaluations


@pytest.mark.parametrize("cotangent", [0.0, math.inf, math.nan])
def test_cotangents_without_a_size(engine: str, cotangent: float) -> None:
    field, z0 = Field(), torch.ones(1, 2, dtype=D, requires_grad=True)
    sol = pynode.solve(field, z0, [0.0, 1.0], engine=engine, sensitivity="backsolve")
    if cotangent == 0:
        (found,) = torch.autograd.grad(sol.z, z0, torch.zeros_like(sol.z))
        assert (found == 0).all()
    else:
        with pytest.raises(pynode.SolveError):
            torch.autograd.grad(sol.z, z0, torch.full_like(sol.z, cotangent))


class Rest(nn.Module):
    """At rest, so that the state says nothing of how long steps may be."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.unit = unit
        self.p = nn.Parameter(torch.tensor([unit], dtype=D))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.p / self.unit - z


SOLVERS = [
    ("torch", "auto"),
    ("torch", "bdf"),
    *[pytest.param("julia", s, marks=pytest.mark.julia) for s in ("auto", "rodas5p", "kencarp4", "fbdf")],
]


@pytest.mark.parametrize(("engine", "solver"), SOLVERS)
@pytest.mark.parametrize("unit", [2.0**-30, 1.0, 2.0**30])
def test_units_of_a_parameter(engine: str, solver: str, unit: float) -> None:
    field, z0 = Rest(unit), torch.ones(1, 1, dtype=D)
    sol = pynode.solve(field, z0, [0.0, 3.0], engine=engine, solver=solver, sensitivity="forward")
    (found,) = torch.autograd.grad(sol.z[-1].sum(), [field.p])
    assert found.item() * unit == pytest.approx(1 - math.exp(-3), rel=2e-3)


@pytest.mark.parametrize(("engine", "solver"), SOLVERS)
@pytest.mark.parametrize("length", [2.0**-60, 1.0, 2.0**20])
def test_length_of_a_direction(engine: str, solver: str, length: float) -> None:
    how = "backsolve" if engine == "torch" else "gauss"
    field, z0 = Rest(1.0), torch.ones(1, 1, dtype=D)

    def end(z0: Tensor) -> Tensor:
        return pynode.solve(field, z0, [0.0, 3.0], engine=engine, solver=solver, sensitivity=how).z[-1]

    _, found = torch.func.jvp(end, (z0,), (length * z0,))
    assert found.item() / length == pytest.approx(math.exp(-3), rel=1e-2)
