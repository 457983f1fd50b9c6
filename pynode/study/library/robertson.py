"""Robertson's chemical kinetics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pynode.study.problem import Problem
from pynode.study.setting import Setting

__all__ = ["Robertson", "robertson"]

JULIA = """\
function (du, u, p, t)
    @inbounds for j in axes(u, 2)
        a, b, c = p[1] * u[1, j], p[2] * u[2, j]^2, p[3] * u[2, j] * u[3, j]
        du[1, j] = c - a
        du[2, j] = a - b - c
        du[3, j] = b
    end
    return nothing
end"""


class Robertson(nn.Module):
    """(-k₁ y₁ + k₃ y₂ y₃, k₁ y₁ - k₂ y₂² - k₃ y₂ y₃, k₂ y₂²), the rates as one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.tensor([0.04, 3e7, 1e4], dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """dz/dt."""
        (k1, k2, k3), (x, y, w) = self.rates.unbind(), z.unbind(-1)
        a, b, c = k1 * x, k2 * y**2, k3 * y * w
        return torch.stack([c - a, a - b - c, b], -1)


def in_jax(t: Any, z: Any, p: list[Any]) -> Any:
    """`Robertson`."""
    import jax.numpy as jnp

    (k1, k2, k3), x, y, w = p[0], z[..., 0], z[..., 1], z[..., 2]
    a, b, c = k1 * x, k2 * y**2, k3 * y * w
    return jnp.stack([c - a, a - b - c, b], -1)


def total(z: Tensor) -> Tensor:
    """y₁ + y₂ + y₃."""
    return z.sum(-1)


def robertson() -> Problem:
    """Robertson's autocatalytic reaction, very stiff, t to 1e11.

    y₁' = -k₁ y₁ + k₃ y₂ y₃, y₂' = k₁ y₁ - k₂ y₂² - k₃ y₂ y₃, y₃' = k₂ y₂², from (1, 0, 0), with rates from 0.04 to
    3·10⁷. Kept is the sum. y₂ stays below 4·10⁻⁵: absolute tolerances are a millionth of the relative ones.

    Source:
        H. H. Robertson, "The solution of a set of reaction rate equations", 1966; E. Hairer, G. Wanner, "Solving
        Ordinary Differential Equations II", 2nd ed. 1996, section IV.10, problem ROBER; the
        Test Set for IVP Solvers, Bari and Amsterdam.
    """
    decades = [0.4 * 10.0**k for k in range(12)]
    return Problem(
        Robertson(),
        torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64),
        torch.tensor([0.0, *decades, 1e11], dtype=torch.float64),
        invariants={"sum": total},
        stiff=True,
        settings=tuple(Setting(rtol, 1e-6 * rtol) for rtol in (1e-4, 1e-6, 1e-8)),
        jax=in_jax,
        julia=JULIA,
    )
