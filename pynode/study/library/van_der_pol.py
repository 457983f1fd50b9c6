"""Van der Pol's oscillator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pynode.errors import StudyError
from pynode.study.problem import Problem
from pynode.study.setting import Setting

__all__ = ["VanDerPol", "van_der_pol", "van_der_pol_stiff"]

JULIA = """\
function (du, u, p, t)
    @inbounds for j in axes(u, 2)
        x, y = u[1, j], u[2, j]
        du[1, j] = y
        du[2, j] = p[1] * (1 - x^2) * y - x
    end
    return nothing
end"""


class VanDerPol(nn.Module):
    """(y, μ (1 - x²) y - x), μ a parameter."""

    def __init__(self, mu: float) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.tensor([mu], dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """dz/dt."""
        x, y = z.unbind(-1)
        return torch.stack([y, self.mu * (1 - x**2) * y - x], -1)


def in_jax(t: Any, z: Any, p: list[Any]) -> Any:
    """`VanDerPol`."""
    import jax.numpy as jnp

    x, y = z[..., 0], z[..., 1]
    return jnp.stack([y, p[0] * (1 - x**2) * y - x], -1)


def van_der_pol(mu: float = 1.0) -> Problem:
    """Van der Pol's oscillator: x'' = μ (1 - x²) x' - x, from (2, 0), t to the greater of 20 and 2 μ.

    μ = 1 by default; stiff from 100 on.

    Source:
        B. van der Pol, "On relaxation-oscillations", Philosophical Magazine 2, 1926; E. Hairer, S. P. Nørsett,
        G. Wanner, "Solving Ordinary Differential Equations I", 2nd ed. 1993, section I.16.
    """
    mu = float(mu)
    if not mu > 0:
        raise StudyError(f"mu must be greater than 0, got {mu!r}")
    stiff = mu >= 100
    return Problem(
        VanDerPol(mu),
        torch.tensor([[2.0, 0.0]], dtype=torch.float64),
        torch.linspace(0, max(20.0, 2 * mu), 11, dtype=torch.float64),
        stiff=stiff,
        settings=tuple(map(Setting, (1e-4, 1e-6, 1e-8) if stiff else (1e-3, 1e-5, 1e-7, 1e-9))),
        jax=in_jax,
        julia=JULIA,
    )


def van_der_pol_stiff() -> Problem:
    """Van der Pol's oscillator with μ = 1000, stiff: x'' = μ (1 - x²) x' - x, from (2, 0), t to 2000.

    Source:
        Problem VDPOL of the Test Set for IVP Solvers, Bari and Amsterdam; E. Hairer, G. Wanner, "Solving Ordinary
        Differential Equations II", 2nd ed. 1996, section IV.1, there with the time in units of μ.
    """
    return van_der_pol(1000.0)
