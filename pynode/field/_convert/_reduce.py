"""Reductions, extrema and running sums."""

from __future__ import annotations

import math
from typing import Any

from pynode.field._convert._call import Call, handles
from pynode.field._graph import Number, Operand
from pynode.field._shapes import product


@handles("sum", "amax", "amin")
def _reduce(c: Call) -> int:
    i = c.b.cast(c.args[0])
    return c.b.reduce(c.op, i, c.dims(i), bool(c.arg(2, "keepdim", False)), c.shape)


@handles("mean")
def _mean(c: Call) -> int:
    i = c.b.cast(c.args[0])
    dims = c.dims(i)
    total = c.b.reduce("sum", i, dims, bool(c.arg(2, "keepdim", False)), c.shape)
    for d in (c.b.shape(i)[d] for d in dims):
        total = c.b.pointwise("div", [total, Number(d)], c.shape)
    return total


@handles("var", "var_mean")
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
    count = product(sizes)
    correction = c.keyword("correction", 1)
    c.keyword("keepdim")  # the result's shape tells
    less = count - correction if isinstance(count, int) else (count[0], count[1] - correction)
    var = c.b.reshape(c.b.pointwise("div", [var, Number(less)], kept), c.shape)
    return var if c.op == "var" else [var, c.b.reshape(mean, c.shape)]


@handles("linalg_vector_norm")
def _vector_norm(c: Call) -> int:
    i, order = c.b.cast(c.args[0]), float(c.arg(1, "ord", 2))
    shape = c.b.shape(i)
    dims = c.dims(i, 2)
    size = c.b.pointwise("abs", [i], shape)
    if order == math.inf or order == -math.inf:
        return c.b.reduce("amax" if order > 0 else "amin", size, dims, bool(c.arg(3, "keepdim", False)), c.shape)
    if order == 0:
        hit = c.b.cast(c.b.pointwise("ne", [i, Number(0)], shape, "bool"))
        return c.b.reduce("sum", hit, dims, bool(c.arg(3, "keepdim", False)), c.shape)
    power: list[Operand] = [i, i] if order == 2 else [size, Number(order)]
    terms = size if order == 1 else c.b.pointwise("mul" if order == 2 else "pow", power, shape)
    total = c.b.reduce("sum", terms, dims, bool(c.arg(3, "keepdim", False)), c.shape)
    if order == 2:
        return c.b.pointwise("sqrt", [total], c.shape)
    return c.b.pointwise("pow", [total, Number(1 / order)], c.shape)


@handles("max", "min")
def extremum(c: Call) -> Any:
    """The extremum along a dimension, and where it is first met (as a number)."""
    i, op = c.b.cast(c.args[0]), f"a{c.op}"
    if len(c.args) == 1:
        return c.b.reduce(op, i, c.dims(i), False, c.shape)
    d = c.dim(1, "dim", i)
    shape = c.b.shape(i)
    kept = [1 if k == d else n for k, n in enumerate(shape)]
    top = c.b.reduce(op, i, [d], True, kept)
    hit = _reached(c, i, top)
    where = c.b.pointwise("where", [hit, c.b.positions(shape, d), Number(math.inf)], shape)
    first = c.b.reduce("amin", where, [d], True, kept)
    return [c.b.reshape(top, c.shape), c.b.reshape(first, c.shape)]


def _reached(c: Call, i: int, extremum: int) -> int:
    """Where a tensor is its extremum, which is not a number where an entry is none."""
    shape = c.b.shape(i)
    hits = c.b.pointwise("eq", [i, extremum], shape, "bool"), c.b.pointwise("isnan", [i], shape, "bool")
    return c.b.pointwise("logical_or", hits, shape, "bool")


@handles("any", "all")
def _any(c: Call) -> int:
    """Of truth values: whatever is not zero is true."""
    i = c.b.cast(c.b.truth(c.args[0]))
    op = "amax" if c.op == "any" else "amin"
    return c.b.reduce(op, i, c.dims(i), bool(c.arg(2, "keepdim", False)), c.shape)


@handles("cummax", "cummin")
def _running_extremum(c: Call) -> list[int]:
    """The extremum so far along a dimension, and where it was last met (as a number)."""
    i = c.b.cast(c.args[0])
    shape, d = c.b.shape(i), c.dim(1, "dim", c.args[0])
    if not shape:
        return [i, c.b.full(0.0, ())]
    extremum = c.b.add(c.op, [i], shape, dim=d)
    hit = _reached(c, i, extremum)
    where = c.b.pointwise("where", [hit, c.b.positions(shape, d), Number(-1.0)], shape)
    return [extremum, c.b.add("cummax", [where], shape, dim=d)]


@handles("prod", "cumsum", "cumprod", "logcumsumexp")
def _along(c: Call) -> int:
    i = c.b.cast(c.args[0])
    if len(c.args) < 2:
        flat = c.b.reshape(i, [product(c.b.shape(i))])
        return c.b.add(c.op, [flat], c.shape, dim=0, keepdim=False)
    extra: dict[str, Any] = {"keepdim": bool(c.arg(2, "keepdim", False))} if c.op == "prod" else {}
    return c.b.add(c.op, [i], c.shape, dim=c.dim(1, "dim", i), **extra)
