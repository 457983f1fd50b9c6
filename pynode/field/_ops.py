"""The vocabulary of the graph: what each op computes, stated in torch.

This is the reference that the lowered kernels are held against. Pointwise ops broadcast as torch does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["OPS", "POINTWISE"]

_NAMES = """
    neg abs exp expm1 log log1p log2 log10 sqrt rsqrt reciprocal sin cos tan asin acos atan sinh cosh tanh
    asinh acosh atanh erf erfc erfinv lgamma digamma sigmoid relu sign floor ceil round trunc logical_not isnan isinf
    add sub mul div pow atan2 fmod remainder lt le gt ge eq ne logical_and logical_or logical_xor where
"""

POINTWISE: dict[str, Callable[..., Tensor]] = {name: getattr(torch, name) for name in _NAMES.split()}


def _as_tensor(a: Any, like: Any) -> Tensor:
    return a if isinstance(a, Tensor) else torch.as_tensor(a, dtype=like.dtype, device=like.device)


POINTWISE["maximum"] = lambda a, b: torch.maximum(_as_tensor(a, b), _as_tensor(b, a))
POINTWISE["polygamma"] = lambda n, x: torch.polygamma(int(n), x)
POINTWISE |= {"i0": torch.i0, "igamma": torch.igamma, "igammac": torch.igammac}
POINTWISE |= {f"special_{name}": getattr(torch.special, name) for name in ("i0e", "i1", "i1e", "erfcx", "ndtri")}
POINTWISE["minimum"] = lambda a, b: torch.minimum(_as_tensor(a, b), _as_tensor(b, a))


def _embed(x: Tensor, *, shape: Any, dim: int, start: int, stop: int, step: int) -> Tensor:
    out = x.new_zeros(shape)
    out.narrow(dim, start, stop - start)[(slice(None),) * dim + (slice(None, None, step),)] = x
    return out


def _slice(x: Tensor, *, dim: int, start: int, stop: int, step: int, **_: Any) -> Tensor:
    return x[(slice(None),) * dim + (slice(start, stop, step),)]


def _index_add(x: Tensor, *, shape: Any, dim: int, index: Any) -> Tensor:
    return x.new_zeros(shape).index_add(dim, torch.tensor(index, device=x.device), x)


def _places(index: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """A computed index as integers within bounds, and where it was."""
    inside = (index >= 0) & (index < size)
    return torch.where(inside, index, 0).long(), inside


def _gather(x: Tensor, index: Tensor, *, dim: int, **_: Any) -> Tensor:
    at, inside = _places(index, x.shape[dim])
    return torch.where(inside, x.gather(dim, at), torch.nan)


def _scatter_add(x: Tensor, index: Tensor, *, shape: Any, dim: int) -> Tensor:
    at, inside = _places(index, shape[dim])
    return x.new_zeros(shape).scatter_add(dim, at, torch.where(inside, x, torch.nan))


def _scatter(x: Tensor, index: Tensor, *, shape: Any, dim: int) -> Tensor:
    at, inside = _places(index, shape[dim])
    return x.new_zeros(shape).scatter(dim, at, torch.where(inside, x, torch.nan))


def _searchsorted(knots: Tensor, x: Tensor, *, right: bool, **_: Any) -> Tensor:
    return torch.searchsorted(knots.contiguous(), x.contiguous(), right=right).to(x.dtype)


def _lu(x: Tensor, **_: Any) -> Tensor:
    lu, pivots, _info = torch.linalg.lu_factor_ex(x)
    return torch.cat([lu, pivots.to(x.dtype).unsqueeze(-2)], -2)


def _cholesky(x: Tensor, **_: Any) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(x)
    return torch.where((info == 0)[..., None, None], factor, torch.nan)


def _eigh(x: Tensor, **_: Any) -> Tensor:
    values, vectors = torch.linalg.eigh(x)
    return torch.cat([values.unsqueeze(-2), vectors], -2)


def _qr(x: Tensor, **_: Any) -> Tensor:
    return torch.cat(torch.linalg.qr(x), -2)


def _svd(x: Tensor, **_: Any) -> Tensor:
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    return torch.cat([u, s.unsqueeze(-2), vh.mT], -2)


def _conv(x: Tensor, w: Tensor, *, stride: Any, padding: Any, dilation: Any, groups: int, **_: Any) -> Tensor:
    return torch.convolution(x, w, None, stride, padding, dilation, False, (0,) * len(stride), groups)


def _conv_grad(
    which: int, grad: Tensor, x: Tensor, w: Tensor, *, stride: Any, padding: Any, dilation: Any, groups: int
) -> Tensor:
    mask = [which == 0, which == 1, False]
    return torch.ops.aten.convolution_backward(
        grad, x, w, None, stride, padding, dilation, False, (0,) * len(stride), groups, mask
    )[which]


# Every op takes its operands and, by keyword, its attributes; `shape` is the shape of the result.
OPS: dict[str, Callable[..., Tensor]] = {
    "cast": lambda x, *, float_dtype, **_: x.to(float_dtype),
    "const": lambda *, shape, data, dtype, float_dtype, device: torch.tensor(
        data, dtype={"float": float_dtype, "bool": torch.bool, "int": torch.int64}[dtype], device=device
    ).reshape(shape),
    "arange": lambda *, shape, float_dtype, device: torch.arange(
        math.prod(shape), dtype=float_dtype, device=device
    ).reshape(shape),
    "full": lambda value, *, shape, float_dtype, device: torch.full(shape, value, dtype=float_dtype, device=device),
    "sum": lambda x, *, dims, keepdim, **_: x.sum(dims, keepdim) if dims else x.clone(),
    "amax": lambda x, *, dims, keepdim, **_: x.amax(dims, keepdim),
    "amin": lambda x, *, dims, keepdim, **_: x.amin(dims, keepdim),
    "prod": lambda x, *, dim, keepdim, **_: x.prod(dim, keepdim),
    "cumsum": lambda x, *, dim, **_: x.cumsum(dim),
    "cumprod": lambda x, *, dim, **_: x.cumprod(dim),
    "cummax": lambda x, *, dim, **_: x.cummax(dim)[0],
    "cummin": lambda x, *, dim, **_: x.cummin(dim)[0],
    "logcumsumexp": lambda x, *, dim, **_: x.logcumsumexp(dim),
    "reshape": lambda x, *, shape: x.reshape(shape),
    "permute": lambda x, *, dims, **_: x.permute(dims),
    "expand": lambda x, *, shape: x.expand(shape),
    "slice": _slice,
    "embed": _embed,
    "flip": lambda x, *, dims, **_: x.flip(dims),
    "cat": lambda *xs, dim, **_: torch.cat(xs, dim),
    "index_select": lambda x, *, dim, index, **_: x.index_select(dim, torch.tensor(index, device=x.device)),
    "index_add": _index_add,
    "gather": _gather,
    "scatter_add": _scatter_add,
    "scatter": _scatter,
    "argsort": lambda x, *, dim, descending, **_: torch.sort(x, dim=dim, descending=descending, stable=True)[1].to(
        x.dtype
    ),
    "searchsorted": _searchsorted,
    "lu": _lu,
    "lu_solve": lambda lu, pivots, b, *, adjoint, **_: torch.linalg.lu_solve(lu, pivots.int(), b, adjoint=adjoint),
    "solve_triangular": lambda a, b, *, upper, unit, **_: torch.linalg.solve_triangular(
        a, b, upper=upper, unitriangular=unit
    ),
    "cholesky": _cholesky,
    "matrix_exp": lambda x, **_: torch.linalg.matrix_exp(x),
    "eigh": _eigh,
    "qr": _qr,
    "svd": _svd,
    "fourier": lambda x, *, shape, points: torch.ops.pynode.fourier(x, points, shape[-1] // 2),
    "fourier_sum": lambda re, im, *, shape, points: torch.ops.pynode.fourier_sum(re, im, points, shape[-1]),
    "conv": _conv,
    "conv_input": lambda grad, w, *, shape, **window: _conv_grad(0, grad, grad.new_empty(shape), w, **window),
    "conv_weight": lambda x, grad, *, shape, **window: _conv_grad(1, grad, x, x.new_empty(shape), **window),
    "mm": lambda a, b, **_: a @ b,
    "bmm": lambda a, b, **_: a @ b,
    "julia": lambda *xs, number, kernels, **_: torch.ops.pynode.julia(xs, number, kernels),
    "julia_product": lambda *xs, number, kernels, of, **_: torch.ops.pynode.julia_products(
        xs[0], xs[1:], number, kernels
    )[of],
}
