"""Convolution, pooling and resampling of images."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.field._convert._call import Call, Unsupported, handles
from pynode.field._graph import Dim
from pynode.field._shapes import product

_aten = torch.ops.aten


# ---- convolution ------------------------------------------------------------------------------------


def _window(c: Call, first: int, rank: int) -> tuple[dict[str, Any], bool]:
    """Stride, padding, dilation, (transposed,) groups from the arguments at `first` on."""
    stride, padding, dilation = (each(x, rank) for x in c.args[first : first + 3])
    transposed, _, groups = c.args[first + 3 : first + 6]
    return {"stride": stride, "padding": padding, "dilation": dilation, "groups": int(groups)}, bool(transposed)


def each(x: Any, rank: int) -> tuple[int, ...]:
    """One number for each spatial dimension."""
    xs = tuple(x) if isinstance(x, list | tuple) else (x,)
    return xs * rank if len(xs) == 1 else xs


@handles("convolution", "_convolution")
def _convolution(c: Call) -> int:
    x, w, bias = c.args[:3]
    window, transposed = _window(c, 3, len(c.shape) - 2)
    # A transposed convolution is the derivative of a convolution with respect to its input.
    beyond = transposed and _reaches_beyond(c.args[7], window)
    if beyond:
        shape, window = _without_padding(c, x, w, window)
        out = _cut_out(c, c.b.add("conv_input", [x, w], [*c.shape[:2], *shape], **window), each(c.args[4], len(shape)))
    else:
        out = c.b.add("conv_input" if transposed else "conv", [x, w], c.shape, **window)
    if bias is None:
        return out
    channels = c.b.reshape(bias, [c.b.shape(bias)[0], *[1] * (len(c.shape) - 2)])
    return c.b.pointwise("add", [out, channels], c.shape)


@handles("convolution_backward")
def _convolution_backward(c: Call) -> list[int | None]:
    grad, x, w = c.args[:3]
    rank = len(c.b.shape(x)) - 2
    window, transposed = _window(c, 4, rank)
    dx = dw = db = None
    wants_x, wants_w, wants_bias = c.args[10]
    if wants_bias:
        db = c.b.reduce("sum", grad, [0, *range(2, rank + 2)], False, c.b.shape(grad)[1:2])
    if transposed and _reaches_beyond(c.args[8], window):
        shape, window = _without_padding(c, x, w, window)
        grad = _put_in(c, grad, each(c.args[5], rank), shape)
    if wants_x:
        dx = c.b.add("conv" if transposed else "conv_input", [grad, w], c.b.shape(x), **window)
    if wants_w:
        dw = c.b.add("conv_weight", [grad, x] if transposed else [x, grad], c.b.shape(w), **window)
    return [dx, dw, db]


def _reaches_beyond(output_padding: Any, window: dict[str, Any]) -> bool:
    """Whether a result is larger than any that a convolution makes an input of this size of."""
    strides = window["stride"]
    return any(p >= s for p, s in zip(each(output_padding, len(strides)), strides, strict=True))


def _without_padding(c: Call, x: int, w: int, window: dict[str, Any]) -> tuple[list[int], dict[str, Any]]:
    """The sizes of the whole result of a transposed convolution, and what makes it."""
    rank = len(window["stride"])
    sizes, kernel = _numbers(c.b.shape(x)[-rank:]), _numbers(c.b.shape(w)[-rank:])
    parts = zip(sizes, kernel, window["stride"], window["dilation"], strict=True)
    return [(n - 1) * s + (k - 1) * d + 1 for n, k, s, d in parts], window | {"padding": (0,) * rank}


def _numbers(shape: Sequence[Dim]) -> list[int]:
    if not all(isinstance(n, int) for n in shape):
        raise Unsupported("an image whose size depends on the batch size")
    return [n for n in shape if isinstance(n, int)]


def _cut_out(c: Call, whole: int, padding: Sequence[int]) -> int:
    """The result without its padding, and with zeros where it reaches further than the whole."""
    sizes = _numbers(c.b.shape(whole)[2:])
    for d, (p, n, m) in enumerate(zip(padding, sizes, _numbers(c.shape[2:]), strict=True), 2):
        before, after = c.b.shape(whole)[:d], c.b.shape(whole)[d + 1 :]
        k = min(n - p, m)
        part = c.b.slice(whole, d, p, p + k, 1, [*before, k, *after])
        whole = c.b.embed(part, d, 0, k, 1, [*before, m, *after])
    return whole


def _put_in(c: Call, grad: int, padding: Sequence[int], sizes: Sequence[int]) -> int:
    """The transpose of `_cut_out`."""
    new = _numbers(c.b.shape(grad)[2:])
    for d, (p, n, m) in enumerate(zip(padding, sizes, new, strict=True), 2):
        before, after = c.b.shape(grad)[:d], c.b.shape(grad)[d + 1 :]
        k = min(n - p, m)
        part = c.b.slice(grad, d, 0, k, 1, [*before, k, *after])
        grad = c.b.embed(part, d, p, p + k, 1, [*before, n, *after])
    return grad


# ---- linear resampling: a matrix along each spatial dimension ---------------------------------------


def _resampled(c: Call, i: int, matrices: Sequence[Tensor]) -> int:
    """The node with each of its last dimensions multiplied by a matrix `(size, new size)`."""
    rank = len(c.b.shape(i))
    for k, matrix in enumerate(matrices):
        d = rank - len(matrices) + k
        order = [*(j for j in range(rank) if j != d), d]
        i = c.b.permute(i, order)
        rows = c.b.shape(i)[:-1]
        m = c.b.const(matrix.reshape(-1).tolist(), tuple(matrix.shape), "float")
        flat = c.b.reshape(i, [product(rows), matrix.shape[0]])
        i = c.b.add("mm", [flat, m], [product(rows), matrix.shape[1]])
        i = c.b.permute(c.b.reshape(i, [*rows, matrix.shape[1]]), [order.index(j) for j in range(rank)])
    return i


def _basis(size: Dim) -> Tensor:
    if not isinstance(size, int):
        raise Unsupported("an image whose size depends on the batch size")
    return torch.eye(size, dtype=torch.float64, device="cpu")[:, None]


def _pooling(c: Call, first: int, sizes: Sequence[Dim]) -> list[Tensor]:
    """Matrices of an average pooling whose arguments start at `first`."""
    rank = len(sizes)
    kernel, stride = each(c.args[first], rank), each(c.arg(first + 1, "stride") or c.args[first], rank)
    padding = each(c.arg(first + 2, "padding", 0), rank)
    ceil_mode, with_padding = c.arg(first + 3, "ceil_mode", False), c.arg(first + 4, "count_include_pad", True)
    divisor = c.arg(first + 5, "divisor_override")
    found = [
        torch.nn.functional.avg_pool1d(_basis(n), k, s, p, ceil_mode, with_padding)[:, 0]
        for n, k, s, p in zip(sizes, kernel, stride, padding, strict=True)
    ]
    if divisor is not None:
        found = [(m > 0).double() for m in found]
        found[0] = found[0] / divisor
    return found


def rank_of(c: Call) -> int:
    """The number of spatial dimensions that an operation's name tells."""
    found = re.search(r"([123])d", c.op)
    assert found is not None
    return int(found[1])


@handles("avg_pool2d", "avg_pool3d")
def _avg_pool(c: Call) -> int:
    return _resampled(c, c.args[0], _pooling(c, 1, c.b.shape(c.args[0])[-rank_of(c) :]))


@handles("avg_pool2d_backward", "avg_pool3d_backward")
def _avg_pool_backward(c: Call) -> int:
    return _resampled(c, c.args[0], [m.T for m in _pooling(c, 2, c.shape[-rank_of(c) :])])


def _adaptive(sizes: Sequence[Dim], new: Sequence[Any]) -> list[Tensor]:
    return [torch.nn.functional.adaptive_avg_pool1d(_basis(n), int(m))[:, 0] for n, m in zip(sizes, new, strict=True)]


@handles("_adaptive_avg_pool2d", "_adaptive_avg_pool3d")
def _adaptive_avg_pool(c: Call) -> int:
    rank = rank_of(c)
    return _resampled(c, c.args[0], _adaptive(c.b.shape(c.args[0])[-rank:], c.shape[-rank:]))


@handles("_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward")
def _adaptive_avg_pool_backward(c: Call) -> int:
    rank = rank_of(c)
    return _resampled(c, c.args[0], [m.T for m in _adaptive(c.shape[-rank:], c.b.shape(c.args[0])[-rank:])])


def _antialiased(upsample: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """One dimension of an interpolation that torch has for two."""
    return lambda x, size, aligned, scale: upsample(x[:, :, None], [1, *size], aligned, None, scale)[:, :, 0]


_UPSAMPLING: dict[str, Callable[..., Tensor]] = {
    "upsample_nearest1d": _aten.upsample_nearest1d,
    "_upsample_nearest_exact1d": _aten._upsample_nearest_exact1d,
    "upsample_linear1d": _aten.upsample_linear1d,
    "upsample_nearest2d": _aten.upsample_nearest1d,
    "_upsample_nearest_exact2d": _aten._upsample_nearest_exact1d,
    "upsample_bilinear2d": _aten.upsample_linear1d,
    "_upsample_bilinear2d_aa": _antialiased(_aten._upsample_bilinear2d_aa),
    "_upsample_bicubic2d_aa": _antialiased(_aten._upsample_bicubic2d_aa),
    "upsample_nearest3d": _aten.upsample_nearest1d,
    "_upsample_nearest_exact3d": _aten._upsample_nearest_exact1d,
    "upsample_trilinear3d": _aten.upsample_linear1d,
}


def _upsampling(c: Call, name: str, old: Sequence[Dim], new: Sequence[Dim], first: int) -> list[Tensor]:
    """Matrices of an interpolation; its arguments behind the sizes start at `first`."""
    options = list(c.args[first:])
    aligned = [options.pop(0)] if "nearest" not in name else []
    scales = [*options, *[None] * len(new)]
    return [
        _UPSAMPLING[name](_basis(n), [int(m)], *aligned, scale)[:, 0]  # type: ignore[arg-type]
        for n, m, scale in zip(old, new, scales, strict=False)
    ]


@handles(*_UPSAMPLING)
def _upsample(c: Call) -> int:
    rank = rank_of(c)
    return _resampled(c, c.args[0], _upsampling(c, c.op, c.b.shape(c.args[0])[-rank:], c.shape[-rank:], 2))


@handles(*(f"{name}_backward" for name in _UPSAMPLING))
def _upsample_backward(c: Call) -> int:
    name = c.op.removesuffix("_backward")
    rank = rank_of(c)
    new = c.b.shape(c.args[0])[-rank:]
    return _resampled(c, c.args[0], [m.T for m in _upsampling(c, name, c.shape[-rank:], new, 3)])


@handles(*(f"{mode}_pad{rank}d_backward" for mode in ("replication", "reflection") for rank in (1, 2, 3)))
def _pad_backward(c: Call) -> int:
    mode = "replicate" if c.op.startswith("replication") else "reflect"
    pads, sizes = c.args[2], c.b.shape(c.args[1])
    rank = len(pads) // 2
    return _resampled(
        c,
        c.args[0],
        [
            torch.nn.functional.pad(_basis(n), pads[2 * k : 2 * k + 2], mode=mode)[:, 0].T
            for n, k in zip(sizes[-rank:], reversed(range(rank)), strict=True)
        ],
    )
