"""Times of a model's own: from which it solves, whatever it is asked for, and the state there as a function of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.field._time import time_dtype
from pynode.nn._signature import with_time
from pynode.transforms import is_followed

__all__ = ["from_own_start", "moved"]


def from_own_start(start: Tensor, t: Tensor) -> tuple[Tensor, bool]:
    """The times of a model's solve, from its own first one, and whether that is the first of those asked for.

    Args:
        start: `(1,)`, without a gradient.
        t: `(time,)`.
    """
    given = bool(t[0] == start)
    if given and not is_followed(t):
        return t, given
    return torch.cat([start, t[int(given) :]]), given


def moved(field: Callable[..., Any], z: Tensor, t: Tensor, args: Sequence[Any] = ()) -> Tensor:
    """The state that is `z` at time `t`, with its derivatives to `t`, to the second order.

    A model solves from its own first time, and from one piece to the next at times of its own. A time that the user
    asks for and that equals one of these is no time of the solve's, whose start it would move. So the state goes on
    from there by a midpoint step of length zero, whose derivatives to its length are those of the solution.

    Args:
        field: f(t, z, *args), as `pynode.solve` takes it.
        z: `(batch, …)`.
        t: 0-d.
        args: what else the field gets.
    """
    if not is_followed(t):
        return z
    f, real = with_time(field, len(args)), z.dtype.to_real()
    dtype, at = time_dtype(field, real), t.detach()
    step = t - at
    half = z + (step / 2).to(real) * f(at.to(dtype), z, *args)
    out: Tensor = z + step.to(real) * f((at + step / 2).to(dtype), half, *args)
    return out
