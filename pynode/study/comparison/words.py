"""A comparison in words."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scipy import stats

from pynode.study.comparison.ratio import Ratio
from pynode.study.comparison.verdict import SINGLE, Verdict

if TYPE_CHECKING:
    from pynode.study.comparison import Comparison

__all__ = ["by_contender", "caveats", "headline", "sentence", "text"]

_MOST = 25  # lines of a list in the terminal


def text(comparison: Comparison) -> str:
    """The whole of it, for a terminal."""
    parts = [headline(comparison)]
    for title, verdicts in (
        ("Worse", comparison.worse),
        ("Slower", comparison.slower),
        ("Faster", comparison.faster),
        ("Better", comparison.better),
    ):
        if verdicts:
            parts.append(_list(f"{title} ({len(verdicts)}):", [sentence(v, title) for v in verdicts]))
    if not any((comparison.worse, comparison.slower, comparison.faster, comparison.better)):
        parts.append("No difference is shown.")
    means = by_contender(comparison)
    if means:
        lines = [f"{name}: {_interval(r)} over {n} measurements" for name, r, n in means]
        parts.append(_list("Times of b to a, geometric mean of a contender's measurements:", lines))
    for name, only in ((comparison.a, comparison.only_a), (comparison.b, comparison.only_b)):
        if only:
            side = "a" if only is comparison.only_a else "b"
            parts.append(_list(f"Only in {side}, {name} ({len(only)}):", only))
    notes = caveats(comparison)
    if notes:
        parts.append(_list("To be known:", notes))
    return "\n\n".join(parts)


def headline(comparison: Comparison) -> str:
    """How many measurements match and what is said of them."""
    c = comparison
    told = len({id(v) for v in (*c.worse, *c.slower, *c.faster, *c.better)})
    return (
        f"a: {c.a}, b: {c.b}. Of {len(c.verdicts)} measurements in both, {len(c.slower)} got slower, "
        f"{len(c.faster)} faster, {len(c.worse)} worse, {len(c.better)} better; of {len(c.verdicts) - told} no "
        "difference is shown."
    )


def sentence(verdict: Verdict, title: str) -> str:
    """What is said of a measurement, under a title."""
    pair = verdict.pair
    where = f"{pair.problem}, {pair.contender} ({pair.setting}), {pair.measure}"
    if title == "Worse":
        return f"{where}: {verdict.worse}"
    if title == "Better":
        return f"{where}: {verdict.better}"
    assert verdict.time is not None
    more = ""
    if abs(verdict.nfe - 1) > 0.02:  # NaN is not
        more = f", with {verdict.nfe:.3g} times the evaluations"
    return f"{where}: {_interval(verdict.time)} times as long{more}"


def by_contender(comparison: Comparison) -> list[tuple[str, Ratio, int]]:
    """The geometric mean of each contender's ratios, with an interval from how they differ among its measurements."""
    groups: dict[str, list[float]] = defaultdict(list)
    for v in comparison.verdicts:
        if v.time:
            groups[v.pair.contender].append(math.log(v.time.value))
    found = []
    for name, logs in groups.items():
        n = len(logs)
        if n < 3:
            continue
        mean, error = statistics.fmean(logs), statistics.stdev(logs) / math.sqrt(n)
        half = float(stats.t.ppf(0.5 + comparison.confidence / 2, n - 1)) * error
        found.append((name, Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half), error, n - 1), n))
    return sorted(found, key=lambda entry: -entry[1].value)


def caveats(comparison: Comparison) -> list[str]:
    """What bears on how the comparison is read."""
    c = comparison
    found = []
    if c.machine is None:
        found.append("The machine's speed was not measured on both sides: times are compared as they are.")
    elif abs(math.log(c.machine)) > math.log(1.05):
        found.append(
            f"A fixed workload took {c.machine:.2f} times as long at b as at a: what is said of times holds with and "
            "without a correction for it. Intervals are of times as they were measured."
        )
    if any(v.time and not math.isfinite(v.time.freedom) for v in c.verdicts):
        found.append(
            f"Some measurements have a single pass on both sides: their intervals lack what differs between processes, "
            f"and only ratios over {SINGLE:g} are told. Study(passes=3) measures it."
        )
    found += [f"{fact}: {before or 'none'} at a, {after or 'none'} at b." for fact, before, after in c.changed]
    return found


def _interval(ratio: Ratio) -> str:
    return f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"


def _list(title: str, lines: Sequence[str]) -> str:
    shown = [f"  {line}" for line in lines[:_MOST]]
    if len(lines) > _MOST:
        shown.append(f"  and {len(lines) - _MOST} more: see the table or the page")
    return "\n".join([title, *shown])
