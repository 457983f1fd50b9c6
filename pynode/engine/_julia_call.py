"""How a problem crosses to Julia: sizes and addresses in one array of integers, numbers in one of floats.

Julia reads and writes the tensors' memory in place; the layouts are those of `julia/src/bridge.jl`.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from torch import Tensor

__all__ = ["Floats", "addresses", "integers"]


class Floats:
    """A few floats that Julia reads and writes."""

    def __init__(self, *values: float) -> None:
        self.values = array("d", values)
        self.values.extend([0.0] * (8 - len(values)))
        self.address = self.values.buffer_info()[0]


def integers(values: Sequence[int]) -> tuple[array[int], int, int]:
    """An array of integers with its address and length; it must outlive the call."""
    data = array("q", values)
    address, length = data.buffer_info()
    return data, address, length


def addresses(tensors: Sequence[Tensor]) -> list[int]:
    """Number of tensors, then the size and address of each. The tensors must be contiguous and outlive the call."""
    out = [len(tensors)]
    for x in tensors:
        out += (x.numel(), x.data_ptr())
    return out
