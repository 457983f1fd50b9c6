"""How time grows with the batch, the width, the number of steps and the number of samples, package by package.

    OMP_NUM_THREADS=1 python benchmarks/growth.py [--axes batch,wide,width,steps,samples] [--out growth] [--limit 20]

Each point is a forward solve, and one with its gradient, by one thread. On all axes but the last all take equal steps
of the midpoint rule, two evaluations each; on the last each sample has steps of its own. The states of all are
compared. The packages take turns; a figure is the least of the rounds, in milliseconds of the process's processor time,
on which other programs have little influence. A package leaves an axis where a call would take longer than `--limit`
seconds.

Prints a table for each axis, and with `--out` writes the rows (`growth.json`) and a figure (`growth.png`) to a folder.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import MLP, VanDerPol, network_in_jax

from pynode.errors import NotComparable
from pynode.study import Problem, Setting
from pynode.study.accuracy import array
from pynode.study.adapter import Adapter
from pynode.study.adapters import get

Point = tuple[str, Problem, Setting]

EQUAL_STEPS: dict[str, dict[str, Any]] = {
    "pynode julia": {"package": "pynode", "engine": "julia", "solver": "midpoint"},
    "pynode torch": {"package": "pynode", "engine": "torch", "solver": "midpoint"},
    "torchdiffeq": {"package": "torchdiffeq", "solver": "midpoint"},
    "diffrax": {"package": "diffrax", "solver": "Midpoint", "max_steps": 2**17},
}
OWN_STEPS: dict[str, dict[str, Any]] = {
    "pynode julia": {"package": "pynode", "engine": "julia", "solver": "tsit5", "batching": "independent"},
    "torchode": {"package": "torchode", "solver": "tsit5"},
    "torchdiffeq, one by one": {"package": "torchdiffeq", "solver": "dopri5"},
}
ROUNDS = 5
SPENT = 4.0  # Seconds after which a package has had rounds enough at a point.


def perceptron(widths: tuple[int, ...], batch: int, steps: int) -> tuple[Problem, Setting]:
    """A tanh network over a second, by so many steps, and its loss, the mean square."""
    torch.manual_seed(0)
    field, z0, t = MLP(*widths), torch.randn(batch, widths[0]), torch.tensor([0.0, 1.0])
    return Problem(field, z0, t, jax=network_in_jax(False)), Setting(dt=1 / steps)


def batches() -> Iterator[Point]:
    """2-64-64-2, a state of a batch."""
    for batch in (1, 8, 64, 512, 4096, 8192, 32768, 65536, 262144):
        yield str(batch), *perceptron((2, 64, 64, 2), batch, 20)


def wide_batches() -> Iterator[Point]:
    """16-128-128-16, a state of a batch."""
    for batch in (8192, 32768, 65536, 262144):
        yield str(batch), *perceptron((16, 128, 128, 16), batch, 20)


def widths() -> Iterator[Point]:
    """16-w-w-16, 64 samples."""
    for width in (8, 32, 128, 512, 1024):
        yield str(width), *perceptron((16, width, width, 16), 64, 20)


def steps() -> Iterator[Point]:
    """2-50-2, one sample."""
    for n in (10, 100, 1000, 10_000, 100_000):
        yield str(n), *perceptron((2, 50, 2), 1, n)


def samples() -> Iterator[Point]:
    """Van der Pol's oscillators, μ = 2, each with steps of its own."""
    for batch in (1, 16, 256, 4096):
        torch.manual_seed(0)
        z0 = torch.tensor([2.0, 0.0], dtype=torch.float64) + 0.3 * torch.randn(batch, 2, dtype=torch.float64)
        t = torch.tensor([0.0, 5.0], dtype=torch.float64)
        yield str(batch), Problem(VanDerPol(2.0), z0, t), Setting(1e-6, 1e-8)


AXES: dict[str, tuple[Callable[[], Iterator[Point]], dict[str, dict[str, Any]]]] = {
    "batch": (batches, EQUAL_STEPS),
    # Alone, for how the cost of a row grows: what others keep of the largest is more than most machines have.
    "wide": (wide_batches, {"pynode julia": EQUAL_STEPS["pynode julia"]}),
    "width": (widths, EQUAL_STEPS),
    "steps": (steps, EQUAL_STEPS),
    "samples": (samples, OWN_STEPS),
}


class OneByOne:
    """Each sample is a problem of its own."""

    def __init__(self, package: str) -> None:
        self.package, self.each = package, list[Adapter]()

    def prepare(self, problem: Problem, setting: Setting, **options: Any) -> None:
        for row in problem.z0.split(1):
            adapter = get(self.package)()
            adapter.prepare(Problem(problem.field, row, problem.t), setting, **options)
            self.each.append(adapter)

    def solve(self) -> np.ndarray:
        return np.concatenate([array(adapter.solve().z) for adapter in self.each], 1)

    def gradient(self) -> None:
        for adapter in self.each:
            adapter.gradient()


def adapter_of(name: str, problem: Problem, setting: Setting, options: dict[str, Any]) -> Adapter | OneByOne:
    options = dict(options)
    package = options.pop("package")
    adapter = OneByOne(package) if name.endswith("one by one") else get(package)()
    adapter.prepare(problem, setting, **options)
    return adapter


def timed(call: Callable[[], Any]) -> float:
    """Milliseconds of the process's processor time."""
    start = time.process_time()
    call()
    return 1e3 * (time.process_time() - start)


def measure(adapters: dict[str, Any]) -> dict[str, dict[str, float]]:
    """By package the least milliseconds of a solve and of a gradient."""
    found: dict[str, dict[str, float]] = {name: {} for name in adapters}
    for what in ("solve", "gradient"):
        spent = dict.fromkeys(adapters, 0.0)
        for turn in range(ROUNDS + 1):  # the first compiles, and after the second other batches' memory is let go
            for name, adapter in adapters.items():
                if turn > 2 and spent[name] > SPENT:
                    continue
                milliseconds = timed(getattr(adapter, what))
                if turn or milliseconds > 1e3 * SPENT:
                    found[name][what] = min(milliseconds, found[name].get(what, float("inf")))
                spent[name] += milliseconds / 1e3
    return found


def check(states: dict[str, np.ndarray]) -> None:
    """The packages have solved the same problem."""
    expected = next(iter(states.values()))
    for name, z in states.items():
        apart = float(np.abs(z - expected).max())
        assert apart < 1e-3, f"{name} is {apart} from {next(iter(states))}"


def run(axis: str, limit: float) -> list[dict[str, Any]]:
    """The rows of an axis."""
    points, contenders = AXES[axis]
    left, rows, slowest = dict(contenders), list[dict[str, Any]](), dict[str, float]()
    for size, problem, setting in points():
        # A call that takes `slowest` for each unit of the size is the worst that is to be expected.
        left = {name: how for name, how in left.items() if slowest.get(name, 0.0) * int(size) < 1e3 * limit}
        adapters = {}
        for name, options in left.items():
            try:
                adapters[name] = adapter_of(name, problem, setting, options)
            except NotComparable as error:
                print(f"{axis} {size}, {name}: {error}", flush=True)
        left = {name: left[name] for name in adapters}
        if not left:
            break
        check({name: array(getattr(z, "z", z)) for name, a in adapters.items() for z in [a.solve()]})
        for name, row in measure(adapters).items():
            rows.append({"axis": axis, "size": int(size), "contender": name, **row})
            slowest[name] = max(row.values()) / int(size)
    return rows


def table(axis: str, rows: list[dict[str, Any]]) -> str:
    """Rows of an axis as Markdown: forward and gradient of each package, and their ratio to the first's."""
    names = list(dict.fromkeys(row["contender"] for row in rows))
    lines = [f"| {axis} | " + " | ".join(names) + " |", "| ---: |" + " ---: |" * len(names)]
    for size in dict.fromkeys(row["size"] for row in rows):
        of_size = {row["contender"]: row for row in rows if row["size"] == size}
        base, cells = of_size.get(names[0]), []
        for name in names:
            row = of_size.get(name)
            if row is None:
                cells.append("–")
                continue
            text = f"{row['solve']:.3g}, {row['gradient']:.3g}"
            if base is not None and row is not base:
                text += f" ({row['solve'] / base['solve']:.3g}, {row['gradient'] / base['gradient']:.3g})"
            cells.append(text)
        lines.append(f"| {size} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Milliseconds against the size, an axis a column, forward above and gradient below."""
    import matplotlib.pyplot as plt

    from pynode.plot import COLOURS

    axes = list(dict.fromkeys(row["axis"] for row in rows))
    names = list(dict.fromkeys(row["contender"] for row in rows))
    figure, panels = plt.subplots(2, len(axes), figsize=(3.2 * len(axes), 5.5), squeeze=False, layout="constrained")
    for column, axis in enumerate(axes):
        for panel, what in zip(panels[:, column], ("solve", "gradient"), strict=True):
            for name in names:
                points = [(r["size"], r[what]) for r in rows if r["axis"] == axis and r["contender"] == name]
                if points:
                    colour = COLOURS[names.index(name) % len(COLOURS)]
                    panel.plot(*zip(*points, strict=True), marker="o", markersize=3, color=colour, label=name)
            panel.set(xscale="log", yscale="log", xlabel=axis)
            panel.grid(alpha=0.3)
        panels[0, column].set_title(f"growth with {axis}")
    panels[0, 0].set_ylabel("forward, ms")
    panels[1, 0].set_ylabel("gradient, ms")
    lines = {line.get_label(): line for panel in panels.flat for line in panel.get_lines()}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines))
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", default=",".join(AXES), help=f"some of {', '.join(AXES)}")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds after which a package leaves an axis")
    parser.add_argument("--out", type=Path, help="the folder of growth.json and growth.png")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for axis in arguments.axes.split(","):
        found = run(axis, arguments.limit)
        print(f"\n{table(axis, found)}", flush=True)
        rows += found
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "growth.json").write_text(json.dumps(rows, indent=1))
        draw(rows, arguments.out / "growth.png")


if __name__ == "__main__":
    main()
