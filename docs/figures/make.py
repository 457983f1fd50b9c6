"""The figures of the guides: `python docs/figures/make.py` computes and writes them, on the torch engine.

Memory, the steps of independent samples, and how time grows are read from the tables of benchmarks/README.md.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

import pynode
from pynode import study

HERE = Path(__file__).parent
TABLES = HERE.parents[1] / "benchmarks" / "README.md"
# Okabe and Ito's colours, with a marker each, so that no colour has to be told apart.
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#000000",
)
MARKERS = "osD^vPX"
STYLE = {"svg.hashsalt": "pynode", "svg.fonttype": "path", "font.size": 10}


def figures(points: int | None = None) -> dict[str, Figure]:
    """Every figure by the name of its file; of what is computed so many points of each curve at most."""
    return {
        "solvers.svg": work_precision(points),
        "sensitivities.svg": gradients(points),
        "memory.svg": memory(),
        "batching.svg": batching(),
        "growth.svg": growth(),
    }


def work_precision(points: int | None) -> Figure:
    """Error of the states against evaluations of the field, of the torch engine's solvers."""
    figure, axes = panels(2)
    for axis, name in zip(axes, ("lotka_volterra", "pleiades"), strict=True):
        problem = study.problem(name)
        curves = {}
        for solver in ("adaptive_heun", "bosh3", "dopri5", "dopri8"):
            tolerances = [
                10.0**-k
                for k in range(2, 10 if solver in ("dopri5", "dopri8") else 5)
            ]
            curves[solver] = [
                solved(problem, solver=solver, rtol=r, atol=r * 1e-3)
                for r in tolerances[:points]
            ]
        apart = float(problem.t[1] - problem.t[0])
        curves["rk4, fixed steps"] = [
            solved(problem, solver="rk4", dt=apart / n)
            for n in (4, 8, 16, 32, 64)[:points]
        ]
        draw(axis, curves)
        axis.set(
            title=name,
            xlabel="evaluations of the field",
            ylabel="relative error of the states",
        )
        count(axis)
    axes[0].legend(fontsize=8)
    return figure


def solved(problem: study.Problem, **how: object) -> tuple[float, float]:
    """Evaluations and error, relative to the largest state."""
    with torch.no_grad():
        solution = pynode.solve(
            problem.field,
            problem.z0,
            problem.t,
            engine="torch",
            max_steps=100_000,
            **how,
        )
    right = torch.as_tensor(problem.reference.z)
    return solution.stats.nfe, float(
        (solution.z - right).abs().max() / right.abs().max()
    )


def gradients(points: int | None) -> Figure:
    """Error of the gradient against the tolerance, by sensitivity."""
    figure, axes = panels(2)
    problem = study.problem("lotka_volterra")
    right = torch.as_tensor(problem.reference.gradient["rates"])
    errors: dict[str, list[tuple[float, float]]] = {}
    costs: dict[str, list[tuple[float, float]]] = {}
    for sensitivity in ("discrete", "backsolve", "forward"):
        for k in range(2, 9)[:points]:
            rtol = 10.0**-k
            problem.field.zero_grad()
            how = {
                "rtol": rtol,
                "atol": rtol * 1e-3,
                "solver": "dopri5",
                "max_steps": 100_000,
            }
            solution = pynode.solve(
                problem.field,
                problem.z0,
                problem.t,
                engine="torch",
                sensitivity=sensitivity,
                **how,
            )
            problem.loss_of(solution.z).backward()
            error = float(
                (problem.field.rates.grad - right).abs().max()
                / right.abs().max()
            )
            errors.setdefault(sensitivity, []).append((rtol, error))
            costs.setdefault(sensitivity, []).append(
                (solution.stats.nfe + solution.stats.nfe_backward, error)
            )
    draw(axes[0], errors)
    axes[0].set(xlabel="rtol", ylabel="relative error of the gradient")
    axes[0].legend(fontsize=8)
    draw(axes[1], costs)
    axes[1].set(
        xlabel="evaluations, forward and backward",
        ylabel="relative error of the gradient",
    )
    count(axes[1])
    return figure


def memory() -> Figure:
    """Peak memory of a gradient against the length of the integration."""
    figure, axes = panels(2)
    steps = (10, 20, 40, 80)
    _, *rows = table("## Memory against the length of the integration")
    for axis, engine in zip(axes, ("julia", "torch"), strict=True):
        curves = {
            row[1]: list(zip(steps, map(float, row[2:6]), strict=True))
            for row in rows
            if row[0] == engine
        }
        draw(axis, curves)
        axis.set(
            title=f"{engine} engine",
            xlabel="steps of rk4",
            ylabel="memory of a gradient, MB",
            ylim=(10, 1200),
        )
        axis.set_xticks(steps, steps)
        axis.legend(fontsize=8, ncols=2, loc="lower right")
    return figure


def batching() -> Figure:
    """Steps of a joint solve and of independent ones."""
    figure, (axis,) = panels(1)
    _, *rows = table("## 2026-11-26: joint and independent batching")
    names = ("joint", "independent, the slowest sample")
    draw(
        axis,
        {
            name: [(float(row[0]), float(row[i])) for row in rows]
            for i, name in enumerate(names, 1)
        },
    )
    axis.set(xlabel="oscillators in the batch", ylabel="steps")
    axis.set_xticks([1, 2, 4, 8, 16, 32], [1, 2, 4, 8, 16, 32])
    axis.set_yticks([200, 400, 800], [200, 400, 800])
    axis.legend()
    return figure


def growth() -> Figure:
    """Time of a gradient against the batch, the width, steps and samples."""
    axes_of = {
        "batch": "samples in the batch",
        "width": "width of the network",
        "steps": "steps of one sample",
        "samples": "samples with steps of their own",
    }
    names = [
        "pynode julia",
        "pynode torch",
        "torchdiffeq",
        "diffrax",
        "torchode",
    ]
    figure, axes = panels(2, 2)
    for axis, (of, label) in zip(axes, axes_of.items(), strict=True):
        header, *rows = table("## 2026-11-30: growth", of)
        curves: dict[str, list[tuple[float, float]]] = {x: [] for x in names}
        for size, *cells in rows:
            for name, cell in zip(header[1:], cells, strict=True):
                if name in curves and cell != "–":  # forward, gradient (…)
                    milliseconds = cell.split("(")[0].split(",")[1]
                    curves[name].append((float(size), float(milliseconds)))
        draw(axis, curves)
        axis.set(xlabel=label, ylabel="loss and gradient, ms")
        axis.legend(fontsize=8)
    return figure


def table(heading: str, of: str = "") -> list[list[str]]:
    """The first table behind a heading of the benchmarks that begins so, with its header."""
    lines = TABLES.read_text().split(f"{heading}\n")[1].splitlines()
    after = itertools.dropwhile(
        lambda line: not line.startswith(f"| {of}"), lines
    )
    header, _, *rows = itertools.takewhile(lambda line: line[:2] == "| ", after)
    return [
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in (header, *rows)
    ]


def panels(n: int, rows: int = 1) -> tuple[Figure, list]:
    """A figure with rows of n panels."""
    figure = Figure(figsize=(4.2 * n, 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, n, squeeze=False).reshape(-1)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, alpha=0.25)
    return figure, list(axes)


def draw(axis: object, curves: dict[str, list[tuple[float, float]]]) -> None:
    """A line with markers for each curve with points, on logarithmic axes."""
    for (name, points), colour, marker in zip(
        curves.items(), COLOURS, MARKERS, strict=False
    ):
        if not points:
            continue
        axis.loglog(
            *zip(*points, strict=True),
            color=colour,
            marker=marker,
            markersize=4,
            linewidth=1.3,
            label=name,
        )
    for each in (axis.xaxis, axis.yaxis):
        each.set_minor_formatter(NullFormatter())


def count(axis: object) -> None:
    """Abscissae that are numbers of evaluations, of which a decade alone would name one."""
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, figure in figures().items():
        with rc_context(STYLE):
            figure.savefig(HERE / name, metadata={"Date": None})
