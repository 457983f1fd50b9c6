"""Lotka and Volterra's predators and prey."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pynode.study.problem import Problem
from pynode.study.setting import Setting

__all__ = ["LotkaVolterra", "lotka_volterra"]

RATES = (1.5, 1.0, 3.0, 1.0)

JULIA = """\
function (du, u, p, t)
    @inbounds for j in axes(u, 2)
        x, y = u[1, j], u[2, j]
        du[1, j] = p[1] * x - p[2] * x * y
        du[2, j] = p[4] * x * y - p[3] * y
    end
    return nothing
end"""


class LotkaVolterra(nn.Module):
    """(a x - b x y, d x y - c y), the rates (a, b, c, d) as one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.tensor(RATES, dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """dz/dt."""
        (a, b, c, d), (x, y) = self.rates.unbind(), z.unbind(-1)
        return torch.stack([a * x - b * x * y, d * x * y - c * y], -1)


def in_jax(t: Any, z: Any, p: list[Any]) -> Any:
    """`LotkaVolterra`."""
    import jax.numpy as jnp

    (a, b, c, d), x, y = p[0], z[..., 0], z[..., 1]
    return jnp.stack([a * x - b * x * y, d * x * y - c * y], -1)


def potential(z: Tensor, rates: tuple[float, float, float, float]) -> Tensor:
    """V = d x - c log x + b y - a log y."""
    (a, b, c, d), (x, y) = rates, z.unbind(-1)
    return d * x - c * x.log() + b * y - a * y.log()


def lotka_volterra() -> Problem:
    """Lotka and Volterra's predators and prey: x' = a x - b x y, y' = d x y - c y, from (1, 1), t to 10.

    (a, b, c, d) = (1.5, 1, 3, 1). Periodic, not stiff. Kept is d x - c log x + b y - a log y.

    Source:
        A. J. Lotka, "Elements of Physical Biology", 1925; V. Volterra, "Variazioni e fluttuazioni del numero
        d'individui in specie animali conviventi", 1926; the rates and the state of SciMLBenchmarks.jl,
        NonStiffODE/LotkaVolterra_wpd.
    """
    return Problem(
        LotkaVolterra(),
        torch.ones(1, 2, dtype=torch.float64),
        torch.linspace(0, 10, 21, dtype=torch.float64),
        invariants={"potential": partial(potential, rates=RATES)},
        settings=tuple(map(Setting, (1e-3, 1e-5, 1e-7, 1e-9))),
        jax=in_jax,
        julia=JULIA,
    )
