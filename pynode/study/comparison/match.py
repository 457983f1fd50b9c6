"""Which cells of two studies are the same, and what is known of each on both sides."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pynode.study.reporting.measures import MEASURES
from pynode.study.reporting.points import setting_text
from pynode.study.reporting.source import Row, Source, number

__all__ = ["Pair", "Side", "match", "speed"]

Key = tuple[Hashable, ...]


@dataclass(frozen=True)
class Side:
    """What a study knows of a measurement, over its passes or seeds."""

    n: int
    n_ok: int
    status: str  # "ok", or how the first that is not failed
    reason: str
    times: list[list[float]]  # seconds of the calls of each pass that went well
    errors: list[float]
    nfe: list[float]


@dataclass(frozen=True)
class Pair:
    """A measurement that both studies made."""

    problem: str
    contender: str
    setting: str
    measure: str  # "state", "gradient" or "training"
    a: Side
    b: Side


@dataclass
class Matched:
    """Pairs, and the cells that one study alone has, in words."""

    pairs: list[Pair] = field(default_factory=list)
    only_a: list[str] = field(default_factory=list)
    only_b: list[str] = field(default_factory=list)


def match(a: Source, b: Source) -> Matched:
    """The pairs of all cells; threads and precision tell cells apart only where a study has several of them."""
    several = [key for key in ("threads", "dtype") if any(len(_values(source, key)) > 1 for source in (a, b))]
    groups = [_groups(source, several) for source in (a, b)]
    found = Matched()
    for key, rows in groups[0].items():
        if key not in groups[1]:
            found.only_a.append(_words(rows[0]))
            continue
        for name, side in _measures(rows[0]).items():
            one, two = side(rows), side(groups[1][key])
            if one is not None and two is not None:
                first = rows[0]
                found.pairs.append(Pair(first["problem"], _label(first, several), setting_text(first), name, one, two))
    found.only_b = [_words(rows[0]) for key, rows in groups[1].items() if key not in groups[0]]
    return found


def speed(a: Source, b: Source) -> float | None:
    """How many times as long the fixed workload took beside b's cells as beside a's; `None` where it is not known."""
    sides = [[v for row in source.rows if (v := number(row.get("calibration"))) > 0] for source in (a, b)]
    if not all(sides):
        return None
    return statistics.median(sides[1]) / statistics.median(sides[0])


def _values(source: Source, key: str) -> set[Hashable]:
    return {row[key] for row in source.rows if row.get(key) is not None}


def _groups(source: Source, several: Sequence[str]) -> dict[Key, list[Row]]:
    groups: dict[Key, list[Row]] = defaultdict(list)
    for row in source.rows:
        keys = ("problem", "contender", "rtol", "atol", "dt", *several)
        group = (row.get("kind") or "solve", *(row.get(key) for key in keys))
        groups[group].append(row)
    return dict(groups)


def _label(row: Row, several: Sequence[str]) -> str:
    words = {"threads": f"{row.get('threads')} threads", "dtype": str(row.get("dtype"))}
    extra = ", ".join(words[key] for key in several)
    return f"{row['contender']} ({extra})" if extra else row["contender"]


def _words(row: Row) -> str:
    return f"{row['contender']} on {row['problem']} ({setting_text(row)})"


def _measures(row: Row) -> dict[str, Callable[[list[Row]], Side | None]]:
    if row.get("kind") == "training":
        return {"training": _training}
    return {"state": lambda rows: _solve(rows, 0), "gradient": lambda rows: _solve(rows, 1)}


def _solve(rows: list[Row], which: int) -> Side | None:
    measure = MEASURES[which]
    told = [row for row in rows if row.get(measure.status)]
    if not told:
        return None  # it was not asked for
    well = [row for row in told if row[measure.status] == "ok"]
    bad = next((row for row in told if row[measure.status] != "ok"), None)
    total = "nfe_backward" if which else "nfe"
    return Side(
        n=len(told),
        n_ok=len(well),
        status=bad[measure.status] if bad else "ok",
        reason=str(bad.get(measure.reason) or "") if bad else "",
        times=[_calls(row, measure.seconds) for row in well],
        errors=_known(row.get(measure.errors[0]) for row in well),
        nfe=_known(row.get(total) for row in well),
    )


def _training(rows: list[Row]) -> Side:
    well = [row for row in rows if row["status"] == "ok"]
    bad = next((row for row in rows if row["status"] != "ok"), None)
    curves = [row.get("curves") or {} for row in well]
    return Side(
        n=len(rows),
        n_ok=len(well),
        status=bad["status"] if bad else "ok",
        reason=str(bad.get("reason") or "") if bad else "",
        times=[[float(curve["seconds"][-1])] for curve in curves if curve.get("seconds")],
        errors=_known(row.get("test_error") for row in well),
        nfe=_known(curve["nfe"][-1] for curve in curves if curve.get("nfe")),
    )


def _calls(row: Row, column: str) -> list[float]:
    calls = [float(value) for value in row.get(f"{column}_all") or ()]
    if calls:
        return calls
    return [number(row[column])] if row.get(column) is not None else []


def _known(values: Iterable[Any]) -> list[float]:
    return [value for value in map(number, values) if not math.isnan(value)]
