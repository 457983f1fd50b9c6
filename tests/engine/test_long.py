"""Memory over many steps: what a solve keeps is the states at the times asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pynode

DOUBLE = torch.float64
SIZE = 2000  # numbers of the state: 1e5 steps stored would be 1.6 GB
MB = 2**20


class Swing(nn.Module):
    """dz/dt = w cos(2π t) z: z(t) = z0 exp(w sin(2π t) / 2π), the same at every whole t."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(0.5, 1.0, SIZE, dtype=DOUBLE))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.w * torch.cos(6.283185307179586 * t) * z


def peak() -> int:
    """The most memory that the process has had, in bytes, since `reset`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def reset() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("the peak of the memory in use cannot be reset here")


def growth(run: Callable[[float], Any], first: float, end: float) -> int:
    """By how many bytes the memory in use exceeds that at the start, after a first run that loads and compiles."""
    run(first)
    reset()
    before = peak()
    run(end)
    return peak() - before


CASES = [
    pytest.param("torch", "euler", marks=pytest.mark.slow),
    pytest.param("julia", "rk4", marks=pytest.mark.julia),
    pytest.param("julia", "tsit5", marks=pytest.mark.julia),
]


@pytest.mark.parametrize(("engine", "solver"), CASES)
def test_forward(engine: str, solver: str) -> None:
    """A solve of 1e5 steps without a gradient, by steps of given length, or as long as the tolerance wants them."""
    field, z0 = Swing(), torch.ones(1, SIZE, dtype=DOUBLE)
    fixed = solver != "tsit5"
    how: dict[str, Any] = {"dt": 1e-3} if fixed else {"rtol": 1e-7, "atol": 1e-9}
    steps = 0

    def run(end: float) -> None:
        nonlocal steps
        with torch.no_grad():
            sol = pynode.solve(field, z0, [0.0, end / 2, end], solver=solver, engine=engine, max_steps=200_000, **how)
        steps = sol.stats.n_accepted or 0
        torch.testing.assert_close(sol.z[-1], z0, rtol=0, atol=0.05)

    run(4.0)
    end = 4.0 * round(1.1e5 / steps)
    # torchdiffeq's grid alone takes about a kilobyte for each step.
    assert growth(run, 4.0, end) < (300 if engine == "torch" else 60) * MB
    assert steps >= 100_000


GRADIENTS = [
    pytest.param(
        pynode.Discrete(memory="64MiB"), marks=pytest.mark.slow, id="discrete"
    ),  # 1e5 steps with their stages would be 20 GB
    pytest.param("backsolve", marks=pytest.mark.exhaustive, id="backsolve"),
]


@pytest.mark.julia
@pytest.mark.parametrize("how", GRADIENTS)
def test_gradient(how: Any) -> None:
    """Of 1e5 steps, from some 1600 checkpoints, or backwards without any."""
    field, z0 = Swing(), torch.ones(1, SIZE, dtype=DOUBLE, requires_grad=True)
    steps = 0

    def run(end: float) -> None:
        nonlocal steps
        field.w.grad = z0.grad = None
        options: dict[str, Any] = {"solver": "tsit5", "rtol": 1e-7, "atol": 1e-9, "max_steps": 200_000}
        sol = pynode.solve(field, z0, [0.0, end], sensitivity=how, engine="julia", **options)
        steps = sol.stats.n_accepted or 0
        sol.z[-1].sum().backward()
        exact = torch.exp(field.w.detach() / 6.283185307179586)
        torch.testing.assert_close(z0.grad, exact[None], rtol=0.02, atol=0)
        torch.testing.assert_close(field.w.grad, exact / 6.283185307179586, rtol=0.05, atol=0)

    run(4.25)
    end = 4.0 * round(1.1e5 / steps) + 0.25
    assert growth(run, 4.25, end) < 150 * MB
    assert steps >= 100_000
