"""The dynamics of a density: a field, the trace of its Jacobian, and RNODE's two energies, as one field."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.nn._attention import TwiceDifferentiable
from pynode.nn._signature import with_time

__all__ = ["density_dynamics"]

_FEW = 4  # dimensions up to which each row of the Jacobian is a product of its own


def density_dynamics(
    field: Callable[..., Any],
    trace: str,
    kinetic: bool,
    jacobian: bool,
    owner: object,
    t: Tensor,
    state: tuple[Tensor, ...],
    *args: Tensor,
) -> tuple[Tensor, ...]:
    """Derivatives of z, of log |det ∂z/∂x|, and of the energies that are asked for; see `derived_field`.

    One product of ε with the Jacobian J serves the trace, εᵀ J ε, and the norm, ‖εᵀ J‖². With `trace="exact"` the
    unit vectors take the place of ε; a field that has a method `divergence(t, z, *args) -> (batch,)` is asked for
    the trace instead, unless the norm is wanted too.

    Args:
        field: f(t, z, *args), each sample's derivative a function of that sample alone.
        trace: `"exact"`, or `"hutchinson"`, where `args[0]` is ε, of the shape of z.
        kinetic: whether ‖f‖² is the next component.
        jacobian: whether ‖J‖²_F, or with `"hutchinson"` its estimate, is the last one.
        owner: what the field belongs to.
        t: 0-d.
        state: z `(batch, *features)`, and `(batch,)` for each of the rest.
        args: what conditions the field, after ε.
    """
    z, noise = state[0], None
    if trace == "hutchinson":
        noise, args = args[0], args[1:]
    shortcut, field = getattr(field, "divergence", None), with_time(field, len(args))
    if noise is None and shortcut is not None and not jacobian:
        dz = field(t, z, *args)
        rates = [shortcut(t, z, *args)]
    else:
        create = torch.is_grad_enabled()
        with torch.enable_grad(), TwiceDifferentiable():
            z = z if z.requires_grad else z.detach().requires_grad_()
            dz = field(t, z, *args)
            if not isinstance(dz, Tensor) or dz.shape != z.shape:
                return (dz, *state[1:])  # to be refused, with both shapes
            if noise is None:
                divergence, norm = _by_rows(field, t, z, dz, args, create)
            else:
                row = _product(dz, z, noise, create)
                divergence, norm = _per_sample(row * noise), _per_sample(row.square())
        rates = [divergence]
    if kinetic:
        rates.append(_per_sample(dz.square()))
    if jacobian:
        rates.append(norm)
    return (dz, *rates)


density_dynamics.is_apart = True  # type: ignore[attr-defined] # see `pynode.problem.independent`


def _by_rows(
    field: Callable[..., Any], t: Tensor, z: Tensor, dz: Tensor, args: Sequence[Tensor], create: bool
) -> tuple[Tensor, Tensor]:
    """The trace and the squared Frobenius norm of each sample's Jacobian, `(batch,)`, from all of its rows."""
    batch, d = z.shape[0], math.prod(z.shape[1:])
    unit = torch.eye(d, dtype=z.dtype, device=z.device).reshape(d, 1, *z.shape[1:]).expand(d, *z.shape)
    if d <= _FEW:
        rows = [_product(dz, z, v, create) for v in unit.unbind(0)]
        trace = torch.stack([row.reshape(batch, d)[:, i] for i, row in enumerate(rows)]).sum(0)
        return trace, torch.stack([_per_sample(row.square()) for row in rows]).sum(0)

    # One product of d copies of the batch: a graph of d products would be too long to compile.
    def copies(x: Tensor) -> Tensor:
        return x.unsqueeze(0).expand(d, *x.shape).reshape(d * x.shape[0], *x.shape[1:])

    wide = copies(z)
    args = [copies(a) if a.dim() and a.shape[0] == batch else a for a in args]
    jacobian = _product(field(t, wide, *args), wide, unit.reshape(wide.shape), create).reshape(d, batch, d)
    return (jacobian * unit.reshape(d, batch, d)).sum((0, 2)), jacobian.square().sum((0, 2))


def _product(dz: Tensor, z: Tensor, v: Tensor, create: bool) -> Tensor:
    """vᵀ J for each sample, in the shape of z; zero where the field does not depend on z."""
    if not dz.requires_grad:
        return torch.zeros_like(z)
    (found,) = torch.autograd.grad(dz, z, v, create_graph=create, retain_graph=True, allow_unused=True)
    return torch.zeros_like(z) if found is None else found


def _per_sample(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], math.prod(x.shape[1:])).sum(1)
