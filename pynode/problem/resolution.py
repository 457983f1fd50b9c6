"""Whether the dtype in which a field gets the time tells the solver's steps apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.engine.protocol import Problem, Stats
from pynode.errors import InputError
from pynode.field._time import first_time, reads_time, time_dtype
from pynode.transforms import example

__all__ = ["check_recorded", "check_resolution"]

# A step has to be this many times as long as what the dtype resolves: rounding then moves a stage within it by 1/64.
_LEAST = 32
# And in double precision, where tolerances are tighter, an adaptive one.
_LEAST_ADAPTIVE = 1000


def check_resolution(
    problem: Problem,
    times: Sequence[float],
    stats: Stats,
    states: Sequence[Tensor],
    event_reads_time: Callable[[], bool] | None,
) -> None:
    """Refuse a solution for which rounded times were computed with, and the rounding is no small part of a step.

    Steps have to be long beside the rounding of times in the dtype in which the field gets them, unless it does not
    compute with them, or, in double precision, the state moves by no more than the tolerances.

    Args:
        problem: the problem that was solved.
        times: the numbers in its times.
        stats: what its steps were.
        states: the solution, `(time, …)` of each tensor; none of a failed one.
        event_reads_time: whether the event function computes with the time in the state's dtype; `None` without one.

    Raises:
        InputError: says what the dtype resolves, and what to do.
    """
    t, each, field = problem.t, stats.per_sample, problem.field
    if not t.numel():  # those of no samples
        return
    if each is None and t.dim() == 2:  # many solves of a transform, of which the stats are the sum
        steps = (stats.n_accepted or stats.nfe) / len(t)
        low, high = t.nan_to_num(torch.inf).amin(1), t.nan_to_num(-torch.inf).amax(1)
        step, size = float((high - low).min()) / max(steps, 1), float(torch.maximum(low.abs(), high.abs()).max())
    elif each is None:
        first, last = times[0], times[-1]
        steps = stats.n_accepted or stats.nfe
        step, size = abs(last - first) / max(steps, 1), max(abs(first), abs(last))
    else:
        counts = (each.nfe if each.n_accepted is None else each.n_accepted).clamp(min=1).to(t.device)
        low, high = t.nan_to_num(torch.inf).amin(1), t.nan_to_num(-torch.inf).amax(1)
        worst = int(((high - low) / counts / torch.maximum(low.abs(), high.abs())).argmin())
        step = float((high - low)[worst] / counts[worst])
        size = max(abs(float(low[worst])), abs(float(high[worst])))
    dtype, given = problem.z0[0].dtype, field.time_dtype
    if given == torch.float64:
        least = _LEAST_ADAPTIVE if problem.solver.adaptive else _LEAST
        coarse = not _tells_apart(given, size, step, least) and any(
            _moves(x, problem.rtol, problem.atol) for x in states
        )
    else:
        coarse = not _tells_apart(given, size, step)
    if coarse and reads_time(lambda s: field(s, problem.z0, problem.args), first_time(t).to(given)):
        raise _unresolved(given, size, step, "field")
    event = None if dtype == torch.float64 or _tells_apart(dtype, size, step) else event_reads_time
    if event is not None and event():
        raise _unresolved(dtype, size, step, "event function")


def _moves(x: Tensor, rtol: float, atol: float) -> bool:
    """Whether a state changes by more than the tolerances; where not, no rounding of the times matters."""
    x = example(x.detach())
    return x.numel() > 0 and bool((x - x[0]).abs().nan_to_num().max() > atol + rtol * x[0].abs().max())


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


def _tells_apart(dtype: torch.dtype, size: float, step: float, least: int = _LEAST) -> bool:
    """Whether rounding of times of this size to a dtype is a small part of steps of this length."""
    return step >= least * torch.finfo(dtype).eps * size


def _unresolved(dtype: torch.dtype, size: float, step: float, what: str) -> InputError:
    resolved = torch.finfo(dtype).eps * size
    given, remedy = "in double", ""
    if dtype != torch.float64:
        given = "in the state's dtype"
        remedy = (
            f"; or let the {what} compute with t in double (its attribute time_dtype = torch.float64); or make the "
            "state float64"
        )
    return InputError(
        f"the {what} computes with t, which it gets {given}, and around t={size:g} {dtype} tells times apart by "
        f"{resolved:.2g} only, where the steps were {step:.2g} long. Subtract a reference from the times, e.g. solve "
        f"over t - t[0]{remedy}"
    )
