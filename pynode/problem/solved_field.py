"""The field that is solved: of the user's state in the form of plain tensors, and of the accumulated running cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pynode.errors import FieldError, InputError
from pynode.field._derived import derived_field
from pynode.field._time import time_as_asked
from pynode.nn._signature import with_time
from pynode.problem.state import State

__all__ = ["solved_field"]


def solved_field(
    field: Callable[..., Any], cost: Callable[..., Tensor] | None, form: State, n_args: int
) -> Callable[..., Any]:
    """The field of the tensors that are solved.

    Args:
        field: the user's field.
        cost: the running cost; its integral is the last tensor of the state, `(batch,)`.
        form: the form of the user's state.
        n_args: how many conditioning tensors there are.

    Raises:
        FieldError: the field takes other arguments.
        InputError: the running cost is not callable.
    """
    if not callable(field):
        return field  # to be refused
    if cost is not None and not callable(cost):
        raise InputError(f"running_cost must be a callable l(t, z, *args) -> (batch,), got {type(cost).__name__}")
    field = with_time(field, n_args)
    return field if cost is None and form.is_plain else derived_field(_rates, field, cost, form)


def _rates(
    field: Callable[..., Any],
    cost: Callable[..., Tensor] | None,
    form: State,
    owner: object,
    t: Tensor,
    tensors: tuple[Tensor, ...],
    *args: Tensor,
) -> tuple[Tensor, ...]:
    n = len(form.names)
    z = form.state(tensors[:n])
    args = form.args(args)
    dtype = tensors[0].dtype
    out = field(time_as_asked(field, t, dtype), z, *args)
    rates = form.rates(out, tensors[:n])
    if cost is None:
        return rates
    rate, expected = cost(time_as_asked(cost, t, dtype), z, *args), () if form.is_single else tensors[-1].shape
    if not isinstance(rate, Tensor) or rate.shape != expected:
        got = tuple(rate.shape) if isinstance(rate, Tensor) else type(rate).__name__
        raise FieldError(
            f"running_cost must return one number per batch entry: expected shape {tuple(expected)}, got {got}. "
            "Sum or average over the features, e.g. (z ** 2).sum(-1)"
        )
    return (*rates, rate.reshape(tensors[-1].shape))
