"""Colours and markers: the same contender looks the same in every diagram of a report.

The colour tells the package (and the engine), the marker the solver, the dash what else sets contenders apart
(sensitivity, batching). All colours have a contrast of at least 3 : 1 against white, and markers make every contender
legible without colours.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pynode.study.reporting.source import Row

__all__ = ["MARKERS", "Look", "Marker", "family", "looks", "training_looks"]


@dataclass(frozen=True)
class Marker:
    """A shape by its names in plotly and matplotlib, and as an SVG path in a box of 16 × 16."""

    plotly: str
    matplotlib: str
    path: str


MARKERS = (
    Marker("circle", "o", "M8 3a5 5 0 1 0 0.01 0z"),
    Marker("square", "s", "M3.5 3.5h9v9h-9z"),
    Marker("diamond", "D", "M8 2l6 6l-6 6l-6-6z"),
    Marker("triangle-up", "^", "M8 2.5l6 10h-12z"),
    Marker("triangle-down", "v", "M8 13.5l6-10h-12z"),
    Marker("x", "X", "M4.5 2.5l3.5 3.5l3.5-3.5l2 2l-3.5 3.5l3.5 3.5l-2 2l-3.5-3.5l-3.5 3.5l-2-2l3.5-3.5l-3.5-3.5z"),
    Marker("star", "*", "M8 1.5l1.7 4.4l4.7.2l-3.7 3l1.3 4.6l-4-2.6l-4 2.6l1.3-4.6l-3.7-3l4.7-.2z"),
    Marker("pentagon", "p", "M8 2.3l5.7 4.2l-2.2 6.7h-7l-2.2-6.7z"),
    Marker("cross", "P", "M6.3 2.5h3.4v3.8h3.8v3.4h-3.8v3.8h-3.4v-3.8h-3.8v-3.4h3.8z"),
    Marker("triangle-left", "<", "M2.5 8l10-6v12z"),
    Marker("triangle-right", ">", "M13.5 8l-10-6v12z"),
    Marker("hexagon2", "h", "M5 3h6l3 5l-3 5h-6l-3-5z"),
)
_DASHES = (("solid", "-"), ("dash", "--"), ("dot", ":"), ("dashdot", "-."), ("longdash", (0, (8, 3))))
_COLOURS = {
    "pynode julia": "#1459a8",
    "pynode torch": "#c8461b",
    "pynode": "#1459a8",
    "torchdiffeq": "#9a6a00",
    "torchode": "#7a3fa5",
    "torchdyn": "#c2257f",
    "diffrax": "#0a7d5a",
    "scipy": "#55606e",
    "diffeqpy": "#0e88a6",
    "diffeqflux": "#6d4a26",
}
_OTHERS = ("#a3324a", "#4d7a1c", "#3f3f9e", "#8a5a83", "#2f6f6f", "#85651f")
_NOT_LOOKS = {"engine", "solver", "method"}  # told by the colour and the marker


@dataclass(frozen=True)
class Look:
    """How a contender is drawn."""

    family: str
    colour: str
    marker: Marker
    dash: str
    line: Any  # matplotlib's name of the dash

    @property
    def swatch(self) -> dict[str, str]:
        """What the page draws beside the contender's name."""
        return {"colour": self.colour, "path": self.marker.path, "symbol": self.marker.plotly, "dash": self.dash}


def family(row: Row) -> str:
    """What shares a colour: the package, with its engine where it has several."""
    package = str(row.get("package") or row["contender"].split(" ")[0])
    engine = (row.get("options") or {}).get("engine")
    return f"{package} {engine}" if engine else package


def looks(rows: Iterable[Row]) -> dict[str, Look]:
    """The look of each contender, by its label."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row["contender"], row)
    families = _order(family(row) for row in first.values())
    spare = [name for name in families if name.lower() not in _COLOURS]
    solvers = _order(_solver(row) for row in first.values())
    rests = {name: _common([_rest(row) for row in first.values() if family(row) == name]) for name in families}
    members = {name: _order(_solver(row) for row in first.values() if family(row) == name) for name in families}
    found = {}
    for label, row in first.items():
        name = family(row)
        base = _COLOURS.get(name.lower()) or _OTHERS[spare.index(name) % len(_OTHERS)]
        dash, line = _DASHES[rests[name].index(_rest(row)) % len(_DASHES)]
        found[label] = Look(
            family=name,
            colour=_shade(base, members[name].index(_solver(row)), len(members[name])),
            marker=MARKERS[solvers.index(_solver(row)) % len(MARKERS)],
            dash=dash,
            line=line,
        )
    return found


def _order(values: Iterable[str]) -> list[str]:
    return sorted(set(values))


def training_looks(rows: Iterable[Row]) -> dict[str, Look]:
    """The look of each contender of a training study: a colour and a marker of its own, since models are compared."""
    labels = sorted({row["contender"] for row in rows}, key=str.lower)
    colours = [*dict.fromkeys(_COLOURS.values()), *_OTHERS]
    found = {}
    for place, label in enumerate(labels):
        dash, line = _DASHES[place // len(colours) % len(_DASHES)]
        found[label] = Look(label, colours[place % len(colours)], MARKERS[place % len(MARKERS)], dash, line)
    return found


def _common(values: Sequence[str]) -> list[str]:
    """The commonest first, which is drawn solid."""
    return sorted(set(values), key=lambda value: (-values.count(value), value))


def _solver(row: Row) -> str:
    """What the marker tells: the solver, or all options of a contender that names none."""
    options = row.get("options") or {}
    return str(options.get("solver") or options.get("method") or _rest(row)).lower()


def _rest(row: Row) -> str:
    options = row.get("options") or {}
    return " ".join(f"{key}={options[key]}" for key in sorted(options) if key not in _NOT_LOOKS)


def _shade(colour: str, place: int, number: int) -> str:
    """The colour, darker for some of several members: never lighter, so that its contrast holds."""
    if number < 2:
        return colour
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    hue, light, saturation = colorsys.rgb_to_hls(red, green, blue)
    light *= 1 - 0.45 * (place % 4) / 3
    channels: Sequence[float] = colorsys.hls_to_rgb(hue, light, saturation)
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in channels)
