"""Problems with known solutions, and the solvers and sensitivities of every engine, for the engine contract."""

from __future__ import annotations

import contextlib
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


def _known() -> list[str]:
    """The engines of this version; those that cannot run here still say what they have."""
    found = []
    for name in engines():
        with contextlib.suppress(ModuleNotFoundError):
            get_engine(name)
            found.append(name)
    return found


def solver_cases() -> list[Any]:
    """Every `(engine, solver)`."""
    return [
        pytest.param(name, info, marks=[pytest.mark.julia] if name == "julia" else [], id=f"{name}-{info.name}")
        for name in _known()
        for info in solvers()
        if name in info.engines
    ]


def gradient_cases() -> list[Any]:
    """Every `(engine, solver, sensitivity)` that the engine claims to support."""
    return [
        pytest.param(*case.values, how, marks=case.marks, id=f"{case.id}-{how}")
        for case in solver_cases()
        for how in get_engine(case.values[0]).sensitivities(case.values[1])
    ]


def settings(info: SolverInfo) -> dict[str, Any]:
    """A span, and tolerances or a step, at which the solver is accurate but not slow.

    `error` bounds the error of values and of continuous gradients. No step divides the span.
    """
    if info.adaptive:
        if info.order <= 2:
            return {"span": 0.1, "keywords": {"rtol": 1e-6, "atol": 1e-8}, "error": 5e-5}
        if info.order <= 3:
            return {"span": 0.5, "keywords": {"rtol": 1e-7, "atol": 1e-9}, "error": 1e-5}
        return {"span": 0.8, "keywords": {"rtol": 1e-9, "atol": 1e-11}, "error": 1e-6}
    if info.order == 1:
        return {"span": 0.1, "keywords": {"dt": 1.7e-3}, "error": 5e-3}
    if info.order == 2:
        return {"span": 0.3, "keywords": {"dt": 7e-3}, "error": 2e-4}
    return {"span": 0.5, "keywords": {"dt": 0.017}, "error": 1e-5}
