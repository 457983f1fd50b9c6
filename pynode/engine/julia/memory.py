"""Tensors as Julia reads them: by the address of their numbers."""

from __future__ import annotations

from torch import Tensor

__all__ = ["in_order"]


def in_order(x: Tensor) -> Tensor:
    """The tensor, or a copy of it, whose numbers lie in memory as they are, one after the other.

    Some views hold their numbers with the other sign, as `z.conj().imag` does of a complex tensor.
    """
    return x.contiguous().resolve_neg()
