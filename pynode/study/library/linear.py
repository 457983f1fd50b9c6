"""A linear system with its exact solution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pynode.study.problem import Problem
from pynode.study.setting import Setting

__all__ = ["Linear", "linear"]

_N = 10

JULIA = """\
function (du, u, p, t)
    A = reshape(p, size(u, 1), size(u, 1))
    du .= A' * u
    return nothing
end"""


class Linear(nn.Module):
    """A z, the matrix a parameter: that of a chain of decays."""

    def __init__(self) -> None:
        super().__init__()
        decay = torch.ones(_N, dtype=torch.float64)
        decay[-1] = 0.0
        self.matrix = nn.Parameter(torch.diag(decay[:-1], -1) - torch.diag(decay))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """dz/dt."""
        return z @ self.matrix.T


def in_jax(t: Any, z: Any, p: list[Any]) -> Any:
    """`Linear`."""
    return z @ p[0].T


def exact(t: Tensor) -> Tensor:
    """y_i = exp(-t) t^(i-1) / (i-1)! for i < 10, and what is left of 1."""
    terms = [torch.exp(-t.double())]
    for i in range(1, _N - 1):
        terms.append(terms[-1] * t / i)
    series, term = torch.zeros_like(terms[0]), terms[-1] * t / (_N - 1)
    for i in range(_N, _N + 150):  # exp(-t) times what is left of the series, so that nothing cancels
        series, term = series + term, term * t / i
    return torch.stack([*terms, series], -1).unsqueeze(1)


def total(z: Tensor) -> Tensor:
    """Σ y_i."""
    return z.sum(-1)


def linear() -> Problem:
    """A chain of ten radioactive decays, linear: y₁' = -y₁, y_i' = y_(i-1) - y_i, y₁₀' = y₉, from (1, 0, …), t to 20.

    The matrix, of 100 entries, is the parameter. Exact in closed form. Kept is the sum.

    Source:
        T. E. Hull, W. H. Enright, B. M. Fellen, A. E. Sedgwick, "Comparing numerical methods for ordinary differential
        equations", SIAM Journal on Numerical Analysis 9, 1972: problem C1 of DETEST.
    """
    z0 = torch.zeros(1, _N, dtype=torch.float64)
    z0[0, 0] = 1.0
    return Problem(
        Linear(),
        z0,
        torch.linspace(0, 20, 11, dtype=torch.float64),
        exact=exact,
        invariants={"sum": total},
        settings=tuple(map(Setting, (1e-3, 1e-5, 1e-7, 1e-9))),
        jax=in_jax,
        julia=JULIA,
    )
