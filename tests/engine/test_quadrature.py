"""The gradient of a parameter whose part in the field changes faster than the adjoint does."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pynode

pytestmark = pytest.mark.julia
D = torch.float64
SENSITIVITIES = ["gauss", "interpolating", "quadrature"]
CASES = [(s, "gauss") for s in ("auto", "kencarp4", "fbdf")] + [("rodas5p", s) for s in SENSITIVITIES]


class Driven(nn.Module):
    """z' = p h(t) - k z: with k = 0 the adjoint is constant."""

    def __init__(self, h: Any, k: float = 0.0, unit: float = 1.0, p: float = 1.0) -> None:
        super().__init__()
        self.h, self.k, self.unit = h, k, unit
        self.p = nn.Parameter(torch.tensor([p * unit], dtype=D))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.p / self.unit * self.h(t) - self.k * z


def waves(t: Tensor) -> Tensor:
    return torch.sin(20 * t) ** 2


def pulse(t: Tensor) -> Tensor:
    return torch.exp(-(((t - 1.5) / 0.01) ** 2))


def gradient(field: Driven, **options: Any) -> float:
    z0 = torch.zeros(1, 1, dtype=D)
    sol = pynode.solve(field, z0, [0.0, 3.0], engine="julia", rtol=1e-6, atol=1e-8, **options)
    (found,) = torch.autograd.grad(sol.z[-1].sum(), field.p)
    return found.item() * field.unit


@pytest.mark.parametrize(("solver", "sensitivity"), CASES)
def test_waves(solver: str, sensitivity: str) -> None:
    expected = 1.5 - math.sin(120) / 80
    found = gradient(Driven(waves), solver=solver, sensitivity=sensitivity)
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("solver", "sensitivity"), CASES)
def test_a_pulse(solver: str, sensitivity: str) -> None:
    expected = 0.01 * math.sqrt(math.pi)
    found = gradient(Driven(pulse), solver=solver, sensitivity=sensitivity, tstops=[1.5])
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
def test_waves_that_the_solution_does_not_have(sensitivity: str) -> None:
    """Of an amplitude of zero: neither solve has any reason for short steps."""
    w = 7.0
    field = Driven(lambda t: torch.sin(w * t), k=1.0, p=0.0)
    expected = (math.sin(3 * w) - w * math.cos(3 * w) + w * math.exp(-3)) / (1 + w * w)  # ∫ exp(t - 3) sin(w t) dt
    assert gradient(field, solver="rodas5p", sensitivity=sensitivity) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_units_of_the_parameter(unit: float, sensitivity: str) -> None:
    expected = 1.5 - math.sin(120) / 80
    found = gradient(Driven(waves, unit=unit), solver="rodas5p", sensitivity=sensitivity)
    assert found == pytest.approx(expected, rel=1e-3)


def test_a_mass_matrix() -> None:
    class Algebraic(nn.Module):
        """z₁' = p sin²(20 t), 0 = z₂ - z₁."""

        def __init__(self) -> None:
            super().__init__()
            self.p = nn.Parameter(torch.ones(1, dtype=D))

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            x, y = z.unbind(-1)
            return torch.stack([self.p * waves(t) + 0 * x, y - x], -1)

    field, z0 = Algebraic(), torch.zeros(1, 2, dtype=D)
    mass = torch.diag(torch.tensor([1.0, 0.0], dtype=D))
    sol = pynode.solve(field, z0, [0.0, 3.0], engine="julia", solver="rodas5p", rtol=1e-6, atol=1e-8, mass=mass)
    (found,) = torch.autograd.grad(sol.z[-1, 0, 1], field.p)
    assert found.item() == pytest.approx(1.5 - math.sin(120) / 80, rel=1e-4)


@pytest.mark.parametrize("solver", ["auto_stiff", "kencarp4", "rodas5p"])
def test_first_steps_that_are_cut(solver: str) -> None:
    """Of z' = -p z over short spans, where the end of a step of the forward solve cuts the backward solve's first."""
    for span, rtol in ((0.1, 1e-6), (0.054, 1e-7), (0.022, 1e-8), (0.01, 1e-7), (0.3, 1e-5)):
        p = torch.tensor(2.1, dtype=D, requires_grad=True)
        z0 = torch.ones(1, 1, dtype=D)
        sol = pynode.solve(
            lambda t, z, p=p: -p * z, z0, [0.0, span], solver=solver, sensitivity="gauss", rtol=rtol, atol=rtol / 100,
            engine="julia",
        )  # fmt: skip
        (found,) = torch.autograd.grad(sol.z[-1].sum(), p)
        assert found.item() == pytest.approx(-span * math.exp(-2.1 * span), rel=100 * rtol), (span, rtol)
