"""Fields of higher order in first-order form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pynode.errors import FieldError, InputError
from pynode.nn._signature import with_time

__all__ = ["HigherOrder"]


class HigherOrder(nn.Module):
    """The first-order form of z⁽ⁿ⁾ = f(t, z, ż, …, z⁽ⁿ⁻¹⁾).

    The state holds z and its first n - 1 derivatives side by side along dimension 1 (features or channels):
    d/dt [z¹ … zⁿ] = [z² … zⁿ, f(t, [z¹ … zⁿ])].

    Args:
        field: `f(t, z, *args)`, gets the whole state `(batch, n · d, …)` and returns the derivative of its
            last part, `(batch, d, …)`.
        order: n, at least 2.

    Raises:
        InputError: the order is not an integer of at least 2; at evaluation, it does not divide the state.
        FieldError: at evaluation, the field returns another shape than one part of the state.

    Source:
        S. Massaroli et al., "Dissecting Neural ODEs", NeurIPS 2020: higher-order neural ODEs,
        under "augmentation strategies".
    """

    def __init__(self, field: Callable[..., Any], order: int) -> None:
        super().__init__()
        if not isinstance(order, int) or order < 2:
            raise InputError(f"order of HigherOrder must be an integer of at least 2, got {order!r}")
        self.field = field
        self.order = order

    @property
    def time_dtype(self) -> torch.dtype | None:
        """In which it wants the time: as its field."""
        return getattr(self.field, "time_dtype", None)

    def forward(self, t: Tensor, z: Tensor, *args: Tensor) -> Tensor:
        """Derivative `(batch, n · d, …)` of the state `z`, of the same shape, at `t`, 0-d."""
        if z.ndim < 2 or z.shape[1] % self.order:
            raise InputError(
                f"a field of order {self.order} needs a state whose dimension 1 is a multiple of it, "
                f"got a state of shape {tuple(z.shape)}"
            )
        width = z.shape[1] // self.order
        last = with_time(self.field, len(args))(t, z, *args)
        if last.shape != z[:, :width].shape:
            raise FieldError(
                f"a field of order {self.order} must return the last derivative only: expected shape "
                f"{tuple(z[:, :width].shape)} for a state of shape {tuple(z.shape)}, got {tuple(last.shape)}"
            )
        return torch.cat([z[:, width:], last], dim=1)
