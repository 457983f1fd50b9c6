"""The Oregonator, a model of Belousov and Zhabotinsky's reaction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pynode.study.problem import Problem
from pynode.study.setting import Setting

__all__ = ["Oregonator", "oregonator"]

JULIA = """\
function (du, u, p, t)
    @inbounds for j in axes(u, 2)
        x, y, z = u[1, j], u[2, j], u[3, j]
        du[1, j] = p[1] * (y + x * (1 - p[2] * x - y))
        du[2, j] = (z - (1 + x) * y) / p[1]
        du[3, j] = p[3] * (x - z)
    end
    return nothing
end"""


class Oregonator(nn.Module):
    """(s (y + x (1 - q x - y)), (z - (1 + x) y) / s, w (x - z)), (s, q, w) as one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.tensor([77.27, 8.375e-6, 0.161], dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """dz/dt."""
        (s, q, w), (x, y, v) = self.rates.unbind(), z.unbind(-1)
        return torch.stack([s * (y + x * (1 - q * x - y)), (v - (1 + x) * y) / s, w * (x - v)], -1)


def in_jax(t: Any, z: Any, p: list[Any]) -> Any:
    """`Oregonator`."""
    import jax.numpy as jnp

    (s, q, w), x, y, v = p[0], z[..., 0], z[..., 1], z[..., 2]
    return jnp.stack([s * (y + x * (1 - q * x - y)), (v - (1 + x) * y) / s, w * (x - v)], -1)


def oregonator() -> Problem:
    """The Oregonator, a chemical clock, stiff: from (1, 2, 3), t to 360.

    x' = s (y + x (1 - q x - y)), y' = (z - (1 + x) y) / s, z' = w (x - z) with (s, q, w) = (77.27, 8.375·10⁻⁶, 0.161).
    Within its period of some 300, x rises from 1 to 10⁵ and falls back.

    Source:
        R. J. Field, R. M. Noyes, "Oscillations in chemical systems IV", Journal of Chemical Physics 60, 1974;
        E. Hairer, G. Wanner, "Solving Ordinary Differential Equations II", 2nd ed. 1996, section IV.10;
        problem OREGO of the Test Set for IVP Solvers, Bari and Amsterdam.
    """
    return Problem(
        Oregonator(),
        torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64),
        torch.linspace(0, 360, 13, dtype=torch.float64),
        stiff=True,
        settings=tuple(map(Setting, (1e-4, 1e-6, 1e-8))),
        jax=in_jax,
        julia=JULIA,
    )
