"""Views, slices, and what puts tensors together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pynode.field._convert._call import Call, Unsupported, handles
from pynode.field._graph import Dim, Number


@handles("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "_reshape_copy", "view_copy")
def _reshape(c: Call) -> int:
    return c.b.reshape(c.args[0], c.shape)


@handles("as_strided")
def _as_strided(c: Call) -> int:
    """Only as torch's own decompositions use it: another shape of contiguous memory."""
    strides, expected = [], 1
    for n in reversed(c.shape[1:]):
        strides.append(expected)
        expected = expected * n if isinstance(n, int) else 0
    if list(c.args[2]) != [expected, *reversed(strides)] or c.arg(3, "storage_offset"):
        raise Unsupported("as_strided: use view, permute, expand or slices")
    return c.b.reshape(c.args[0], c.shape)


@handles("expand", "expand_copy")
def _expand(c: Call) -> int:
    return c.b.expand(c.args[0], c.shape)


@handles("permute", "permute_copy")
def _permute(c: Call) -> int:
    rank = len(c.b.shape(c.args[0]))
    return c.b.permute(c.args[0], [int(d) % rank for d in c.args[1]])


@handles("t", "transpose")
def _transpose(c: Call) -> int:
    i = c.args[0]
    dims = list(range(len(c.b.shape(i))))
    if len(dims) > 1:
        a, d = (0, 1) if c.op == "t" else (c.dim(1, "dim0", i), c.dim(2, "dim1", i))
        dims[a], dims[d] = dims[d], dims[a]
    return c.b.permute(i, dims)


def _bounds(size: Dim, start: Any, stop: Any) -> tuple[Dim, Dim]:
    """Python's meaning of `start:stop` for a dimension of this size."""

    def place(value: Any, default: Dim) -> Dim:
        if value is None:
            return default
        if not isinstance(value, int):
            return value
        if value >= 2**62:
            return size
        if value < 0:
            return (size[0], size[1] + value) if not isinstance(size, int) else max(size + value, 0)
        return min(value, size) if isinstance(size, int) else value

    return place(start, 0), place(stop, size)


@handles("slice", "slice_copy")
def _slice(c: Call) -> int:
    i = c.args[0]
    d = c.dim(1, "dim", i)
    start, stop = _bounds(c.b.shape(i)[d], c.arg(2, "start"), c.arg(3, "end"))
    return c.b.slice(i, d, start, stop, int(c.arg(4, "step", 1)), c.shape)


@handles("narrow")
def _narrow(c: Call) -> int:
    i, start, length = c.args[0], c.args[2], c.args[3]
    return c.b.slice(i, c.dim(1, "dim", i), start, start + length, 1, c.shape)


def _select_bounds(size: Dim, index: int) -> tuple[Dim, Dim]:
    if index >= 0:
        return index, index + 1
    if isinstance(size, int):
        return size + index, size + index + 1
    return (size[0], size[1] + index), (size[0], size[1] + index + 1)


@handles("select", "select_copy")
def _select(c: Call) -> int:
    i = c.args[0]
    d = c.dim(1, "dim", i)
    shape = list(c.b.shape(i))
    start, stop = _select_bounds(shape[d], c.args[2])
    shape[d] = 1
    return c.b.reshape(c.b.slice(i, d, start, stop, 1, shape), c.shape)


@handles("select_backward")
def _select_backward(c: Call) -> int:
    grad, _, d, index = c.args
    d %= len(c.shape)
    start, stop = _select_bounds(c.shape[d], index)
    shape = list(c.shape)
    shape[d] = 1
    return c.b.embed(c.b.reshape(grad, shape), d, start, stop, 1, c.shape)


@handles("slice_backward")
def _slice_backward(c: Call) -> int:
    grad, _, d, start, stop, step = c.args
    d %= len(c.shape)
    start, stop = _bounds(c.shape[d], start, stop)
    return c.b.embed(grad, d, start, stop, step, c.shape)


def _scatter(c: Call, base: int, source: int, d: int, start: Dim, stop: Dim, step: int) -> int:
    """`base` with `source` in `start:stop:step`: put together, or base masked out, plus the embedded source."""
    size = c.shape[d]
    if step == 1 and isinstance(size, int) and isinstance(start, int) and isinstance(stop, int):
        before, after = [*c.shape], [*c.shape]
        before[d], after[d] = start, size - stop
        parts = [c.b.slice(base, d, 0, start, 1, before)] if start > 0 else []
        parts += [source] if stop > start else []
        parts += [c.b.slice(base, d, stop, size, 1, after)] if stop < size else []
        parts = [c.b.cast(i) for i in parts]
        return parts[0] if len(parts) == 1 else c.b.add("cat", parts, c.shape, dim=d)
    ones = c.b.full(1.0, c.b.shape(source))
    mask = c.b.embed(ones, d, start, stop, step, c.shape)
    placed = c.b.embed(c.b.cast(source), d, start, stop, step, c.shape)
    hit = c.b.pointwise("ne", [mask, Number(0)], c.shape, "bool")
    return c.b.pointwise("where", [hit, placed, c.b.cast(base)], c.shape)


@handles("slice_scatter")
def _slice_scatter(c: Call) -> int:
    base, source = c.args[:2]
    d = c.dim(2, "dim", base)
    start, stop = _bounds(c.shape[d], c.arg(3, "start"), c.arg(4, "end"))
    return _scatter(c, base, source, d, start, stop, int(c.arg(5, "step", 1)))


@handles("select_scatter")
def _select_scatter(c: Call) -> int:
    base, source, d, index = c.args
    d %= len(c.shape)
    start, stop = _select_bounds(c.shape[d], index)
    shape = list(c.shape)
    shape[d] = 1
    return _scatter(c, base, c.b.reshape(source, shape), d, start, stop, 1)


@handles("cat")
def _cat(c: Call) -> int:
    parts = [int(i) for i in c.args[0] if c.b.shape(i) != (0,)]
    if c.dtype == "float":
        parts = [c.b.cast(i) for i in parts]
    return c.b.add("cat", parts, c.shape, c.dtype, dim=int(c.arg(1, "dim", 0)) % len(c.shape))


@handles("stack")
def _stack(c: Call) -> int:
    d = int(c.arg(1, "dim", 0)) % len(c.shape)
    one = [*c.shape[:d], 1, *c.shape[d + 1 :]]
    return c.b.add("cat", [c.b.reshape(c.b.cast(i), one) for i in c.args[0]], c.shape, dim=d)


def _pieces(c: Call, sizes: Sequence[Dim], d: int) -> list[int]:
    i = c.args[0]
    out, start = [], 0
    for size in sizes:
        if not isinstance(size, int):
            raise Unsupported("a split along the batch dimension: fields act on the features of each sample")
        shape = list(c.b.shape(i))
        shape[d] = size
        out.append(c.b.slice(i, d, start, start + size, 1, shape))
        start += size
    return out


@handles("split", "split_with_sizes", "unbind")
def _split(c: Call) -> list[int]:
    i = c.args[0]
    d = c.dim(1 if c.op == "unbind" else 2, "dim", i)
    size = c.b.shape(i)[d]
    if not isinstance(size, int):
        raise Unsupported("a split along the batch dimension: fields act on the features of each sample")
    if c.op == "unbind":
        parts = _pieces(c, [1] * size, d)
        return [c.b.reshape(p, [*c.b.shape(p)[:d], *c.b.shape(p)[d + 1 :]]) for p in parts]
    sizes = c.args[1]
    if isinstance(sizes, int):
        sizes = [min(sizes, size - k) for k in range(0, size, sizes)]
    return _pieces(c, sizes, d)


def _strides(c: Call, at: int) -> tuple[int, list[tuple[int, int, int]]]:
    """The dimension that `unfold` goes along, and the bounds of the entries at each place of its windows."""
    d, size, step = c.args[at : at + 3]
    d %= len(c.shape) - (2 - at)  # the windows come on top
    windows = c.shape[d] if at == 1 else c.b.shape(c.args[0])[d]
    if not isinstance(windows, int):
        raise Unsupported("windows along the batch dimension")
    return d, [(k, k + (windows - 1) * step + 1, step) for k in range(size)]


@handles("unfold")
def _unfold(c: Call) -> int:
    i = c.args[0]
    d, bounds = _strides(c, 1)
    flat = c.shape[:-1]
    parts = [c.b.reshape(c.b.slice(i, d, *b, flat), [*flat, 1]) for b in bounds]
    return c.b.add("cat", parts, c.shape, c.b.dtype(i), dim=len(flat))


@handles("unfold_backward")
def _unfold_backward(c: Call) -> int:
    grad = c.args[0]
    d, bounds = _strides(c, 2)
    flat = c.b.shape(grad)[:-1]
    total = None
    for k, b in enumerate(bounds):
        part = c.b.reshape(c.b.slice(grad, len(flat), k, k + 1, 1, [*flat, 1]), flat)
        part = c.b.embed(part, d, *b, c.shape)
        total = part if total is None else c.b.pointwise("add", [total, part], c.shape)
    assert total is not None
    return total


@handles("getitem")
def _getitem(c: Call) -> int | None:
    picked = c.args[0][c.args[1]]
    return None if picked is None else int(picked)


@handles("flip")
def _flip(c: Call) -> int:
    i = c.args[0]
    return c.b.add("flip", [i], c.shape, c.dtype, dims=tuple(c.dims(i)))


@handles("constant_pad_nd")
def _pad(c: Call) -> int:
    i, pads = c.b.cast(c.args[0]), c.args[1]
    value = float(c.arg(2, "value") or 0)
    shape = list(c.b.shape(i))
    for k in range(len(pads) // 2):
        before, after = pads[2 * k], pads[2 * k + 1]
        if before == after == 0:
            continue
        d = len(shape) - 1 - k
        size = shape[d]
        if not isinstance(size, int):
            raise Unsupported("padding of the batch dimension")
        if before < 0 or after < 0:
            shape[d] = size + min(before, 0) + min(after, 0)
            i = c.b.slice(i, d, max(-before, 0), size + min(after, 0), 1, shape)
            size = shape[d]
        before, after = max(before, 0), max(after, 0)
        shape[d] = size + before + after
        if value:
            around = [[*shape[:d], n, *shape[d + 1 :]] for n in (before, after)]
            parts = [c.b.full(value, around[0]), i, c.b.full(value, around[1])]
            i = c.b.add("cat", [p for p in parts if c.b.shape(p)[d]], shape, dim=d)
        else:
            i = c.b.embed(i, d, before, before + size, 1, shape)
    return i
