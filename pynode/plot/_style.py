"""What all figures have in common: panels, colours, marks, names of axes."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "FEW",
    "HOW_TO_GET",
    "TRUTH",
    "available",
    "colours_of",
    "equal_scales",
    "grid_of",
    "line_style",
    "marker",
    "name_axes",
    "panels_of",
]

HOW_TO_GET = 'pip install "pynode-sciml[plot]"'
IN_A_ROW = 4  # panels
FEW = 20  # points of a line, which are marked then
# Told apart with every kind of colour vision: M. A. Petroff, "Accessible Color Sequences for Data Visualization", 2021.
COLOURS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
STYLES = ("-", "--", ":")  # of the first ten lines, the next ten, …
PLANE = ("z₁", "z₂", "z₃")
TRUTH = {"color": "black", "linewidth": 1.4, "linestyle": "--", "zorder": 4}  # above what is compared to it


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def colours_of(labels: Tensor) -> list[str]:
    """The colour of each class."""
    return [COLOURS[int(c) % len(COLOURS)] for c in labels.cpu()]


def line_style(k: int) -> dict[str, Any]:
    """Colour and style of the k-th line."""
    return {"color": COLOURS[k % len(COLOURS)], "linestyle": STYLES[k // len(COLOURS) % len(STYLES)]}


def marker(values: Sequence[Any] | Tensor) -> str:
    """That of a line of these values: few are marked, so that a single one can be seen."""
    return "." if len(values) < FEW else ""


def name_axes(axis: Any, names: Sequence[str] = PLANE) -> None:
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
