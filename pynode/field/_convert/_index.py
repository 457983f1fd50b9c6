"""Indexing, by constants or by where an extremum is."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from pynode.field._convert._call import Call, Unsupported, handles
from pynode.field._graph import Dim, Number

_COMPUTED = "an index that is computed: use indices that do not depend on the state"
_OF_BATCH = "indexing along the batch dimension: fields act on the features of each sample"


def _constant_index(c: Call, i: int) -> tuple[list[int], tuple[Dim, ...]]:
    """The values and the shape of an index that is known."""
    node = c.b.nodes[i]
    if node.op == "const" and node.dtype == "bool" and len(node.shape) == 1:  # a mask
        places = [k for k, hit in enumerate(node.attr("data")) if hit]
        return places, (len(places),)
    if node.op != "const" or node.dtype != "int":
        raise Unsupported(_COMPUTED)
    return list(node.attr("data")), node.shape


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


def _one_hot(c: Call, i: int, d: int, index: int) -> int:
    """Whether each entry along `d` is the one that the index, as an extremum gives it, points to."""
    if c.b.shape(index)[d] != 1 or c.b.dtype(index) != "float":
        raise Unsupported(_COMPUTED)
    return c.b.pointwise("eq", [c.b.positions(c.b.shape(i), d), index], c.b.shape(i), "bool")


@handles("gather")
def _gather(c: Call) -> int:
    i, d, index = c.b.cast(c.args[0]), c.dim(1, "dim", c.args[0]), c.args[2]
    shape = c.b.shape(i)
    row = _row(c, index, d)
    if row is not None and all(c.shape[k] == shape[k] for k in range(len(shape)) if k != d):
        return c.b.add("index_select", [i], c.shape, dim=d, index=row)
    picked = c.b.pointwise("where", [_one_hot(c, i, d, index), i, Number(0.0)], shape)
    return c.b.reduce("sum", picked, [d], True, c.shape)


@handles("scatter", "scatter_add")
def _scatter(c: Call) -> int:
    base, d, index = c.b.cast(c.args[0]), c.dim(1, "dim", c.args[0]), c.args[2]
    source = c.operand(c.args[3])
    row = _row(c, index, d)
    if row is not None and c.op == "scatter_add" and isinstance(source, int):
        return c.b.pointwise("add", [base, c.b.add("index_add", [source], c.shape, dim=d, index=row)], c.shape)
    hit = _one_hot(c, base, d, index)
    if c.op == "scatter":
        return c.b.pointwise("where", [hit, source, base], c.shape)
    added = c.b.pointwise("where", [hit, source, Number(0.0)], c.shape)
    return c.b.pointwise("add", [base, added], c.shape)


@handles("index_select")
def _index_select(c: Call) -> int:
    i, d = c.args[0], c.dim(1, "dim", c.args[0])
    (size,) = _sizes(c.b.shape(i)[d : d + 1])
    index = tuple(k % size for k in _constant_index(c, c.args[2])[0])
    return c.b.add("index_select", [i], c.shape, c.b.dtype(i), dim=d, index=index)


# ---- along adjacent dimensions: x[:, i, j] ----------------------------------------------------------


class _Indexed:
    """`x[..., i, j, ..., :]` with known indices, as one index of the dimensions i, j, … made one.

    Attributes:
        dim: the first of them.
        flat: the shape of `x` with those dimensions made one.
        index: positions along that one.
        picked: the shape of the result with one dimension for the index.
        region: the shape of the result.
    """

    def __init__(self, c: Call, indices: Sequence[Any], shape: Sequence[Dim]) -> None:
        where = [d for d, index in enumerate(indices) if index is not None]
        self.dim, stop = where[0], where[-1] + 1
        if where != list(range(self.dim, stop)):
            raise Unsupported("indexing of dimensions that are not adjacent: index one after the other")
        sizes = _sizes(shape[self.dim : stop])
        known = [_constant_index(c, indices[d]) for d in where]
        rank = max(len(s) for _, s in known)
        shapes = [(*(1,) * (rank - len(s)), *_sizes(s)) for _, s in known]
        common = [max(ns) if min(ns) else 0 for ns in zip(*shapes, strict=True)]
        self.index = tuple(
            _ravel(at, [data for data, _ in known], shapes, sizes) for at in itertools.product(*map(range, common))
        )
        before, after = tuple(shape[: self.dim]), tuple(shape[stop:])
        total = 1
        for n in sizes:
            total *= n
        self.flat: tuple[Dim, ...] = (*before, total, *after)
        self.picked: tuple[Dim, ...] = (*before, len(self.index), *after)
        self.region: tuple[Dim, ...] = (*before, *common, *after)


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
    return c.b.reshape(c.b.add("index_select", [flat], at.picked, c.b.dtype(i), dim=at.dim, index=at.index), c.shape)


@handles("index_put", "_unsafe_index_put")
def _index_put(c: Call) -> int:
    base = c.args[0]
    at = _Indexed(c, c.args[1], c.shape)
    values = c.b.reshape(c.b.expand(c.b.cast(c.args[2]), at.region), at.picked)
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
