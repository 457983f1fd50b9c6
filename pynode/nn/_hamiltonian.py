"""Hamilton's equations as a field."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pynode.errors import InputError
from pynode.nn._mechanics import MechanicalField, energies, gradient, halves

__all__ = ["HamiltonianField", "SeparableHamiltonian"]


class SeparableHamiltonian(nn.Module):
    """H(q, p) = T(p) + V(q).

    Args:
        kinetic: T, from momenta `(batch, n)` to `(batch,)` or `(batch, 1)`.
        potential: V, from coordinates `(batch, n)`, likewise.

    Raises:
        InputError: an argument is not callable.
    """

    def __init__(self, kinetic: Callable[[Tensor], Tensor], potential: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        for name, part in {"kinetic": kinetic, "potential": potential}.items():
            if not callable(part):
                raise InputError(f"{name} must be an nn.Module or a callable, got {type(part).__name__}")
        self.kinetic = kinetic
        self.potential = potential

    def forward(self, z: Tensor) -> Tensor:
        """H of states `(batch, 2n)`, `(batch,)`."""
        q, p = halves(z)
        return energies("kinetic", self.kinetic, p) + energies("potential", self.potential, q)


class HamiltonianField(MechanicalField):
    """Hamilton's equations, q̇ = ∂H/∂p and ṗ = -∂H/∂q - L Lᵀ ∂H/∂p + F.

    The state `(batch, 2n)` holds n coordinates q and then their momenta p. Without friction and forces H is constant
    along solutions, and so is volume; with friction alone H never grows, whatever the networks are.

    Args:
        hamiltonian: H, from `(batch, 2n)` to `(batch,)` or `(batch, 1)`, twice differentiable: activations such as
            tanh or softplus rather than ReLU. A `SeparableHamiltonian` makes a field that can be split.
        dissipation: L, a callable `L(z)` that returns `(batch, n, n)`, or the diagonal of such, `(batch, n)`.
        forcing: F, a callable `F(t, z, *args)` or `F(z)` that returns forces `(batch, n)`.

    Attributes:
        separable: whether q̇ depends on p alone and ṗ on q alone, where q and p are the halves of dimension 1, as
            explicit symplectic solvers require.

    Raises:
        InputError: an argument is not callable; at evaluation, the state is not `(batch, 2n)`.
        FieldError: at evaluation, a part returns another shape.

    Source:
        S. Greydanus, M. Dzamba, J. Yosinski, "Hamiltonian Neural Networks", NeurIPS 2019, eq. 2; friction and forces
        as in Y. D. Zhong, B. Dey, A. Chakraborty, "Dissipative SymODEN", ICLR 2020 workshop on integration of deep
        neural models and differential equations.
    """

    def __init__(
        self,
        hamiltonian: Callable[[Tensor], Tensor],
        *,
        dissipation: Callable[[Tensor], Tensor] | None = None,
        forcing: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__(hamiltonian, dissipation, forcing)
        self.hamiltonian = hamiltonian

    @property
    def separable(self) -> bool:
        """See the class."""
        plain = self.dissipation is None and self.forcing is None
        return plain and isinstance(self.hamiltonian, SeparableHamiltonian)

    def forward(self, t: Tensor, z: Tensor, *args: Tensor) -> Tensor:
        """Derivative of the state `z`, `(batch, 2n)`, at `t`, 0-d."""
        q, p = halves(z)
        if isinstance(self.hamiltonian, SeparableHamiltonian):
            # Each part by itself, so that q̇ is seen to depend on p alone, and ṗ on q.
            velocity = gradient("kinetic", self.hamiltonian.kinetic, p)[2]
            slope = gradient("potential", self.hamiltonian.potential, q)[2]
        else:
            slope, velocity = gradient("hamiltonian", self.hamiltonian, z)[2].chunk(2, 1)
        forces = self._forces(t, z, velocity, args)
        return torch.cat([velocity, -slope if forces is None else forces - slope], 1)

    def energy(self, z: Tensor) -> Tensor:
        """H of states `(batch, 2n)`, `(batch,)`, differentiable."""
        halves(z)
        return energies("hamiltonian", self.hamiltonian, z)
