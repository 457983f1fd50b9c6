"""A field on a piece of a span, at whose ends it may jump."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pynode.field._field import Field
from pynode.weak import WeakMap

__all__ = ["PieceField", "within"]


def within(t: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The time, no less than `low` and no more than `high`, with the derivative of the time."""
    inside = torch.minimum(torch.maximum(t.detach(), low), high)
    return inside + (t - t.detach())


class PieceField(Field):
    """A field that gets no time beyond a piece of the span.

    The least and the greatest time that it gets, 0-d, are its last two conditioning tensors: all pieces have one trace.
    Of independent samples, which may be on pieces of their own, these have a number for each.

    Args:
        base: the field.
    """

    def __init__(self, base: Field) -> None:
        self.__dict__.update(base.__dict__)

    @property
    def key(self) -> object:
        """As `Field.key`."""
        return _KEYS.setdefault(super().key, _Key())

    def __call__(self, t: Tensor, z: Sequence[Tensor], args: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
        """As `Field.__call__`."""
        *own, low, high = args
        return super().__call__(within(t.to(self.time_dtype), low.reshape(()), high.reshape(())), z, own)


class _Key:
    """What tells the traces of fields on pieces; it can be referred to weakly."""


_KEYS: WeakMap[object, _Key] = WeakMap()
