"""Turns ATen operations into nodes of the graph."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pynode.field._builder import Builder
from pynode.field._graph import Dim, Number, Operand
from pynode.field._ops import POINTWISE

__all__ = ["HANDLERS", "Call", "Unsupported", "supported_ops"]


class Unsupported(Exception):
    """The operation has no counterpart in the graph; the text says why and what to use instead."""


class Ref(int):
    """An argument that is a node of the graph, as against a number."""


class Call:
    """One ATen call: its arguments (`Ref`s, numbers, sizes), its result's shape and kind of element."""

    def __init__(
        self, b: Builder, op: str, args: Sequence[Any], kwargs: dict[str, Any], shape: Any, dtype: Any
    ) -> None:
        self.b, self.op, self.args, self.kwargs = b, op, args, kwargs
        self.shape: Any = shape
        self.dtype = dtype

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """The argument at a position or of a name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def operand(self, x: Any) -> Operand:
        """An argument as an operand of a pointwise node."""
        return int(x) if isinstance(x, Ref) else Number(x)

    def dim(self, position: int, name: str, i: int, default: int = 0) -> int:
        """A dimension argument, counted from the front."""
        rank = len(self.b.shape(i))
        return int(self.arg(position, name, default)) % max(rank, 1)

    def dims(self, i: int, position: int = 1, name: str = "dim") -> list[int]:
        """A list of dimensions, counted from the front; all of them when none is given."""
        rank = len(self.b.shape(i))
        dims = self.arg(position, name)
        if dims is None or dims == []:
            return list(range(rank))
        return [int(d) % max(rank, 1) for d in (dims if isinstance(dims, list | tuple) else [dims])]


Handler = Callable[[Call], Any]
HANDLERS: dict[str, Handler] = {}


def supported_ops() -> list[str]:
    """The ATen operations that a field may use, besides those that decompose into them."""
    return sorted(HANDLERS)


def _handles(*names: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        for name in names:
            HANDLERS[name] = handler
        return handler

    return register


_TESTS = {"lt", "le", "gt", "ge", "eq", "ne", "isnan", "isinf"}
_LOGICAL = {"logical_and", "logical_or", "logical_xor", "logical_not"}
_RENAMED = {"bitwise_and": "logical_and", "bitwise_or": "logical_or", "bitwise_not": "logical_not"}
_RENAMED |= {"bitwise_xor": "logical_xor", "sgn": "sign", "fmax": "maximum", "fmin": "minimum"}


def _pointwise(c: Call) -> int:
    return _apply(c, c.op, [c.operand(x) for x in c.args])


def _apply(c: Call, op: str, inputs: list[Operand]) -> int:
    """A pointwise node of the call's shape; bools in arithmetic become numbers, numbers in logic bools."""
    op = _RENAMED.get(op, op)
    if op in _LOGICAL:
        inputs = [_as_bool(c, i) for i in inputs]
    elif op != "where" or c.dtype != "bool":
        first = 1 if op == "where" else 0
        inputs[first:] = [c.b.cast(i) if isinstance(i, int) else i for i in inputs[first:]]
    return c.b.pointwise(op, inputs, c.shape, "bool" if op in _LOGICAL or op in _TESTS else c.dtype)


def _as_bool(c: Call, i: Operand) -> Operand:
    if not isinstance(i, int) or c.b.dtype(i) == "bool":
        return i
    return c.b.pointwise("ne", [c.b.cast(i), Number(0)], c.b.shape(i), "bool")


for _name in [*POINTWISE, *_RENAMED]:
    HANDLERS[_name] = _pointwise


@_handles("add", "sub", "rsub")
def _add(c: Call) -> int:
    x, y = c.operand(c.args[0]), c.operand(c.args[1])
    alpha = c.arg(2, "alpha", 1)
    if c.op == "rsub":
        x, y = y, x
    if alpha != 1:
        scaled = Call(c.b, "mul", [], {}, c.b.shape(y) if isinstance(y, int) else (), c.dtype)
        y = _apply(scaled, "mul", [y, Number(alpha)])
    return _apply(c, "add" if c.op == "add" else "sub", [x, y])


@_handles("div")
def _div(c: Call) -> int:
    out = _apply(c, "div", [c.operand(x) for x in c.args[:2]])
    mode = c.kwargs.get("rounding_mode")
    return out if mode is None else _apply(c, mode, [out])


@_handles("clamp", "clamp_min", "clamp_max")
def _clamp(c: Call) -> int:
    x = c.operand(c.args[0])
    low = c.arg(1, "min") if c.op != "clamp_max" else None
    high = c.arg(2 if c.op == "clamp" else 1, "max") if c.op != "clamp_min" else None
    for bound, op in ((low, "maximum"), (high, "minimum")):
        if bound is not None:
            x = _apply(c, op, [x, c.operand(bound)])
    return int(x)  # type: ignore[arg-type]


@_handles("alias", "clone", "detach", "lift_fresh_copy", "lift_fresh", "contiguous", "positive")
def _identity(c: Call) -> int:
    return int(c.args[0])


@_handles("_to_copy", "convert_element_type", "to")
def _convert(c: Call) -> int:
    i = c.args[0]
    if c.b.dtype(i) == c.dtype:
        return int(i)
    if c.dtype == "float":
        return c.b.cast(i)
    if c.dtype == "bool":
        return c.b.pointwise("ne", [i, Number(0)], c.shape, "bool")
    raise Unsupported(f"a conversion from {c.b.dtype(i)} to {c.dtype}: keep the field in the state's dtype")


@_handles("copy")
def _copy(c: Call) -> int:
    return c.b.expand(c.b.cast(c.args[1]), c.shape)


# ---- reductions -------------------------------------------------------------------------------------


@_handles("sum", "amax", "amin")
def _reduce(c: Call) -> int:
    i = c.b.cast(c.args[0])
    return c.b.reduce(c.op, i, c.dims(i), bool(c.arg(2, "keepdim", False)), c.shape)


@_handles("mean")
def _mean(c: Call) -> int:
    i = c.b.cast(c.args[0])
    dims = c.dims(i)
    total = c.b.reduce("sum", i, dims, bool(c.arg(2, "keepdim", False)), c.shape)
    for d in (c.b.shape(i)[d] for d in dims):
        total = c.b.pointwise("div", [total, Number(d)], c.shape)
    return total


@_handles("var", "var_mean")
def _var(c: Call) -> Any:
    i = c.b.cast(c.args[0])
    dims = c.dims(i)
    kept = [1 if d in dims else n for d, n in enumerate(c.b.shape(i))]
    sizes = [c.b.shape(i)[d] for d in dims]
    mean = c.b.reduce("sum", i, dims, True, kept)
    for n in sizes:
        mean = c.b.pointwise("div", [mean, Number(n)], kept)
    apart = c.b.pointwise("sub", [i, mean], c.b.shape(i))
    var = c.b.reduce("sum", c.b.pointwise("mul", [apart, apart], c.b.shape(i)), dims, True, kept)
    count = _product(sizes)
    correction = c.kwargs.get("correction", 1)
    less = count - correction if isinstance(count, int) else (count[0], count[1] - correction)
    var = c.b.reshape(c.b.pointwise("div", [var, Number(less)], kept), c.shape)
    return var if c.op == "var" else [var, c.b.reshape(mean, c.shape)]


@_handles("linalg_vector_norm")
def _vector_norm(c: Call) -> int:
    i, order = c.b.cast(c.args[0]), float(c.arg(1, "ord", 2))
    shape = c.b.shape(i)
    dims = c.dims(i, 2)
    size = c.b.pointwise("abs", [i], shape)
    if order == math.inf or order == -math.inf:
        return c.b.reduce("amax" if order > 0 else "amin", size, dims, bool(c.arg(3, "keepdim", False)), c.shape)
    if order == 0:
        raise Unsupported("the number of non-zeros: it has no gradient")
    power = [i, i] if order == 2 else [size, Number(order)]
    terms = size if order == 1 else c.b.pointwise("mul" if order == 2 else "pow", power, shape)
    total = c.b.reduce("sum", terms, dims, bool(c.arg(3, "keepdim", False)), c.shape)
    if order == 2:
        return c.b.pointwise("sqrt", [total], c.shape)
    return c.b.pointwise("pow", [total, Number(1 / order)], c.shape)


def _positions(c: Call, i: int, d: int) -> int:
    """0, 1, 2, … along a dimension, as numbers of the state's type."""
    size = c.b.shape(i)[d]
    if not isinstance(size, int):
        raise Unsupported("an index along the batch dimension")
    rank = len(c.b.shape(i))
    return c.b.const([float(k) for k in range(size)], [size if k == d else 1 for k in range(rank)], "float")


@_handles("max", "min")
def _extremum(c: Call) -> Any:
    """The extremum along a dimension, and where it is first met (as a number)."""
    i, op = c.b.cast(c.args[0]), f"a{c.op}"
    if len(c.args) == 1:
        return c.b.reduce(op, i, c.dims(i), False, c.shape)
    d = c.dim(1, "dim", i)
    shape = c.b.shape(i)
    kept = [1 if k == d else n for k, n in enumerate(shape)]
    top = c.b.reduce(op, i, [d], True, kept)
    hit = c.b.pointwise("eq", [i, top], shape, "bool")
    where = c.b.pointwise("where", [hit, _positions(c, i, d), Number(float(2**24))], shape)
    first = c.b.reduce("amin", where, [d], True, kept)
    return [c.b.reshape(top, c.shape), c.b.reshape(first, c.shape)]


def _one_hot(c: Call, i: int, d: int, index: int) -> int:
    if c.b.shape(index)[d] != 1 or c.b.dtype(index) != "float":
        raise Unsupported("an index that is computed: use indices that do not depend on the state")
    return c.b.pointwise("eq", [_positions(c, i, d), index], c.b.shape(i), "bool")


@_handles("gather")
def _gather(c: Call) -> int:
    i, d, index = c.b.cast(c.args[0]), c.dim(1, "dim", c.args[0]), c.args[2]
    picked = c.b.pointwise("where", [_one_hot(c, i, d, index), i, Number(0.0)], c.b.shape(i))
    return c.b.reduce("sum", picked, [d], True, c.shape)


@_handles("scatter", "scatter_add")
def _scatter_index(c: Call) -> int:
    base, d, index = c.b.cast(c.args[0]), c.dim(1, "dim", c.args[0]), c.args[2]
    source = c.operand(c.args[3])
    hit = _one_hot(c, base, d, index)
    if c.op == "scatter":
        return c.b.pointwise("where", [hit, source, base], c.shape)
    added = c.b.pointwise("where", [hit, source, Number(0.0)], c.shape)
    return c.b.pointwise("add", [base, added], c.shape)


@_handles("any", "all")
def _any(c: Call) -> int:
    i = c.b.cast(c.args[0])
    op = "amax" if c.op == "any" else "amin"
    out = c.b.reduce(op, i, c.dims(i), bool(c.arg(2, "keepdim", False)), c.shape)
    return c.b.pointwise("ne", [out, Number(0)], c.shape, "bool")


@_handles("prod", "cumsum", "cumprod")
def _along(c: Call) -> int:
    i = c.b.cast(c.args[0])
    if len(c.args) < 2:
        flat = c.b.reshape(i, [_product(c.b.shape(i))])
        return c.b.add(c.op, [flat], c.shape, dim=0, keepdim=False)
    extra = {"keepdim": bool(c.arg(2, "keepdim", False))} if c.op == "prod" else {}
    return c.b.add(c.op, [i], c.shape, dim=c.dim(1, "dim", i), **extra)


# ---- shapes -----------------------------------------------------------------------------------------


def _product(shape: Sequence[Dim]) -> Dim:
    symbolic = [d for d in shape if not isinstance(d, int)]
    rest = math.prod(d for d in shape if isinstance(d, int))
    if not symbolic:
        return rest
    if len(symbolic) > 1:
        raise Unsupported("a size that is not linear in the batch size")
    return (symbolic[0][0] * rest, symbolic[0][1] * rest)


@_handles("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "_reshape_copy", "view_copy")
def _reshape(c: Call) -> int:
    return c.b.reshape(c.args[0], c.shape)


@_handles("as_strided")
def _as_strided(c: Call) -> int:
    """Only as torch's own decompositions use it: another shape of contiguous memory."""
    strides, expected = [], 1
    for n in reversed(c.shape[1:]):
        strides.append(expected)
        expected = expected * n if isinstance(n, int) else 0
    if list(c.args[2]) != [expected, *reversed(strides)] or c.arg(3, "storage_offset"):
        raise Unsupported("as_strided: use view, permute, expand or slices")
    return c.b.reshape(c.args[0], c.shape)


@_handles("expand", "expand_copy")
def _expand(c: Call) -> int:
    return c.b.expand(c.args[0], c.shape)


@_handles("permute", "permute_copy")
def _permute(c: Call) -> int:
    rank = len(c.b.shape(c.args[0]))
    return c.b.permute(c.args[0], [int(d) % rank for d in c.args[1]])


@_handles("t", "transpose")
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
            return value  # type: ignore[no-any-return]
        if value >= 2**62:
            return size
        if value < 0:
            return (size[0], size[1] + value) if not isinstance(size, int) else max(size + value, 0)
        return min(value, size) if isinstance(size, int) else value

    return place(start, 0), place(stop, size)


@_handles("slice", "slice_copy")
def _slice(c: Call) -> int:
    i = c.args[0]
    d = c.dim(1, "dim", i)
    start, stop = _bounds(c.b.shape(i)[d], c.arg(2, "start"), c.arg(3, "end"))
    return c.b.slice(i, d, start, stop, int(c.arg(4, "step", 1)), c.shape)


@_handles("narrow")
def _narrow(c: Call) -> int:
    i, start, length = c.args[0], c.args[2], c.args[3]
    return c.b.slice(i, c.dim(1, "dim", i), start, start + length, 1, c.shape)


def _select_bounds(size: Dim, index: int) -> tuple[Dim, Dim]:
    if index >= 0:
        return index, index + 1
    if isinstance(size, int):
        return size + index, size + index + 1
    return (size[0], size[1] + index), (size[0], size[1] + index + 1)


@_handles("select", "select_copy")
def _select(c: Call) -> int:
    i = c.args[0]
    d = c.dim(1, "dim", i)
    shape = list(c.b.shape(i))
    start, stop = _select_bounds(shape[d], c.args[2])
    shape[d] = 1
    return c.b.reshape(c.b.slice(i, d, start, stop, 1, shape), c.shape)


@_handles("select_backward")
def _select_backward(c: Call) -> int:
    grad, _, d, index = c.args
    d %= len(c.shape)
    start, stop = _select_bounds(c.shape[d], index)
    shape = list(c.shape)
    shape[d] = 1
    return c.b.embed(c.b.reshape(grad, shape), d, start, stop, 1, c.shape)


@_handles("slice_backward")
def _slice_backward(c: Call) -> int:
    grad, _, d, start, stop, step = c.args
    d %= len(c.shape)
    start, stop = _bounds(c.shape[d], start, stop)
    return c.b.embed(grad, d, start, stop, step, c.shape)


def _scatter(c: Call, base: int, source: int, d: int, start: Dim, stop: Dim, step: int) -> int:
    """`base` with `source` in `start:stop:step`: base masked out, plus the embedded source."""
    ones = c.b.full(1.0, c.b.shape(source))
    mask = c.b.embed(ones, d, start, stop, step, c.shape)
    placed = c.b.embed(c.b.cast(source), d, start, stop, step, c.shape)
    hit = c.b.pointwise("ne", [mask, Number(0)], c.shape, "bool")
    return c.b.pointwise("where", [hit, placed, c.b.cast(base)], c.shape)


@_handles("slice_scatter")
def _slice_scatter(c: Call) -> int:
    base, source = c.args[:2]
    d = c.dim(2, "dim", base)
    start, stop = _bounds(c.shape[d], c.arg(3, "start"), c.arg(4, "end"))
    return _scatter(c, base, source, d, start, stop, int(c.arg(5, "step", 1)))


@_handles("select_scatter")
def _select_scatter(c: Call) -> int:
    base, source, d, index = c.args
    d %= len(c.shape)
    start, stop = _select_bounds(c.shape[d], index)
    shape = list(c.shape)
    shape[d] = 1
    return _scatter(c, base, c.b.reshape(source, shape), d, start, stop, 1)


@_handles("cat")
def _cat(c: Call) -> int:
    parts = [int(i) for i in c.args[0] if c.b.shape(i) != (0,)]
    if c.dtype == "float":
        parts = [c.b.cast(i) for i in parts]
    return c.b.add("cat", parts, c.shape, c.dtype, dim=int(c.arg(1, "dim", 0)) % len(c.shape))


@_handles("stack")
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


@_handles("split", "split_with_sizes", "unbind")
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


@_handles("getitem")
def _getitem(c: Call) -> int:
    return int(c.args[0][c.args[1]])


@_handles("flip")
def _flip(c: Call) -> int:
    i = c.args[0]
    return c.b.add("flip", [i], c.shape, c.dtype, dims=tuple(c.dims(i)))


@_handles("constant_pad_nd")
def _pad(c: Call) -> int:
    i, pads = c.b.cast(c.args[0]), c.args[1]
    value = c.arg(2, "value")
    if value:
        raise Unsupported("padding with another value than zero")
    shape = list(c.b.shape(i))
    for k in range(len(pads) // 2):
        before, after = pads[2 * k], pads[2 * k + 1]
        d = len(shape) - 1 - k
        size = shape[d]
        if not isinstance(size, int):
            raise Unsupported("padding of the batch dimension")
        if before < 0 or after < 0:
            shape[d] = size + min(before, 0) + min(after, 0)
            i = c.b.slice(i, d, max(-before, 0), size + min(after, 0), 1, shape)
            size = shape[d]  # type: ignore[assignment]
        before, after = max(before, 0), max(after, 0)
        shape[d] = size + before + after
        i = c.b.embed(i, d, before, before + size, 1, shape)
    return i


# ---- creation ---------------------------------------------------------------------------------------


@_handles("full", "full_like", "new_full", "scalar_tensor")
def _full(c: Call) -> int:
    position = {"full": 1, "full_like": 1, "new_full": 2, "scalar_tensor": 0}[c.op]
    return c.b.full(c.args[position], c.shape, c.dtype)


@_handles(
    "zeros",
    "zeros_like",
    "new_zeros",
    "empty",
    "empty_like",
    "new_empty",
    "new_empty_strided",
    "empty_strided",
)
def _zeros(c: Call) -> int:
    return c.b.full(0, c.shape, c.dtype)


@_handles("ones", "ones_like", "new_ones")
def _ones(c: Call) -> int:
    return c.b.full(1, c.shape, c.dtype)


# ---- matrix products --------------------------------------------------------------------------------


@_handles("mm", "bmm")
def _mm(c: Call) -> int:
    return c.b.add(c.op, [c.b.cast(i) for i in c.args[:2]], c.shape)


@_handles("addmm", "baddbmm")
def _addmm(c: Call) -> int:
    base, x, y = c.args[:3]
    out = c.b.add("mm" if c.op == "addmm" else "bmm", [x, y], c.shape)
    alpha, beta = Number(c.kwargs.get("alpha", 1)), Number(c.kwargs.get("beta", 1))
    out = c.b.pointwise("mul", [out, alpha], c.shape)
    base = c.b.pointwise("mul", [base, beta], c.b.shape(base))
    return c.b.pointwise("add", [base, out], c.shape)


@_handles("mv", "dot")
def _mv(c: Call) -> int:
    x, v = c.args
    rows = c.b.shape(x) if c.op == "mv" else (1, *c.b.shape(x))
    column = c.b.reshape(v, [*c.b.shape(v), 1])
    return c.b.reshape(c.b.add("mm", [c.b.reshape(x, rows), column], [rows[0], 1]), c.shape)


# ---- indexing by constants --------------------------------------------------------------------------


def _constant_index(c: Call, i: Any) -> tuple[list[int], tuple[Dim, ...]]:
    node = c.b.nodes[i]
    if node.op != "const" or node.dtype != "int":
        raise Unsupported("an index that is computed: use indices that do not depend on the state")
    return list(node.attr("data")), node.shape


@_handles("index_select")
def _index_select(c: Call) -> int:
    i, d = c.args[0], c.dim(1, "dim", c.args[0])
    size = c.b.shape(i)[d]
    index = [k % size if isinstance(size, int) else k for k in _constant_index(c, c.args[2])[0]]
    return c.b.add("index_select", [i], c.shape, c.b.dtype(i), dim=d, index=tuple(index))


def _one_index(c: Call, indices: Sequence[Any], shape: Sequence[Dim]) -> tuple[int, list[int], tuple[Dim, ...]]:
    where = [d for d, index in enumerate(indices) if index is not None]
    if len(where) != 1:
        raise Unsupported("indexing of several dimensions at once: index one after the other")
    size = shape[where[0]]
    if not isinstance(size, int):
        raise Unsupported("indexing along the batch dimension: fields act on the features of each sample")
    data, index_shape = _constant_index(c, indices[where[0]])
    return where[0], [k % size for k in data], index_shape


@_handles("index")
def _index(c: Call) -> int:
    i = c.args[0]
    shape = c.b.shape(i)
    d, index, _ = _one_index(c, c.args[1], shape)
    flat = [*shape[:d], len(index), *shape[d + 1 :]]
    return c.b.reshape(c.b.add("index_select", [i], flat, c.b.dtype(i), dim=d, index=tuple(index)), c.shape)


@_handles("index_put", "_unsafe_index_put")
def _index_put(c: Call) -> int:
    base, indices, values = c.args[:3]
    d, index, index_shape = _one_index(c, indices, c.shape)
    region = [*c.shape[:d], *index_shape, *c.shape[d + 1 :]]
    flat = [*c.shape[:d], len(index), *c.shape[d + 1 :]]
    values = c.b.reshape(c.b.expand(c.b.cast(values), region), flat)
    added = c.b.add("index_add", [values], c.shape, dim=d, index=tuple(index))
    if c.arg(3, "accumulate", False):
        return c.b.pointwise("add", [base, added], c.shape)
    if len(set(index)) != len(index):
        raise Unsupported("assignment to an index that occurs twice")
    hits = c.b.add("index_add", [c.b.full(1.0, flat)], c.shape, dim=d, index=tuple(index))
    hit = c.b.pointwise("ne", [hits, Number(0)], c.shape, "bool")
    return c.b.pointwise("where", [hit, added, base], c.shape)


@_handles("diagonal")
def _diagonal(c: Call) -> int:
    i = c.args[0]
    return c.b.reshape(_take_diagonal(c, i, c.b.shape(i), "index_select"), c.shape)


@_handles("diagonal_backward")
def _diagonal_backward(c: Call) -> int:
    grad, shape = c.args[0], c.args[1]
    return _take_diagonal(c, grad, tuple(shape), "index_add")


def _take_diagonal(c: Call, i: int, shape: tuple[Dim, ...], op: str) -> int:
    at = 1 if op == "index_select" else 2
    offset, a, d = (int(c.arg(at + k, n, v)) for k, (n, v) in enumerate(_DIAGONAL))
    rank = len(shape)
    if sorted((a % rank, d % rank)) != [rank - 2, rank - 1] or a % rank > d % rank:
        raise Unsupported("the diagonal of other than the last two dimensions")
    rows, columns = shape[-2:]
    if not isinstance(rows, int) or not isinstance(columns, int):
        raise Unsupported("a diagonal along the batch dimension")
    index = tuple(r * columns + r + offset for r in range(rows) if 0 <= r + offset < columns)
    flat = [*shape[:-2], rows * columns]
    if op == "index_select":
        return c.b.add(op, [c.b.reshape(i, flat)], [*shape[:-2], len(index)], dim=rank - 2, index=index)
    return c.b.reshape(c.b.add(op, [i], flat, dim=rank - 2, index=index), shape)


_DIAGONAL = (("offset", 0), ("dim1", 0), ("dim2", 1))


def target_name(target: Any) -> str:
    """The name of an fx target: the ATen operation without its overload."""
    if target is operator.getitem:
        return "getitem"
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.split("::")[-1]
    return str(getattr(target, "__name__", target))
