"""Lorenz's equations of convection."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pynode.study.problem import Problem
from pynode.study.setting import Setting

__all__ = ["Lorenz", "lorenz"]

JULIA = """\
function (du, u, p, t)
    @inbounds for j in axes(u, 2)
        x, y, z = u[1, j], u[2, j], u[3, j]
        du[1, j] = p[1] * (y - x)
        du[2, j] = x * (p[2] - z) - y
        du[3, j] = x * y - p[3] * z
    end
    return nothing
end"""


class Lorenz(nn.Module):
    """(σ (y - x), x (ρ - z) - y, x y - β z), (σ, ρ, β) as one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.tensor([10.0, 28.0, 8.0 / 3.0], dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """dz/dt."""
        (s, r, b), (x, y, w) = self.coefficients.unbind(), z.unbind(-1)
        return torch.stack([s * (y - x), x * (r - w) - y, x * y - b * w], -1)


def in_jax(t: Any, z: Any, p: list[Any]) -> Any:
    """`Lorenz`."""
    import jax.numpy as jnp

    (s, r, b), x, y, w = p[0], z[..., 0], z[..., 1], z[..., 2]
    return jnp.stack([s * (y - x), x * (r - w) - y, x * y - b * w], -1)


def lorenz() -> Problem:
    """Lorenz's equations: x' = σ (y - x), y' = x (ρ - z) - y, z' = x y - β z, from (0, 1, 0), t to 5.

    (σ, ρ, β) = (10, 28, 8/3). Chaotic: errors grow as exp(0.9 t), and the span is short, so that there is a solution to
    be held against.

    Source:
        E. N. Lorenz, "Deterministic Nonperiodic Flow", Journal of the Atmospheric Sciences 20, 1963: equations (25) to
        (27), and the initial state of section 7.
    """
    return Problem(
        Lorenz(),
        torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64),
        torch.linspace(0, 5, 11, dtype=torch.float64),
        settings=tuple(map(Setting, (1e-3, 1e-5, 1e-7, 1e-9))),
        jax=in_jax,
        julia=JULIA,
    )
