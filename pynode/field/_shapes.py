"""Shapes of which one dimension may be the batch size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pynode.field._graph import Dim

__all__ = ["broadcast", "countable", "groups", "product"]


def product(shape: Sequence[Dim]) -> Dim:
    """The number of elements.

    Raises:
        NotImplementedError: more than one dimension depends on the batch size.
    """
    symbolic = [d for d in shape if not isinstance(d, int)]
    rest = math.prod(d for d in shape if isinstance(d, int))
    if not symbolic:
        return rest
    if len(symbolic) > 1:
        raise NotImplementedError("a size that is not linear in the batch size")
    return (symbolic[0][0] * rest, symbolic[0][1] * rest)


def countable(shape: Sequence[Dim]) -> bool:
    """Whether no more than one dimension depends on the batch size, so that `product` has an answer."""
    return sum(not isinstance(d, int) for d in shape) <= 1


def broadcast(sizes: Sequence[Dim], whole: Dim) -> Dim:
    """The size of a dimension of a broadcast: 1 if all operands have 1, else that of the whole."""
    return 1 if all(n == 1 for n in sizes) else whole


def groups(before: Sequence[Dim], after: Sequence[Dim]) -> Iterator[tuple[list[int], list[int]]]:
    """The dimensions of a shape and of another one of as many elements that belong together, as few as possible."""
    i = j = 0
    while i < len(before) or j < len(after):
        left, right = [i] if i < len(before) else [], [j] if j < len(after) else []
        i, j = i + len(left), j + len(right)
        while (a := product([before[d] for d in left])) != (b := product([after[d] for d in right])):
            if j < len(after) and (i == len(before) or _smaller(b, a)):
                right.append(j)
                j += 1
            elif i < len(before):
                left.append(i)
                i += 1
            else:
                raise ValueError(f"shapes of different sizes: {before} and {after}")
        yield left, right


def _smaller(a: Dim, b: Dim) -> bool:
    """Whether one size is smaller than another one for large batches."""
    return ((0, a) if isinstance(a, int) else a) < ((0, b) if isinstance(b, int) else b)
