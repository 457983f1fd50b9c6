"""Sorting, ranks, and places in a table."""

from __future__ import annotations

from typing import Any

from pynode.field._convert._call import Call, Unsupported, handles
from pynode.field._convert._reduce import extremum
from pynode.field._graph import Dim, Number
from pynode.field._shapes import product


def _sorted(c: Call, i: int, d: int, descending: bool) -> tuple[int, int]:
    """The values along a dimension in their order, and where they were."""
    shape = c.b.shape(i)
    if not shape:
        return i, c.b.full(0.0, ())
    order = c.b.add("argsort", [i], shape, dim=d, descending=descending)
    return c.b.add("gather", [i, order], shape, dim=d), order


@handles("sort", "argsort")
def _sort(c: Call) -> Any:
    # sort(x, dim, descending), sort(x, *, stable, dim, descending)
    i = c.b.cast(c.args[0])
    given = [a for a in c.args[1:] if not isinstance(a, bool)]
    d = int(c.keyword("dim", given[0] if given else -1)) % max(len(c.b.shape(i)), 1)
    last = c.args[-1] if len(c.args) > 1 and isinstance(c.args[-1], bool) else False
    c.keyword("stable")  # always
    values, order = _sorted(c, i, d, bool(c.keyword("descending", last)))
    return order if c.op == "argsort" else [values, order]


@handles("topk")
def _topk(c: Call) -> list[int]:
    i = c.b.cast(c.args[0])
    k, d = int(c.args[1]), c.dim(2, "dim", i, -1)
    both = _sorted(c, i, d, bool(c.arg(3, "largest", True)))
    return [c.b.slice(x, d, 0, k, 1, c.shape) for x in both] if c.b.shape(i) else list(both)


@handles("kthvalue", "median")
def _kth(c: Call) -> Any:
    """One value of the sorted ones, and where it was."""
    i = c.b.cast(c.args[0])
    shape = c.b.shape(i)
    if c.op == "median" and len(c.args) == 1:
        flat = c.b.reshape(i, [product(shape)])
        return int(_kth(Call(c.b, c.op, [flat, 0], {}, c.shape, "float"))[0])
    d = c.dim(1 if c.op == "median" else 2, "dim", i, -1)
    size: Dim = shape[d] if shape else 1
    both = _sorted(c, i, d, False)
    if not shape:
        return list(both)
    one = [*shape[:d], 1, *shape[d + 1 :]]
    if c.op == "median" and isinstance(size, tuple):
        last = c.b.add("full", [Number((size[0], size[1] - 1))], ())
        middle = c.b.pointwise("div", [last, Number(2.0)], ())
        place = c.b.expand(c.b.pointwise("floor", [middle], ()), one)
        return [c.b.reshape(c.b.add("gather", [x, place], one, dim=d), c.shape) for x in both]
    k = (size - 1) // 2 if isinstance(size, int) and c.op == "median" else int(c.args[1]) - 1
    return [c.b.reshape(c.b.slice(x, d, k, k + 1, 1, one), c.shape) for x in both]


@handles("argmax", "argmin")
def _argmax(c: Call) -> int:
    i = c.b.cast(c.args[0])
    d = c.arg(1, "dim")
    if not c.b.shape(i):
        return c.b.full(0.0, ())
    if d is None:
        i, d = c.b.reshape(i, [product(c.b.shape(i))]), 0
    values = Call(c.b, c.op[3:], [i, d, bool(c.arg(2, "keepdim", False))], {}, c.shape, "float")
    return int(extremum(values)[1])


@handles("searchsorted", "bucketize")
def _searchsorted(c: Call) -> int:
    """How many entries of a sorted sequence lie below each value, those equal to it included where `right`."""
    knots, x = (c.args[0], c.args[1]) if c.op == "searchsorted" else (c.args[1], c.args[0])
    right = bool(c.keyword("right", False)) or c.keyword("side") == "right"
    c.keyword("out_int32")
    if c.keyword("sorter") is not None:
        raise Unsupported("searchsorted with a sorter: sort the sequence before the solve")
    knots = c.b.cast(knots)
    operand = c.operand(x)
    value = c.b.full(operand.value, c.shape) if isinstance(operand, Number) else c.b.cast(operand)  # type: ignore[arg-type]
    if not isinstance(c.b.shape(knots)[-1], int):
        raise Unsupported("a table along the batch dimension: fields act on the features of each sample")
    return c.b.add("searchsorted", [knots, value], c.shape, right=right)
