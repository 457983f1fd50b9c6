"""What is measured of a cell, in its own process: errors, counts, seconds of the first call and of later ones."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from pynode.errors import NotComparable
from pynode.study.accuracy import NotFinite, array, drift, gradient_error, state_errors
from pynode.study.adapter import Adapter, Gradient, Solved
from pynode.study.cell import Cell
from pynode.study.reference import Reference

__all__ = ["Report", "measure", "outcome"]

_SPARE = 1.5  # No later call where less than so many times the first one's seconds are left.

R = TypeVar("R", Solved, Gradient)


class Report(Protocol):
    """Hands columns over as they become known; what was handed over outlives the process."""

    def __call__(self, doing: str, **columns: Any) -> None:
        """Say what comes next, and what is known by now."""


def measure(
    cell: Cell, make: Callable[[], Adapter], reference: Reference, report: Report, remaining: Callable[[], float]
) -> None:
    """Measure a contender on a problem.

    Args:
        cell: what is measured.
        make: the adapter's class.
        reference: what is right.
        report: takes the columns.
        remaining: the seconds that are left to the process.
    """
    torch.manual_seed(cell.seed)
    adapter = make()
    report("preparing")
    started = time.perf_counter()
    try:
        assert cell.setting is not None
        adapter.prepare(cell.problem, cell.setting, **cell.contender.options)
        report("solving", prepare_seconds=time.perf_counter() - started)
        _state(cell, adapter, reference, report, remaining)
    except Exception as error:
        status, reason = outcome(error)
        columns = {"status": status, "reason": reason}
        if "gradient" in cell.measures:
            columns |= {"gradient_status": status, "gradient_reason": reason}
        report("ending", **columns)
        return
    if "gradient" in cell.measures:
        try:
            if not reference.gradient:
                raise NotComparable(f"there is nothing to hold the gradient against: {reference.no_gradient}")
            _gradient(cell, adapter, reference, report, remaining)
        except Exception as error:
            status, reason = outcome(error)
            report("ending", gradient_status=status, gradient_reason=reason)


def outcome(error: Exception) -> tuple[str, str]:
    """The status and the reason of a cell whose contender has raised."""
    text = str(error).strip()
    if isinstance(error, NotComparable):
        return "not_comparable", text
    if isinstance(error, NotFinite):
        return "not_finite", text
    reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
    out_of_memory = isinstance(error, MemoryError) or "can't allocate memory" in text or "OutOfMemoryError" in reason
    return ("memory" if out_of_memory else "failed"), reason[:2000]


def _state(cell: Cell, adapter: Adapter, reference: Reference, report: Report, remaining: Callable[[], float]) -> None:
    solved, first = _timed(adapter.solve)
    z = array(solved.z)
    end, trajectory = state_errors(z, reference)
    counts = {name: n for name, n in asdict(solved.counts).items() if name != "nfe_backward"}
    report(
        "solving again",
        seconds_first=first,
        error_end=end,
        error_trajectory=trajectory,
        drift=drift(cell.problem, z),
        **counts,
    )
    later = _later(cell, adapter.solve, first, remaining)
    report("solved", status="ok", reason=later.pop("reason"), **later)


def _gradient(
    cell: Cell, adapter: Adapter, reference: Reference, report: Report, remaining: Callable[[], float]
) -> None:
    report("differentiating")
    got, first = _timed(adapter.gradient)
    loss = float(array(got.loss))
    if not math.isfinite(loss):
        raise NotFinite(f"the loss is {loss}")
    error = gradient_error(got.gradient, reference)
    report(
        "differentiating again",
        gradient_seconds_first=first,
        gradient_error=error,
        loss=loss,
        nfe_backward=got.counts.nfe_backward,
    )
    later = _later(cell, adapter.gradient, first, remaining)
    reason = later.pop("reason")
    report("differentiated", gradient_status="ok", gradient_reason=reason,
           **{f"gradient_{name}": value for name, value in later.items()})  # fmt: skip


def _timed(call: Callable[[], R]) -> tuple[R, float]:
    gc.collect()
    started = time.perf_counter()
    result = call()
    _wait(result)
    return result, time.perf_counter() - started


def _wait(result: Solved | Gradient) -> None:
    """Wait for what a package computes behind the caller's back, as JAX does."""
    values = [result.z] if isinstance(result, Solved) else [result.loss, *result.gradient.values()]
    for value in values:
        wait = getattr(value, "block_until_ready", None)
        if wait is not None:
            wait()


def _later(cell: Cell, call: Callable[[], R], first: float, remaining: Callable[[], float]) -> dict[str, Any]:
    """Seconds and processor seconds of further calls: at least one, at most `repeats`, none after the budget."""
    if remaining() < _SPARE * first:
        return {"reason": f"only the first call was timed: it took {first:.3g} s of a limit of {cell.time_limit:g} s"}
    gc.collect()
    seconds: list[float] = []
    processor: list[float] = []
    while not seconds or (len(seconds) < cell.repeats and sum(seconds) < cell.budget):
        started, used = time.perf_counter(), time.process_time()
        _wait(call())
        seconds.append(time.perf_counter() - started)
        processor.append(time.process_time() - used)
    q1, median, q3 = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
    return {
        "reason": "",
        "seconds": median,
        "seconds_q1": q1,
        "seconds_q3": q3,
        "seconds_all": seconds,
        "cpu_seconds": float(np.median(processor)),
    }
