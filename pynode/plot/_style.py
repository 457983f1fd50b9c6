"""What all figures have in common: panels, colours, marks, names of axes."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "FEW",
    "HOW_TO_GET",
    "PLANE",
    "TRUTH",
    "available",
    "class_marks",
    "colours_of",
    "equal_scales",
    "grid_of",
    "integer_ticks",
    "labels_of",
    "legend_of",
    "line_style",
    "marks",
    "name_axes",
    "panels_of",
]

HOW_TO_GET = 'pip install "pynode-sciml[plot]"'
IN_A_ROW = 4  # panels
FEW = 20  # points of a line, which are marked then
COLOURS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
"""Those of the figures, which every kind of colour vision tells apart (M. A. Petroff, "Accessible Color Sequences for
Data Visualization", 2021)."""
MARKS = "os^Dv"
STYLES = ("-", "--", ":")  # of the first ten lines, the next ten, …
PLANE = ("z₁", "z₂")
TRUTH = {"color": "black", "linewidth": 1.4, "linestyle": "--", "zorder": 4}  # above what is compared to it


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def colours_of(labels: Tensor) -> list[str]:
    """The colour of each class."""
    return [COLOURS[int(c) % len(COLOURS)] for c in labels.cpu()]


def class_marks(labels: Tensor) -> list[Any]:
    """A dot in the colour of each class, for the legend."""
    from matplotlib.lines import Line2D

    classes = labels.unique()
    return [
        Line2D([], [], marker="o", linestyle="", color=colour, label=f"class {int(c)}")
        for c, colour in zip(classes, colours_of(classes), strict=True)
    ]


def line_style(k: int) -> dict[str, Any]:
    """Colour and style of the k-th line."""
    return {"color": COLOURS[k % len(COLOURS)], "linestyle": STYLES[k // len(COLOURS) % len(STYLES)]}


def marks(values: Sequence[float], k: int | None) -> dict[str, Any]:
    """Marks on the k-th line, or the truth's (`None`), if its values are few: hollow, of sizes that differ."""
    if len(values) >= FEW:
        return {}
    if k is None:
        return {"marker": "."}
    return {"marker": MARKS[k % len(MARKS)], "markersize": max(9 - 2 * k, 3), "markerfacecolor": "none"}


def labels_of(panels: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Of the lines of all panels; one label has one colour in all of them."""
    return list(dict.fromkeys(label for lines in panels.values() for label in lines))


def legend_of(figure: Figure, axes: Sequence[Any], labels: Sequence[str]) -> None:
    """One for all panels, beside them, where it hides nothing."""
    found = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.set_figwidth(figure.get_figwidth() + 0.6 + 0.08 * max(map(len, labels)))  # its line, and its letters
    figure.legend([found[label] for label in labels], labels, frameon=False, loc="outside right center")


def integer_ticks(axis: Any) -> None:
    """Ticks of the abscissae at whole numbers alone, one if there is no more."""
    axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def name_axes(axis: Any, names: Sequence[str] = (*PLANE, "z₃")) -> None:
    """Write the names of its two or three coordinates."""
    for which, name in zip("xyz", names, strict=False):
        if hasattr(axis, f"set_{which}label"):
            getattr(axis, f"set_{which}label")(name)


def equal_scales(axes: Sequence[Any]) -> None:
    """The same limits in all panels."""
    for which in ("xlim", "ylim"):
        low, high = zip(*(getattr(axis, f"get_{which}")() for axis in axes), strict=True)
        for axis in axes:
            getattr(axis, f"set_{which}")(min(low), max(high))


def panels_of(n_panels: int, panel: tuple[float, float] = (4.0, 3.4)) -> tuple[Figure, Sequence[Any]]:
    columns = n_panels if n_panels <= IN_A_ROW else math.ceil(n_panels / math.ceil(n_panels / IN_A_ROW))
    figure, grid = grid_of(math.ceil(n_panels / columns), columns, panel)
    places = list(grid.flat)
    for spare in places[n_panels:]:
        spare.remove()
    return figure, places[:n_panels]


def grid_of(n_rows: int, n_columns: int, panel: tuple[float, float]) -> tuple[Figure, Any]:
    if not available():
        raise ModuleNotFoundError(f"figures need matplotlib, which is not installed: {HOW_TO_GET}")
    from matplotlib.figure import Figure  # not pyplot: no global state, no window, no backend to choose

    figure = Figure(figsize=(panel[0] * n_columns, panel[1] * n_rows), dpi=120, layout="constrained")
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    for axis in grid.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, alpha=0.25)
    return figure, grid
