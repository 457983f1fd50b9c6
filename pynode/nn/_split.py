"""A field as the sum of a stiff part and one that is not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from pynode.errors import FieldError
from pynode.nn._signature import takes_state_alone

__all__ = ["PARTS", "Split", "part_alone"]

PARTS = ("stiff", "nonstiff")

# The part that the next evaluation of a `Split` is to be of.
_PART: ContextVar[str | None] = ContextVar("part", default=None)


@contextlib.contextmanager
def part_alone(part: str) -> Iterator[None]:
    """The context in which the first `Split` that is evaluated returns one part alone, and all others their sums.

    Raises:
        FieldError: none was evaluated.
    """
    token = _PART.set(part)
    try:
        yield
        if _PART.get() is not None:
            raise FieldError("the field evaluates no Split: pass the pynode.Split itself to solve")
    finally:
        _PART.reset(token)


class Split(nn.Module):
    """The field f(t, z) = stiff(t, z) + nonstiff(t, z), for implicit-explicit (IMEX) solvers.

    The solvers `kencarp3`, `kencarp4` and `kencarp5` of the julia engine take the stiff part implicitly and the other
    explicitly (C. A. Kennedy and M. H. Carpenter, Appl. Numer. Math. 44, 2003): Newton's method has the Jacobian of the
    stiff part alone, and the other part, which may be the expensive one, is evaluated once a stage. Large terms that
    balance one another belong in the same part. All other solvers, and the torch engine, solve the sum, as that of any
    field; so do the adjoints, `sensitivity="forward"` and second derivatives, which are those of the solution, to the
    tolerances. `Stats.nfe` counts the evaluations of both parts.

    Args:
        stiff: `f(t, z, *args)`, a module or a callable, or one of the state alone, `f(z)`; it returns what a field
            does, in the form of the state.
        nonstiff: the rest, likewise.

    Shapes:
        z: the state, `(batch, *features)`, or a tuple or dictionary of such; the result has its form.

    Raises:
        FieldError: a part is not callable; or, when it is evaluated, the parts differ in form or shape.
    """

    def __init__(self, stiff: Callable[..., Any], nonstiff: Callable[..., Any]) -> None:
        super().__init__()
        for name, part in zip(PARTS, (stiff, nonstiff), strict=True):
            if not callable(part):
                raise FieldError(
                    f"the {name} part of a Split must be an nn.Module or a callable f(t, z, *args), got "
                    f"{type(part).__name__}"
                )
        self.stiff, self.nonstiff = stiff, nonstiff
        self._alone = {name: takes_state_alone(part) for name, part in zip(PARTS, (stiff, nonstiff), strict=True)}
        if any(getattr(part, "time_dtype", None) is torch.float64 for part in (stiff, nonstiff)):
            self.time_dtype = torch.float64

    def forward(self, t: Tensor, z: Any, *args: Any) -> Any:
        """dz/dt, the sum of the parts."""
        part = _PART.get()
        if part is not None:
            _PART.set(None)
            return self._rate(part, t, z, args)
        return _sum(self._rate("stiff", t, z, args), self._rate("nonstiff", t, z, args))

    def _rate(self, part: str, t: Tensor, z: Any, args: tuple[Any, ...]) -> Any:
        f: Callable[..., Any] = getattr(self, part)
        return f(z) if self._alone[part] else f(t, z, *args)


def _sum(a: Any, b: Any) -> Any:
    """The sum of two states of one form."""
    if isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape:
        return a + b
    if isinstance(a, Mapping) and isinstance(b, Mapping) and a.keys() == b.keys():
        return {key: _sum(x, b[key]) for key, x in a.items()}
    if isinstance(a, tuple | list) and isinstance(b, tuple | list) and len(a) == len(b):
        parts = [_sum(x, y) for x, y in zip(a, b, strict=True)]
        return type(a)(*parts) if hasattr(a, "_fields") else tuple(parts)
    raise FieldError(
        f"the parts of a Split must return rates of one form and shape: the stiff part gave {_form(a)}, the other "
        f"{_form(b)}"
    )


def _form(x: Any) -> str:
    return f"a tensor of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
