"""The Pleiades: seven stars in the plane."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pynode.study.problem import Problem
from pynode.study.setting import Setting

__all__ = ["Pleiades", "pleiades"]

X = (3.0, 3.0, -1.0, -3.0, 2.0, -2.0, 2.0)
Y = (3.0, -3.0, 2.0, 0.0, 0.0, -4.0, 4.0)
U = (0.0, 0.0, 0.0, 0.0, 0.0, 1.75, -1.5)
V = (0.0, 0.0, 0.0, -1.25, 1.0, 0.0, 0.0)

JULIA = """\
function (du, u, p, t)
    @inbounds for k in axes(u, 2)
        for i in 1:7
            du[i, k] = u[14 + i, k]
            du[7 + i, k] = u[21 + i, k]
            ax, ay = zero(eltype(du)), zero(eltype(du))
            for j in 1:7
                if i != j
                    x, y = u[j, k] - u[i, k], u[7 + j, k] - u[7 + i, k]
                    s = x^2 + y^2
                    w = p[j] / (s * sqrt(s))
                    ax += w * x
                    ay += w * y
                end
            end
            du[14 + i, k] = ax
            du[21 + i, k] = ay
        end
    end
    return nothing
end"""


class Pleiades(nn.Module):
    """Newton's attraction between seven stars, the masses 1 to 7 as one parameter; a state (x, y, x', y')."""

    def __init__(self) -> None:
        super().__init__()
        self.masses = nn.Parameter(torch.arange(1, 8, dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """dz/dt."""
        x, y, u, v = z.split(7, -1)
        dx, dy = (q.unsqueeze(-2) - q.unsqueeze(-1) for q in (x, y))
        apart = dx**2 + dy**2 + torch.eye(7, dtype=z.dtype, device=z.device)  # the distance to oneself does not matter
        weight = self.masses / apart**1.5
        return torch.cat([u, v, (weight * dx).sum(-1), (weight * dy).sum(-1)], -1)


def in_jax(t: Any, z: Any, p: list[Any]) -> Any:
    """`Pleiades`."""
    import jax.numpy as jnp

    x, y, u, v = (z[..., i : i + 7] for i in range(0, 28, 7))
    dx, dy = (q[..., None, :] - q[..., :, None] for q in (x, y))
    weight = p[0] / (dx**2 + dy**2 + jnp.eye(7, dtype=z.dtype)) ** 1.5
    return jnp.concatenate([u, v, (weight * dx).sum(-1), (weight * dy).sum(-1)], -1)


def _masses(z: Tensor) -> Tensor:
    return torch.arange(1, 8, dtype=z.dtype, device=z.device)


def energy(z: Tensor) -> Tensor:
    """Kinetic energy, and - m_i m_j / r_ij of each pair."""
    m, (x, y, u, v) = _masses(z), z.split(7, -1)
    i, j = torch.triu_indices(7, 7, 1)
    apart = ((x[..., i] - x[..., j]) ** 2 + (y[..., i] - y[..., j]) ** 2).sqrt()
    return (m * (u**2 + v**2)).sum(-1) / 2 - (m[i] * m[j] / apart).sum(-1)


def angular_momentum(z: Tensor) -> Tensor:
    """Σ m (x v - y u)."""
    x, y, u, v = z.split(7, -1)
    return (_masses(z) * (x * v - y * u)).sum(-1)


def pleiades() -> Problem:
    """The Pleiades: seven stars of masses 1 to 7 that attract each other in the plane, t to 3.

    x_i'' = Σ_j m_j (x_j - x_i) / r_ij³ and the same of y, 28 equations of first order. Some stars come close to each
    other, so that an adaptive step pays. Kept are the energy and the angular momentum.

    Source:
        E. Hairer, S. P. Nørsett, G. Wanner, "Solving Ordinary Differential Equations I", 2nd ed. 1993, section II.10;
        problem PLEI of the Test Set for IVP Solvers, Bari and Amsterdam.
    """
    return Problem(
        Pleiades(),
        torch.tensor([X + Y + U + V], dtype=torch.float64),
        torch.linspace(0, 3, 7, dtype=torch.float64),
        invariants={"energy": energy, "angular momentum": angular_momentum},
        settings=tuple(map(Setting, (1e-3, 1e-5, 1e-7, 1e-9))),
        jax=in_jax,
        julia=JULIA,
    )
