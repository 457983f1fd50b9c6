"""What is said of a measurement that two studies made: faster, slower, worse, better, or nothing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from pynode.study.comparison.match import Pair
from pynode.study.comparison.ratio import Ratio, ratio

__all__ = ["SINGLE", "Verdict", "verdicts"]

SINGLE = 1.2  # of single passes a lesser ratio is not told: what differs from process to process is not known
_ROUNDING = 1e-12  # errors below it are of rounding


@dataclass(frozen=True)
class Verdict:
    """A pair with what is said of it.

    Attributes:
        pair: the measurement.
        time: the ratio of times, b to a; `None` where a side has none.
        speed: "faster", "slower" or "".
        worse: what got worse, in words; empty where nothing did.
        better: what got better, apart from times, in words.
        error: the ratio of errors, b to a; NaN where unknown.
        nfe: the ratio of evaluations, b to a; NaN where unknown.
    """

    pair: Pair
    time: Ratio | None
    speed: str
    worse: str
    better: str
    error: float
    nfe: float


def verdicts(
    pairs: Sequence[Pair], machine: float, least: float, error_factor: float, confidence: float
) -> list[Verdict]:
    """Verdicts on all pairs.

    A difference of times is told where it is over `least`, whether or not times are corrected for the machine's
    speed, at a rate of false claims among all (Benjamini and Hochberg) of one minus `confidence`.

    Args:
        pairs: the measurements.
        machine: how many times slower the machine was at b.
        least: the least ratio that matters.
        error_factor: an error that is this many times greater is worse.
        confidence: of intervals and claims.
    """
    times = [ratio(pair.a.times, pair.b.times, confidence, seed) for seed, pair in enumerate(pairs)]
    doubts = [_doubt(found, machine, least) for found in times]
    errors = [_doubt_of_errors(pair) for pair in pairs]
    fast, slow = (_claims([d[i] for d in doubts], 1 - confidence) for i in (0, 1))
    gained, lost = (_claims([d[i] for d in errors], 1 - confidence) for i in (0, 1))
    found = []
    for i, pair in enumerate(pairs):
        up = _quotient(_middle(pair.b.errors), _middle(pair.a.errors))
        worse, better = _statuses(pair)
        if max([*pair.a.errors, *pair.b.errors], default=0.0) > _ROUNDING:
            if up > (1 if pair.measure == "training" else error_factor) and lost[i]:
                worse.append(f"its error is {_times(up)} that of before")
            if up < (1 if pair.measure == "training" else 1 / error_factor) and gained[i]:
                better.append(f"its error is {_times(up)} that of before")
        found.append(
            Verdict(
                pair=pair,
                time=times[i],
                speed="faster" if fast[i] else "slower" if slow[i] else "",
                worse="; ".join(worse),
                better="; ".join(better),
                error=up,
                nfe=_quotient(_middle(pair.b.nfe), _middle(pair.a.nfe)),
            )
        )
    return found


def _doubt(found: Ratio | None, machine: float, least: float) -> tuple[float, float]:
    """The p-values of "faster" and "slower", the greater of those with and without the machine's speed."""
    if found is None:
        return 1.0, 1.0
    if not math.isfinite(found.freedom):
        least = max(least, SINGLE)
    corrected = Ratio(found.value / machine, 0.0, 0.0, found.spread, found.freedom)
    raw, other = found.doubt(least), corrected.doubt(least)
    return max(raw[0], other[0]), max(raw[1], other[1])


def _doubt_of_errors(pair: Pair) -> tuple[float, float]:
    """The p-values of a lesser and a greater error: of seeds by Welch's test; errors of a solve are not random."""
    a, b = pair.a.errors, pair.b.errors
    if pair.measure != "training":
        return (0.0, 0.0) if a and b else (1.0, 1.0)
    if min(len(a), len(b)) < 2:
        return 1.0, 1.0
    if not np.isfinite([*a, *b]).all() or (np.var(a) == 0 and np.var(b) == 0):  # which differ, if so, without a doubt
        return float(not np.mean(b) < np.mean(a)), float(not np.mean(b) > np.mean(a))
    found = (stats.ttest_ind(b, a, equal_var=False, alternative=side).pvalue for side in ("less", "greater"))
    lesser, greater = (float(np.nan_to_num(p, nan=1.0)) for p in found)  # NaN where a variance is beyond all floats
    return lesser, greater


def _claims(doubts: Sequence[float], rate: float) -> list[bool]:
    """Which of the p-values are claims, at a rate of false ones among them."""
    if not doubts:
        return []
    # each side has half the rate, since two are asked for each pair
    return [bool(p <= rate / 2) for p in stats.false_discovery_control(doubts)]


def _statuses(pair: Pair) -> tuple[list[str], list[str]]:
    a, b = pair.a, pair.b
    before, after = a.n_ok / a.n, b.n_ok / b.n
    if before == after or "not_comparable" in (a.status, b.status):
        return [], []
    side = b if after < before else a
    seeds = "seed" if pair.measure == "training" else "pass"
    told = f"{side.n - side.n_ok} of {side.n} {_plural(seeds, side.n)}: {side.status}"
    told += f" ({side.reason})" if side.reason else ""
    return ([f"it fails now in {told}"], []) if after < before else ([], [f"it failed before in {told}"])


def _plural(noun: str, n: int) -> str:
    return noun if n == 1 else {"pass": "passes"}.get(noun, f"{noun}s")


def _middle(values: Sequence[float]) -> float:
    return statistics.median(values) if values else math.nan


def _quotient(b: float, a: float) -> float:
    if math.isnan(a) or math.isnan(b):
        return math.nan
    if a == 0:
        return 1.0 if b == 0 else math.inf
    return b / a


def _times(value: float) -> str:
    return f"{value:.3g} times"
