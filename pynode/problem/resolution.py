"""Whether the dtype in which a field gets the time tells the solver's steps apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.engine.protocol import Problem, Stats
from pynode.errors import InputError
from pynode.field._time import first_time, reads_time, time_dtype

__all__ = ["check_recorded", "check_resolution"]

# A step has to be this many times as long as what the dtype resolves: rounding then moves a stage within it by 1/64.
_LEAST = 32


def check_resolution(
    problem: Problem,
    times: Sequence[float],
    stats: Stats,
    event_reads_time: Callable[[], bool] | None,
) -> None:
    """Refuse a solution for which rounded times were computed with, and the rounding is no small part of a step.

    Steps have to be long beside the rounding of times in the state's dtype, but for fields that do not depend on the
    time, or ask for it in double.

    Args:
        problem: the problem that was solved.
        times: the numbers in its times, where these are shared by all samples.
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
        first, last = times[0], times[-1]
        steps = stats.n_accepted or stats.nfe
        step, size = abs(last - first) / max(steps, 1), max(abs(first), abs(last))
    else:
        counts = (each.nfe if each.n_accepted is None else each.n_accepted).clamp(min=1).to(t.device)
        low, high = t.nan_to_num(torch.inf).amin(1), t.nan_to_num(-torch.inf).amax(1)
        worst = int(((high - low) / counts / torch.maximum(low.abs(), high.abs())).argmin())
        step = float((high - low)[worst] / counts[worst])
        size = max(abs(float(low[worst])), abs(float(high[worst])))
    if _tells_apart(dtype, size, step):
        return
    t0 = first_time(t).to(dtype)
    if field.time_dtype == dtype and reads_time(lambda s: field(s, problem.z0, problem.args), t0):
        raise _unresolved(dtype, size, step, "field")
    if event_reads_time is not None and event_reads_time():
        raise _unresolved(dtype, size, step, "event function")


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
    size, z = float(t.detach().abs().max()), state if is_tuple else state[0]
    if _tells_apart(dtype, size, dt):
        return
    if reads_time(lambda s: function(s, z, *args), first_time(t.detach()).to(dtype)):
        raise _unresolved(dtype, size, dt, "field")


def _tells_apart(dtype: torch.dtype, size: float, step: float) -> bool:
    """Whether rounding of times of this size to a dtype is a small part of steps of this length."""
    return step >= _LEAST * torch.finfo(dtype).eps * size


def _unresolved(dtype: torch.dtype, size: float, step: float, what: str) -> InputError:
    resolved = torch.finfo(dtype).eps * size
    return InputError(
        f"the {what} computes with t, which it gets in the state's dtype, and around t={size:g} {dtype} tells times "
        f"apart by {resolved:.2g} only, where the steps were {step:.2g} long. Subtract a reference from the times, "
        f"e.g. solve over t - t[0]; or let the {what} compute with t in double (its attribute "
        "time_dtype = torch.float64); or make the state float64"
    )
