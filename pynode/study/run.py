"""A study at work: cells over processes, threads and machines, and their rows into the store."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import threading
import warnings
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import Any

from pynode.errors import PyNODEWarning, StudyError
from pynode.problem.inputs import check_count
from pynode.study.cell import Cell
from pynode.study.environment import environment, identity
from pynode.study.problem import Problem
from pynode.study.process import Task, make_reference, run_cell
from pynode.study.reference import Reference
from pynode.study.result import Result
from pynode.study.row import Row
from pynode.study.store import Store

__all__ = ["run"]

_ATTEMPTS = 3  # of a cell whose worker dies
_REFERENCE_SECONDS = 1800.0


def run(
    study: str,
    cells: Sequence[Cell],
    definition: dict[str, Any],
    store: str | os.PathLike[str] | Store | None,
    workers: int,
    executor: Executor | None,
    progress: bool,
) -> Result:
    """Run those of a study's cells that a store does not have yet, see `Study.run`."""
    workers = check_count("workers", workers)
    with contextlib.ExitStack() as stack:
        if not isinstance(store, Store):
            store = stack.enter_context(Store(":memory:" if store is None else store))
        done = store.keys(study)
        left = [cell for cell in cells if cell.key not in done]
        bar = stack.enter_context(_Bar(len(cells), len(cells) - len(left), study, progress))
        references = _references(left, store, bar)
        problems = {cell.problem.name: _known(cell, store) for cell in cells}
        keys = [cell.key for cell in cells]
        store.define(study, definition, problems, keys)
        rows_to_come = _rows(left, references, workers, executor)
        with contextlib.closing(rows_to_come):
            for row, found in rows_to_come:
                store.add(row, found)
                bar.step(row)
        return Result(study, store.rows(study, keys), store.environments(), problems, definition)


def _references(cells: Sequence[Cell], store: Store, bar: _Bar) -> dict[str, Reference | None]:
    """The reference of each problem by its digest: its own, the store's, or one that is made now."""
    found: dict[str, Reference | None] = {}
    for cell in cells:
        if cell.content in found:
            continue
        if cell.problem.kind != "solve":
            found[cell.content] = None
            continue
        gradient = "gradient" in cell.measures
        reference = cell.problem.own_reference or store.reference(cell.content)
        if reference is None or (gradient and not reference.gradient and not reference.no_gradient):
            bar.say(f"reference of {cell.problem.name}")
            limit = max(_REFERENCE_SECONDS, cell.time_limit)
            reference = _made(cell.problem, gradient, limit, cell.memory_limit)
            store.keep_reference(cell.content, reference)
        found[cell.content] = reference
    return found


def _known(cell: Cell, store: Store) -> dict[str, Any]:
    """What the report says of a problem."""
    problem = cell.problem
    known = {name: getattr(problem, name, "") for name in ("kind", "description", "source")} | {"content": cell.content}
    if problem.kind == "solve":
        shapes = {"shape": list(problem.z0.shape), "times": len(problem.t), "stiff": problem.stiff}
        known |= {**shapes, "parameters": sum(p.numel() for p in problem.parameters.values())}
        reference = problem.own_reference or store.reference(cell.content)
        if reference is not None:
            names = ("how", "agreement", "gradient_agreement", "no_gradient")
            known |= {name: getattr(reference, name) for name in names}
    return known


def _made(problem: Problem, gradient: bool, time_limit: float, memory_limit: float) -> Reference:
    """In a thread, as cells are, so that an interrupt comes at once; of the states alone where there is no other."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(make_reference, problem, gradient, time_limit, memory_limit, stop).result()
        except StudyError as error:
            if not gradient:
                raise
            states = pool.submit(make_reference, problem, False, time_limit, memory_limit, stop).result()
            return replace(states, no_gradient=str(error))
        finally:
            stop.set()


def _rows(
    cells: Sequence[Cell], references: dict[str, Reference | None], workers: int, executor: Executor | None
) -> Generator[tuple[Row, dict[str, Any]], None, None]:
    """The rows as they come, by the executor, or by threads each of which watches a process."""
    left = list(cells)
    if executor is not None:
        try:
            yield from _by(executor, left, references, None)
            return
        except concurrent.futures.BrokenExecutor as error:
            warnings.warn(
                f"a worker died, and the executor with it ({error}): the {len(left)} cells that are left are run by "
                f"{workers} of this process's own",
                PyNODEWarning,
                stacklevel=4,
            )
    stop = threading.Event()
    with ThreadPoolExecutor(workers) as pool:
        try:
            yield from _by(pool, left, references, workers, stop)
        finally:
            stop.set()


def _by(
    executor: Executor,
    left: list[Cell],
    references: dict[str, Reference | None],
    at_once: int | None,
    *stop: threading.Event,
) -> Generator[tuple[Row, dict[str, Any]], None, None]:
    """The rows as they come; takes out of `left` those that are done. A cell whose worker dies is run again."""
    attempts: dict[str, int] = {}
    running: dict[Future[Any], Cell] = {}
    waiting = list(left)
    try:
        while waiting or running:
            while waiting and (at_once is None or len(running) < at_once):
                cell = waiting.pop(0)
                running[executor.submit(run_cell, Task.of(cell, references[cell.content]), *stop)] = cell
            for future in concurrent.futures.wait(running, return_when=FIRST_COMPLETED).done:
                cell = running.pop(future)
                error = future.exception()
                if isinstance(error, concurrent.futures.BrokenExecutor | StudyError):
                    raise error
                if error is not None:
                    attempts[cell.key] = attempts.get(cell.key, 0) + 1
                    if attempts[cell.key] < _ATTEMPTS:
                        waiting.append(cell)
                        continue
                left.remove(cell)
                yield future.result() if error is None else _lost(cell, error)
    finally:
        for future in running:
            future.cancel()


def _lost(cell: Cell, error: BaseException) -> tuple[Row, dict[str, Any]]:
    """The row of a cell whose worker has died each time."""
    found = environment()
    reason = f"its worker died {_ATTEMPTS} times, at last of {type(error).__name__}: {error}"
    status = {"status": "crashed", "reason": reason}
    if "gradient" in cell.measures:
        status |= {"gradient_status": "crashed", "gradient_reason": reason}
    return {**cell.row(), **status, "environment": identity(found)}, found


class _Bar:
    """A progress bar over the cells of a study, which counts what failed."""

    def __init__(self, total: int, done: int, name: str, shown: bool) -> None:
        from tqdm.auto import tqdm

        self._bar = tqdm(total=total, initial=done, desc=name, unit="cell", disable=not shown, dynamic_ncols=True)
        self._failed = 0

    def __enter__(self) -> _Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def say(self, what: str) -> None:
        """What is done just now."""
        self._bar.set_postfix_str(what)

    def step(self, row: Row) -> None:
        """A cell is done."""
        self._failed += row["status"] not in ("ok", "not_comparable")
        self._bar.set_postfix_str(f"{self._failed} failed" if self._failed else "")
        self._bar.update()
