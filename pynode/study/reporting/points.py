"""Rows become points: what a contender does on a problem at a setting, over all passes."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from pynode.study.reporting.source import Row, number
from pynode.study.reporting.style import family
from pynode.study.reporting.units import brief

__all__ = ["DISTURBED", "disturbed", "identity", "points", "quartiles", "setting_text"]

DISTURBED = 0.10  # of the median: a calibration farther from it tells of a machine that did something else too
_MEDIANS = (
    *("error_end", "error_trajectory", "gradient_error", "drift", "loss", "nfe", "nfe_backward", "n_accepted"),
    *(
        "n_rejected",
        "jacobians",
        "prepare_seconds",
        "seconds_first",
        "cpu_seconds",
        "gradient_seconds_first",
        "gradient_cpu_seconds",
    ),
    *("peak_mb", "gradient_peak_mb"),
)
_TIMES = ("seconds", "gradient_seconds")


def identity(row: Row) -> tuple[Hashable, ...]:
    """What makes two rows passes of the same measurement."""
    return (
        row["problem"],
        row["contender"],
        *(row.get(key) for key in ("rtol", "atol", "dt", "threads", "dtype", "seed")),
    )


def setting_text(row: Row) -> str:
    """The setting in words: its step or its tolerances."""
    if row.get("dt") is not None:
        return f"dt {brief(row['dt'])}"
    if row.get("rtol") is None:
        return "default"
    text = f"rtol {brief(row['rtol'])}"
    atol = row.get("atol")
    if atol is None or math.isclose(atol, 1e-3 * row["rtol"], rel_tol=1e-9):
        return text  # as Setting has it of itself
    return f"{text}, atol {brief(atol)}"


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile, with interpolation between values."""
    if len(values) < 2:
        only = float(values[0])
        return only, only, only
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def disturbed(rows: Iterable[Row]) -> set[int]:
    """Which rows (by `id`) were measured while the machine was slower or faster than usual.

    A calibration is a fixed workload beside each cell. Calibrations are compared within the same environment's
    threads and dtype, to their median.
    """
    groups: dict[Hashable, list[Row]] = defaultdict(list)
    for row in rows:
        if number(row.get("calibration")) > 0:
            groups[row.get("environment"), row.get("threads")].append(row)
    found = set()
    for group in groups.values():
        usual = statistics.median(row["calibration"] for row in group)
        found |= {id(row) for row in group if abs(row["calibration"] / usual - 1) > DISTURBED}
    return found


def points(rows: Sequence[Row], restless: set[int] | None = None) -> list[Row]:
    """One row for each measurement, of its passes.

    Args:
        rows: rows of solves.
        restless: which of them were disturbed, see `disturbed`; found among `rows` where it is not given.

    Returns:
        Rows with the keys of a row, contenders of a package beside each other, the loosest setting first. Times are
        medians and quartiles of the calls of all passes that went well; other numbers are medians over those passes. In
        addition: "passes", "passes_ok", "gradient_passes_ok", "disturbed" (in how many passes), "setting" (in words),
        "seconds_n" and "gradient_seconds_n" (calls that were timed).
    """
    restless = disturbed(rows) if restless is None else restless
    groups: dict[Hashable, list[Row]] = defaultdict(list)
    for row in rows:
        groups[identity(row)].append(row)
    found = _tell_apart([_point(group, restless) for group in groups.values()])
    return sorted(found, key=lambda p: (family(p), p["contender"].lower(), -_size(p)))


def _size(point: Row) -> float:
    """What settings are sorted by: the step or the tolerance; NaN does not sort."""
    size = number(point["dt"] if point.get("dt") is not None else point.get("rtol"))
    return 0.0 if math.isnan(size) else size


def _point(group: list[Row], restless: set[int]) -> Row:
    well = [row for row in group if row["status"] == "ok"]
    with_gradient = [row for row in group if row.get("gradient_status") == "ok"]
    point: Row = dict((well or group)[0])
    point.update(
        passes=len(group),
        passes_ok=len(well),
        gradient_passes_ok=len(with_gradient),
        disturbed=sum(id(row) in restless for row in group),
        beside=max((int(row.get("beside") or 0) for row in group), default=0),
        setting=setting_text(group[0]),
    )
    if with_gradient:
        point |= {"gradient_status": "ok", "gradient_reason": with_gradient[0].get("gradient_reason")}
    for key in _MEDIANS:
        rows = with_gradient if key.startswith("gradient_") or key == "nfe_backward" else well
        point[key] = _median([number(row.get(key)) for row in rows])
    for key in _TIMES:
        point[key], point[f"{key}_q1"], point[f"{key}_q3"] = _times(with_gradient if "gradient" in key else well, key)
        point[f"{key}_n"] = sum(len(row.get(f"{key}_all") or ()) for row in group)
    if with_gradient and not well:
        point["nfe"] = _median([number(row.get("nfe")) for row in with_gradient])
    return point


def _median(values: Sequence[float]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return statistics.median(known) if known else None


def _times(rows: Sequence[Row], key: str) -> tuple[float | None, float | None, float | None]:
    calls = [float(value) for row in rows for value in row.get(f"{key}_all") or ()]
    if calls:
        low, middle, high = quartiles(calls)
        return middle, low, high
    return tuple(_median([number(row.get(f"{key}{end}")) for row in rows]) for end in ("", "_q1", "_q3"))  # type: ignore[return-value]


def _tell_apart(found: list[Row]) -> list[Row]:
    """Contenders that were measured with several threads or precisions carry these in their label."""
    for key, words in (("threads", "{} threads"), ("dtype", "{}")):
        kinds: dict[Any, set[Any]] = defaultdict(set)
        for point in found:
            kinds[point["problem"], point["contender"]].add(point.get(key))
        several = {label for label, values in kinds.items() if len(values) > 1}
        for point in found:
            if (point["problem"], point["contender"]) in several:
                point.setdefault("measured", []).append(words.format(point.get(key)))
    for point in found:
        if extra := point.pop("measured", None):
            point["contender"] = f"{point['contender']} ({', '.join(extra)})"
    return found
