"""The figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pynode.plot._style import (
    COLOURS,
    FEW,
    PLANE,
    TRUTH,
    class_marks,
    colours_of,
    equal_scales,
    grid_of,
    integer_ticks,
    labels_of,
    legend_of,
    line_style,
    marks,
    name_axes,
    panels_of,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
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


def history(panels: Mapping[str, Mapping[str, Sequence[float]]], *, xlabel: str = "epoch") -> Figure:
    """Curves over training: one panel per quantity, one line per model.

    Args:
        panels: for each quantity, the values of each model, one per epoch; panels whose values span more than
            two decades get a logarithmic axis.
        xlabel: what one value stands for.
    """
    figure, axes = panels_of(len(panels))
    labels = labels_of(panels)
    for axis, (quantity, lines) in zip(axes, panels.items(), strict=True):
        for label, values in lines.items():
            style = line_style(labels.index(label)) | {"marker": "." if len(values) < FEW else ""}
            axis.plot(range(1, len(values) + 1), values, label=label, **style)
        flat = [v for values in lines.values() for v in values]
        if flat and min(flat) > 0 and max(flat) / min(flat) > 100:
            axis.set_yscale("log")
        axis.set_xlabel(xlabel)
        axis.set_title(quantity)
        if max(map(len, lines.values()), default=0) < FEW:
            integer_ticks(axis)
    if len(labels) > 1:
        legend_of(figure, axes, labels)
    return figure


def lines(panels: Mapping[str, Mapping[str, tuple[Any, Any]]], *, xlabel: str) -> Figure:
    """Curves against anything: one panel per quantity, one line per label, few points marked.

    Args:
        panels: for each quantity and label, abscissae `(n,)` and ordinates `(n,)`; panels of positive ordinates
            that span more than two decades get a logarithmic axis, few whole abscissae whole ticks. A line labelled
            `"true"` is black, dashed, and above the others.
        xlabel: what the abscissae are.
    """
    figure, axes = panels_of(len(panels), panel=(5.2, 4.0))
    labels = labels_of(panels)
    others = [label for label in labels if label != "true"]
    for axis, (quantity, curves) in zip(axes, panels.items(), strict=True):
        flat: list[float] = []
        whole = True
        for label, (x, y) in curves.items():
            x, y = [float(value) for value in x], [float(value) for value in y]
            k = None if label == "true" else others.index(label)
            axis.plot(x, y, label=label, **(TRUTH if k is None else line_style(k)), **marks(y, k))
            flat += y
            whole = whole and len(x) < FEW and all(value == int(value) for value in x)
        if whole:
            integer_ticks(axis)
        if flat and min(flat) > 0 and max(flat) / min(flat) > 100:
            axis.set_yscale("log")
        axis.set_xlabel(xlabel)
        axis.set_title(quantity)
    legend_of(figure, axes, labels)
    return figure


def flow(panels: Mapping[str, Tensor], labels: Tensor | None = None, *, axes_names: tuple[str, str] = PLANE) -> Figure:
    """Trajectories of features in the plane, from z(0) (small) to z(T) (large), coloured by class; one scale for all.

    Args:
        panels: for each model, `(time, batch, 2)`; see `principal_plane` for more features.
        labels: `(batch,)`, classes 0, 1, …; all in one colour where `None`.
        axes_names: what the two coordinates are.
    """
    figure, axes = panels_of(len(panels), panel=(5.6, 5.0))
    from matplotlib.lines import Line2D

    for axis, (title, z) in zip(axes, panels.items(), strict=True):
        points = z.detach().cpu()
        classes = torch.zeros(points.shape[1], dtype=torch.long) if labels is None else labels.cpu()
        colours = colours_of(classes)
        for i, colour in enumerate(colours):
            axis.plot(points[:, i, 0], points[:, i, 1], color=colour, alpha=0.35, linewidth=0.8)
        axis.scatter(*points[0].T, s=6, c=colours, alpha=0.5, linewidths=0)
        axis.scatter(*points[-1].T, s=22, c=colours, linewidths=0.4, edgecolors="white", zorder=3)
        axis.set_title(title)
        axis.set_aspect("equal", adjustable="box")
        name_axes(axis, axes_names)
    equal_scales(axes)
    handles = [
        Line2D([], [], marker="o", linestyle="", color="0.4", markersize=size, label=name)
        for name, size in (("start", 2.5), ("end", 5))
    ]
    if labels is not None:
        handles += class_marks(labels)
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    return figure


def points(panels: Mapping[str, Tensor], labels: Tensor) -> Figure:
    """Points of the plane, or of space, coloured by class; one scale for all panels of the plane.

    Args:
        panels: for each title, `(batch, features)` with 2 or 3 features.
        labels: `(batch,)`, classes 0, 1, ….
    """
    figure, axes = panels_of(len(panels), panel=(3.4, 3.4))
    colours, flat = colours_of(labels), []
    for axis, (title, z) in zip(axes, panels.items(), strict=True):
        if z.shape[1] == 3:
            place = axis.get_subplotspec()
            axis.remove()
            axis = figure.add_subplot(place, projection="3d")
        else:
            flat.append(axis)
        axis.scatter(*z.detach().cpu().numpy().T, s=10, c=colours)
        axis.set_title(title)
        name_axes(axis)
    if flat:
        equal_scales(flat)
    handles = class_marks(labels)
    figure.legend(handles=handles, loc="outside lower center", frameon=False, ncols=len(handles))
    return figure


def surface(panels: Mapping[str, tuple[Tensor, Tensor]], points: Tensor, labels: Tensor) -> Figure:
    """The output of classifiers over the plane, with the contour of 0, the decision, and points of two classes.

    Args:
        panels: for each model, coordinates and values as `on_grid` gives them.
        points: `(batch, 2)`.
        labels: `(batch,)`, classes 0 and 1.
    """
    figure, axes = panels_of(len(panels), panel=(4.6, 4.2))
    colours = colours_of(labels)
    for axis, (title, (side, values)) in zip(axes, panels.items(), strict=True):
        ticks, z = side.numpy(), values.detach().cpu()
        filled = axis.pcolormesh(ticks, ticks, z.numpy(), cmap="PuOr", vmin=-1.5, vmax=1.5, shading="gouraud")
        axis.contour(ticks, ticks, z.numpy(), levels=[0.0], colors="black", linewidths=1.2)
        axis.scatter(*points.cpu().numpy().T, s=8, c=colours, edgecolors="white", linewidths=0.3)
        axis.set_title(title)
        axis.set_aspect("equal")
        axis.grid(False)
        name_axes(axis, ("x₁", "x₂"))
    figure.colorbar(filled, ax=list(axes), shrink=0.8, label="output", extend="both")
    handles = class_marks(labels)
    figure.legend(handles=handles, loc="outside lower center", frameon=False, ncols=len(handles))
    return figure


def fit(
    panels: Mapping[str, tuple[Tensor, Tensor]],
    points: tuple[Tensor, Tensor],
    truth: tuple[Tensor, Tensor] | None = None,
) -> Figure:
    """Fitted curves of one variable against the data; one scale for all panels.

    Args:
        panels: for each model, inputs and outputs of its curve, `(n, 1)` each.
        points: inputs and targets of the data, `(n, 1)` each.
        truth: inputs and outputs of the curve that the data are of, `(n, 1)` each.
    """
    figure, axes = panels_of(len(panels))
    for axis, (title, (x, y)) in zip(axes, panels.items(), strict=True):
        axis.plot(x.detach().flatten(), y.detach().flatten(), color=COLOURS[0], linewidth=2, label="fit")
        axis.scatter(points[0].flatten(), points[1].flatten(), color=COLOURS[2], s=24, zorder=5, label="data")
        if truth is not None:
            axis.plot(truth[0].detach().flatten(), truth[1].detach().flatten(), label="true", **TRUTH)
        axis.set_title(title)
        axis.set_xlabel("x")
        axis.set_ylabel("y")
    equal_scales(axes)
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=3)
    return figure


def trajectories(panels: Mapping[str, tuple[Tensor, Tensor]], *, ylabel: str = "z(s)") -> Figure:
    """States of one feature against depth, one line per sample, start and end marked; one scale for all panels.

    Args:
        panels: for each model, depths `(time,)` and states `(time, batch, 1)`.
        ylabel: name of the state.
    """
    figure, axes = panels_of(len(panels))
    for axis, (title, (t, z)) in zip(axes, panels.items(), strict=True):
        depth, states = t.detach().cpu(), z.detach().cpu()[..., 0]
        for k, state in enumerate(states.T):
            axis.plot(depth, state, marker="." if len(depth) < FEW else "", alpha=0.8, **line_style(k))
        for end, label, colour in ((0, "start", "white"), (-1, "end", "0.3")):
            at = depth[end].expand(states.shape[1])
            axis.scatter(at, states[end], s=14, color=colour, edgecolors="0.3", zorder=3, label=label)
        axis.set_title(title)
        axis.set_xlabel("depth s")
        axis.set_ylabel(ylabel)
    equal_scales(axes)
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2)
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
    figure, grid = grid_of(len(rows), 4, panel=(2.6, 2.6))
    for line, (title, (data, density, samples, paths)) in zip(grid, rows.items(), strict=True):
        for axis, points in ((line[0], data), (line[2], samples)):
            axis.scatter(*points.detach().cpu().T, s=1, alpha=0.4, linewidths=0, color=COLOURS[0])
        heat = line[1].imshow(density.detach().cpu().T, origin="lower", extent=extent, cmap="viridis", aspect="auto")
        figure.colorbar(heat, ax=line[1], shrink=0.8, label="density").ax.tick_params(labelsize=6)
        line[1].grid(False)
        way = paths.detach().cpu()
        line[3].plot(way[..., 0], way[..., 1], color="0.6", linewidth=0.4)
        line[3].scatter(*way[0].T, s=4, color=COLOURS[1], linewidths=0, label="base, start", zorder=3)
        line[3].scatter(*way[-1].T, s=4, color=COLOURS[4], linewidths=0, label="data, end", zorder=3)
        for axis in line:
            name_axes(axis)
            axis.set_xlim(left, right)
            axis.set_ylim(bottom, top)
            axis.tick_params(labelsize=6)
            axis.spines[:].set_visible(True)
            axis.set_box_aspect(1)
        line[0].set_ylabel(f"{title}\nz₂")
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
    figure, axes = panels_of(len(panels), panel=(4.4, 4.4))
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


def phase(curves: Mapping[str, Tensor], *, axes_names: tuple[str, str] = PLANE) -> Figure:
    """Curves in the plane, the first as dots (the data), the others as lines whose ends are marked.

    Args:
        curves: for each label, `(time, 2)`.
        axes_names: what the two coordinates are.
    """
    figure, (axis,) = panels_of(1, panel=(4.8, 4.6))
    for i, (label, z) in enumerate(curves.items()):
        dots = {"linestyle": "", "marker": ".", "markersize": 3, "color": "black", "zorder": 4}
        points = z.detach().cpu()
        axis.plot(*points.T, label=label, **(dots if i == 0 else line_style(i - 1) | {"linewidth": 2}))
        if i > 0:
            for end, marker in ((0, "o"), (-1, "s")):
                names = {0: "start", -1: "end"} if i == 1 else {}
                style = {"s": 36, "color": line_style(i - 1)["color"], "edgecolors": "black", "zorder": 5}
                axis.scatter(*points[end], marker=marker, label=names.get(end), **style)
    axis.set_aspect("equal", adjustable="datalim")
    name_axes(axis, axes_names)
    figure.legend(frameon=False, loc="outside upper center", ncols=2)
    return figure


def bands(
    panels: Mapping[str, tuple[Tensor, Tensor]],
    points: Mapping[str, Mapping[str, tuple[Tensor, Tensor]]],
    *,
    truth: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    since: float | None = None,
    xlabel: str = "t",
) -> Figure:
    """Predictions of one variable over time: the median, and the bands that hold half and nine tenths of the draws.

    Args:
        panels: for each title, the variable and its unit, times `(time,)` and draws `(n_samples, time)`, NaN where
            there is none.
        points: for each title, times and values of points under their labels; those of the first label filled.
        truth: for each title, times and values of what is predicted, a dashed black line above the rest; `None` where
            it is not known.
        since: a time that is marked, e.g. where extrapolation begins.
        xlabel: name of the time.
    """
    figure, axes = panels_of(len(panels), panel=(5.2, 3.4))
    for axis, (title, (t, draws)) in zip(axes, panels.items(), strict=True):
        levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=draws.dtype, device=draws.device)
        quantiles, at = draws.detach().nanquantile(levels, dim=0).cpu().numpy(), t.cpu().numpy()
        for low, high, alpha, share in ((0, 4, 0.15, 90), (1, 3, 0.25, 50)):
            style = {"color": COLOURS[0], "alpha": alpha, "linewidth": 0, "label": f"{share} % of draws"}
            axis.fill_between(at, quantiles[low], quantiles[high], **style)
        axis.plot(at, quantiles[2], color=COLOURS[0], label="median")
        for i, (label, (times, values)) in enumerate(points[title].items()):
            style = {"color": "black"} if i == 0 else {"facecolor": "white", "edgecolor": COLOURS[2], "linewidths": 1.5}
            axis.scatter(times.cpu().numpy(), values.cpu().numpy(), s=24, zorder=3, label=label, **style)
        if truth is not None:
            axis.plot(*(x.detach().cpu().numpy() for x in truth[title]), label="truth", **TRUTH)
        if since is not None:
            axis.axvline(since, color="0.5", linestyle=":", linewidth=1, label="beyond what was seen")
        axis.set_ylabel(title)
        axis.set_xlabel(xlabel)
        if (at[[0, -1]] % 1 == 0).all():
            integer_ticks(axis)
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=6)
    return figure


def paths(rows: Mapping[str, Tensor], truth: Tensor, observed: Sequence[Tensor], split: int) -> Figure:
    """Paths in the plane as models predict them, one row per model and one column per path.

    Args:
        rows: for each model, `(n, time, 2)`, or draws `(n_samples, n, time, 2)`.
        truth: `(n, true_time, 2)`.
        observed: for each path, `(n_obs, 2)`.
        split: number of the models' times that are within the span of the observations; the others lie beyond.
    """
    figure, axes = grid_of(len(rows), len(observed), (3.2, 3.0))
    for row, (name, draws) in enumerate(rows.items()):
        for i, points in enumerate(observed):
            axis = axes[row, i]
            axis.plot(*truth[i].cpu().T, label="truth", **TRUTH)
            lines = draws.detach().cpu().reshape(-1, *draws.shape[-3:])[:, i]
            alpha = 1.0 if len(lines) == 1 else 0.35
            for line in lines:
                axis.plot(*line[:split].T, color=COLOURS[0], linewidth=1.6, alpha=alpha)
                axis.plot(*line[split - 1 :].T, color=COLOURS[1], linewidth=1.6, alpha=alpha)
            axis.scatter(*points.cpu().T, s=9, color="black", zorder=3, linewidths=0)
            centre = (truth[i].amax(0) + truth[i].amin(0)) / 2
            reach = 0.65 * float((truth[i].amax(0) - truth[i].amin(0)).max())
            axis.set_xlim(float(centre[0]) - reach, float(centre[0]) + reach)
            axis.set_ylim(float(centre[1]) - reach, float(centre[1]) + reach)
            axis.set_aspect("equal")
            axis.tick_params(labelsize=7)
            name_axes(axis)
            axis.set_title(f"{name}, path {i + 1}", fontsize="medium")
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color="black", linestyle="--", linewidth=1.4)]
    handles += [Line2D([], [], color=colour, linewidth=1.6) for colour in COLOURS[:2]]
    handles.append(Line2D([], [], color="black", marker="o", markersize=3, linestyle=""))
    labels = ["truth", "prediction within the observed span", "extrapolation", "observed"]
    figure.legend(handles, labels, loc="outside lower center", frameon=False, ncols=4)
    return figure
