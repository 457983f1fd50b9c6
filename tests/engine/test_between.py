"""Between its steps a solution is as exact as at their ends."""

from __future__ import annotations

import pytest
import torch
from problems import Oscillator, solver_cases

import pynode
from pynode.engine import SolverInfo

# Two of low order, which take many steps, and SciPy's, which have no dense solution.
LEFT_OUT = ("adaptive_heun", "fehlberg2", "lsoda", "bdf", "radau")


@pytest.mark.parametrize(
    ("engine", "info"), [c for c in solver_cases() if c.values[1].adaptive and c.values[1].name not in LEFT_OUT]
)
def test_a_dense_solution(engine: str, info: SolverInfo) -> None:
    """At a tight tolerance: steps of a high order are too long there for a polynomial of low degree."""
    tolerance, field = 1e-6 if info.order < 4 else 1e-9, Oscillator()
    solution = pynode.solve(
        field,
        field.start,
        [0.0, 2.0],
        solver=info.name,
        rtol=tolerance,
        atol=tolerance,
        dense=True,
        max_steps=50_000,
        engine=engine,
    )
    t = torch.linspace(0, 2, 201, dtype=torch.float64)
    with torch.no_grad():
        error = (solution(t) - field.exact(t)).abs().amax((1, 2))
    assert error.max() < max(5 * tolerance, 3 * error[-1].item())


def test_a_first_step_of_a_few_roundings() -> None:
    """It has no room for all the points that a polynomial of degree eight goes through."""
    solution = pynode.solve(
        lambda t, z: -z,
        torch.ones(1, 1, dtype=torch.float64),
        torch.tensor([1000.0, 1001.0], dtype=torch.float64),
        solver="dopri8",
        rtol=1e-6,
        atol=1e-8,
        dt=1e-12,
        dense=True,
        engine="torch",
    )
    half = torch.tensor(0.5, dtype=torch.float64)
    torch.testing.assert_close(solution(1000.5)[0, 0], torch.exp(-half), rtol=0, atol=1e-4)


@pytest.mark.julia
@pytest.mark.parametrize(("solver", "controller"), [("kencarp4", "pid"), ("vcabm", None), ("rodas5p", "i")])
def test_reported_times_whatever_accepts_the_steps(solver: str, controller: str | None) -> None:
    """A PID controller accepts steps whose estimate is more than the tolerances, and `vcabm` has one of its own."""
    t, tolerance = torch.linspace(0, 3, 301, dtype=torch.float64), 1e-8
    z = pynode.solve(
        lambda t, z: 10 * torch.cos(10 * t) + 0 * z,
        torch.zeros(1, 1, dtype=torch.float64),
        t,
        solver=solver,
        rtol=tolerance,
        atol=tolerance,
        step_control=None if controller is None else pynode.StepControl(controller=controller),
        engine="julia",
    ).z[:, 0, 0]
    error = (z - (10 * t).sin()).abs()
    assert error.max() < 3 * max(error[-1].item(), 10 * tolerance)
