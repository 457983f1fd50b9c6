"""Several cotangents or directions at once, as `torch.autograd.grad(is_grads_batched=True)` gives them.

That, and `vectorize=True` of `torch.autograd.functional`, map by a vmap that is older than torch.func's and has no rule
for functions of one's own: here each is taken by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["for_each"]

Some = Sequence[Tensor | None]

_torch: Any = torch
_C: Any = torch._C


def for_each(function: Callable[[Some], Some], tensors: Some) -> Some:
    """Apply a function of tensors to each of those that the older vmap maps over, if that is under way."""
    nesting = _C._vmapmode_increment_nesting() - 1
    _C._vmapmode_decrement_nesting()
    for level in range(nesting, 0, -1):
        # Those that are mapped over at this level, the mapped dimension first.
        mapped = {i: y for i, x in enumerate(tensors) if x is not None and (y := _mapped(x, level)) is not None}
        if mapped:
            size = len(next(iter(mapped.values())))
            found = [
                for_each(function, [mapped[i][k] if i in mapped else x for i, x in enumerate(tensors)])
                for k in range(size)
            ]
            return [_joined(parts, level) for parts in zip(*found, strict=True)]
    return function(tensors)


def _mapped(x: Tensor, level: int) -> Tensor | None:
    # Where there is no such dimension it is made, of the size that is given.
    one, two = (_torch._remove_batch_dim(x, level, size, 0) for size in (1, 2))
    return one if len(one) == len(two) else None


def _joined(parts: Some, level: int) -> Tensor | None:
    given = [x for x in parts if x is not None]
    return _torch._add_batch_dim(torch.stack(given), 0, level) if given else None
