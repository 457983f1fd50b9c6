"""A jump of the state by a user's `affect`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.errors import InputError
from pynode.field._time import time_as_asked
from pynode.problem.state import State
from pynode.problem.units import Args, Units
from pynode.transforms import is_wrapped

__all__ = ["jumped"]


def jumped(
    affect: Callable[..., Any],
    form: State,
    units: Units,
    t: Tensor,
    z: Sequence[Tensor],
    args: Args,
    index: Tensor | None,
) -> tuple[Tensor, ...]:
    """The states of units after an `affect`, differentiable.

    Args:
        affect: `affect(t, z, *args)`, and `index` where there is one.
        form: the form of the state.
        units: the units.
        t: `(units,)`.
        z: the states, `(units, batch of a unit, *features)` each.
        args: the conditioning tensors.
        index: `(units,)`, what it takes as `index`; `None` if it does not.

    Raises:
        InputError: it returns something else than a state.
    """
    n = len(z)

    def one(t: Tensor, given: tuple[Tensor, ...], args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z, rest = given[:n], given[n:]
        own = [x.clone() for x in z]  # for the user to change in place
        keywords = {"index": rest[0]} if rest else {}
        out = affect(time_as_asked(affect, t, z[0].dtype), form.state(own), *form.args(args), **keywords)
        return _tensors(form, out, z)

    found = units.over(one, t, z if index is None else (*z, index), args, affect)
    for name, x in zip(form.names, found, strict=True):
        if not is_wrapped(x) and not bool(torch.isfinite(x).all()):
            raise InputError(
                f"affect must return finite numbers, got {x[~torch.isfinite(x)][0].item()} in {name} at "
                f"t={float(t.detach()[0]):g}. Look at what computes them"
            )
    return found


def _tensors(form: State, out: Any, z: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The tensors of a state that an `affect` has returned."""
    expected = form.parts(form.state(z))
    parts = form.returned(out)
    if parts is None:
        got = f"{type(out).__name__} with {list(out)}" if isinstance(out, dict) else type(out).__name__
        raise InputError(f"affect must return a state in the form of z: expected {form.kind.__name__}, got {got}")
    for name, x, like in zip(form.names, parts, expected, strict=True):
        if not isinstance(x, Tensor) or x.shape != like.shape or x.dtype != like.dtype or x.device != like.device:
            got = f"{tuple(x.shape)}, {x.dtype} on {x.device}" if isinstance(x, Tensor) else type(x).__name__
            raise InputError(
                f"affect must return the state with its shapes and dtypes: expected {tuple(like.shape)}, {like.dtype} "
                f"on {like.device} for {name}, got {got}"
            )
    return tuple(form.tensors(form.whole(list(parts))))
