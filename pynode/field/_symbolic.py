"""Functions of torch that want numbers for sizes, or for indices, written so that a recording needs none."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

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


def _cdist(x: Tensor, y: Tensor, p: float = 2.0, compute_mode: str | None = None) -> Tensor:
    """By differences, which autograd differentiates more than once, and whose sizes decide nothing."""
    return torch.linalg.vector_norm(x.unsqueeze(-2) - y.unsqueeze(-3), p, -1)


class _Solution(NamedTuple):
    """What `torch.linalg.lstsq` returns that has a derivative."""

    solution: Tensor


def _lstsq(a: Tensor, b: Tensor, rcond: float | None = None, *, driver: str | None = None) -> _Solution:
    """By the pseudo-inverse, as torch's derivative is; torch's own rule asks for the rank, a number."""
    vector = b.dim() == 1 or (a.dim() - 1 == b.dim() and b.shape == a.shape[:-1])
    inverse = torch.linalg.pinv(a) if rcond is None else torch.linalg.pinv(a, rtol=rcond)
    return _Solution((inverse @ b.unsqueeze(-1)).squeeze(-1) if vector else inverse @ b)


def _matrix_norm(
    x: Tensor, ord: Any = "fro", dim: Sequence[int] = (-2, -1), keepdim: bool = False, **keywords: Any
) -> Tensor:
    """Without the numbers that torch's own rule asks for; orders as torch names them."""
    if ord == "fro" or keywords:
        return torch.linalg.matrix_norm(x, ord, dim, keepdim, **keywords)
    rows, columns = (d % x.dim() for d in dim)
    if ord in (1, -1, math.inf, -math.inf):
        along, over = (rows, columns) if abs(ord) == 1 else (columns, rows)
        sums = x.abs().sum(along, keepdim=True)
        norm = sums.amax(over, keepdim=True) if ord > 0 else sums.amin(over, keepdim=True)
    else:
        values = torch.linalg.svdvals(torch.movedim(x, (rows, columns), (-2, -1)))
        norm = values.sum(-1) if ord == "nuc" else values[..., 0] if ord == 2 else values[..., -1]
        for d in sorted((rows, columns)):
            norm = norm.unsqueeze(d)
    return norm if keepdim else norm.squeeze((rows, columns))


def _norm(x: Tensor, ord: Any = None, dim: Any = None, keepdim: bool = False, **keywords: Any) -> Tensor:
    pair = (dim is None and x.dim() == 2) or (isinstance(dim, tuple | list) and len(dim) == 2)
    if ord is None or not pair:
        return torch.linalg.norm(x, ord, dim, keepdim, **keywords)
    return _matrix_norm(x, ord, (-2, -1) if dim is None else dim, keepdim, **keywords)


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
    """Indices that are 0-d tensors of integers pick one entry each: torch would take the number out of them.

    A mask that is known picks a known number.
    """
    parts = index if isinstance(index, tuple) else (index,)
    if any(map(_is_known_mask, parts)):
        with _disable_current_modes():
            places = [p.nonzero(as_tuple=True) if _is_known_mask(p) else (p,) for p in parts]
        return x[tuple(q for p in places for q in p)]
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


def _is_known_mask(p: Any) -> bool:
    return (
        isinstance(p, Tensor)
        and p.dtype == torch.bool
        and p.dim() > 0
        and not isinstance(p, FakeTensor)
        and not torch._C._functorch.is_functorch_wrapped_tensor(p)
    )


def _is_number(p: Any) -> bool:
    return isinstance(p, Tensor) and p.dim() == 0 and p.dtype in (torch.int64, torch.int32, torch.int16, torch.int8)


def _is_advanced(p: Any) -> bool:
    return isinstance(p, list) or (isinstance(p, Tensor) and not _is_number(p))


_REPLACED: dict[Any, Callable[..., Any]] = {
    torch.cat: _cat,
    torch.concat: _cat,
    torch.concatenate: _cat,
    torch.cdist: _cdist,
    torch.linalg.lstsq: _lstsq,
    torch.linalg.matrix_norm: _matrix_norm,
    torch.linalg.norm: _norm,
    torch.linalg.solve: _solve,
    torch.sparse.mm: _sparse_mm,
    torch.take_along_dim: _take_along_dim,
    Tensor.take_along_dim: _take_along_dim,
    Tensor.__getitem__: _getitem,
}
