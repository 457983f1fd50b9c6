"""Whether the dtype in which a field gets the time tells the solver's steps apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.engine.protocol import Problem, Stats
from pynode.errors import InputError
from pynode.field._time import reads_time, time_dtype

__all__ = ["check_recorded", "check_resolution"]

# A step has to be this many times as long as what the dtype resolves: rounding then moves a stage within it by 1/64.
_LEAST = 32


def check_resolution(problem: Problem, stats: Stats, event_reads_time: Callable[[], bool] | None) -> None:
    """Refuse a solution for which rounded times were computed with, and the rounding is no small part of a step.

    A field that does not depend on the time, or that asks for it in double, is not concerned.

    Args:
        problem: the problem that was solved.
        stats: what its steps were.
        event_reads_time: whether the event function computes with the time in the state's dtype; `None` without one.

    Raises:
        InputError: says what the dtype resolves, and what to do.
    """
    dtype = problem.z0[0].dtype
    if dtype == torch.float64:
        return
    t, each, field = problem.t, stats.per_sample, problem.field
    if each is None:
        first, *_, last = t.tolist()
        steps = stats.n_accepted or stats.nfe
        step, size = abs(last - first) / max(steps, 1), max(abs(first), abs(last))
    else:
        counts = (each.nfe if each.n_accepted is None else each.n_accepted).clamp(min=1).to(t.device)
        low, high = t.nan_to_num(torch.inf).amin(1), t.nan_to_num(-torch.inf).amax(1)
        worst = int(((high - low) / counts / torch.maximum(low.abs(), high.abs())).argmin())
        step = float((high - low)[worst] / counts[worst])
        size = max(abs(float(low[worst])), abs(float(high[worst])))

    def field_reads_time() -> bool:
        t0 = (t if t.dim() == 1 else t[0])[0].to(dtype)
        return field.time_dtype == dtype and reads_time(lambda s: field(s, problem.z0, problem.args), t0)

    _refuse(dtype, size, step, "field", field_reads_time)
    if event_reads_time is not None:
        _refuse(dtype, size, step, "event function", event_reads_time)


def check_recorded(
    function: Callable[..., Any],
    state: tuple[Tensor, ...],
    t: Tensor,
    args: Sequence[Tensor],
    is_tuple: bool,
    dt: float | None,
) -> None:
    """The same for steps of a given length that `torch.jit.trace` records.

    Raises:
        InputError: as `check_resolution`.
    """
    dtype = state[0].dtype
    if dt is None or dtype == torch.float64 or time_dtype(function, dtype) != dtype:
        return
    t = t.detach()

    def reads() -> bool:
        z = state if is_tuple else state[0]
        return reads_time(lambda s: function(s, z, *args), t.flatten()[0].to(dtype))

    _refuse(dtype, float(t.abs().max()), dt, "field", reads)


def _refuse(dtype: torch.dtype, size: float, step: float, what: str, reads: Callable[[], bool]) -> None:
    """Refuse steps that times of a dtype do not tell apart, where that matters.

    Args:
        dtype: in which a function gets the time.
        size: how large the times are.
        step: how long the steps are.
        what: the function.
        reads: whether it computes with the time; not asked where that does not matter.

    Raises:
        InputError: says what the dtype resolves, and what to do.
    """
    resolved = torch.finfo(dtype).eps * size
    if step >= _LEAST * resolved or not reads():
        return
    raise InputError(
        f"the {what} computes with t, which it gets in the state's dtype, and around t={size:g} {dtype} tells times "
        f"apart by {resolved:.2g} only, where the steps were {step:.2g} long. Subtract a reference from the times, "
        f"e.g. solve over t - t[0]; or let the {what} compute with t in double (its attribute "
        "time_dtype = torch.float64); or make the state float64"
    )
