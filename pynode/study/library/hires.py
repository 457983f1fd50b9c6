"""HIRES: how plants respond to light."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pynode.study.problem import Problem
from pynode.study.setting import Setting

__all__ = ["Hires", "hires"]

RATES = (1.71, 0.43, 8.32, 0.0007, 8.75, 10.03, 0.035, 1.12, 1.745, 280.0, 0.69, 1.81)

JULIA = """\
function (du, u, p, t)
    @inbounds for j in axes(u, 2)
        y1, y2, y3, y4 = u[1, j], u[2, j], u[3, j], u[4, j]
        y5, y6, y7, y8 = u[5, j], u[6, j], u[7, j], u[8, j]
        r = p[10] * y6 * y8
        du[1, j] = -p[1] * y1 + p[2] * y2 + p[3] * y3 + p[4]
        du[2, j] = p[1] * y1 - p[5] * y2
        du[3, j] = -p[6] * y3 + p[2] * y4 + p[7] * y5
        du[4, j] = p[3] * y2 + p[1] * y3 - p[8] * y4
        du[5, j] = -p[9] * y5 + p[2] * (y6 + y7)
        du[6, j] = -r + p[11] * (y4 + y7) + p[1] * y5 - p[2] * y6
        du[7, j] = r - p[12] * y7
        du[8, j] = p[12] * y7 - r
    end
    return nothing
end"""


def _right(y: Any, p: Any) -> list[Any]:
    """The eight equations, of numbers of torch or JAX."""
    y1, y2, y3, y4, y5, y6, y7, y8 = y
    p1, p2, p3, p4, p5, p6, p7, p8, p9, p10, p11, p12 = p
    r = p10 * y6 * y8
    return [
        -p1 * y1 + p2 * y2 + p3 * y3 + p4,
        p1 * y1 - p5 * y2,
        -p6 * y3 + p2 * y4 + p7 * y5,
        p3 * y2 + p1 * y3 - p8 * y4,
        -p9 * y5 + p2 * (y6 + y7),
        -r + p11 * (y4 + y7) + p1 * y5 - p2 * y6,
        r - p12 * y7,
        p12 * y7 - r,
    ]


class Hires(nn.Module):
    """Eight equations, their twelve constants as one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.tensor(RATES, dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """dz/dt."""
        return torch.stack(_right(z.unbind(-1), self.rates.unbind()), -1)


def in_jax(t: Any, z: Any, p: list[Any]) -> Any:
    """`Hires`."""
    import jax.numpy as jnp

    return jnp.stack(_right([z[..., i] for i in range(8)], p[0]), -1)


def bound(z: Tensor) -> Tensor:
    """y₇ + y₈, of the enzyme, bound or not."""
    return z[..., 6] + z[..., 7]


def hires() -> Problem:
    """HIRES, the High Irradiance RESponse of plants: eight reactions, stiff, from (1, 0, …, 0, 0.0057), t to 321.8122.

    Kept is y₇ + y₈.

    Source:
        E. Schäfer, "A new approach to explain the high irradiance responses of photomorphogenesis on the basis of
        phytochrome", Journal of Mathematical Biology 2, 1975; E. Hairer, G. Wanner, "Solving Ordinary Differential
        Equations II", 2nd ed. 1996, section IV.10; problem HIRES of the Test Set for IVP Solvers, Bari and Amsterdam.
    """
    return Problem(
        Hires(),
        torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0057]], dtype=torch.float64),
        torch.linspace(0, 321.8122, 11, dtype=torch.float64),
        invariants={"y7 + y8": bound},
        stiff=True,
        settings=tuple(map(Setting, (1e-4, 1e-6, 1e-8))),
        jax=in_jax,
        julia=JULIA,
    )
