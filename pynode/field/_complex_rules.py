"""Arithmetic and functions of complex numbers on pairs of real tensors, and the rules of PyTorch's operations by them.

A part that is zero throughout is left out.
"""

from __future__ import annotations

import cmath
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pynode.field import _fourier

__all__ = ["OF_EITHER_PART", "RULES", "Pair", "is_complex"]


@dataclass(frozen=True)
class Pair:
    """A complex tensor by its parts; `None` is zero throughout, and one of them is a tensor."""

    re: Tensor | None
    im: Tensor | None

    @property
    def some(self) -> Tensor:
        """One of the parts, which have the same shape."""
        part = self.im if self.re is None else self.re
        assert part is not None
        return part

    def each(self, f: Callable[[Tensor], Tensor]) -> Pair:
        """A function that is linear over the real numbers, of either part."""
        return Pair(None if self.re is None else f(self.re), None if self.im is None else f(self.im))

    def full(self) -> tuple[Tensor, Tensor]:
        """Both parts as tensors."""
        zero = torch.zeros_like(self.some)
        return (zero if self.re is None else self.re), (zero if self.im is None else self.im)


def is_complex(x: Any) -> bool:
    if isinstance(x, tuple | list):
        return any(map(is_complex, x))
    return isinstance(x, Pair | complex) or (isinstance(x, Tensor) and x.is_complex())


# ---- parts --------------------------------------------------------------------------------------------------------


def _parts(x: Any) -> tuple[Any, Any]:
    """Real and imaginary part of a pair, a real tensor or a number; `None` is zero."""
    if isinstance(x, Pair):
        return x.re, x.im
    if isinstance(x, complex):
        return (x.real or None), (x.imag or None)
    return x, None


def _plus(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None else a + b


def _minus(a: Any, b: Any) -> Any:
    return (None if b is None else -b) if a is None else a if b is None else a - b


def _times(a: Any, b: Any, product: Callable[[Any, Any], Any] = operator.mul) -> Any:
    return None if a is None or b is None else product(a, b)


def _bilinear(x: Any, y: Any, product: Callable[[Any, Any], Any] = operator.mul) -> Any:
    """The product of two factors, of which one is complex."""
    (a, b), (c, d) = _parts(x), _parts(y)
    re = _minus(_times(a, c, product), _times(b, d, product))
    im = _plus(_times(a, d, product), _times(b, c, product))
    if re is None and im is None:  # a factor is the number 0
        shape = torch.broadcast_shapes(*(part.shape for part in (a, b, c, d) if isinstance(part, Tensor)))
        re = next(part for part in (a, b, c, d) if isinstance(part, Tensor)).new_zeros(shape)
    return Pair(re, im)


def _add(x: Any, y: Any, alpha: Any = 1) -> Pair:
    if alpha != 1:
        y = _bilinear(y, alpha) if is_complex((y, alpha)) else y * alpha
    (a, b), (c, d) = _parts(x), _parts(y)
    tensors = [part for part in (a, b, c, d) if isinstance(part, Tensor)]

    def total(p: Any, q: Any) -> Any:
        if p is None or q is None:  # what one of the two has alone may lack dimensions of the sum
            part = _plus(p, q)
            shape = torch.broadcast_shapes(*(x.shape for x in tensors))
            return tensors[0].new_full(shape, part) if isinstance(part, int | float) else _expanded(part, shape)
        return p + q

    return Pair(total(a, c), total(b, d))


def _expanded(part: Tensor | None, shape: Any) -> Tensor | None:
    return None if part is None else part.expand(shape)


def _negative(x: Any) -> Any:
    return x.each(torch.neg) if isinstance(x, Pair) else -x


def _conjugate(x: Any) -> Any:
    if isinstance(x, Pair):
        return Pair(x.re, None if x.im is None else -x.im)
    return x.conjugate() if isinstance(x, complex) else x


def _square_of_abs(x: Pair) -> Any:
    a, b = _parts(x)
    return _plus(_times(a, a), _times(b, b))


def _div(x: Any, y: Any) -> Pair:
    if not is_complex(y):
        pair: Pair = x.each(lambda part: part / y)
        return pair
    if isinstance(y, complex):
        return _product(x, 1 / y)
    over = _square_of_abs(y)
    return _product(x, _conjugate(y)).each(lambda part: part / over)


def _product(x: Any, y: Any) -> Pair:
    pair: Pair = _bilinear(x, y)
    return pair


def _cat(tensors: Sequence[Any], dim: int = 0) -> Pair:
    pairs = [x if isinstance(x, Pair) else Pair(x, None) for x in tensors]

    def joined(parts: Sequence[Tensor | None]) -> Tensor | None:
        if all(part is None for part in parts):
            return None
        filled = [torch.zeros_like(x.some) if part is None else part for x, part in zip(pairs, parts, strict=True)]
        return torch.cat(filled, dim)

    return Pair(joined([x.re for x in pairs]), joined([x.im for x in pairs]))


def _where(condition: Tensor, x: Any, y: Any) -> Pair:
    (a, b), (c, d) = _parts(x), _parts(y)

    def chosen(p: Any, q: Any) -> Any:
        return torch.where(condition, 0.0 if p is None else p, 0.0 if q is None else q)

    like = next(part for part in (a, b, c, d) if isinstance(part, Tensor))
    return Pair(chosen(a, c).to(like.dtype), chosen(b, d).to(like.dtype))


def _equal(x: Any, y: Any) -> Tensor:
    equal = [_part_or_zero(a) == _part_or_zero(b) for a, b in zip(_parts(x), _parts(y), strict=True)]
    return torch.logical_and(*equal) if all(isinstance(e, Tensor) for e in equal) else equal[0] & equal[1]


def _part_or_zero(part: Any) -> Any:
    return 0.0 if part is None else part


def _to_copy(x: Any, dtype: torch.dtype | None = None, **_: Any) -> Any:
    re, im = _parts(x)
    if dtype is None:
        return x
    if not dtype.is_complex:  # torch itself warns that the imaginary part is lost
        return torch.zeros_like(im, dtype=dtype) if re is None else re.to(dtype)
    return Pair(re, im).each(lambda part: part.to(dtype.to_real()))


def _filled(make: Callable[..., Tensor]) -> Callable[..., Pair]:
    """`make(number, dtype=…)`, of a complex number."""

    def rule(*args: Any, dtype: torch.dtype | None = None, memory_format: Any = None, **keywords: Any) -> Pair:
        *before, value = (x.some if isinstance(x, Pair) else x for x in args)
        keywords |= {} if dtype is None else {"dtype": dtype.to_real()}
        re, im = (make(*before, 0.0 if part is None else part, **keywords) for part in _parts(value))
        return Pair(re, im)

    return rule


def _constant(value: float) -> Callable[..., Pair]:
    """A tensor like another one, full of a real number."""

    def rule(x: Any, *, dtype: torch.dtype | None = None, **_: Any) -> Pair:
        some = x.some if isinstance(x, Pair) else x
        return Pair(torch.full_like(some, value, dtype=some.dtype if dtype is None else dtype.to_real()), None)

    return rule


def _both(f: Callable[..., Tensor]) -> Callable[..., Pair]:
    """The rule of what puts one tensor into another, part by part."""

    def rule(x: Any, y: Any, *args: Any, **keywords: Any) -> Pair:
        x, y = _pair(x), _pair(y)
        if x.im is None and y.im is None:
            return Pair(f(x.some, y.some, *args, **keywords), None)
        return Pair(*(f(a, b, *args, **keywords) for a, b in zip(x.full(), y.full(), strict=True)))

    return rule


# ---- functions ----------------------------------------------------------------------------------------------------


def _of(f: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Callable[[Any], Pair]:
    """The rule of an analytic function, given by the parts of its value at `a + i b`."""
    return lambda x: Pair(*f(*_pair(x).full()))


def _pair(x: Any) -> Pair:
    return x if isinstance(x, Pair) else Pair(x, None)


def _abs(x: Pair) -> Tensor:
    a, b = x.re, x.im
    if a is None or b is None:
        return x.some.abs()
    return torch.hypot(a, b)


def _polar(radius: Tensor, angle: Tensor) -> Pair:
    return Pair(radius * torch.cos(angle), radius * torch.sin(angle))


def _exp(x: Any) -> Pair:
    a, b = _pair(x).full()
    return _polar(a.exp(), b)


def _log(x: Any) -> Pair:
    a, b = _pair(x).full()
    return Pair((a * a + b * b).log() / 2, torch.atan2(b, a))


def _sqrt(x: Any) -> Pair:
    a, b = _pair(x).full()
    return _polar(torch.hypot(a, b).sqrt(), torch.atan2(b, a) / 2)


def _tanh(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    a = a.clamp(-_FLAT, _FLAT)  # the hyperbolic functions would be infinite
    over = (2 * a).cosh() + (2 * b).cos()
    return (2 * a).sinh() / over, (2 * b).sin() / over


_FLAT = 22.0  # a real part from which on tanh is 1 to the last bit, and cosh is finite in float32


_MOST = 16  # an exponent up to which powers are products


def _pow(x: Any, y: Any) -> Any:
    if isinstance(y, int | float) and float(y).is_integer() and abs(y) <= _MOST and isinstance(x, Pair):
        if y == 0:
            return Pair(torch.ones_like(x.some), None)
        result: Any = None
        for digit in bin(abs(int(y)))[2:]:
            result = None if result is None else _product(result, result)
            if digit == "1":
                result = x if result is None else _product(result, x)
        return result if y > 0 else _reciprocal(result)
    if isinstance(x, int | float | complex):
        return _exp(_bilinear(y, cmath.log(x)))
    return _exp(_bilinear(_log(x), y))


def _reciprocal(x: Pair) -> Pair:
    over = _square_of_abs(x)
    return _conjugate(x).each(lambda part: part / over)


def _affine(out: Any, product: Pair, beta: Any = 1, alpha: Any = 1) -> Pair:
    return _add(out if beta == 1 else _bilinear(_pair(out), beta), product, alpha)


RULES: dict[str, Callable[..., Any]] = {
    "view_as_complex": lambda x: Pair(x[..., 0], x[..., 1]),
    "view_as_real": lambda x: torch.stack(x.full(), -1),
    "sym_size": lambda x, dim: x.some.shape[dim],
    "complex": lambda re, im: Pair(re, im),
    "polar": _polar,
    "_conj": _conjugate,
    "_conj_physical": _conjugate,
    "conj_physical": _conjugate,
    "resolve_conj": lambda x: x,
    "real": lambda x: x.full()[0],
    "imag": lambda x: x.full()[1],
    "abs": _abs,
    "angle": lambda x: torch.atan2(*reversed(x.full())),
    "add": _add,
    "sub": lambda x, y, alpha=1: _add(x, _negative(y), alpha),
    "rsub": lambda x, y, alpha=1: _add(y, _negative(x), alpha),
    "neg": _negative,
    "mul": _bilinear,
    "div": _div,
    "reciprocal": _reciprocal,
    "square": lambda x: _product(x, x),
    "pow": _pow,
    "mm": lambda x, y: _bilinear(x, y, torch.mm),
    "bmm": lambda x, y: _bilinear(x, y, torch.bmm),
    "mv": lambda x, y: _bilinear(x, y, torch.mv),
    "dot": lambda x, y: _bilinear(x, y, torch.dot),
    "addmm": lambda out, x, y, **factors: _affine(out, _bilinear(x, y, torch.mm), **factors),
    "baddbmm": lambda out, x, y, **factors: _affine(out, _bilinear(x, y, torch.bmm), **factors),
    "cat": _cat,
    "where": _where,
    "eq": _equal,
    "ne": lambda x, y: torch.logical_not(_equal(x, y)),
    "copy": lambda x, y: _pair(y).each(lambda part: part.expand(x.some.shape)),
    "exp": _exp,
    "log": _log,
    "sqrt": _sqrt,
    "sin": _of(lambda a, b: (a.sin() * b.cosh(), a.cos() * b.sinh())),
    "cos": _of(lambda a, b: (a.cos() * b.cosh(), -a.sin() * b.sinh())),
    "sinh": _of(lambda a, b: (a.sinh() * b.cos(), a.cosh() * b.sin())),
    "cosh": _of(lambda a, b: (a.cosh() * b.cos(), a.sinh() * b.sin())),
    "tanh": _of(_tanh),
    "_fft_r2c": lambda x, *how: Pair(*_fourier.of_real(x, *how)),
    "_fft_c2c": lambda x, *how: Pair(*_fourier.of_complex(_pair(x).full(), *how)),
    "_fft_c2r": lambda x, *how: _fourier.to_real(_pair(x).full(), *how),
    "slice_scatter": _both(torch.slice_scatter),
    "select_scatter": _both(torch.select_scatter),
    **dict.fromkeys(
        ("zeros", "empty", "empty_strided"),
        lambda size, *_, dtype: Pair(torch.zeros(size, dtype=dtype.to_real(), device="cpu"), None),
    ),
    **dict.fromkeys(
        ("new_zeros", "new_empty", "new_empty_strided"),
        lambda x, size, *_, dtype=None: Pair(_pair(x).some.new_zeros(size), None),
    ),
    "_to_copy": _to_copy,
    "scalar_tensor": _filled(torch.scalar_tensor),
    "full": _filled(torch.full),
    "full_like": _filled(torch.full_like),
    "zeros_like": _constant(0.0),
    "empty_like": _constant(0.0),
    "ones_like": _constant(1.0),
}

# Operations that are linear over the real numbers in their first operand, the only one.
OF_EITHER_PART = {"alias", "clone", "detach", "lift_fresh", "lift_fresh_copy", "contiguous", "sum", "mean", "cumsum"}
OF_EITHER_PART |= {"view", "_unsafe_view", "reshape", "permute", "t", "transpose", "expand", "unsqueeze", "squeeze"}
OF_EITHER_PART |= {"select", "slice", "select_backward", "slice_backward", "diagonal", "diagonal_backward", "repeat"}
OF_EITHER_PART |= {"index", "index_select", "gather", "flip", "roll", "constant_pad_nd", "unfold", "unfold_backward"}
