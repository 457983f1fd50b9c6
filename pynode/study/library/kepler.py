"""Kepler's problem of two bodies."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pynode.errors import StudyError
from pynode.study.problem import Problem
from pynode.study.setting import Setting

__all__ = ["Kepler", "kepler"]

JULIA = """\
function (du, u, p, t)
    @inbounds for j in axes(u, 2)
        x, y = u[1, j], u[2, j]
        s = x^2 + y^2
        w = p[1] / (s * sqrt(s))
        du[1, j] = u[3, j]
        du[2, j] = u[4, j]
        du[3, j] = -w * x
        du[4, j] = -w * y
    end
    return nothing
end"""


class Kepler(nn.Module):
    """(p, -μ q / |q|³) of a state (q, p) in the plane."""

    def __init__(self) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """dz/dt."""
        q, p = z[..., :2], z[..., 2:]
        return torch.cat([p, -self.mu * q / q.square().sum(-1, keepdim=True) ** 1.5], -1)


def in_jax(t: Any, z: Any, p: list[Any]) -> Any:
    """`Kepler`."""
    import jax.numpy as jnp

    q, v = z[..., :2], z[..., 2:]
    return jnp.concatenate([v, -p[0] * q / (q**2).sum(-1, keepdims=True) ** 1.5], -1)


def energy(z: Tensor) -> Tensor:
    """|p|²/2 - 1/|q|."""
    return z[..., 2:].square().sum(-1) / 2 - 1 / z[..., :2].square().sum(-1).sqrt()


def angular_momentum(z: Tensor) -> Tensor:
    """Q × p."""
    return z[..., 0] * z[..., 3] - z[..., 1] * z[..., 2]


def exact(t: Tensor, eccentricity: float) -> Tensor:
    """The ellipse, by Kepler's equation E - e sin E = t for the eccentric anomaly, by Newton's method."""
    e, times = eccentricity, t.double()
    turns = torch.floor(times / (2 * math.pi) + 0.5)
    mean = times - 2 * math.pi * turns
    anomaly = mean + e * mean.sin()
    for _ in range(20):
        anomaly = anomaly - (anomaly - e * anomaly.sin() - mean) / (1 - e * anomaly.cos())
    minor, c, s = math.sqrt(1 - e**2), anomaly.cos(), anomaly.sin()
    return (torch.stack([c - e, minor * s, -s / (1 - e * c), minor * c / (1 - e * c)], -1)).unsqueeze(1)


def kepler(eccentricity: float = 0.6) -> Problem:
    """Kepler's problem: q' = p, p' = -μ q / |q|³ with μ = 1 on an ellipse, from its pericentre, t to 20.

    (q, p) = (1 - e, 0, 0, √((1 + e) / (1 - e))): an ellipse of eccentricity e with the period 2π. Exact by Kepler's
    equation. Kept are the energy and the angular momentum.

    Source:
        E. Hairer, C. Lubich, G. Wanner, "Geometric Numerical Integration", 2nd ed. 2006, section I.2, for the initial
        state; e = 0.6 and t to 20 are those of the tutorial "Kepler Problem" of SciMLTutorials.jl.
    """
    e = float(eccentricity)
    if not 0 <= e < 1:
        raise StudyError(f"the eccentricity of an ellipse is at least 0 and less than 1, got {eccentricity!r}")
    return Problem(
        Kepler(),
        torch.tensor([[1 - e, 0.0, 0.0, math.sqrt((1 + e) / (1 - e))]], dtype=torch.float64),
        torch.linspace(0, 20, 21, dtype=torch.float64),
        exact=partial(exact, eccentricity=e),
        invariants={"energy": energy, "angular momentum": angular_momentum},
        settings=tuple(map(Setting, (1e-3, 1e-5, 1e-7, 1e-9))),
        jax=in_jax,
        julia=JULIA,
    )
