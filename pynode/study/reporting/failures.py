"""What went wrong, and who did not take part, with the reasons."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pynode.study.reporting.measures import MEASURES
from pynode.study.reporting.points import setting_text
from pynode.study.reporting.source import Row

__all__ = ["STATUSES", "Failure", "absent", "failures"]

STATUSES = {
    "failed": "raised an error",
    "timeout": "reached the limit of time",
    "memory": "reached the limit of memory",
    "crashed": "its process died",
    "not_finite": "gave numbers that are not finite",
    "not_comparable": "did not take part",
}


@dataclass(frozen=True)
class Failure:
    """A contender that failed in the same way at some settings of a problem."""

    contender: str
    measure: str
    status: str
    reason: str
    settings: tuple[str, ...]
    times: int  # cells
    of: int  # cells of the contender at these settings


def failures(rows: Sequence[Row]) -> list[Failure]:
    """The failures of a problem's rows; those who did not take part are not among them."""
    return [failure for failure in _all(rows) if failure.status != "not_comparable"]


def absent(rows: Sequence[Row]) -> list[Failure]:
    """Who could not take part, and why."""
    return [failure for failure in _all(rows) if failure.status == "not_comparable"]


def _all(rows: Sequence[Row]) -> list[Failure]:
    groups: dict[tuple[str, str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        for measure in MEASURES:
            status = row.get(measure.status)
            if status in (None, "", "ok"):
                continue
            reason = str(row.get(measure.reason) or "").strip()
            if measure.name == "gradient" and row["status"] == status:
                continue  # told once, of the state
            groups[row["contender"], measure.name, str(status), reason].append(row)
    found = []
    for (contender, name, status, reason), group in groups.items():
        settings = tuple(dict.fromkeys(setting_text(row) for row in group))
        alike = [row for row in rows if row["contender"] == contender and setting_text(row) in settings]
        found.append(Failure(contender, name, status, reason, settings, len(group), len(alike)))
    return sorted(found, key=lambda f: (f.contender, f.measure, f.status))
