"""What a solve finds does not depend on the unit of time: estimates of errors have the dimension of the state."""

from __future__ import annotations

import pytest
import torch
from problems import solver_cases
from torch import Tensor

import pynode
from pynode.engine import SolverInfo

TOLERANCE, RADIANS = 1e-5, 20.0


def oscillate(info: SolverInfo, engine: str, unit: float, first: float | None = None) -> tuple[float, int]:
    """The error of an oscillator's position in tolerances, and steps, or evaluations where steps are not counted.

    Args:
        info: the solver.
        engine: of the solver.
        unit: of time.
        first: the first step, in units; else the solver guesses it.
    """
    z0 = torch.ones(1, 2, dtype=torch.float64)

    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.cat([z[:, 1:], -z[:, :1]], 1) / unit

    solution = pynode.solve(
        field,
        z0,
        [0.0, RADIANS * unit],
        solver=info.name,
        rtol=TOLERANCE,
        atol=TOLERANCE,
        dt=None if first is None else first * unit,
        max_steps=50_000,
        engine=engine,
    )
    end = torch.tensor(RADIANS, dtype=torch.float64)
    error = abs(solution.z[-1, 0, 0] - end.cos() - end.sin()).item() / TOLERANCE
    return error, solution.stats.n_accepted or solution.stats.nfe


GUESS = ("lsoda", "bdf", "radau")  # SciPy's, which take no first step
ADAPTIVE = [case for case in solver_cases() if case.values[1].adaptive]


@pytest.mark.parametrize(("engine", "info"), [case for case in ADAPTIVE if case.values[1].name not in GUESS])
def test_steps_and_error_are_the_same_in_every_unit_of_time(engine: str, info: SolverInfo) -> None:
    error, steps = oscillate(info, engine, 1.0, 0.01)
    for unit in (2.0**-20, 2.0**20):
        found, taken = oscillate(info, engine, unit, 0.01)
        # Krylov's methods stop where a residual is small enough, which roundings decide too.
        assert found == pytest.approx(error, rel=0.02, abs=1e-4), unit
        assert taken == steps, unit


@pytest.mark.parametrize(("engine", "info"), ADAPTIVE)
def test_a_first_step_is_guessed_in_every_unit_of_time(engine: str, info: SolverInfo) -> None:
    error, steps = oscillate(info, engine, 1.0)
    for unit in (2.0**-20, 2.0**20):
        found, taken = oscillate(info, engine, unit)
        assert found < 1 + 4 * error or info.name not in GUESS, unit
        assert steps / 1.5 - 5 < taken < 1.5 * steps + 12, unit
