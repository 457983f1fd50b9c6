"""A cell in a process of its own, with limits of time and memory: whatever it does, a row comes of it."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pynode.errors import StudyError
from pynode.study import started
from pynode.study.beside import Presence
from pynode.study.cell import Cell, adapter_of
from pynode.study.environment import environment, identity
from pynode.study.named import files
from pynode.study.problem import Problem
from pynode.study.reference import Reference
from pynode.study.resident import resident_mb
from pynode.study.row import Row
from pynode.study.travel import packed

__all__ = ["Stopped", "Task", "make_reference", "run_cell"]

_LOOK = 0.1  # seconds between two looks at a process
_LOOK_BESIDE = 0.25
_START_SECONDS = 120.0  # that a process may take until it has imported torch, which is no part of a cell's limit


class Stopped(Exception):
    """The cell was not finished, since its study was to stop."""


@dataclass(frozen=True)
class Task:
    """A cell on its way to whoever runs it: plain data, and bytes that only the cell's own process reads.

    Attributes:
        row: the row, as far as it is known.
        payload: the cell, its adapter's class and the reference.
        path: where Python looks for modules.
        files: what was loaded by its file's name.
        measures: what is measured.
        time_limit: in seconds.
        memory_limit: in MB.
        threads: of all packages.
    """

    row: Row
    payload: bytes
    path: tuple[str, ...]
    files: tuple[tuple[str, str], ...]
    measures: tuple[str, ...]
    time_limit: float
    memory_limit: float
    threads: int

    @classmethod
    def of(cls, cell: Cell, reference: Reference | None) -> Task:
        """The task of a cell.

        Raises:
            StudyError: the problem or the adapter cannot be sent to another process.
        """
        what = f"the problem {cell.problem.name!r} or the adapter {cell.contender.package!r}"
        adapter = adapter_of(cell.contender) if cell.problem.kind == "solve" else None
        payload = packed((cell, adapter, reference), what)
        limits = (cell.time_limit, cell.memory_limit, cell.threads)
        return cls(cell.row(), payload, tuple(sys.path), tuple(files().items()), cell.measures, *limits)


def run_cell(task: Task, stop: threading.Event | None = None) -> tuple[Row, dict[str, Any]]:
    """Run a cell; never raises for what its contender does.

    Args:
        task: the cell.
        stop: set from another thread to end it before its time.

    Returns:
        The row, and the environment that it was measured in.

    Raises:
        Stopped: it was ended so.
        StudyError: it cannot be run, for a reason that is none of the contender's.
    """
    row = dict(task.row)
    found = environment()
    row |= {"environment": identity(found), "started": time.time()}
    with Presence() as presence:
        ended = _watch(task, {"task": "cell"}, presence, stop)
        row |= {name: value for name, value in ended.columns.items() if name in row}
        if ended.status:
            _note_end(row, task, ended)
        if "memory" in task.measures and row["status"] == "ok" and row["kind"] == "solve":
            with_gradient = row["gradient_status"] == "ok"
            peak = _watch(task, {"task": "peak", "with_gradient": with_gradient}, presence, stop)
            names = ("peak_mb", "gradient_peak_mb", "memory_reason")
            row |= {name: peak.columns[name] for name in names if name in peak.columns}
            if peak.status:
                row["memory_reason"] = peak.reason
    row |= {"beside": presence.most, "ended": time.time()}
    if "gradient" not in task.measures:
        row["gradient_status"] = row["gradient_reason"] = None
    return row, found


def make_reference(
    problem: Problem, gradient: bool, time_limit: float, memory_limit: float, stop: threading.Event | None = None
) -> Reference:
    """The reference of a problem, with its gradient or without, made in a process of its own.

    Raises:
        StudyError: there is none.
        Stopped: `stop` was set from another thread.
    """
    payload = packed(problem, f"the problem {problem.name!r}")
    task = Task({}, payload, tuple(sys.path), tuple(files().items()), (), time_limit, memory_limit, os.cpu_count() or 1)
    with Presence() as presence:
        ended = _watch(task, {"task": "reference", "with_gradient": gradient}, presence, stop)
    if ended.reason:
        raise StudyError(f"there is no reference for {problem.name}: {ended.reason}")
    return Reference.from_bytes(ended.reference)


@dataclass
class _Ended:
    """How a process ended.

    Attributes:
        columns: what it reported.
        doing: what it said last that it was about to do.
        status: empty where it ended by itself, having done all.
        reason: why it did not.
        reference: the file of that name.
    """

    columns: dict[str, Any]
    doing: str = "starting"
    status: str = ""
    reason: str = ""
    reference: bytes = b""


def _note_end(row: Row, task: Task, ended: _Ended) -> None:
    """The status of a row whose process did not end by itself."""
    if row["status"] is None:
        row |= {"status": ended.status, "reason": ended.reason}
        row |= {"gradient_status": ended.status, "gradient_reason": "the solve did not end"}
    elif "gradient" in task.measures and row["gradient_status"] is None:
        row |= {"gradient_status": ended.status, "gradient_reason": ended.reason}


def _watch(task: Task, start: dict[str, Any], presence: Presence, stop: threading.Event | None) -> _Ended:
    """Start a process, watch it to its end, or end it at a limit."""
    with tempfile.TemporaryDirectory(prefix="pynode-study-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "payload.pkl").write_bytes(task.payload)
        start |= {"path": task.path, "files": dict(task.files), "threads": task.threads}
        environ = _environment(task)
        start |= {"time_limit": task.time_limit, "last": task.time_limit + 2 * _START_SECONDS, "environ": environ}
        (folder / "start.json").write_text(json.dumps(start))
        process = started.start(folder, environ)
        try:
            code, status, reason = _wait(process, task, folder / "report.jsonl", presence, stop)
        finally:
            process.end()
        ended = _reported(folder)
        if "broken" in ended.columns:
            raise StudyError(ended.columns["broken"])
        if ended.doing != "ended":
            if not status:
                status, reason = "crashed", f"{_how(code)}{_last_words(folder / 'log')}"
            ended.status, ended.reason = status, f"{reason}, while {ended.doing}"
        if (folder / "reference.npz").exists():
            ended.reference = (folder / "reference.npz").read_bytes()
        return ended


def _wait(
    process: started.Started, task: Task, report: Path, presence: Presence, stop: threading.Event | None
) -> tuple[int, str, str]:
    """Wait for the end; the exit code or, where a limit is reached first, the status and the reason."""
    until, look_beside, is_running = time.monotonic() + _START_SECONDS + task.time_limit, 0.0, False
    while True:
        code = process.wait(_LOOK)
        if code is not None:
            return code, "", ""
        now = time.monotonic()
        if stop is not None and stop.is_set():
            raise Stopped
        if not is_running and report.exists() and report.stat().st_size:
            is_running, until = True, now + task.time_limit
        if now > until:
            return 0, "timeout", f"stopped after {task.time_limit:g} s"
        used = resident_mb(process.pid)
        if used is not None and used > task.memory_limit:
            return 0, "memory", f"stopped at {used:.0f} MB of resident memory, of a limit of {task.memory_limit:g} MB"
        if now > look_beside:
            presence.look()
            look_beside = now + _LOOK_BESIDE


def _reported(folder: Path) -> _Ended:
    ended = _Ended({})
    for line in _lines(folder / "report.jsonl"):
        ended.doing, columns = line
        ended.columns |= columns
    return ended


def _lines(path: Path) -> Iterator[Any]:
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # the end of the process came in the middle of it
            return


def _how(code: int) -> str:
    if code >= 0:
        return f"the process ended by itself with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"the process died of {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f", its last words {lines[-1][:300]!r}" if lines else ""


def _environment(task: Task) -> dict[str, str]:
    """The variables of a cell's process: the same number of threads for all packages."""
    n = str(task.threads)
    libraries = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB_MAXIMUM", "JULIA", "BLIS")
    variables = dict.fromkeys([f"{library}_NUM_THREADS" for library in libraries], n)
    variables |= {"NPROC": n, "JAX_PLATFORMS": "cpu", "PYTHON_JULIACALL_THREADS": n}
    alone = f" --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads={n}" if task.threads == 1 else ""
    variables["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + alone
    variables["PYTHONPATH"] = os.pathsep.join([*filter(None, task.path), *_own_path()])
    variables["PYTHONSAFEPATH"] = "1"
    return {**os.environ, **variables}


@functools.cache
def _own_path() -> tuple[str, ...]:
    import pynode

    return (os.fspath(Path(pynode.__file__).parents[1]),)
