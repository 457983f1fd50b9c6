"""Hénon and Heiles's star in a galaxy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pynode.study.problem import Problem
from pynode.study.setting import Setting

__all__ = ["HenonHeiles", "henon_heiles"]

JULIA = """\
function (du, u, p, t)
    @inbounds for j in axes(u, 2)
        x, y = u[1, j], u[2, j]
        du[1, j] = u[3, j]
        du[2, j] = u[4, j]
        du[3, j] = -x - 2 * p[1] * x * y
        du[4, j] = -y - p[1] * (x^2 - y^2)
    end
    return nothing
end"""


class HenonHeiles(nn.Module):
    """(p, -∇V(q)) of a state (q, p), V = |q|²/2 + λ (q₁² q₂ - q₂³/3)."""

    def __init__(self) -> None:
        super().__init__()
        self.coupling = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """dz/dt."""
        x, y, u, v = z.unbind(-1)
        return torch.stack([u, v, -x - 2 * self.coupling * x * y, -y - self.coupling * (x**2 - y**2)], -1)


def in_jax(t: Any, z: Any, p: list[Any]) -> Any:
    """`HenonHeiles`."""
    import jax.numpy as jnp

    x, y, u, v = (z[..., i] for i in range(4))
    return jnp.stack([u, v, -x - 2 * p[0] * x * y, -y - p[0] * (x**2 - y**2)], -1)


def energy(z: Tensor) -> Tensor:
    """|p|²/2 + V(q)."""
    x, y, u, v = z.unbind(-1)
    return (u**2 + v**2 + x**2 + y**2) / 2 + x**2 * y - y**3 / 3


def henon_heiles() -> Problem:
    """Hénon and Heiles's Hamiltonian |p|²/2 + |q|²/2 + λ (q₁² q₂ - q₂³/3), from q = (0.1, 0), p = (0, 0.5), t to 50.

    λ = 1. Weakly chaotic at this energy, 0.13. Kept is the energy.

    Source:
        M. Hénon, C. Heiles, "The applicability of the third integral of motion: some numerical experiments",
        Astronomical Journal 69, 1964; the initial state of SciMLBenchmarks.jl,
        DynamicalODE/Henon-Heiles_energy_conservation_benchmark.
    """
    return Problem(
        HenonHeiles(),
        torch.tensor([[0.1, 0.0, 0.0, 0.5]], dtype=torch.float64),
        torch.linspace(0, 50, 11, dtype=torch.float64),
        invariants={"energy": energy},
        settings=tuple(map(Setting, (1e-3, 1e-5, 1e-7, 1e-9))),
        jax=in_jax,
        julia=JULIA,
    )
