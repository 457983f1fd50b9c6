"""What the fields of mechanics share: halves of the state, derivatives of an energy, friction and forces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pynode.errors import FieldError, InputError
from pynode.nn._attention import TwiceDifferentiable
from pynode.nn._signature import with_time

__all__ = ["MechanicalField", "energies", "gradient", "halves"]


class MechanicalField(nn.Module):
    """A field that one scalar function of the state gives, with friction and forces beside it.

    Args:
        function: the scalar function, `(batch, 2n)` to `(batch,)` or `(batch, 1)`, twice differentiable.
        dissipation: L, a callable `L(z)` that returns `(batch, n, n)`, or the diagonal of such, `(batch, n)`: friction
            L Lᵀ v against the velocities v, which takes the power |Lᵀ v|² ≥ 0 out of the system, whatever L is.
        forcing: F, a callable `F(t, z, *args)` or `F(z)` that returns the generalised forces `(batch, n)`.

    Raises:
        InputError: an argument is not callable.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        dissipation: Callable[[Tensor], Tensor] | None,
        forcing: Callable[..., Tensor] | None,
    ) -> None:
        super().__init__()
        for name, part in {"dissipation": dissipation, "forcing": forcing}.items():
            if part is not None and not callable(part):
                raise InputError(f"{name} must be an nn.Module or a callable, got {type(part).__name__}")
        if not callable(function):
            raise InputError(f"the energy must be an nn.Module or a callable, got {type(function).__name__}")
        self.dissipation = dissipation
        self.forcing = forcing

    @property
    def time_dtype(self) -> torch.dtype | None:
        """In which it wants the time: as its forcing."""
        return getattr(self.forcing, "time_dtype", None)

    def energy(self, z: Tensor) -> Tensor:
        """The energy of states `(batch, 2n)`, `(batch,)`, differentiable."""
        raise NotImplementedError

    def _forces(self, t: Tensor, z: Tensor, velocity: Tensor, args: tuple[Tensor, ...]) -> Tensor | None:
        """Friction and forces, `(batch, n)`; `None` where there are neither."""
        total = None
        if self.dissipation is not None:
            total = -_friction(self.dissipation(z), velocity)
        if self.forcing is not None:
            force = _expected("forcing", with_time(self.forcing, len(args))(t, z, *args), velocity.shape)
            total = force if total is None else total + force
        elif args:
            raise FieldError(
                f"the {len(args)} tensors of args condition the forcing of this field, and it has none: pass "
                "forcing=F, a callable F(t, z, *args), or leave args out"
            )
        return total


def halves(z: Tensor) -> tuple[Tensor, Tensor]:
    """The coordinates, and the momenta or velocities, `(batch, n)` each, of the state `(batch, 2n)`."""
    if z.dim() != 2 or z.shape[1] % 2:
        raise InputError(
            "a mechanical state is (batch, 2n): n coordinates and then as many momenta (or velocities), got shape "
            f"{tuple(z.shape)}"
        )
    first, second = z.chunk(2, 1)
    return first, second


def energies(name: str, function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """The values of a scalar function, `(batch,)`."""
    values = function(z)
    batch = z.shape[0]
    if isinstance(values, Tensor) and values.dim() == 2 and values.shape[1] == 1:
        values = values.squeeze(1)
    return _expected(name, values, (batch,), " or (batch, 1)")


def gradient(
    name: str, function: Callable[[Tensor], Tensor], z: Tensor, *, again: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The state as a tensor that requires a gradient, a scalar function's values there, and its gradient, of z's shape.

    The gradient is differentiable where gradients are enabled, or `again`.
    """
    create = torch.is_grad_enabled() or again
    with torch.enable_grad(), TwiceDifferentiable():
        z = z if z.requires_grad else z.detach().requires_grad_()
        values = energies(name, function, z)
        if not values.requires_grad:  # a constant
            return z, values, torch.zeros_like(z)
        (found,) = torch.autograd.grad(values, z, torch.ones_like(values), create_graph=create, allow_unused=True)
    return z, values, torch.zeros_like(z) if found is None else found


def _friction(factor: Tensor, velocity: Tensor) -> Tensor:
    """L Lᵀ v, of the factor L `(batch, n, n)` or its diagonal `(batch, n)`."""
    batch, n = velocity.shape
    if isinstance(factor, Tensor) and factor.dim() == 3:
        factor = _expected("dissipation", factor, (batch, n, n))
        return (factor @ (factor.mT @ velocity.unsqueeze(-1))).squeeze(-1)
    return _expected("dissipation", factor, (batch, n), " or (batch, n, n)").square() * velocity


def _expected(name: str, value: Any, shape: Any, more: str = "") -> Tensor:
    if not isinstance(value, Tensor) or tuple(value.shape) != tuple(shape):
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise FieldError(f"{name} must return a tensor of shape {tuple(shape)}{more}, got {got}")
    return value
