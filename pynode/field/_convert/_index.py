"""Indexing, by constants and by what the field computes.

A computed index is a tensor of numbers; one that points outside gives NaN, which no solver goes on with.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from pynode.field._convert._call import Call, Unsupported, handles
from pynode.field._graph import Dim, Number, Operand
from pynode.field._shapes import product

_COMPUTED = "a mask that is computed: use torch.where, whose result has a known size"
_OF_BATCH = "indexing along the batch dimension: fields act on the features of each sample"


def _constant_index(c: Call, i: int) -> tuple[list[int], tuple[Dim, ...]]:
    """The values and the shape of an index that is known."""
    node = c.b.nodes[i]
    if node.dtype == "bool":
        if node.op != "const" or len(node.shape) != 1:
            raise Unsupported(_COMPUTED)
        places = [k for k, hit in enumerate(node.attr("data")) if hit]
        return places, (len(places),)
    return list(node.attr("data")), node.shape


def _is_known(c: Call, i: int) -> bool:
    """Whether an index is a constant; a mask counts as one."""
    return c.b.nodes[i].op == "const" or c.b.dtype(i) == "bool"


def _sizes(shape: Sequence[Dim]) -> list[int]:
    sizes = [n for n in shape if isinstance(n, int)]
    if len(sizes) != len(shape):
        raise Unsupported(_OF_BATCH)
    return sizes


# ---- along one dimension: gather, scatter -----------------------------------------------------------


def _row(c: Call, index: int, d: int) -> tuple[int, ...] | None:
    """An index that is the same in all but dimension `d`, `None` for any other."""
    node, rank = c.b.nodes[index], len(c.b.shape(index))
    if node.op == "expand":
        node = c.b.nodes[node.inputs[0]]  # type: ignore[index]
    if node.op != "const" or node.dtype != "int":
        return None
    shape = (*(1,) * (rank - len(node.shape)), *node.shape)
    others = [n for k, n in enumerate(shape) if k != d]
    return tuple(node.attr("data")) if all(n == 1 for n in others) and shape[d] == c.b.shape(index)[d] else None


def _picked(c: Call, i: int, d: int, index: int) -> int:
    """The entries along dimension `d` that an index of the same rank points to."""
    index = c.b.cast(index)
    return c.b.add("gather", [_cut(c, i, c.b.shape(index), d), index], c.b.shape(index), dim=d)


def _cut(c: Call, i: int, shape: Sequence[Dim], but: int | None = None) -> int:
    """The first entries along each dimension, as many as a shape has (an index may be shorter), or all along `but`."""
    for k, n in enumerate(shape):
        own = c.b.shape(i)
        if k != but and n != own[k]:
            i = c.b.slice(i, k, 0, n, 1, [*own[:k], n, *own[k + 1 :]])
    return i


def _padded(c: Call, i: int, d: int, shape: Sequence[Dim]) -> int:
    """A tensor, filled up with zeros to a shape in all but dimension `d`."""
    for k, n in enumerate(c.b.shape(i)):
        if k != d and n != shape[k]:
            i = c.b.embed(i, k, 0, n, 1, [*c.b.shape(i)[:k], shape[k], *c.b.shape(i)[k + 1 :]])
    return i


def _added(c: Call, source: int, d: int, index: int, shape: Sequence[Dim]) -> int:
    """Zeros of a shape to which the source is added where an index of its shape points to along `d`."""
    index = c.b.cast(index)
    source = _cut(c, source, c.b.shape(index))
    inner = [n if k != d else shape[d] for k, n in enumerate(c.b.shape(index))]
    return _padded(c, c.b.add("scatter_add", [source, index], inner, dim=d), d, shape)


@handles("gather")
def _gather(c: Call) -> int:
    i, d, index = c.b.cast(c.args[0]), c.dim(1, "dim", c.args[0]), c.args[2]
    shape = c.b.shape(i)
    c.keyword("sparse_grad")  # how the gradient is kept
    if not shape:
        return i
    row = _row(c, index, d)
    if row is not None and all(c.shape[k] == shape[k] for k in range(len(shape)) if k != d):
        return c.b.add("index_select", [i], c.shape, dim=d, index=row)
    return _picked(c, i, d, index)


@handles("scatter_add")
def _scatter_add(c: Call) -> int:
    base, d, index, source = c.b.cast(c.args[0]), c.dim(1, "dim", c.args[0]), c.args[2], c.b.cast(c.args[3])
    row = _row(c, index, d)
    if row is not None and c.b.shape(index) == c.b.shape(source) and _padded(c, source, d, c.shape) == source:
        return c.b.pointwise("add", [base, c.b.add("index_add", [source], c.shape, dim=d, index=row)], c.shape)
    return c.b.pointwise("add", [base, _added(c, source, d, index, c.shape)], c.shape)


@handles("scatter_reduce")
def _scatter_reduce(c: Call) -> int:
    if c.args[4] != "sum" or not c.arg(5, "include_self", True):
        raise Unsupported(f"scatter_reduce with {c.args[4]!r}: use scatter_add")
    return _scatter_add(c)


@handles("scatter")
def _scatter(c: Call) -> int:
    """The last of the entries that point to one place stays there, as in torch on a processor."""
    base, d, index = c.b.cast(c.args[0]), c.dim(1, "dim", c.args[0]), c.b.cast(c.args[2])
    if c.keyword("reduce") is not None:
        raise Unsupported("scatter with a reduction: use scatter_add")
    source = c.operand(c.args[3])
    return _replaced(c, base, c.b.cast(source) if isinstance(source, int) else source, d, index, c.shape)


def _replaced(c: Call, base: int, source: Operand, d: int, index: int, shape: Sequence[Dim]) -> int:
    """A tensor of a shape with entries of the source, or a number, in the places that an index points to along `d`."""
    picked = c.b.shape(index)
    hit = c.b.pointwise("ne", [_added(c, c.b.full(1.0, picked), d, index, shape), Number(0)], shape, "bool")
    if not isinstance(source, int) or not c.b.shape(source):
        return c.b.pointwise("where", [hit, source, base], shape)
    source = _cut(c, source, picked)
    inner = [n if k != d else shape[d] for k, n in enumerate(picked)]
    placed = _padded(c, c.b.add("scatter", [source, index], inner, dim=d), d, shape)
    return c.b.pointwise("where", [hit, placed, base], shape)


@handles("index_select")
def _index_select(c: Call) -> int:
    i, d = c.args[0], c.dim(1, "dim", c.args[0])
    if not _is_known(c, c.args[2]):
        return _rows(c, c.b.cast(i), d, c.args[2], c.shape)
    (size,) = _sizes(c.b.shape(i)[d : d + 1])
    index = tuple(k % size for k in _constant_index(c, c.args[2])[0])
    return c.b.add("index_select", [i], c.shape, c.b.dtype(i), dim=d, index=index)


def _rows(c: Call, i: int, d: int, index: int, shape: Sequence[Dim]) -> int:
    """The slices along `d` at the places of a one-dimensional index; `shape` is the result's."""
    return _picked(c, i, d, _spread(c, index, d, shape))


def _spread(c: Call, index: int, d: int, shape: Sequence[Dim]) -> int:
    """A one-dimensional index, the same for all entries of a shape but along `d`."""
    column = c.b.reshape(c.b.cast(index), [n if k == d else 1 for k, n in enumerate(shape)])
    return c.b.expand(column, shape)


@handles("embedding")
def _embedding(c: Call) -> int:
    table, index = c.b.cast(c.args[0]), c.args[1]
    (count, width) = _sizes(c.b.shape(table))
    flat = [product(c.b.shape(index)), width]
    if _is_known(c, index):
        at = tuple(k % count for k in _constant_index(c, index)[0])
        return c.b.reshape(c.b.add("index_select", [table], flat, dim=0, index=at), c.shape)
    return c.b.reshape(_rows(c, table, 0, c.b.reshape(index, flat[:1]), flat), c.shape)


@handles("embedding_dense_backward")
def _embedding_dense_backward(c: Call) -> int:
    grad, index, _, padding, scale = c.args
    if scale:
        raise Unsupported("an embedding that is scaled by frequency: leave scale_grad_by_freq at False")
    flat = [product(c.b.shape(index)), c.shape[1]]
    grad = c.b.reshape(grad, flat)
    if _is_known(c, index):
        at = _constant_index(c, index)[0]
        kept = [k for k, place in enumerate(at) if place != padding]
        if len(kept) < len(at):
            picked = [len(kept), c.shape[1]]
            grad = c.b.add("index_select", [grad], picked, dim=0, index=tuple(kept))
        return c.b.add("index_add", [grad], c.shape, dim=0, index=tuple(at[k] for k in kept))
    index = c.b.reshape(c.b.cast(index), flat[:1])
    if padding >= 0:
        hit = c.b.reshape(c.b.pointwise("eq", [index, Number(padding)], flat[:1], "bool"), [flat[0], 1])
        grad = c.b.pointwise("where", [hit, Number(0.0), grad], flat)
    return _added(c, grad, 0, _spread(c, index, 0, flat), c.shape)


# ---- along adjacent dimensions: x[:, i, j] ----------------------------------------------------------


class _Indexed:
    """`x[..., i, j, ..., :]` as one index of the dimensions i, j, … made one.

    Attributes:
        dim: the first of them.
        flat: the shape of `x` with those dimensions made one.
        index: positions along that one; where an index is computed, a node of the shape `picked`.
        picked: the shape of the result with one dimension for the index.
        region: the shape of the result.
    """

    index: tuple[int, ...] | int

    def __init__(self, c: Call, indices: Sequence[Any], shape: Sequence[Dim]) -> None:
        where = [d for d, index in enumerate(indices) if index is not None]
        self.dim, stop = where[0], where[-1] + 1
        if where != list(range(self.dim, stop)):
            raise Unsupported("indexing of dimensions that are not adjacent: index one after the other")
        computed = not all(_is_known(c, indices[d]) for d in where)
        common = _together([c.b.shape(indices[d]) for d in where]) if computed else ()
        rows: tuple[Dim, ...] = ()  # of x[arange(n), i]: each sample has indices of its own
        if self.dim == 0 and len(where) > 1 and _counts(c, indices[0], shape[0], common):
            self.dim, where, rows, common = 1, where[1:], (shape[0],), common[1:]
        sizes = [*shape[:1]] if computed and where == [0] else _sizes(shape[self.dim : stop])
        before, after = tuple(shape[: self.dim]), tuple(shape[stop:])
        self.flat: tuple[Dim, ...] = (*before, product(sizes), *after)
        if computed:
            count = product(common)
            self.picked: tuple[Dim, ...] = (*before, count, *after)
            self.region: tuple[Dim, ...] = (*before, *common, *after)
            position = _position(c, [indices[d] for d in where], sizes, (*rows, *common))
            ones = [1] * (len(before) - len(rows)), [1] * len(after)
            self.index = c.b.expand(c.b.reshape(position, [*rows, *ones[0], count, *ones[1]]), self.picked)
            return
        fixed = _sizes(sizes)
        known = [_constant_index(c, indices[d]) for d in where]
        rank = max(len(s) for _, s in known)
        shapes = [(*(1,) * (rank - len(s)), *_sizes(s)) for _, s in known]
        whole = [max(ns) if min(ns) else 0 for ns in zip(*shapes, strict=True)]
        self.index = tuple(
            _ravel(at, [data for data, _ in known], shapes, fixed) for at in itertools.product(*map(range, whole))
        )
        self.picked = (*before, len(self.index), *after)
        self.region = (*before, *whole, *after)


def _counts(c: Call, index: int, size: Dim, common: Sequence[Dim]) -> bool:
    """Whether an index counts the samples, along the first dimension of what indices are broadcast to."""
    node = c.b.nodes[index]
    own = (*(1,) * (len(common) - len(node.shape)), *node.shape)
    if node.op == "reshape":
        node = c.b.nodes[node.inputs[0]]  # type: ignore[index]
    return node.op == "arange" and not isinstance(size, int) and own == (size, *(1,) * (len(common) - 1))


def _together(shapes: Sequence[tuple[Dim, ...]]) -> tuple[Dim, ...]:
    """The shape that tensors of these shapes are broadcast to."""
    rank = max(map(len, shapes))
    padded = [(*(1,) * (rank - len(s)), *s) for s in shapes]
    return tuple(next((n for n in ns if n != 1), 1) for ns in zip(*padded, strict=True))


def _position(c: Call, indices: Sequence[int], sizes: Sequence[Dim], shape: tuple[Dim, ...]) -> int:
    """Where in the indexed dimensions, counted as one, computed indices point to; they may count from the end."""
    if math.prod(n for n in sizes if isinstance(n, int)) > 2**24:
        raise Unsupported("a computed index into more than 2**24 entries, which a float32 cannot count")
    position: int | None = None
    for index, size in zip(indices, sizes, strict=True):
        own = c.b.shape(index)
        place = c.b.cast(index)
        low = c.b.pointwise("lt", [place, Number(0)], own, "bool")
        from_end = c.b.pointwise("add", [place, Number(size)], own)
        place = c.b.pointwise("where", [low, from_end, place], own)
        # Beyond a dimension's end is no other row's entry.
        outside = c.b.pointwise("ge", [place, Number(size)], own, "bool")
        below = c.b.pointwise("lt", [place, Number(0)], own, "bool")
        outside = c.b.pointwise("logical_or", [outside, below], own, "bool")
        place = c.b.pointwise("where", [outside, Number(math.nan), place], own)
        if position is not None:
            position = c.b.pointwise("mul", [position, Number(size)], c.b.shape(position))
            place = c.b.pointwise("add", [position, place], _together([c.b.shape(position), own]))
        position = place
    assert position is not None
    return c.b.expand(position, shape)


def _ravel(
    at: Sequence[int], data: Sequence[Sequence[int]], shapes: Sequence[Sequence[int]], sizes: Sequence[int]
) -> int:
    """Where in the indexed dimensions, counted as one, the indices point at this place of their common shape."""
    position = 0
    for values, shape, size in zip(data, shapes, sizes, strict=True):
        place = 0
        for k, n in zip(at, shape, strict=True):
            place = place * n + (k if n > 1 else 0)
        position = position * size + values[place] % size
    return position


@handles("index", "_unsafe_index")
def _index(c: Call) -> int:
    i = c.args[0]
    at = _Indexed(c, c.args[1], c.b.shape(i))
    flat = c.b.reshape(i, at.flat)
    if isinstance(at.index, int):
        return c.b.reshape(_picked(c, c.b.cast(flat), at.dim, at.index), c.shape)
    return c.b.reshape(c.b.add("index_select", [flat], at.picked, c.b.dtype(i), dim=at.dim, index=at.index), c.shape)


@handles("index_put", "_unsafe_index_put")
def _index_put(c: Call) -> int:
    base, indices = c.args[0], c.args[1]
    if (
        len(indices) == 1
        and indices[0] is not None
        and c.b.dtype(indices[0]) == "bool"
        and c.b.nodes[indices[0]].op != "const"
    ):
        mask, value = indices[0], c.b.cast(c.args[2])
        if all(n == 1 for n in c.b.shape(value)) and not c.arg(3, "accumulate", False):
            behind = [1] * (len(c.shape) - len(c.b.shape(mask)))
            mask = c.b.reshape(mask, [*c.b.shape(mask), *behind])
            return c.b.pointwise("where", [mask, c.b.reshape(value, ()), base], c.shape)
    at = _Indexed(c, c.args[1], c.shape)
    values = c.b.reshape(c.b.expand(c.b.cast(c.args[2]), at.region), at.picked)
    if isinstance(at.index, int):
        if not c.arg(3, "accumulate", False):
            flat = c.b.reshape(c.b.cast(base), at.flat)
            return c.b.reshape(_replaced(c, flat, values, at.dim, at.index, at.flat), c.shape)
        added = _added(c, values, at.dim, at.index, at.flat)
        return c.b.pointwise("add", [base, c.b.reshape(added, c.shape)], c.shape)
    added = c.b.reshape(c.b.add("index_add", [values], at.flat, dim=at.dim, index=at.index), c.shape)
    if c.arg(3, "accumulate", False):
        return c.b.pointwise("add", [base, added], c.shape)
    if len(set(at.index)) != len(at.index):
        raise Unsupported("assignment to an index that occurs twice")
    hits = c.b.add("index_add", [c.b.full(1.0, at.picked)], at.flat, dim=at.dim, index=at.index)
    hit = c.b.pointwise("ne", [c.b.reshape(hits, c.shape), Number(0)], c.shape, "bool")
    return c.b.pointwise("where", [hit, added, base], c.shape)


# ---- diagonals --------------------------------------------------------------------------------------

_DIAGONAL = (("offset", 0), ("dim1", 0), ("dim2", 1))


@handles("diagonal")
def _diagonal(c: Call) -> int:
    i = c.args[0]
    return c.b.reshape(_take_diagonal(c, i, c.b.shape(i), "index_select"), c.shape)


@handles("diagonal_scatter")
def _diagonal_scatter(c: Call) -> int:
    """`base` with its diagonal replaced: minus what is there, plus what should be."""
    base, source = c.b.cast(c.args[0]), c.b.cast(c.args[1])
    hit = _take_diagonal(c, c.b.full(1.0, c.b.shape(source)), c.shape, "index_add")
    hit = c.b.pointwise("ne", [hit, Number(0)], c.shape, "bool")
    return c.b.pointwise("where", [hit, _take_diagonal(c, source, c.shape, "index_add"), base], c.shape)


@handles("diagonal_backward")
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
