"""Figures for papers: work-precision diagrams and training curves as PNG and SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pynode.study.optional import need
from pynode.study.reporting.front import front
from pynode.study.reporting.measures import ERRORS, MEASURES, Measure, accuracy, work
from pynode.study.reporting.points import disturbed, points
from pynode.study.reporting.source import Row, Source, number
from pynode.study.reporting.style import Look, looks, training_looks
from pynode.study.reporting.training import curves
from pynode.study.reporting.units import seconds, slug

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figures", "write_figures"]

_PANEL = (4.4, 3.5)  # inches
_LEAST = 1e-17  # an error of zero is drawn here


def write_figures(source: Source, stem: Path, suffixes: Sequence[str]) -> list[Path]:
    """`STEM-PROBLEM-work-precision.SUFFIX` for each problem, `STEM-PROBLEM-training.SUFFIX` for each training."""
    drawn = figures(source)
    import matplotlib

    found = []
    for name, figure in drawn.items():
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # what was laid out once stays
        for suffix in suffixes:
            path = Path(f"{stem}-{name}.{suffix}")
            with matplotlib.rc_context({"svg.hashsalt": "pynode"}):  # the same study gives the same file
                figure.savefig(path, dpi=200, metadata={"Date": None} if suffix == "svg" else None)
            found.append(path)
    return found


def figures(source: Source) -> dict[str, Figure]:
    """The figures, by names for files; none of a problem that nobody solved."""
    need("matplotlib", "a figure")
    restless, styles = disturbed(source.rows), looks(source.solves)
    found: dict[str, Figure] = {}
    for problem in dict.fromkeys(row["problem"] for row in source.solves):
        own = points([row for row in source.solves if row["problem"] == problem], restless)
        if figure := _work_precision(problem, own, styles):
            found[_free(f"{slug(problem)}-work-precision", found)] = figure
    for problem in dict.fromkeys(row["problem"] for row in source.trainings):
        if figure := _training(problem, [row for row in source.trainings if row["problem"] == problem]):
            found[_free(f"{slug(problem)}-training", found)] = figure
    return found


def _free(name: str, taken: dict[str, Any]) -> str:
    free, place = name, 2
    while free in taken:
        free, place = f"{name}-{place}", place + 1
    return free


def _grid(n_panels: int, title: str, labels: int) -> tuple[Figure, Sequence[Any]]:
    from matplotlib.figure import Figure

    lines = math.ceil(labels / (1.6 * n_panels)) if n_panels > 1 else math.ceil(labels / 2)
    figure = Figure(figsize=(_PANEL[0] * n_panels, _PANEL[1] + 0.19 * lines + 0.5), layout="constrained")
    axes = figure.subplots(1, n_panels, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, alpha=0.25, linewidth=0.6)
    figure.suptitle(_literal(title), fontsize=11)
    return figure, axes


def _legend(figure: Figure, handles: Sequence[Any], n_panels: int) -> None:
    labels = [handle.get_label() for handle in handles]
    columns = max(1, min(len(labels), round(1.6 * n_panels) if n_panels > 1 else 2))
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, fontsize=7.5, frameon=False, handlelength=3
    )


def _literal(text: str) -> str:
    r"""Text of a user's that matplotlib is to print as it is: a dollar would begin mathematics."""
    return text.replace("$", r"\$")


def _work_precision(problem: str, found: list[Row], styles: dict[str, Look]) -> Figure | None:
    panels = [m for m in MEASURES if any(math.isfinite(accuracy(p, m, m.errors[0])) for p in found)]
    if not panels:
        return None
    labels = list(dict.fromkeys(point["contender"] for point in found))
    figure, axes = _grid(len(panels), problem, len(labels))
    handles: dict[str, Any] = {}
    for axis, measure in zip(axes, panels, strict=True):
        _draw(axis, found, measure, styles, handles)
    _legend(figure, [handles[label] for label in labels if label in handles], len(panels))
    return figure


def _draw(axis: Any, found: list[Row], measure: Measure, styles: dict[str, Look], handles: dict[str, Any]) -> None:
    error = measure.errors[0]
    along = [found[i] for i in front(found, measure, error, "seconds")]
    axis.plot(
        [max(number(p[error]), _LEAST) for p in along],
        [work(p, measure, "seconds") for p in along],
        color="#dde1e7",
        linewidth=7,
        solid_capstyle="round",
        zorder=1,
    )
    for label in dict.fromkeys(point["contender"] for point in found):
        own = [p for p in found if p["contender"] == label and math.isfinite(accuracy(p, measure, error))]
        own = [p for p in own if math.isfinite(work(p, measure, "seconds"))]
        if not own:
            continue
        look = styles[label] if label in styles else styles[label.rpartition(" (")[0]]
        middle = [work(p, measure, "seconds") for p in own]
        low = [max(0.0, m - number(p[f"{measure.seconds}_q1"])) for m, p in zip(middle, own, strict=True)]
        high = [max(0.0, number(p[f"{measure.seconds}_q3"]) - m) for m, p in zip(middle, own, strict=True)]
        drawn = axis.errorbar(
            [max(number(p[error]), _LEAST) for p in own],
            middle,
            yerr=[[0.0 if math.isnan(v) else v for v in side] for side in (low, high)],
            color=look.colour,
            marker=look.marker.matplotlib,
            linestyle=look.line,
            markersize=6.5 if look.marker.matplotlib == "*" else 5,
            markeredgecolor="white",
            markeredgewidth=0.4,
            linewidth=1.2,
            elinewidth=0.8,
            capsize=1.5,
            label=_literal(label),
            zorder=2,
        )
        handles.setdefault(label, drawn)
    axis.set(xscale="log", yscale="log", title=measure.name, xlabel=ERRORS[error], ylabel="time of one call")
    axis.title.set_fontsize(10)
    axis.yaxis.set_major_formatter(lambda value, _: seconds(value))
    axis.yaxis.set_minor_formatter(lambda value, _: "")
    low, high = axis.get_ylim()
    if high / low < 30:  # less than two decades: more than the decades are labelled
        from matplotlib.ticker import LogLocator

        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 10 else (1, 3)))
    axis.tick_params(labelsize=8)


def _training(problem: str, rows: list[Row]) -> Figure | None:
    drawn = curves(rows)
    if not drawn:
        return None
    from matplotlib.ticker import EngFormatter, MaxNLocator

    styles = training_looks(rows)
    figure, axes = _grid(3, problem, len(drawn))
    handles = []
    titles = {"seconds": "seconds of training", "nfe": "evaluations of the field, in all", "epoch_nfe": "epoch"}
    for axis, (kind, title) in zip(axes, titles.items(), strict=True):
        for curve in drawn:
            look = styles[curve["contender"]]
            for run, wide in [*((run, False) for run in curve["seeds"]), (curve["median"], True)]:
                y = run["epoch_nfe"] if kind == "epoch_nfe" else run["loss"]
                x = list(range(1, len(y) + 1)) if kind == "epoch_nfe" else run[kind]
                x, y = ([math.nan if v is None else v for v in values] for values in (x, y))
                style = {"linewidth": 1.8, "linestyle": look.line} if wide else {"linewidth": 0.6, "alpha": 0.3}
                (line,) = axis.plot(x, y, color=look.colour, label=_literal(curve["contender"]), **style)
            if kind == "seconds":
                handles.append(line)
        axis.set(xlabel=title, ylabel="evaluations of a solve" if kind == "epoch_nfe" else "loss")
        if kind == "epoch_nfe":
            axis.set_ylim(bottom=0)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        elif any((value or 0) > 0 for curve in drawn for value in curve["median"]["loss"]):
            axis.set_yscale("log")
        if kind == "nfe":
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.tick_params(labelsize=8)
    _legend(figure, handles, 3)
    return figure
