"""Convolution, pooling and resampling of images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.field._convert._call import Call, Unsupported, handles
from pynode.field._convert._shape import product
from pynode.field._graph import Dim, Number

_aten = torch.ops.aten


# ---- convolution ------------------------------------------------------------------------------------


def _window(c: Call, first: int, rank: int) -> tuple[dict[str, Any], bool]:
    """Stride, padding, dilation, (transposed,) groups from the arguments at `first` on."""
    stride, padding, dilation = (_each(x, rank) for x in c.args[first : first + 3])
    transposed, _, groups = c.args[first + 3 : first + 6]
    return {"stride": stride, "padding": padding, "dilation": dilation, "groups": int(groups)}, bool(transposed)


def _each(x: Any, rank: int) -> tuple[int, ...]:
    """One number for each spatial dimension."""
    xs = tuple(x) if isinstance(x, list | tuple) else (x,)
    return xs * rank if len(xs) == 1 else xs


@handles("convolution", "_convolution")
def _convolution(c: Call) -> int:
    x, w, bias = c.args[:3]
    window, transposed = _window(c, 3, len(c.shape) - 2)
    # A transposed convolution is the derivative of a convolution with respect to its input.
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
    if wants_x:
        dx = c.b.add("conv" if transposed else "conv_input", [grad, w], c.b.shape(x), **window)
    if wants_w:
        dw = c.b.add("conv_weight", [grad, x] if transposed else [x, grad], c.b.shape(w), **window)
    if wants_bias:
        db = c.b.reduce("sum", grad, [0, *range(2, rank + 2)], False, c.b.shape(grad)[1:2])
    return [dx, dw, db]


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
    return torch.eye(size, dtype=torch.float64)[:, None]


def _pooling(c: Call, first: int, sizes: Sequence[Dim]) -> list[Tensor]:
    """Matrices of an average pooling whose arguments start at `first`."""
    rank = len(sizes)
    kernel, stride = _each(c.args[first], rank), _each(c.arg(first + 1, "stride") or c.args[first], rank)
    padding = _each(c.arg(first + 2, "padding", 0), rank)
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


@handles("avg_pool2d")
def _avg_pool(c: Call) -> int:
    return _resampled(c, c.args[0], _pooling(c, 1, c.b.shape(c.args[0])[-2:]))


@handles("avg_pool2d_backward")
def _avg_pool_backward(c: Call) -> int:
    return _resampled(c, c.args[0], [m.T for m in _pooling(c, 2, c.shape[-2:])])


def _adaptive(sizes: Sequence[Dim], new: Sequence[Any]) -> list[Tensor]:
    return [torch.nn.functional.adaptive_avg_pool1d(_basis(n), int(m))[:, 0] for n, m in zip(sizes, new, strict=True)]


@handles("_adaptive_avg_pool2d")
def _adaptive_avg_pool(c: Call) -> int:
    return _resampled(c, c.args[0], _adaptive(c.b.shape(c.args[0])[-2:], c.shape[-2:]))


@handles("_adaptive_avg_pool2d_backward")
def _adaptive_avg_pool_backward(c: Call) -> int:
    return _resampled(c, c.args[0], [m.T for m in _adaptive(c.shape[-2:], c.b.shape(c.args[0])[-2:])])


_UPSAMPLING: dict[str, Callable[..., Tensor]] = {
    "upsample_nearest1d": _aten.upsample_nearest1d,
    "_upsample_nearest_exact1d": _aten._upsample_nearest_exact1d,
    "upsample_linear1d": _aten.upsample_linear1d,
    "upsample_nearest2d": _aten.upsample_nearest1d,
    "_upsample_nearest_exact2d": _aten._upsample_nearest_exact1d,
    "upsample_bilinear2d": _aten.upsample_linear1d,
}


def _upsampling(c: Call, name: str, old: Sequence[Dim], new: Sequence[Dim], first: int) -> list[Tensor]:
    """Matrices of an interpolation; its arguments behind the sizes start at `first`."""
    options = list(c.args[first:])
    aligned = [options.pop(0)] if "linear" in name else []
    scales = [*options, *[None] * len(new)]
    return [
        _UPSAMPLING[name](_basis(n), [int(m)], *aligned, scale)[:, 0]  # type: ignore[arg-type]
        for n, m, scale in zip(old, new, scales, strict=False)
    ]


@handles(*_UPSAMPLING)
def _upsample(c: Call) -> int:
    rank = 2 if c.op.endswith("2d") else 1
    return _resampled(c, c.args[0], _upsampling(c, c.op, c.b.shape(c.args[0])[-rank:], c.shape[-rank:], 2))


@handles(*(f"{name}_backward" for name in _UPSAMPLING))
def _upsample_backward(c: Call) -> int:
    name = c.op.removesuffix("_backward")
    rank = 2 if name.endswith("2d") else 1
    new = c.b.shape(c.args[0])[-rank:]
    return _resampled(c, c.args[0], [m.T for m in _upsampling(c, name, c.shape[-rank:], new, 3)])


@handles(*(f"{mode}_pad{rank}d_backward" for mode in ("replication", "reflection") for rank in (1, 2)))
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


# ---- maximum over windows ---------------------------------------------------------------------------


class _Windows:
    """The windows of a 2-d pooling: one slice of the image for each place in the window.

    Attributes:
        shape: `(batch, channels, height, width)` of the image.
        out: height and width of the result.
        padding: before each of the two dimensions.
        padded: height and width of the image with its padding.
    """

    def __init__(self, c: Call, first: int, shape: Sequence[Dim], out: Sequence[Dim]) -> None:
        self.c, self.shape = c, tuple(shape)
        sizes = [n for n in (*shape[-2:], *out) if isinstance(n, int)]
        if len(sizes) != 4:
            raise Unsupported("an image whose size depends on the batch size")
        self.size, self.out = sizes[:2], sizes[2:]
        self.kernel = _each(c.args[first], 2)
        self.stride = _each(c.arg(first + 1, "stride") or c.args[first], 2)
        self.padding = _each(c.arg(first + 2, "padding", 0), 2)
        self.dilation = _each(c.arg(first + 3, "dilation", 1), 2)
        # With ceil_mode the last windows reach further than the padding.
        reach = [
            (o - 1) * s + (k - 1) * d + 1
            for o, s, k, d in zip(self.out, self.stride, self.kernel, self.dilation, strict=True)
        ]
        self.padded = [max(r, n + p) for r, n, p in zip(reach, self.size, self.padding, strict=True)]

    def __iter__(self) -> Any:
        """Each place in the window: its bounds in the padded image, and the positions that it has in the image."""
        for place in itertools.product(*map(range, self.kernel)):
            starts = [k * d for k, d in zip(place, self.dilation, strict=True)]
            bounds = [(a, a + (o - 1) * s + 1, s) for a, o, s in zip(starts, self.out, self.stride, strict=True)]
            rows, columns = (
                [a + j * s - p for j in range(o)]
                for a, o, s, p in zip(starts, self.out, self.stride, self.padding, strict=True)
            )
            flat = [float(r * self.size[1] + q) for r in rows for q in columns]
            yield bounds, self.c.b.const(flat, self.out, "float")

    def pad(self, i: int) -> int:
        """The image with minus infinity around it."""
        b = self.c.b
        if self.padded == self.size:
            return i
        out = self.place(i, [(p, p + n, 1) for p, n in zip(self.padding, self.size, strict=True)], self.padded)
        inside = [
            [p <= k < p + n for k in range(m)] for p, n, m in zip(self.padding, self.size, self.padded, strict=True)
        ]
        mask = b.const([r and q for r in inside[0] for q in inside[1]], self.padded, "bool")
        return b.pointwise("where", [mask, out, Number(-math.inf)], b.shape(out))

    def take(self, i: int, bounds: Sequence[tuple[int, int, int]]) -> int:
        """The entries within bounds of the last two dimensions."""
        shape = list(self.c.b.shape(i))
        for d, (start, stop, step) in zip((-2, -1), bounds, strict=True):
            shape[d] = len(range(start, stop, step))
            i = self.c.b.slice(i, len(shape) + d, start, stop, step, shape)
        return i

    def place(self, i: int, bounds: Sequence[tuple[int, int, int]], sizes: Sequence[int]) -> int:
        """Zeros with the node within bounds of the last two dimensions."""
        shape = list(self.c.b.shape(i))
        for d, (start, stop, step), n in zip((-2, -1), bounds, sizes, strict=True):
            shape[d] = n
            i = self.c.b.embed(i, len(shape) + d, start, stop, step, shape)
        return i


@handles("max_pool2d_with_indices")
def _max_pool(c: Call) -> list[int]:
    x = c.args[0]
    windows = _Windows(c, 1, c.b.shape(x), c.shape[-2:])
    padded = windows.pad(x)
    slices = [(windows.take(padded, bounds), positions) for bounds, positions in windows]
    top = slices[0][0]
    for s, _ in slices[1:]:
        top = c.b.pointwise("maximum", [top, s], c.shape)
    # The first place where the maximum is met, as torch has it.
    where = c.b.full(math.inf, c.shape)
    for s, positions in reversed(slices):
        hit = c.b.pointwise("eq", [s, top], c.shape, "bool")
        where = c.b.pointwise("where", [hit, positions, where], c.shape)
    return [top, where]


@handles("max_pool2d_with_indices_backward")
def _max_pool_backward(c: Call) -> int:
    grad, where = c.args[0], c.args[7]
    shape = c.b.shape(grad)
    windows = _Windows(c, 2, c.shape, shape[-2:])
    total = None
    for bounds, positions in windows:
        hit = c.b.pointwise("eq", [where, positions], shape, "bool")
        part = windows.place(c.b.pointwise("where", [hit, grad, Number(0.0)], shape), bounds, windows.padded)
        total = part if total is None else c.b.pointwise("add", [total, part], c.b.shape(part))
    assert total is not None
    return windows.take(total, [(p, p + n, 1) for p, n in zip(windows.padding, windows.size, strict=True)])
