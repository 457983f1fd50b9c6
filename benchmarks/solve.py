"""Forward solves and gradients, side by side in one run: torchdiffeq, torchdyn, diffrax, DiffEqFlux, each engine.

    python benchmarks/solve.py [--repeats 100] [--cases spiral,MLP] [--same-tolerance] [--memory] [--out FILE]
                               [--figure FILE]

All solve the same field from the same state. Each takes the loosest of a row of tolerances at which its error is no
larger than torchdiffeq's at the case's tolerance (`--same-tolerance`: that tolerance itself). A figure is the median
of the repeats after a warm-up, in milliseconds; contenders take turns, so that a drift of the machine meets all alike.
Who is not installed is left out. `--memory` adds the peak of the memory that one gradient takes, each in a process of
its own; `--figure` also draws the error of each over its time.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _cases import Case, cases
from _contenders import DIFFEQFLUX, FIELD_ALONE, Runs, field_alone, names, with_torchdiffeq
from _memory import peak

import pynode

ROUNDS = 5
TOLERANCES = [10 ** (-k / 2) for k in range(2, 21)]  # 1e-1 to 1e-10

PATIENCE = 30  # seconds for torchdyn's first solve and first gradient: its steps may shrink without end

Run = Callable[[], object]


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raises `TimeoutError`, at the next step in Python, where the work within takes longer; 0: no bound."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def medians(runs: dict[str, Run], repeats: int, budget: float) -> dict[str, float]:
    """Median milliseconds of each.

    The contenders take turns, in rounds; within its turn a contender runs several times in a row, of which the first
    is not counted, so that none pays for caches that another has filled.
    """
    for run in runs.values():
        run()
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            run()
            until = time.perf_counter() + budget / ROUNDS
            for _ in range(max(1, repeats // ROUNDS)):
                started = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - started)
                if time.perf_counter() > until:
                    break
    return {name: 1e3 * statistics.median(each) for name, each in times.items()}


def array(x: Any) -> np.ndarray:
    """A result of any contender, in double precision."""
    return np.asarray(x.detach().numpy() if isinstance(x, torch.Tensor) else x, dtype=np.float64)


def error(got: Any, exact: np.ndarray) -> float:
    """Root mean square of the difference, relative to that of the exact result."""
    return float(np.sqrt(np.mean((array(got) - exact) ** 2) / np.mean(exact**2)))


def gradient_error(got: Any, exact: Any) -> float:
    """The same for gradients, all parameters as one vector."""
    join = [np.concatenate([array(g).ravel() for g in gradient]) for gradient in (got, exact)]
    return error(join[0], join[1])


def reference(case: Case) -> tuple[np.ndarray, list[Any]]:
    """The states and the gradient in double precision, at tight tolerances."""
    field, z0, t = case.field, case.z0, case.t
    exact = Case(case.name, field.double(), z0.double(), t.double(), stiff=case.stiff)
    if case.stiff:
        state = pynode.solve(field, exact.z0, exact.t, solver="radau", engine="torch", rtol=1e-10, atol=1e-13).z
        gradient = [np.full(p.shape, np.nan) for p in field.parameters()]
        if len(gradient) == 1:  # one number: by differences
            (p,), values, step = list(field.parameters()), [], 1e-5 * float(next(field.parameters()).detach())
            for sign in (1, -1):
                with torch.no_grad():
                    p += sign * step
                    z = pynode.solve(field, exact.z0, exact.t, solver="radau", engine="torch", rtol=1e-11, atol=1e-13).z
                    values.append(z.square().mean().item())
                    p -= sign * step
            gradient = [np.array((values[0] - values[1]) / (2 * step))]
        result = array(state), gradient
    else:
        runs = with_torchdiffeq(exact, 1e-10, False)
        result = array(runs.forward()), [array(g) for g in runs.gradient()]
    field.to(z0.dtype)
    return result


@dataclass
class Entry:
    """A contender at the tolerance that it was given, with the errors that it makes."""

    runs: Runs
    tolerance: float
    error: float = float("nan")
    gradient_error: float = float("nan")


def enter(case: Case, make: Callable[[float], Runs], exact: Any, target: float | None, seconds: int) -> Entry | None:
    """A contender at the loosest tolerance that gives at most the target's error; `None` if none does in that time."""
    for tolerance in [case.tolerance] if target is None else TOLERANCES:
        runs = make(tolerance)
        try:
            with within(seconds):
                found = error(runs.forward(), exact[0])
        except TimeoutError:
            print(f"  at {tolerance:.0e}: given up after {seconds} s", file=sys.stderr)
            return None
        except Exception as failure:
            print(f"  at {tolerance:.0e}: {type(failure).__name__}", file=sys.stderr)
            continue
        if target is None or found <= target:
            try:
                with within(seconds):
                    return Entry(runs, tolerance, found, gradient_error(runs.gradient(), exact[1]))
            except Exception as failure:
                print(f"  gradient: {type(failure).__name__}: {str(failure)[:200]}", file=sys.stderr)
                runs.gradient = None
                return Entry(runs, tolerance, found)
    return None


def measure(case: Case, arguments: argparse.Namespace) -> str:
    """The table of one case."""
    exact = reference(case)
    found = names(case)
    base = "torchdiffeq adjoint" if case.stiff else "torchdiffeq discretise"
    target = None if arguments.same_tolerance else error(found[base](case.tolerance).forward(), exact[0]) * 1.01
    entries: dict[str, Entry] = {}
    for name, make in found.items():
        if name == DIFFEQFLUX:  # at the tolerance of pynode, whose solver it shares
            like = entries.get("pynode julia discrete")
            tolerance = like.tolerance if like else case.tolerance
            entries[name] = Entry(make(tolerance), tolerance)
            continue
        entry = enter(case, make, exact, target, PATIENCE if name.startswith("torchdyn") else 0)
        if entry is not None:
            entries[name] = entry
    ours = entries.get("pynode julia discrete")
    if case.widths and "MLP" in case.name and ours is not None:
        entries[FIELD_ALONE] = Entry(field_alone(case, ours.runs.nfe() or 0), ours.tolerance)
    columns = []
    for kind in ("forward", "gradient"):
        runs = {name: getattr(entry.runs, kind) for name, entry in entries.items()}
        columns.append(medians({n: r for n, r in runs.items() if r}, arguments.repeats, arguments.budget))
    gradient = columns[1]
    heads = ["contender", "rtol", "error", "nfe", "forward ms", "ratio", "gradient ms", "ratio", "gradient's error"]
    heads += ["gradient's peak MB"] * arguments.memory
    lines = [f"\n### {case.name}\n", f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for name in sorted(entries, key=lambda n: gradient.get(n, float("inf"))):
        entry = entries[name]
        nfe = entry.runs.nfe()
        cells = [name, f"{entry.tolerance:.0e}", f"{entry.error:.1e}", "-" if nfe is None else str(nfe)]
        for column in columns:
            there = name in column
            cells.append(f"{column[name]:.3g}" if there else "fails")
            cells.append(f"{column[base] / column[name]:.2f}" if there and base in column else "-")
        cells.append(f"{entry.gradient_error:.1e}")
        if arguments.memory:
            megabytes = None if name == FIELD_ALONE or name not in gradient else peak(case.name, name, entry.tolerance)
            cells.append("-" if megabytes is None else f"{megabytes:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def work_precision(case: Case, path: Path) -> None:
    """Draw error over time of a gradient, for every contender at every tolerance."""
    import matplotlib.pyplot as plt

    exact = reference(case)
    figure, axes = plt.subplots(figsize=(6, 4.5))
    for name, make in names(case).items():
        if name == DIFFEQFLUX:
            continue
        points = []
        for tolerance in TOLERANCES[2::2]:
            try:
                runs = make(tolerance)
                found = error(runs.forward(), exact[0])
                ms = medians({name: runs.gradient}, 10, 1.0)[name]
            except Exception as failure:
                print(f"  {name} at {tolerance:.0e}: {type(failure).__name__}", file=sys.stderr)
                continue
            points.append((ms, found))
        if points:
            axes.loglog(*zip(*points, strict=True), "o-", label=name, markersize=3)
    axes.set(xlabel="milliseconds for a gradient", ylabel="relative error of the states", title=case.name)
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def versions() -> str:
    """The date, the machine and the versions, as a line."""
    import torchdiffeq

    found = [f"{name} {package.__version__}" for name, package in (("torch", torch), ("torchdiffeq", torchdiffeq))]
    found.insert(0, f"Python {platform.python_version()}")
    found += [f"{n} {sys.modules[n].__version__}" for n in ("torchdyn", "jax", "diffrax") if n in sys.modules]
    if pynode.engines()["julia"].ok:
        from juliacall import Main

        found.append(f"Julia {Main.VERSION}")
    machine = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return f"{time.strftime('%Y-%m-%d')}, {machine}: {', '.join(found)}"


def append(report: list[str], out: Path | None) -> None:
    """Print the versions, and append them and the report to the file, where there is one."""
    line = versions()
    print("\n" + line)
    if out:
        with out.open("a") as file:
            file.write("\n".join([line, *report]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--budget", type=float, default=5.0, help="seconds per contender and measurement")
    parser.add_argument("--cases", default="", help="only cases whose name contains one of these, comma-separated")
    parser.add_argument("--same-tolerance", action="store_true", help="one rtol for all, rather than one error")
    parser.add_argument("--memory", action="store_true", help="peak memory of a gradient, each in its own process")
    parser.add_argument("--out", type=Path, help="append the tables to this file")
    parser.add_argument("--figure", type=Path, help="draw error over time of the first case to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    wanted = [part for part in arguments.cases.split(",") if part]
    chosen = [case for case in cases() if not wanted or any(part in case.name for part in wanted)]
    report = []
    for case in chosen:
        report.append(measure(case, arguments))
        print(report[-1], flush=True)
    if arguments.figure:
        work_precision(chosen[0], arguments.figure)
    append(report, arguments.out)


if __name__ == "__main__":
    main()
