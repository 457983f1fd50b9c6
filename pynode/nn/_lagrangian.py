"""The Euler-Lagrange equations as a field."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pynode.nn._mechanics import MechanicalField, gradient, halves
from pynode.nn._normalised import Composed

__all__ = ["LagrangianField"]


class LagrangianField(MechanicalField):
    """The Euler-Lagrange equations, solved for the accelerations.

    The state `(batch, 2n)` holds n coordinates q and then their velocities v = q̇, and
    q̈ = (∂²ℒ/∂v∂v)⁻¹ (∂ℒ/∂q - (∂²ℒ/∂v∂q) v - L Lᵀ v + F). Without friction and forces the energy
    v · ∂ℒ/∂v - ℒ is constant along solutions. One evaluation takes the second derivatives of ℒ at n copies of the
    batch.

    Args:
        lagrangian: ℒ, from `(batch, 2n)` to `(batch,)` or `(batch, 1)`, three times differentiable for a gradient, and
            with an invertible Hessian by the velocities, the mass matrix: one that is singular ends a solve with an
            error. Adding |v|²/2 to a network keeps it away from that at the start of a training.
        dissipation: L, a callable `L(z)` that returns `(batch, n, n)`, or the diagonal of such, `(batch, n)`.
        forcing: F, a callable `F(t, z, *args)` or `F(z)` that returns generalised forces `(batch, n)`.

    Raises:
        InputError: an argument is not callable; at evaluation, the state is not `(batch, 2n)`.
        FieldError: at evaluation, a part returns another shape.

    Source:
        M. Cranmer et al., "Lagrangian Neural Networks", ICLR 2020 workshop on integration of deep neural models and
        differential equations, eq. 6.
    """

    def __init__(
        self,
        lagrangian: Callable[[Tensor], Tensor],
        *,
        dissipation: Callable[[Tensor], Tensor] | None = None,
        forcing: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__(lagrangian, dissipation, forcing)
        self.lagrangian = lagrangian

    def forward(self, t: Tensor, z: Tensor, *args: Tensor) -> Tensor:
        """Derivative of the state `z`, `(batch, 2n)`, at `t`, 0-d."""
        velocity = halves(z)[1]
        batch, n = velocity.shape
        create = torch.is_grad_enabled()
        # Row i of the Hessian's lower half from copy i of the batch.
        with Composed():  # the Hessian has a derivative in a gradient, the third one of the Lagrangian
            wide, _, slopes = gradient("lagrangian", self.lagrangian, z.repeat(n, 1), again=True)
        rows = torch.zeros(n * batch, 2 * n, dtype=z.dtype, device=z.device)
        if slopes.requires_grad:
            unit = torch.eye(n, dtype=z.dtype, device=z.device).unsqueeze(1).expand(n, batch, n).reshape(n * batch, n)
            with torch.enable_grad():
                momenta = slopes[:, n:]
                (found,) = torch.autograd.grad(momenta, wide, unit, create_graph=create, allow_unused=True)
            rows = rows if found is None else found
        mixed, mass = rows.reshape(n, batch, 2 * n).transpose(0, 1).chunk(2, 2)
        force = slopes.reshape(n, batch, 2 * n)[0, :, :n] - (mixed @ velocity.unsqueeze(-1)).squeeze(-1)
        forces = self._forces(t, z, velocity, args)
        force = force if forces is None else force + forces
        return torch.cat([velocity, torch.linalg.solve(mass, force.unsqueeze(-1)).squeeze(-1)], 1)

    def energy(self, z: Tensor) -> Tensor:
        """The energy v · ∂ℒ/∂v - ℒ of states `(batch, 2n)`, `(batch,)`, differentiable."""
        z, values, slopes = gradient("lagrangian", self.lagrangian, z)
        return (halves(z)[1] * halves(slopes)[1]).sum(1) - values
