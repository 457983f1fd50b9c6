"""Functions of torch that want numbers for sizes, or for indices, written so that a recording needs none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["without_numbers"]


def without_numbers(func: Any) -> Any:
    """The function itself, or one that does the same with sizes and indices that are not known."""
    return _REPLACED.get(func, func)


def _take_along_dim(x: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    if dim is None or x.dim() != indices.dim():
        return torch.take_along_dim(x, indices, dim)
    d = dim % x.dim()
    shape = [n if m == 1 else m for n, m in zip(x.shape, indices.shape, strict=True)]
    wide = x.expand([x.shape[k] if k == d else n for k, n in enumerate(shape)])
    return wide.gather(d, indices.expand([indices.shape[k] if k == d else n for k, n in enumerate(shape)]))


def _cat(tensors: Sequence[Tensor], dim: int = 0, **keywords: Any) -> Tensor:
    """Under `vmap`, torch's own rule asks for the numbers that all sizes are; this is a sum of tensors with margins."""
    if not _under_vmap(tensors) or "out" in keywords or len({x.dtype for x in tensors}) > 1:
        return torch.cat(list(tensors), dim, **keywords)
    d = dim % tensors[0].dim()
    widths = [x.shape[d] for x in tensors]
    behind = 2 * (tensors[0].dim() - 1 - d)
    total, before = None, 0
    for x, width in zip(tensors, widths, strict=True):
        margins = [0] * behind + [before, sum(widths) - before - width]
        part = torch.nn.functional.pad(x, margins)
        total = part if total is None else total + part
        before += width
    assert total is not None
    return total


def _solve(a: Tensor, b: Tensor, **keywords: Any) -> Tensor:
    """As `_cat`: under `vmap`, by way of the inverse."""
    if not _under_vmap([a, b]) or keywords:
        return torch.linalg.solve(a, b, **keywords)
    inverse = torch.linalg.inv(a)
    vector = b.dim() == 1 or b.dim() < a.dim()
    return (inverse @ b.unsqueeze(-1)).squeeze(-1) if vector else inverse @ b


def _sparse_mm(a: Tensor, b: Tensor, *rest: Any) -> Tensor:
    """A sparse tensor stands in a recording as a dense one."""
    dense = not rest and a.layout == torch.strided and b.layout == torch.strided
    return torch.mm(a, b) if dense else torch.sparse.mm(a, b, *rest)


def _under_vmap(tensors: Sequence[Tensor]) -> bool:
    """Whether one of the tensors, or of those that they wrap, is mapped over."""
    for x in tensors:
        while torch._C._functorch.is_functorch_wrapped_tensor(x):
            if torch._C._functorch.is_batchedtensor(x):
                return True
            x = torch._C._functorch.get_unwrapped(x)
    return False


def _getitem(x: Tensor, index: Any) -> Tensor:
    """Indices that are 0-d tensors of integers pick one entry each: torch would take the number out of them."""
    parts = index if isinstance(index, tuple) else (index,)
    if not any(map(_is_number, parts)) or any(_is_advanced(p) for p in parts):
        return x[index]
    whole = sum(p is not None and p is not Ellipsis for p in parts)
    d = 0
    rest: list[Any] = []
    for p in parts:
        if p is Ellipsis:
            d += x.dim() - whole
            rest.append(p)
        elif _is_number(p):
            place = torch.where(p < 0, p + x.shape[d], p)
            x = x.index_select(d, place.reshape(1))
            rest.append(0)
            d += 1
        else:
            rest.append(p)
            d += p is not None
    return x[tuple(rest)]


def _is_number(p: Any) -> bool:
    return isinstance(p, Tensor) and p.dim() == 0 and p.dtype in (torch.int64, torch.int32, torch.int16, torch.int8)


def _is_advanced(p: Any) -> bool:
    return isinstance(p, list) or (isinstance(p, Tensor) and not _is_number(p))


_REPLACED: dict[Any, Callable[..., Tensor]] = {
    torch.cat: _cat,
    torch.concat: _cat,
    torch.concatenate: _cat,
    torch.linalg.solve: _solve,
    torch.sparse.mm: _sparse_mm,
    torch.take_along_dim: _take_along_dim,
    Tensor.take_along_dim: _take_along_dim,
    Tensor.__getitem__: _getitem,
}
