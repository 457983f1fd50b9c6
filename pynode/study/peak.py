"""The peak memory of a solve and of a gradient, in a process of its own.

The process solves for one sample first, so that what a package loads and compiles is there; what counts is how far the
resident memory then rises. Needs Linux, which can reset the peak of a process.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import sys
from collections.abc import Callable
from pathlib import Path

from pynode.errors import PyNODEError
from pynode.study.adapter import Adapter
from pynode.study.cell import Cell
from pynode.study.measure import Report, outcome
from pynode.study.problem import Problem

__all__ = ["can_measure", "measure_peak"]

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_RESET = Path("/proc/self/clear_refs")


def can_measure() -> bool:
    """Whether the system tells the peak of a process, and resets it."""
    return _RESET.exists()


def measure_peak(cell: Cell, make: Callable[[], Adapter], with_gradient: bool, report: Report) -> None:
    """Measure how far the resident memory rises, above what it is before, in a solve, and in a gradient if wanted."""
    if not can_measure():
        report("ending", memory_reason="the peak of a process is known on Linux alone")
        return
    # Large blocks go back to the system when they are freed, so that the peak is of what is in use.
    _tell_malloc("mallopt", _M_MMAP_THRESHOLD, 65536)
    assert cell.setting is not None
    small = _small(cell.problem)
    adapter = make()
    try:
        adapter.prepare(small or cell.problem, cell.setting, **cell.contender.options)
        _warm(adapter, with_gradient, 2)
        if small is not None:
            adapter = make()
            adapter.prepare(cell.problem, cell.setting, **cell.contender.options)
            if getattr(adapter, "compiles_for_shapes", False):
                _warm(adapter, with_gradient, 1)
        _collect()
        before = _resident("VmRSS")
        report("solving", peak_mb=_rise(adapter.solve, before))
        if with_gradient:
            report("differentiating", gradient_peak_mb=_rise(adapter.gradient, before))
    except Exception as error:
        report("ending", memory_reason=outcome(error)[1])


def _warm(adapter: Adapter, with_gradient: bool, times: int) -> None:
    for _ in range(times):
        adapter.solve()
        if with_gradient:
            adapter.gradient()


def _rise(call: Callable[[], object], before: float) -> float:
    _collect()
    _RESET.write_text("5")
    call()
    return max(0.0, _resident("VmHWM") - before)


def _small(problem: Problem) -> Problem | None:
    """The problem with the first sample alone; `None` where it cannot be cut."""
    n = len(problem.z0)
    if problem.z0.dim() < 2 or n < 2:
        return None
    args = tuple(a[:1] if a.dim() and len(a) == n else a for a in problem.args)
    try:
        return dataclasses.replace(problem, z0=problem.z0[:1], args=args, exact=None, reference=None, invariants={})
    except (PyNODEError, RuntimeError, TypeError, ValueError, IndexError):  # it has tensors of the batch's size
        return None


def _collect() -> None:
    """Give back to the system what is free; a solve would use it first, and the resident memory rise by less."""
    gc.collect()
    if "juliacall" in sys.modules:
        from juliacall import Main

        Main.seval("GC.gc(true)")
    _tell_malloc("malloc_trim", 0)


def _tell_malloc(name: str, *numbers: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # another library's malloc
        getattr(ctypes.CDLL(None), name)(*numbers)


def _resident(key: str) -> float:
    """`VmRSS`, the resident memory, or `VmHWM`, its peak, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(key)
