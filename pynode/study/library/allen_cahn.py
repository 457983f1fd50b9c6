"""Allen and Cahn's equation in one dimension."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pynode.problem.inputs import check_count
from pynode.study.problem import Problem
from pynode.study.setting import Setting

__all__ = ["AllenCahn", "allen_cahn"]


class AllenCahn(nn.Module):
    """ε u_xx + u - u³ on inner points of [-1, 1] with u(±1) = ±1; ε a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.epsilon = nn.Parameter(torch.tensor([0.01], dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """dz/dt."""
        one = torch.ones_like(z[..., :1])
        padded = torch.cat([-one, z, one], -1)
        spread = self.epsilon * ((z.shape[-1] + 1) / 2) ** 2
        return spread * (padded[..., 2:] - 2 * z + padded[..., :-2]) + z - z**3


def in_jax(t: Any, z: Any, p: list[Any]) -> Any:
    """`AllenCahn`."""
    import jax.numpy as jnp

    one = jnp.ones_like(z[..., :1])
    padded = jnp.concatenate([-one, z, one], -1)
    return p[0] * ((z.shape[-1] + 1) / 2) ** 2 * (padded[..., 2:] - 2 * z + padded[..., :-2]) + z - z**3


JULIA = """\
function (du, u, p, t)
    n = size(u, 1)
    spread = p[1] * ((n + 1) / 2)^2
    @inbounds for j in axes(u, 2), i in 1:n
        x = u[i, j]
        left, right = i == 1 ? -one(x) : u[i - 1, j], i == n ? one(x) : u[i + 1, j]
        du[i, j] = spread * (left - 2 * x + right) + x - x^3
    end
    return nothing
end"""


def allen_cahn(points: int = 63) -> Problem:
    """Allen and Cahn's equation in one dimension: fronts that stand for long and then vanish, mildly stiff, t to 70.

    u_t = ε u_xx + u - u³ on [-1, 1] with ε = 0.01, u(±1) = ±1, from 0.53 x + 0.47 sin(-1.5 π x). Second differences on
    `points` inner points, where the source has Chebyshev's: the greatest eigenvalue is ε (points + 1)².

    Source:
        L. N. Trefethen, "Spectral Methods in MATLAB", 2000, program 34 (p34.m): ε, the initial state and the boundary
        values, there with 20 points of Chebyshev's and t to 100. The differences and their number are this library's.
    """
    n = check_count("points", points)
    x = 2 * torch.arange(1, n + 1, dtype=torch.float64) / (n + 1) - 1
    return Problem(
        AllenCahn(),
        (0.53 * x + 0.47 * torch.sin(-1.5 * math.pi * x)).unsqueeze(0),
        torch.linspace(0, 70, 8, dtype=torch.float64),
        stiff=n > 200,
        settings=tuple(map(Setting, (1e-3, 1e-5, 1e-7))),
        jax=in_jax,
        julia=JULIA,
    )
