"""The engine contract on gradients: every engine, solver and sensitivity, by `torch.autograd.gradcheck`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import PROBLEMS, draw, gradient_cases, settings
from torch import Tensor

import pynode
from pynode.engine import SolverInfo


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize(("engine", "info", "how"), gradient_cases())
def test_gradcheck(engine: str, info: SolverInfo, how: str, problem: str) -> None:
    """With respect to z0, the entries of t, args and parameters at once."""
    chosen = settings(info)
    field, z0, args = draw(problem)
    states = z0 if isinstance(z0, tuple) else (z0,)
    # Three reported times with uneven gaps, none of them 0: the driven field vanishes there.
    t = 0.3 + chosen.span * torch.tensor([0.0, 0.37, 1.0], dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (*states, t, *args)] + list(field.parameters())

    def run(*given: Tensor) -> tuple[Tensor, ...]:
        z, rest = given[: len(states)], given[len(states) + 1 :]
        sol = pynode.solve(
            field,
            z if isinstance(z0, tuple) else z[0],
            given[len(states)],
            args=rest[: len(args)],
            solver=info.name,
            sensitivity=how,
            engine=engine,
            max_steps=100_000,
            **chosen.keywords,
        )
        return sol.z if isinstance(sol.z, tuple) else (sol.z,)

    exact = how == "discrete" and not info.adaptive
    tolerance: dict[str, Any] = {"atol": 1e-7, "rtol": 1e-6} if exact else {"atol": chosen.error, "rtol": 1e-4}
    assert torch.autograd.gradcheck(run, inputs, eps=chosen.eps, fast_mode=True, **tolerance)
