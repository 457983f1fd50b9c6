"""Arithmetic, comparisons, conversions and new tensors."""

from __future__ import annotations

from pynode.field._convert._call import HANDLERS, Call, Ref, Unsupported, handles
from pynode.field._graph import Number, Operand
from pynode.field._ops import POINTWISE

_TESTS = {"lt", "le", "gt", "ge", "eq", "ne", "isnan", "isinf"}
_LOGICAL = {"logical_and", "logical_or", "logical_xor", "logical_not"}
_BITWISE = {"bitwise_and": "&", "bitwise_or": "|", "bitwise_xor": "^", "bitwise_not": "~"}
_OF_BOOLS = {"mul": "logical_and", "minimum": "logical_and", "add": "logical_or", "maximum": "logical_or"}


def _pointwise(c: Call) -> int:
    return _apply(c, c.op, [c.operand(x) for x in c.args])


def _apply(c: Call, op: str, inputs: list[Operand]) -> int:
    """A pointwise node of the call's shape; bools in arithmetic become numbers, numbers in logic bools."""
    if c.dtype == "bool":
        op = _OF_BOOLS.get(op, op)
    if op in _LOGICAL:
        inputs = [c.b.truth(i) if isinstance(i, int) else c.b.full(bool(i.value), (), "bool") for i in inputs]
    elif op != "where" or c.dtype != "bool":
        first = 1 if op == "where" else 0
        inputs[first:] = [c.b.cast(i) if isinstance(i, int) else i for i in inputs[first:]]
    of_bools = op in _LOGICAL or op in _TESTS or (op == "where" and c.dtype == "bool")
    return c.b.pointwise(op, inputs, c.shape, "bool" if of_bools else "float")


for _name in POINTWISE:
    HANDLERS[_name] = _pointwise


@handles("sign", "sgn")
def _sign(c: Call) -> int:
    """That of what is not a number is 0 in torch."""
    x = c.operand(c.args[0])
    missing = c.b.pointwise("isnan", [x], c.shape, "bool")
    return c.b.pointwise("where", [missing, Number(0.0), _apply(c, "sign", [x])], c.shape)


@handles("fmax", "fmin")
def _of_numbers(c: Call) -> int:
    """The extremum of what is a number; of two that are none, it is none."""
    op = "maximum" if c.op == "fmax" else "minimum"
    x, y = c.operand(c.args[0]), c.operand(c.args[1])
    if c.dtype == "bool":
        return _apply(c, op, [x, y])
    x, y = c.b.cast(int(x)), c.b.cast(int(y))  # type: ignore[arg-type]
    missing = [c.b.pointwise("isnan", [i], c.b.shape(i), "bool") for i in (x, y)]
    first = c.b.pointwise("where", [missing[0], y, x], c.shape)
    return c.b.pointwise(op, [first, c.b.pointwise("where", [missing[1], x, y], c.shape)], c.shape)


@handles(*_BITWISE)
def _bitwise(c: Call) -> int:
    """Of truth values; of integers the complement, which is that of all numbers."""
    inputs = [c.operand(x) for x in c.args]
    if c.dtype == "bool":
        return _apply(c, c.op.replace("bitwise", "logical"), inputs)
    if c.op == "bitwise_not":
        return _apply(c, "sub", [Number(-1), *inputs])
    raise Unsupported(
        f"{c.op} ({_BITWISE[c.op]}) of integers, whose bits a graph does not have: write it with arithmetic (n % 2 "
        "for n & 1), or make truth values of the integers (n != 0)"
    )


@handles("pow")
def _pow(c: Call) -> int:
    """Of integers to negative powers, torch has the integer part, and 0 for those of 0."""
    x, y = c.operand(c.args[0]), c.operand(c.args[1])
    found = _apply(c, "pow", [x, y])
    if not c.integers or (isinstance(y, Number) and float(y.value) >= 0):  # type: ignore[arg-type]
        return found
    infinite = c.b.pointwise("isinf", [found], c.shape, "bool")
    return _apply(c, "trunc", [c.b.pointwise("where", [infinite, Number(0.0), found], c.shape)])


@handles("round")
def _round(c: Call) -> int:
    """To a number of decimals by way of the power of ten, as torch does."""
    decimals, x = int(c.keyword("decimals", 0)), c.operand(c.args[0])
    if not decimals:
        return _apply(c, "round", [x])
    there, back = ("mul", "div") if decimals > 0 else ("div", "mul")
    scale = Number(10.0 ** abs(decimals))
    return _apply(c, back, [_apply(c, "round", [_apply(c, there, [x, scale])]), scale])


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
    x, y = c.operand(c.args[0]), c.operand(c.args[1])
    out = _apply(c, "div", [x, y])
    mode = c.keyword("rounding_mode")
    if mode == "floor":
        return _floor_of_quotient(c, x, y, out)
    return out if mode is None else _apply(c, mode, [out])


def _floor_of_quotient(c: Call, x: Operand, y: Operand, quotient: int) -> int:
    """As torch has it, by way of the remainder, which is exact where a quotient is rounded: 1.0 // 0.1 is 9."""
    b, shape = c.b, c.shape
    y = b.cast(y) if isinstance(y, int) else b.add("full", [y], ())
    rest = _apply(c, "fmod", [x, y])
    whole = b.pointwise("div", [_apply(c, "sub", [x, rest]), y], shape)
    negative = [b.pointwise("lt", [i, Number(0)], b.shape(i), "bool") for i in (y, rest)]
    below = b.pointwise("logical_xor", negative, shape, "bool")
    below = b.pointwise("logical_and", [below, b.pointwise("ne", [rest, Number(0)], shape, "bool")], shape, "bool")
    whole = b.pointwise("where", [below, b.pointwise("sub", [whole, Number(1.0)], shape), whole], shape)
    low = b.pointwise("floor", [whole], shape)
    short = b.pointwise("gt", [b.pointwise("sub", [whole, low], shape), Number(0.5)], shape, "bool")
    found = b.pointwise("where", [short, b.pointwise("add", [low, Number(1.0)], shape), low], shape)
    # A zero has the sign of the quotient, and a quotient by zero is what it is.
    zero = b.pointwise("mul", [Number(0.0), quotient], shape)
    found = b.pointwise("where", [b.pointwise("eq", [whole, Number(0)], shape, "bool"), zero, found], shape)
    by_zero = b.pointwise("eq", [y, Number(0)], b.shape(y), "bool")
    return b.pointwise("where", [by_zero, quotient, found], shape)


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
        return c.b.truth(i)
    raise Unsupported(f"a conversion from {c.b.dtype(i)} to {c.dtype}: keep the field in the state's dtype")


@handles("copy")
def _copy(c: Call) -> int:
    source = c.b.cast(c.args[1])
    if c.integers:
        source = c.b.pointwise("trunc", [source], c.b.shape(source))
    return c.b.expand(source, c.shape)


@handles("full", "full_like", "new_full", "scalar_tensor")
def _full(c: Call) -> int:
    position = {"full": 1, "full_like": 1, "new_full": 2, "scalar_tensor": 0}[c.op]
    value = c.args[position]
    if isinstance(value, Ref):
        return c.b.expand(c.b.cast(value), c.shape)
    return c.b.full(int(value) if c.integers else value, c.shape, c.dtype)


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
