"""Two studies beside each other: what got faster, slower, worse."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pynode.errors import InputError
from pynode.study.optional import need
from pynode.study.reporting.provenance import differences
from pynode.study.reporting.source import load

if TYPE_CHECKING:
    import pandas

    from pynode.study.comparison.verdict import Verdict

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True)
class Comparison:
    """What two studies say of the same cells.

    Attributes:
        a, b: the names of the studies.
        verdicts: one for each measurement that both made.
        only_a, only_b: cells that one of them alone has, in words.
        machine: how many times as long a fixed workload took at b as at a; `None` where it was not measured.
        changed: facts of the environments that differ: the fact, its values at a and at b.
        confidence: of the intervals.
    """

    a: str
    b: str
    verdicts: list[Verdict]
    only_a: list[str]
    only_b: list[str]
    machine: float | None
    changed: list[tuple[str, str, str]]
    confidence: float

    @property
    def faster(self) -> list[Verdict]:
        """What takes less time at b."""
        return [v for v in self.verdicts if v.speed == "faster"]

    @property
    def slower(self) -> list[Verdict]:
        """What takes more time at b."""
        return [v for v in self.verdicts if v.speed == "slower"]

    @property
    def worse(self) -> list[Verdict]:
        """What fails at b and did not at a, or is less exact."""
        return [v for v in self.verdicts if v.worse]

    @property
    def better(self) -> list[Verdict]:
        """What failed at a and does not at b, or is more exact."""
        return [v for v in self.verdicts if v.better]

    def __str__(self) -> str:
        from pynode.study.comparison.words import text

        return text(self)

    def frame(self) -> pandas.DataFrame:
        """A line for each measurement: the ratios b to a, the interval of that of times, and the verdict."""
        pandas = need("pandas", "the table of a comparison")
        return pandas.DataFrame([_line(v) for v in self.verdicts], columns=_COLUMNS)

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the comparison as one HTML page, which holds all that it needs."""
        from pynode.study.comparison.page import page

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(self), encoding="utf-8")
        return path


_COLUMNS = [
    *("problem", "contender", "setting", "measure", "time_ratio", "time_low", "time_high", "error_ratio"),
    *("nfe_ratio", "status_a", "status_b", "speed", "worse", "better"),
]


def _line(verdict: Verdict) -> dict[str, Any]:
    pair, time = verdict.pair, verdict.time
    values = (time.value, time.low, time.high) if time else (math.nan,) * 3
    row = (pair.problem, pair.contender, pair.setting, pair.measure, *values, verdict.error, verdict.nfe)
    told = (pair.a.status, pair.b.status, verdict.speed, verdict.worse, verdict.better)
    return dict(zip(_COLUMNS, (*row, *told), strict=True))


def compare(
    a: Any,
    b: Any,
    *,
    least: float = 1.05,
    error_factor: float = 1.5,
    confidence: float = 0.95,
    study_a: str = "",
    study_b: str = "",
) -> Comparison:
    """What got faster, slower or worse from one study to another.

    Cells match that have the same problem, contender and setting. That a time differs is said where it is by more
    than `least`, with and without a correction for the machine's speed, at a rate of false claims among all of at most
    one minus `confidence`. Intervals hold what differs between passes; of studies with a single pass, which do not
    know it, only differences over 20 % are told.

    Args:
        a: the study before: a `Result`, a `Store`, or the path of a store.
        b: the study after.
        least: the least ratio of times that matters.
        error_factor: an error that is this many times greater is worse.
        confidence: of intervals and claims.
        study_a: the study's name, where the store `a` has several.
        study_b: the same of `b`.

    Returns:
        The comparison: `print` it, take its `frame()`, or `write` it as a page.
    """
    from pynode.study.comparison.match import match, speed
    from pynode.study.comparison.verdict import verdicts  # SciPy's statistics, which take long to import

    if not least >= 1:
        raise InputError(f"least is a ratio of times of at least 1, got {least!r}")
    if not error_factor > 1:
        raise InputError(f"error_factor is a ratio of errors over 1, got {error_factor!r}")
    if not 0 < confidence < 1:
        raise InputError(f"confidence is between 0 and 1, got {confidence!r}")
    before, after = load(a, study_a), load(b, study_b)
    matched, machine = match(before, after), speed(before, after)
    return Comparison(
        a=before.name,
        b=after.name,
        verdicts=verdicts(matched.pairs, machine or 1.0, least, error_factor, confidence),
        only_a=matched.only_a,
        only_b=matched.only_b,
        machine=machine,
        changed=differences(before, after),
        confidence=confidence,
    )
