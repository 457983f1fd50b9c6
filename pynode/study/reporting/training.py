"""Training studies: curves of each seed, their median, and the test error over seeds."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from pynode.study.reporting.source import Row, number

__all__ = ["curves", "summary"]

_MOST = 240  # numbers of a curve that are drawn


def curves(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each contender: its seeds' curves and their median step by step, thinned for drawing.

    The median is over the seeds that were trained to the end, or over what there is where none was.
    """
    found = []
    for contender, group in _by_contender(rows).items():
        runs = [row["curves"] for row in group if row.get("curves")]
        if not runs:
            continue
        whole = [row["curves"] for row in group if row.get("curves") and row["status"] == "ok"] or runs
        found.append(
            {
                "contender": contender,
                "seeds": [_thinned(run) for run in runs],
                "median": _thinned({key: _median([run.get(key) or [] for run in whole]) for key in _KEYS}),
            }
        )
    return found


_KEYS = ("seconds", "nfe", "loss", "epoch_nfe")


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each contender: mean and standard deviation over seeds of the test error, seconds and evaluations."""
    found = []
    for contender, group in _by_contender(rows).items():
        well = [row for row in group if row["status"] == "ok"]
        runs = [row.get("curves") or {} for row in well]
        found.append(
            {
                "contender": contender,
                "seeds": len(group),
                "finished": len(well),
                "metric": next((str(row["test_metric"]) for row in group if row.get("test_metric")), "test error"),
                "tests": [value for row in well if math.isfinite(value := number(row.get("test_error")))],
                "test": _spread([number(row.get("test_error")) for row in well]),
                "loss": _spread([_last(run.get("loss")) for run in runs]),
                "seconds": _spread([_last(run.get("seconds")) for run in runs]),
                "nfe": _spread([_last(run.get("nfe")) for run in runs]),
                "epoch_nfe": _spread([_last(run.get("epoch_nfe")) for run in runs]),
            }
        )
    return found


def _by_contender(rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["contender"].lower()):
        groups[row["contender"]].append(row)
    return groups


def _spread(values: Sequence[float]) -> dict[str, float | int] | None:
    """Mean and standard deviation (of a sample) of the numbers that are known."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return None
    deviation = statistics.stdev(known) if len(known) > 1 else math.nan
    return {"mean": statistics.fmean(known), "std": deviation, "n": len(known)}


def _last(values: Sequence[float] | None) -> float:
    return number(values[-1]) if values else math.nan


def _median(runs: Sequence[Sequence[float]]) -> list[float]:
    """The median over runs at each place that all of them have."""
    shortest = min(map(len, runs))
    return [_middle([number(run[i]) for run in runs]) for i in range(shortest)]


def _middle(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return statistics.median(known) if len(known) == len(values) else math.nan


def _thinned(run: dict[str, Any]) -> dict[str, list[float | None]]:
    """At most some hundreds of numbers of each curve, evenly, the last among them."""
    found = {}
    for key in _KEYS:
        values = run.get(key) or []
        step = max(1, math.ceil(len(values) / _MOST))
        places = sorted({*range(0, len(values), step), len(values) - 1}) if values else []
        found[key] = [_short(number(values[i])) for i in places]
    return found


def _short(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None
