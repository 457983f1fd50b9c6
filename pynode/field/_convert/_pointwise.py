"""Arithmetic, comparisons, conversions and new tensors."""

from __future__ import annotations

from pynode.field._convert._call import HANDLERS, Call, Ref, Unsupported, handles
from pynode.field._graph import Number, Operand
from pynode.field._ops import POINTWISE

_TESTS = {"lt", "le", "gt", "ge", "eq", "ne", "isnan", "isinf"}
_LOGICAL = {"logical_and", "logical_or", "logical_xor", "logical_not"}
_RENAMED = {"bitwise_and": "logical_and", "bitwise_or": "logical_or", "bitwise_not": "logical_not"}
_RENAMED |= {"bitwise_xor": "logical_xor", "sgn": "sign", "fmax": "maximum", "fmin": "minimum"}


_OF_BOOLS = {"mul": "logical_and", "minimum": "logical_and", "add": "logical_or", "maximum": "logical_or"}


def _pointwise(c: Call) -> int:
    return _apply(c, c.op, [c.operand(x) for x in c.args])


def _apply(c: Call, op: str, inputs: list[Operand]) -> int:
    """A pointwise node of the call's shape; bools in arithmetic become numbers, numbers in logic bools."""
    op = _RENAMED.get(op, op)
    if c.dtype == "bool":
        op = _OF_BOOLS.get(op, op)
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


@handles("add", "sub", "rsub")
def _add(c: Call) -> int:
    x, y = c.operand(c.args[0]), c.operand(c.args[1])
    alpha = c.arg(2, "alpha", 1)
    if c.op == "rsub":
        x, y = y, x
    if alpha != 1:
        scaled = Call(c.b, "mul", [], {}, c.b.shape(y) if isinstance(y, int) else (), c.dtype)
        y = _apply(scaled, "mul", [y, Number(alpha)])
    return _apply(c, "add" if c.op == "add" else "sub", [x, y])


@handles("exp2")
def _exp2(c: Call) -> int:
    return _apply(c, "pow", [Number(2.0), c.operand(c.args[0])])


@handles("div")
def _div(c: Call) -> int:
    out = _apply(c, "div", [c.operand(x) for x in c.args[:2]])
    mode = c.kwargs.get("rounding_mode")
    return out if mode is None else _apply(c, mode, [out])


@handles("clamp", "clamp_min", "clamp_max")
def _clamp(c: Call) -> int:
    x = c.operand(c.args[0])
    low = c.arg(1, "min") if c.op != "clamp_max" else None
    high = c.arg(2 if c.op == "clamp" else 1, "max") if c.op != "clamp_min" else None
    for bound, op in ((low, "maximum"), (high, "minimum")):
        if bound is not None:
            x = _apply(c, op, [x, c.operand(bound)])
    return int(x)  # type: ignore[arg-type]


@handles("alias", "clone", "detach", "lift_fresh_copy", "lift_fresh", "contiguous", "positive")
def _identity(c: Call) -> int:
    return int(c.args[0])


@handles("_to_copy", "convert_element_type", "to")
def _convert(c: Call) -> int:
    i = c.args[0]
    if c.b.dtype(i) == c.dtype:
        return int(i)
    if c.dtype == "float":
        return c.b.cast(i)
    if c.dtype == "bool":
        return c.b.pointwise("ne", [i, Number(0)], c.shape, "bool")
    raise Unsupported(f"a conversion from {c.b.dtype(i)} to {c.dtype}: keep the field in the state's dtype")


@handles("copy")
def _copy(c: Call) -> int:
    return c.b.expand(c.b.cast(c.args[1]), c.shape)


@handles("full", "full_like", "new_full", "scalar_tensor")
def _full(c: Call) -> int:
    position = {"full": 1, "full_like": 1, "new_full": 2, "scalar_tensor": 0}[c.op]
    value = c.args[position]
    if isinstance(value, Ref):
        return c.b.expand(c.b.cast(value), c.shape)
    return c.b.full(value, c.shape, c.dtype)


@handles(
    "zeros",
    "zeros_like",
    "new_zeros",
    "empty",
    "empty_like",
    "new_empty",
    "new_empty_strided",
    "empty_strided",
    "empty_permuted",
)
def _zeros(c: Call) -> int:
    return c.b.full(0, c.shape, c.dtype)


@handles("arange")
def _arange(c: Call) -> int:
    """Numbers as many as the batch is large: others are constants."""
    start, step = (c.args[0] if len(c.args) > 1 else 0), (c.args[2] if len(c.args) > 2 else 1)
    scaled = c.b.pointwise("mul", [c.b.positions(c.shape, 0), Number(step)], c.shape)
    return c.b.pointwise("add", [scaled, Number(start)], c.shape)


@handles("ones", "ones_like", "new_ones")
def _ones(c: Call) -> int:
    return c.b.full(1, c.shape, c.dtype)
