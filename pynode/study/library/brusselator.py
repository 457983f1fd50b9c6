"""The Brusselator with diffusion in one dimension."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pynode.problem.inputs import check_count
from pynode.study.problem import Problem
from pynode.study.setting import Setting

__all__ = ["Brusselator", "brusselator"]


class Brusselator(nn.Module):
    """A state (u₁ … u_n, v₁ … v_n) on inner points of [0, 1]; (A, B, α) as one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.tensor([1.0, 3.0, 0.02], dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """dz/dt."""
        (a, b, alpha), (u, v), n = self.coefficients.unbind(), z.chunk(2, -1), z.shape[-1] // 2
        spread = alpha * (n + 1) ** 2
        diffused = []
        for w, edge in ((u, 1.0), (v, 3.0)):
            outside = torch.full_like(w[..., :1], edge)
            padded = torch.cat([outside, w, outside], -1)
            diffused.append(spread * (padded[..., 2:] - 2 * w + padded[..., :-2]))
        reaction = u**2 * v
        return torch.cat([a + reaction - (b + 1) * u + diffused[0], b * u - reaction + diffused[1]], -1)


def in_jax(t: Any, z: Any, p: list[Any]) -> Any:
    """`Brusselator`."""
    import jax.numpy as jnp

    (a, b, alpha), n = p[0], z.shape[-1] // 2
    u, v, spread, diffused = z[..., :n], z[..., n:], alpha * (n + 1) ** 2, []
    for w, edge in ((u, 1.0), (v, 3.0)):
        outside = jnp.full_like(w[..., :1], edge)
        padded = jnp.concatenate([outside, w, outside], -1)
        diffused.append(spread * (padded[..., 2:] - 2 * w + padded[..., :-2]))
    reaction = u**2 * v
    return jnp.concatenate([a + reaction - (b + 1) * u + diffused[0], b * u - reaction + diffused[1]], -1)


JULIA = """\
function (du, u, p, t)
    n = size(u, 1) ÷ 2
    spread = p[3] * (n + 1)^2
    @inbounds for j in axes(u, 2), i in 1:n
        x, y = u[i, j], u[n + i, j]
        left, right = i == 1 ? one(x) : u[i - 1, j], i == n ? one(x) : u[i + 1, j]
        below, above = i == 1 ? 3 * one(x) : u[n + i - 1, j], i == n ? 3 * one(x) : u[n + i + 1, j]
        du[i, j] = p[1] + x^2 * y - (p[2] + 1) * x + spread * (left - 2 * x + right)
        du[n + i, j] = p[2] * x - x^2 * y + spread * (below - 2 * y + above)
    end
    return nothing
end"""


def brusselator(points: int = 40) -> Problem:
    """The Brusselator with diffusion in one dimension, mildly stiff, t to 10.

    u_t = A + u² v - (B + 1) u + α u_xx, v_t = B u - u² v + α v_xx on [0, 1] with (A, B, α) = (1, 3, 1/50); u = 1 and
    v = 3 at both ends; from u = 1 + sin(2πx), v = 3. Second differences on `points` inner points; the greatest
    eigenvalue of the diffusion is 4 α (points + 1)².

    Source:
        E. Hairer, G. Wanner, "Solving Ordinary Differential Equations II", 2nd ed. 1996, section IV.1: equation (1.6').
    """
    n = check_count("points", points)
    x = torch.arange(1, n + 1, dtype=torch.float64) / (n + 1)
    z0 = torch.cat([1 + torch.sin(2 * math.pi * x), torch.full_like(x, 3.0)])
    return Problem(
        Brusselator(),
        z0.unsqueeze(0),
        torch.linspace(0, 10, 11, dtype=torch.float64),
        stiff=n > 100,
        settings=tuple(map(Setting, (1e-3, 1e-5, 1e-7))),
        jax=in_jax,
        julia=JULIA,
    )
