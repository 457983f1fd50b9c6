"""Between its steps a solution is as exact as at their ends."""

from __future__ import annotations

import pytest
import torch
from problems import solver_cases
from torch import Tensor

import pynode
from pynode.engine import SolverInfo

RATE = 1.3


# Two of low order, which take many steps, and SciPy's, which have no dense solution.
LEFT_OUT = ("adaptive_heun", "fehlberg2", "lsoda", "bdf", "radau")


@pytest.mark.parametrize(
    ("engine", "info"), [c for c in solver_cases() if c.values[1].adaptive and c.values[1].name not in LEFT_OUT]
)
def test_a_dense_solution(engine: str, info: SolverInfo) -> None:
    """At a tight tolerance: steps of a high order are too long there for a polynomial of low degree."""
    tolerance = 1e-6 if info.order < 4 else 1e-9

    def field(t: Tensor, z: Tensor) -> Tensor:
        return RATE * torch.stack([z[:, 1], -z[:, 0]], 1)

    solution = pynode.solve(
        field,
        torch.ones(1, 2, dtype=torch.float64),
        [0.0, 2.0],
        solver=info.name,
        rtol=tolerance,
        atol=tolerance,
        dense=True,
        max_steps=50_000,
        engine=engine,
    )
    t = torch.linspace(0, 2, 201, dtype=torch.float64)
    angle = RATE * t
    exact = torch.stack([angle.cos() + angle.sin(), angle.cos() - angle.sin()], 1)
    error = (solution(t)[:, 0] - exact).abs().amax(1)
    assert error.max() < max(5 * tolerance, 3 * error[-1].item())
