"""Hamiltonian and Lagrangian neural networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pynode.errors import InputError
from pynode.models._node import NODE
from pynode.nn import HamiltonianField, LagrangianField

__all__ = ["HamiltonianNN", "LagrangianNN"]


class _Mechanical(NODE):
    """A neural ODE whose field has an energy."""

    def __init__(self, field: HamiltonianField | LagrangianField, **node_keywords: Any) -> None:
        if node_keywords.get("order", 1) != 1:
            raise InputError(
                f"order must be 1 for {type(self).__name__}, whose state (batch, 2n) holds the derivatives of "
                f"its coordinates already, got {node_keywords['order']!r}"
            )
        if node_keywords.get("control") and field.forcing is None:
            raise InputError(
                f"control=True passes the input to the forcing of {type(self).__name__}, and there is none: pass "
                "forcing=F, a callable F(t, z, x)"
            )
        super().__init__(field, **node_keywords)

    def energy(self, z: Tensor) -> Tensor:
        """The energy of states, differentiable: H, or of a Lagrangian v · ∂ℒ/∂v - ℒ.

        Args:
            z: `(…, 2n)`, e.g. a trajectory `(time, batch, 2n)`.

        Returns:
            `(…)`.
        """
        energy: Tensor = self.field.energy(z.reshape(-1, z.shape[-1]))
        return energy.reshape(z.shape[:-1])

    def energy_drift(self, z: Tensor) -> Tensor:
        """How far the energy goes from its first value along trajectories, with friction and forces or without.

        Args:
            z: `(time, batch, 2n)`, states as `trajectory` returns them where there is no `output_network`.

        Returns:
            The largest |E(z(t)) - E(z(t₀))| over the times, `(batch,)`.
        """
        energy = self.energy(z)
        return (energy - energy[0]).abs().amax(0)


class HamiltonianNN(_Mechanical):
    """A Hamiltonian neural network: q̇ = ∂H/∂p, ṗ = -∂H/∂q, with H a network.

    It differentiates H within the field, so that energy is conserved by construction, up to the solver's error: by a
    symplectic solver without drift. What is trained is the trajectory, `forward` or `trajectory` against states, or the
    derivative alone, `HamiltonianNN.field(t, z)` against measured derivatives, as in the paper.

    Args:
        hamiltonian: H, from states `(batch, 2n)`, n coordinates and then their momenta, to `(batch,)` or `(batch, 1)`;
            smooth activations. `pynode.nn.SeparableHamiltonian(T, V)` is H = T(p) + V(q), which explicit symplectic
            solvers need.
        dissipation: L, a callable `L(z)` that returns `(batch, n, n)`, or the diagonal of such, `(batch, n)`: ṗ has the
            friction -L Lᵀ ∂H/∂p more, by which H only falls.
        forcing: F, a callable `F(t, z)`, `F(z)` or, with `control`, `F(t, z, x)`, that returns `(batch, n)`, which is
            added to ṗ.
        node_keywords: as `NODE` takes, but for `order`.

    Attributes:
        field: the `pynode.nn.HamiltonianField`.
        stats: the `Stats` of the last call; `None` before it.

    Raises:
        InputError: an argument is not usable; at a call, the state is not `(batch, 2n)`.
        FieldError: at a call, a part returns another shape.

    Source:
        S. Greydanus, M. Dzamba, J. Yosinski, "Hamiltonian Neural Networks", NeurIPS 2019; the dissipative variant
        as in Y. D. Zhong, B. Dey, A. Chakraborty, "Dissipative SymODEN", 2020.
    """

    def __init__(
        self,
        hamiltonian: Callable[[Tensor], Tensor],
        *,
        dissipation: Callable[[Tensor], Tensor] | None = None,
        forcing: Callable[..., Tensor] | None = None,
        **node_keywords: Any,
    ) -> None:
        super().__init__(
            HamiltonianField(hamiltonian, dissipation=dissipation, forcing=forcing),
            **node_keywords,
        )


class LagrangianNN(_Mechanical):
    """A Lagrangian neural network: the Euler-Lagrange equations of a network ℒ(q, q̇), solved for the accelerations.

    Unlike a Hamiltonian network it needs no momenta, only coordinates and their derivatives.

    Args:
        lagrangian: ℒ, from states `(batch, 2n)`, n coordinates and then their velocities, to `(batch,)` or
            `(batch, 1)`; smooth, with an invertible Hessian by the velocities: see `pynode.nn.LagrangianField`.
        dissipation: L, a callable `L(z)` that returns `(batch, n, n)`, or the diagonal of such, `(batch, n)`: the
            friction -L Lᵀ q̇, by which the energy only falls.
        forcing: F, generalised forces, a callable `F(t, z)`, `F(z)` or, with `control`, `F(t, z, x)`, that returns
            `(batch, n)`.
        node_keywords: as `NODE` takes, but for `order`.

    Attributes:
        field: the `pynode.nn.LagrangianField`.
        stats: the `Stats` of the last call; `None` before it.

    Raises:
        InputError: an argument is not usable; at a call, the state is not `(batch, 2n)`.
        FieldError: at a call, a part returns another shape.

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
        **node_keywords: Any,
    ) -> None:
        super().__init__(
            LagrangianField(lagrangian, dissipation=dissipation, forcing=forcing),
            **node_keywords,
        )
