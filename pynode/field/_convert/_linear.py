"""Products of matrices."""

from __future__ import annotations

from pynode.field._convert._call import Call, handles
from pynode.field._graph import Number


@handles("mm", "bmm")
def _mm(c: Call) -> int:
    return c.b.add(c.op, [c.b.cast(i) for i in c.args[:2]], c.shape)


@handles("addmm", "baddbmm")
def _addmm(c: Call) -> int:
    base, x, y = c.args[:3]
    out = c.b.add("mm" if c.op == "addmm" else "bmm", [c.b.cast(x), c.b.cast(y)], c.shape)
    alpha, beta = Number(c.keyword("alpha", 1)), Number(c.keyword("beta", 1))
    out = c.b.pointwise("mul", [out, alpha], c.shape)
    if beta.value == 0:  # what is no number in the base has no effect
        return out
    base = c.b.pointwise("mul", [base, beta], c.b.shape(base))
    return c.b.pointwise("add", [base, out], c.shape)


@handles("mv", "dot")
def _mv(c: Call) -> int:
    x, v = c.args
    rows = c.b.shape(x) if c.op == "mv" else (1, *c.b.shape(x))
    column = c.b.reshape(v, [*c.b.shape(v), 1])
    return c.b.reshape(c.b.add("mm", [c.b.reshape(x, rows), column], [rows[0], 1]), c.shape)
