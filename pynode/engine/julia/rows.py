"""What the field of independent samples reads: tensors with a row for each sample, and those that all share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from pynode.engine.each import is_per_sample
from pynode.engine.julia.memory import in_order
from pynode.engine.protocol import Problem
from pynode.field._trace import as_numbers

__all__ = ["Rows", "own_and_shared"]


class Rows(NamedTuple):
    """Tensors as Julia reads them for one sample after the other.

    Attributes:
        tensors: contiguous, the conditioning tensors first; they must outlive the call.
        has_rows: for each conditioning tensor whether it has a row for each sample.
        layout: how many there are, then of each the size (of a sample, if it has rows), the address, and whether it
            has.
    """

    tensors: Sequence[Tensor]
    has_rows: Sequence[bool]
    layout: Sequence[int]


def own_and_shared(problem: Problem, read: Sequence[Tensor]) -> Rows:
    """The conditioning tensors of a problem of independent samples, and the other tensors that a function reads."""
    batch, dtype = problem.z0[0].shape[0], problem.z0[0].dtype
    has_rows = [is_per_sample(a, batch) for a in problem.args]
    tensors = [in_order(as_numbers(a, dtype)) for a in problem.args]
    tensors += [in_order(x.detach()) for x in read]
    layout = [len(tensors)]
    for x, rows in zip(tensors, (*has_rows, *[False] * len(read)), strict=True):
        layout += (x.numel() // batch if rows else x.numel(), x.data_ptr(), int(rows))
    return Rows(tensors, has_rows, layout)
