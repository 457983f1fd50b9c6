"""The error for an integration that failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pynode.engine.protocol import PerSample, Retcode
from pynode.errors import SolveError
from pynode.problem.state import State

__all__ = ["failure"]


def failure(
    field: Callable[..., Any],
    form: State,
    solver: str,
    engine: str,
    retcode: Retcode,
    failed_at: tuple[Tensor, tuple[Tensor, ...]],
    each: PerSample | None,
    culprit: str = "",
) -> SolveError:
    """The error for an integration that failed at this time, of independent samples the first that did.

    Where that was at an event, `culprit` names it.
    """
    name, (t_end, z_end), which, at = getattr(field, "__qualname__", type(field).__name__), failed_at, "", failed_at[0]
    if each is not None:
        b = next(b for b, code in enumerate(each.retcode) if code is not Retcode.SUCCESS)
        which, at = f", sample {b},", t_end[b]
    return SolveError(
        f"{name} with {solver} on the {engine} engine{which} stopped at t={float(at):.6g}"
        f"{f', at {culprit}' if culprit else ''}: {retcode.value}",
        retcode,
        t_end,
        form.state(z_end),
    )
