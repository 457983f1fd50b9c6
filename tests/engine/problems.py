"""Problems with known solutions, and the solvers and sensitivities of every engine, for the engine contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pynode import engines, solvers
from pynode.engine import SolverInfo
from pynode.engine.choose import get_engine


class Linear(nn.Module):
    """dz/dt = z Aᵀ, `z` of shape `(batch, 2)`; z(t) = z0 exp(A t)ᵀ."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.tensor([[-0.3, 1.1], [-0.9, -0.2]], dtype=dtype))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return z @ self.A.T

    def exact(self, z0: Tensor, t: Tensor) -> Tensor:
        return torch.einsum("bj,nij->nbi", z0, torch.linalg.matrix_exp(self.A * (t - t[0])[:, None, None]))


class Oscillator(nn.Module):
    """dz/dt = rate (z₂, -z₁), `z` of shape `(1, 2)`, from (1, 1)."""

    start = torch.ones(1, 2, dtype=torch.float64)

    def __init__(self, rate: float = 1.3) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.rate * torch.stack([z[:, 1], -z[:, 0]], 1)

    def exact(self, t: Tensor) -> Tensor:
        angle = (self.rate * t)[:, None]
        return torch.stack([angle.cos() + angle.sin(), angle.cos() - angle.sin()], -1)


class Attracted(nn.Module):
    """dz/dt = rate (a cos t - z) - a sin t, from a: z = a cos t (Prothero and Robinson, Math. Comp. 28, 1974)."""

    def __init__(self, rate: float = 1e6) -> None:
        super().__init__()
        self.rate = rate
        self.a = nn.Parameter(torch.tensor([[1.0]], dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.rate * (self.a * torch.cos(t) - z) - self.a * torch.sin(t)


class Driven(nn.Module):
    """dz/dt = t (u - k z), `z` and `u` of shape `(batch, 1)`; z(t) = u/k + (z0 - u/k) exp(-k (t² - t0²) / 2)."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(0.7, dtype=dtype))

    def forward(self, t: Tensor, z: Tensor, u: Tensor) -> Tensor:
        return t * (u - self.k * z)

    def exact(self, z0: Tensor, t: Tensor, u: Tensor) -> Tensor:
        decay = torch.exp(-self.k * (t**2 - t[0] ** 2) / 2)[:, None, None]
        return u / self.k + (z0 - u / self.k) * decay


class MLP(nn.Module):
    """A two-layer perceptron of z and t, `z` of shape `(batch, 2)`."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4, dtype=dtype)
        self.second = nn.Linear(4, 2, dtype=dtype)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(torch.cat([z, t.expand(z.shape[0], 1)], 1))))


class Pair(nn.Module):
    """A tuple state of unlike ranks: `(batch, 2)` and `(batch,)`."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.tensor([[0.5, -0.4], [0.2, 0.8]], dtype=dtype))

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        z, s = state
        return torch.tanh(z @ self.W) * torch.cos(t), (z**2).sum(-1) - 0.5 * s


def draw(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Any, tuple[Tensor, ...]]:
    """A field with an initial state and its `args`."""
    g = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=dtype)

    if name == "linear":
        return Linear(dtype), normal(2, 2), ()
    if name == "driven":
        return Driven(dtype), normal(2, 1), (normal(2, 1),)
    if name == "mlp":
        return MLP(dtype), normal(3, 2), ()
    return Pair(dtype), (normal(2, 2), normal(2)), ()


PROBLEMS = ("linear", "driven", "mlp", "pair")


def solver_cases() -> list[Any]:
    """Every `(engine, solver)` for any field."""
    return [
        pytest.param(name, info, marks=[pytest.mark.julia] if name == "julia" else [], id=f"{name}-{info.name}")
        for name in engines()
        for info in solvers()
        if name in info.engines and not info.of_pairs
    ]


def gradient_cases() -> list[Any]:
    """Every `(engine, solver, sensitivity)` that the engine claims to support."""

    def marks(case: Any, how: str) -> list[Any]:
        # Each evaluation of this pair is in Python, and SciPy's method makes very many of them.
        slow = (case.id, how) == ("torch-radau", "forward")
        return [*case.marks, pytest.mark.slow] if slow else list(case.marks)

    return [
        pytest.param(*case.values, how, marks=marks(case, how), id=f"{case.id}-{how}")
        for case in solver_cases()
        for how in get_engine(case.values[0]).sensitivities(case.values[1])
    ]


@dataclass(frozen=True)
class Settings:
    """How accurately to run a solver without being slow.

    Attributes:
        span: length of the integration; no step divides it.
        keywords: the tolerances or the step.
        error: bounds the error of values and of continuous gradients.
        eps: step of the finite differences. What a change of step size does to the result counts with 1 / eps.
    """

    span: float
    keywords: dict[str, float]
    error: float
    eps: float = 1e-6


def settings(info: SolverInfo) -> Settings:
    """Settings for a solver, by its kind and order."""
    if not info.adaptive:
        if info.order == 1:
            return Settings(0.1, {"dt": 1.7e-3}, 5e-3)
        if info.order == 2:
            return Settings(0.3, {"dt": 7e-3}, 2e-4)
        return Settings(0.5, {"dt": 0.017}, 1e-5)
    if info.order <= 2:
        return Settings(0.04, {"rtol": 1e-6, "atol": 1e-8}, 5e-5, 1e-5)
    if info.order <= 3:
        return Settings(0.2, {"rtol": 1e-7, "atol": 1e-9}, 1e-5, 1e-5)
    if info.order <= 5 and not info.stiff:
        return Settings(0.8, {"rtol": 1e-9, "atol": 1e-11}, 1e-6, 1e-5)
    # Stiff solvers, and steps so long that the error estimate, and with it the step, is made of rounding errors.
    return Settings(0.8, {"rtol": 1e-9, "atol": 1e-11}, 5e-6, 1e-3)
