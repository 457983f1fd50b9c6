"""The figures."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "HOW_TO_GET",
    "available",
    "bands",
    "densities",
    "fit",
    "flow",
    "history",
    "images",
    "lines",
    "paths",
    "phase",
    "points",
    "surface",
    "trajectories",
]

HOW_TO_GET = 'pip install "pynode-sciml[plot]"'
_IN_A_ROW = 4  # panels


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def _figure(n_panels: int, panel: tuple[float, float] = (4.0, 3.4)) -> tuple[Figure, Sequence[Any]]:
    columns = n_panels if n_panels <= _IN_A_ROW else math.ceil(n_panels / math.ceil(n_panels / _IN_A_ROW))
    figure, grid = _grid(math.ceil(n_panels / columns), columns, panel)
    places = list(grid.flat)
    for spare in places[n_panels:]:
        spare.remove()
    return figure, places[:n_panels]


def _grid(n_rows: int, n_columns: int, panel: tuple[float, float]) -> tuple[Figure, Any]:
    if not available():
        raise ModuleNotFoundError(f"figures need matplotlib, which is not installed: {HOW_TO_GET}")
    from matplotlib.figure import Figure  # not pyplot: no global state, no window, no backend to choose

    figure = Figure(figsize=(panel[0] * n_columns, panel[1] * n_rows), dpi=120, layout="constrained")
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    for axis in grid.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, alpha=0.25)
    return figure, grid


def history(panels: Mapping[str, Mapping[str, Sequence[float]]], *, xlabel: str = "epoch") -> Figure:
    """Curves over training: one panel per quantity, one line per model.

    Args:
        panels: for each quantity, the values of each model, one per epoch; panels whose values span more than
            two decades get a logarithmic axis.
        xlabel: what one value stands for.
    """
    figure, axes = _figure(len(panels))
    for axis, (quantity, lines) in zip(axes, panels.items(), strict=True):
        for label, values in lines.items():
            axis.plot(range(1, len(values) + 1), values, label=label)
        flat = [v for values in lines.values() for v in values]
        if flat and min(flat) > 0 and max(flat) / min(flat) > 100:
            axis.set_yscale("log")
        axis.set_xlabel(xlabel)
        axis.set_title(quantity)
        if len(lines) > 1:
            axis.legend(frameon=False)
    return figure


def lines(panels: Mapping[str, Mapping[str, tuple[Any, Any]]], *, xlabel: str) -> Figure:
    """Curves against anything: one panel per quantity, one line per label, few points marked.

    Args:
        panels: for each quantity and label, abscissae `(n,)` and ordinates `(n,)`; panels of positive ordinates
            that span more than two decades get a logarithmic axis. A line labelled `"true"` is black.
        xlabel: what the abscissae are.
    """
    figure, axes = _figure(len(panels), panel=(5.2, 4.0))
    for axis, (quantity, curves) in zip(axes, panels.items(), strict=True):
        flat: list[float] = []
        for label, (x, y) in curves.items():
            style = {"color": "black", "linewidth": 2.5, "alpha": 0.5} if label == "true" else {}
            y = [float(value) for value in y]
            axis.plot([float(value) for value in x], y, label=label, marker="." if len(y) < 20 else "", **style)
            flat += y
        if flat and min(flat) > 0 and max(flat) / min(flat) > 100:
            axis.set_yscale("log")
        axis.set_xlabel(xlabel)
        axis.set_title(quantity)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside right center")
    return figure


def flow(panels: Mapping[str, Tensor], labels: Tensor | None = None) -> Figure:
    """Trajectories of features in the plane, from z(0) (small) to z(T) (large), coloured by class.

    Args:
        panels: for each model, `(time, batch, 2)`; see `principal_plane` for more features.
        labels: `(batch,)`, classes 0, 1, …; all in one colour where `None`.
    """
    figure, axes = _figure(len(panels), panel=(5.6, 5.0))
    from matplotlib.lines import Line2D

    for axis, (title, z) in zip(axes, panels.items(), strict=True):
        points = z.detach().cpu()
        classes = torch.zeros(points.shape[1], dtype=torch.long) if labels is None else labels.cpu()
        colours = [f"C{int(c) % 10}" for c in classes]
        for i, colour in enumerate(colours):
            axis.plot(points[:, i, 0], points[:, i, 1], color=colour, alpha=0.35, linewidth=0.8)
        axis.scatter(*points[0].T, s=6, c=colours, alpha=0.5, linewidths=0)
        axis.scatter(*points[-1].T, s=22, c=colours, linewidths=0.4, edgecolors="white", zorder=3)
        axis.set_title(title)
        axis.set_aspect("equal", adjustable="datalim")
    if labels is not None:
        handles = [
            Line2D([], [], marker="o", linestyle="", color=f"C{int(c) % 10}", label=str(int(c)))
            for c in labels.unique()
        ]
        figure.legend(handles=handles, loc="outside right center", frameon=False)
    return figure


def points(panels: Mapping[str, Tensor], labels: Tensor) -> Figure:
    """Points of the plane, or of space, coloured by class.

    Args:
        panels: for each title, `(batch, features)` with 2 or 3 features.
        labels: `(batch,)`, classes 0, 1, ….
    """
    figure, axes = _figure(len(panels), panel=(3.4, 3.4))
    colours = [f"C{int(c) % 10}" for c in labels.cpu()]
    for axis, (title, z) in zip(axes, panels.items(), strict=True):
        if z.shape[1] == 3:
            place = axis.get_subplotspec()
            axis.remove()
            axis = figure.add_subplot(place, projection="3d")
        axis.scatter(*z.detach().cpu().numpy().T, s=10, c=colours)
        axis.set_title(title)
    return figure


def surface(panels: Mapping[str, tuple[Tensor, Tensor]], points: Tensor, labels: Tensor) -> Figure:
    """The output of classifiers over the plane, with the contour of 0, the decision, and points of two classes.

    Args:
        panels: for each model, coordinates and values as `on_grid` gives them.
        points: `(batch, 2)`.
        labels: `(batch,)`, classes 0 and 1.
    """
    figure, axes = _figure(len(panels), panel=(4.6, 4.2))
    colours = [f"C{int(c) % 10}" for c in labels.cpu()]
    for axis, (title, (side, values)) in zip(axes, panels.items(), strict=True):
        ticks, z = side.numpy(), values.detach().cpu()
        filled = axis.contourf(
            side, side, z.clamp(-1.5, 1.5), levels=[-1.5 + 0.25 * i for i in range(13)], cmap="PuOr_r", alpha=0.8
        )
        axis.contour(ticks, ticks, z.numpy(), levels=[0.0], colors="black", linewidths=1.2)
        axis.scatter(*points.cpu().numpy().T, s=8, c=colours, edgecolors="white", linewidths=0.3)
        axis.set_title(title)
        axis.set_aspect("equal")
        axis.grid(False)
    figure.colorbar(filled, ax=list(axes), shrink=0.8, label="output")
    return figure


def fit(panels: Mapping[str, tuple[Tensor, Tensor]], points: tuple[Tensor, Tensor]) -> Figure:
    """Fitted curves of one variable against the data.

    Args:
        panels: for each model, inputs and outputs of its curve, `(n, 1)` each.
        points: inputs and targets of the data, `(n, 1)` each.
    """
    figure, axes = _figure(len(panels))
    for axis, (title, (x, y)) in zip(axes, panels.items(), strict=True):
        axis.plot(x.detach().flatten(), y.detach().flatten(), color="C0", label="fit")
        axis.scatter(points[0].flatten(), points[1].flatten(), color="C3", s=24, zorder=3, label="data")
        axis.set_title(title)
        axis.set_xlabel("x")
        axis.legend(frameon=False)
    axes[0].set_ylabel("y")
    return figure


def trajectories(panels: Mapping[str, tuple[Tensor, Tensor]], *, ylabel: str = "z(s)") -> Figure:
    """States of one feature against depth, one line per sample.

    Args:
        panels: for each model, depths `(time,)` and states `(time, batch, 1)`.
        ylabel: name of the state.
    """
    figure, axes = _figure(len(panels))
    for axis, (title, (t, z)) in zip(axes, panels.items(), strict=True):
        axis.plot(t.detach(), z.detach()[..., 0], marker="." if len(t) < 20 else "", alpha=0.8)
        axis.set_title(title)
        axis.set_xlabel("depth s")
    axes[0].set_ylabel(ylabel)
    return figure


def densities(
    rows: Mapping[str, tuple[Tensor, Tensor, Tensor, Tensor]],
    *,
    extent: tuple[float, float, float, float],
    shown: tuple[float, float, float, float] | None = None,
) -> Figure:
    """Densities in the plane: a row for each, with its data, its heat map, samples, and paths from base to data.

    Args:
        rows: for each title: data `(n, 2)`, the density on a grid `(x, y)` that fills the extent (see
            `density_on_grid`), samples `(n, 2)`, and paths `(time, batch, 2)`, from the base to the data.
        extent: the first and the last x, then those of y.
        shown: the part of the extent that is drawn; all of it where `None`.
    """
    left, right, bottom, top = extent if shown is None else shown
    figure, grid = _grid(len(rows), 4, panel=(2.6, 2.6))
    for line, (title, (data, density, samples, paths)) in zip(grid, rows.items(), strict=True):
        for axis, points in ((line[0], data), (line[2], samples)):
            axis.scatter(*points.detach().cpu().T, s=1, alpha=0.4, linewidths=0, color="C0")
        line[1].imshow(density.detach().cpu().T, origin="lower", extent=extent, cmap="viridis", aspect="auto")
        way = paths.detach().cpu()
        line[3].plot(way[..., 0], way[..., 1], color="0.6", linewidth=0.4)
        line[3].scatter(*way[0].T, s=4, color="C1", linewidths=0, label="base", zorder=3)
        line[3].scatter(*way[-1].T, s=4, color="C0", linewidths=0, label="data", zorder=3)
        line[0].set_ylabel(title)
        for axis in line:
            axis.set_xlim(left, right)
            axis.set_ylim(bottom, top)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(True)
            axis.set_box_aspect(1)
    for axis, name in zip(grid[0], ("data", "density", "samples", "paths"), strict=True):
        axis.set_title(name)
    grid[0][3].legend(frameon=False, markerscale=3, fontsize="small", loc="lower right", handletextpad=0.1)
    return figure


def images(panels: Mapping[str, Tensor], *, columns: int = 10) -> Figure:
    """Grey images in [0, 1], side by side in a panel for each title.

    Args:
        panels: for each title, `(n, 1, height, width)`.
        columns: images in a line.
    """
    figure, axes = _figure(len(panels), panel=(4.4, 4.4))
    figure.get_layout_engine().set(wspace=0.08)  # type: ignore[union-attr, call-arg]
    for axis, (title, x) in zip(axes, panels.items(), strict=True):
        lines = -(-len(x) // columns)
        height, width = x.shape[2] + 1, x.shape[3] + 1  # with a margin of one pixel
        sheet = torch.ones(lines * height - 1, columns * width - 1)
        for k, image in enumerate(x.detach().cpu()):
            top, left = k // columns * height, k % columns * width
            sheet[top : top + height - 1, left : left + width - 1] = image[0]
        axis.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title)
        axis.axis("off")
    return figure


def phase(curves: Mapping[str, Tensor]) -> Figure:
    """Curves in the plane, the first as dots (the data), the others as lines.

    Args:
        curves: for each label, `(time, 2)`.
    """
    figure, (axis,) = _figure(1, panel=(4.8, 4.6))
    for i, (label, z) in enumerate(curves.items()):
        style = {"linestyle": "", "marker": ".", "markersize": 3} if i == 0 else {"linewidth": 1.5}
        axis.plot(*z.detach().cpu().T, label=label, **style)
    axis.set_aspect("equal", adjustable="datalim")
    figure.legend(frameon=False, loc="outside upper center", ncols=len(curves))
    return figure


def bands(
    panels: Mapping[str, tuple[Tensor, Tensor]],
    points: Mapping[str, Mapping[str, tuple[Tensor, Tensor]]],
    *,
    since: float | None = None,
    xlabel: str = "t",
) -> Figure:
    """Predictions of one variable over time: the median, and the bands that hold half and nine tenths of the draws.

    Args:
        panels: for each title, times `(time,)` and draws `(n_samples, time)`, NaN where there is none.
        points: for each title, times and values of points under their labels; those of the first label filled.
        since: a time that is marked, e.g. where extrapolation begins.
        xlabel: name of the time.
    """
    figure, axes = _figure(len(panels), panel=(5.2, 3.4))
    for axis, (title, (t, draws)) in zip(axes, panels.items(), strict=True):
        levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=draws.dtype, device=draws.device)
        quantiles, at = draws.detach().nanquantile(levels, dim=0).cpu().numpy(), t.cpu().numpy()
        axis.fill_between(at, quantiles[0], quantiles[4], color="C0", alpha=0.15, linewidth=0, label="90 % of draws")
        axis.fill_between(at, quantiles[1], quantiles[3], color="C0", alpha=0.25, linewidth=0, label="50 % of draws")
        axis.plot(at, quantiles[2], color="C0", label="median")
        for i, (label, (times, values)) in enumerate(points[title].items()):
            style = {"color": "black"} if i == 0 else {"facecolor": "white", "edgecolor": "C3", "linewidths": 1.5}
            axis.scatter(times.cpu().numpy(), values.cpu().numpy(), s=24, zorder=3, label=label, **style)
        if since is not None:
            axis.axvline(since, color="0.5", linestyle=":", linewidth=1)
        axis.set_title(title)
        axis.set_xlabel(xlabel)
        axis.xaxis.get_major_locator().set_params(integer=bool((at[[0, -1]] % 1 == 0).all()))
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=5)
    return figure


def paths(rows: Mapping[str, Tensor], truth: Tensor, observed: Sequence[Tensor], split: int) -> Figure:
    """Paths in the plane as models reconstruct and extrapolate them, one row per model and one column per path.

    Args:
        rows: for each model, `(n, time, 2)`, or draws `(n_samples, n, time, 2)`.
        truth: `(n, true_time, 2)`.
        observed: for each path, `(n_obs, 2)`.
        split: number of the models' times that are reconstructed; the later ones are extrapolated.
    """
    figure, axes = _grid(len(rows), len(observed), (3.2, 3.0))
    for row, (name, draws) in enumerate(rows.items()):
        for i, points in enumerate(observed):
            axis = axes[row, i]
            axis.plot(*truth[i].cpu().T, color="0.75", linewidth=3, label="truth")
            lines = draws.detach().cpu().reshape(-1, *draws.shape[-3:])[:, i]
            alpha = 1.0 if len(lines) == 1 else 0.35
            for line in lines:
                axis.plot(*line[:split].T, color="C0", linewidth=1.2, alpha=alpha)
                axis.plot(*line[split - 1 :].T, color="C3", linewidth=1.2, alpha=alpha)
            axis.scatter(*points.cpu().T, s=9, color="black", zorder=3, linewidths=0)
            centre = (truth[i].amax(0) + truth[i].amin(0)) / 2
            reach = 0.65 * float((truth[i].amax(0) - truth[i].amin(0)).max())
            axis.set_xlim(float(centre[0]) - reach, float(centre[0]) + reach)
            axis.set_ylim(float(centre[1]) - reach, float(centre[1]) + reach)
            axis.set_aspect("equal")
            axis.tick_params(labelsize=7)
            if i == 0:
                axis.set_ylabel(name)
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=c, linewidth=w) for c, w in (("0.75", 3), ("C0", 1.2), ("C3", 1.2))]
    handles.append(Line2D([], [], color="black", marker="o", markersize=3, linestyle=""))
    labels = ["truth", "reconstruction", "extrapolation", "observed"]
    figure.legend(handles, labels, loc="outside lower center", frameon=False, ncols=4)
    return figure
