"""What could not be equal between contenders, said in sentences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from pynode.study.reporting.points import DISTURBED, disturbed, setting_text
from pynode.study.reporting.source import Row, Source, number
from pynode.study.reporting.style import family

__all__ = ["Remark", "remarks"]

Remark = tuple[str, str]
"""A heading, and a sentence; an empty heading where all was equal."""


def remarks(source: Source) -> list[Remark]:
    """Every inequality that the rows tell of, those that bear on times first."""
    rows = [row for row in source.rows if row["status"] != "not_comparable"]
    found = [
        *_threads(rows),
        *_precision(rows),
        *_beside(rows),
        *_disturbed(rows),
        *_environments(rows),
        *_passes(rows),
        *_settings(source.solves),
        *_solvers(source.solves),
        *_counts(source.solves),
        *_memory(rows),
        *_references(source),
    ]
    return found or [("Equal", "Threads, precision, settings and machine were the same for all contenders.")]


def _threads(rows: Sequence[Row]) -> list[Remark]:
    kinds = _kinds(rows, "threads")
    if len(kinds) < 2:
        return []
    told = "; ".join(f"{_number(threads, 'thread')}: {_names(names)}" for threads, names in kinds.items())
    return [("Threads", f"Contenders did not have the same number of threads. {told}.")]


def _precision(rows: Sequence[Row]) -> list[Remark]:
    kinds = _kinds(rows, "dtype")
    mixed = any(len(_kinds(group, "dtype")) > 1 for group in _by_problem(rows).values())
    if len(kinds) < 2 or not mixed:
        return []
    told = "; ".join(f"{dtype}: {_names(names)}" for dtype, names in kinds.items())
    return [("Precision", f"Within a problem, contenders computed in different precisions. {told}.")]


def _beside(rows: Sequence[Row]) -> list[Remark]:
    shared = [row for row in rows if number(row.get("beside")) > 0]
    if not shared:
        return []
    most = int(max(row["beside"] for row in shared))
    return [
        (
            "Measured beside others",
            f"{len(shared)} of {_number(len(rows), 'cell')} ran while up to {_number(most, 'other cell')} did: their "
            "times are longer and spread more than alone. Errors, evaluations and steps are not touched by it.",
        )
    ]


def _disturbed(rows: Sequence[Row]) -> list[Remark]:
    restless = disturbed(rows)
    if not restless:
        return []
    hit = [row for row in rows if id(row) in restless]
    names = sorted({f"{row['contender']} on {row['problem']} ({setting_text(row)})" for row in hit})
    return [
        (
            "Disturbed",
            f"In {len(hit)} of {_number(len(rows), 'cell')} a fixed workload took over {DISTURBED:.0%} more or less "
            f"time than usual, so the machine did something else too: {_names(names)}. They are marked † in tables.",
        )
    ]


def _environments(rows: Sequence[Row]) -> list[Remark]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.get("environment") is not None:
            groups[str(row["environment"])].append(row)
    if len(groups) < 2:
        return []
    told = ", ".join(f"{key[:12]} ({_number(len(group), 'cell')})" for key, group in groups.items())
    return [("Environments", f"Cells ran in {len(groups)} environments, which are listed under provenance: {told}.")]


def _passes(rows: Sequence[Row]) -> list[Remark]:
    passes = {row.get("pass") for row in rows}
    if len(passes) > 1 or not rows:
        return []
    return [
        (
            "One pass",
            "Each cell ran in one process, once. Quartiles are those of calls within it; what differs from process to "
            "process (memory layout, clock, caches) is not in them. Study(passes=3) measures it.",
        )
    ]


def _settings(rows: Sequence[Row]) -> list[Remark]:
    found = []
    for problem, group in _by_problem(rows).items():
        settings: dict[frozenset[str], list[str]] = defaultdict(list)
        own: dict[str, set[str]] = defaultdict(set)
        for row in group:
            own[row["contender"]].add(setting_text(row))
        for contender, texts in own.items():
            settings[frozenset(texts)].append(contender)
        if len(settings) > 1:
            usual = max(settings, key=lambda texts: (len(settings[texts]), len(texts)))
            others = [name for texts, names in settings.items() if texts != usual for name in names]
            found.append(f"on {problem}: {_names(others)}")
    if not found:
        return []
    return [
        (
            "Settings",
            f"Not all contenders have the same tolerances or steps, so compare at equal error: {'; '.join(found)}.",
        )
    ]


def _solvers(rows: Sequence[Row]) -> list[Remark]:
    """A tolerance means something else to each controller; packages without a solver use another."""
    by: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if solver := (row.get("options") or {}).get("solver") or (row.get("options") or {}).get("method"):
            by[family(row)].add(str(solver).lower())
    if len(by) < 2:
        return []
    common = set.intersection(*by.values())
    if common:
        return []
    told = "; ".join(f"{name}: {', '.join(sorted(solvers))}" for name, solvers in sorted(by.items()))
    return [
        (
            "Solvers",
            "No solver is in every package, so what is compared is package with solver. Step controllers differ too: "
            f"at the same tolerance errors differ, which is why errors are on an axis. {told}.",
        )
    ]


def _counts(rows: Sequence[Row]) -> list[Remark]:
    unknown = sorted({family(r) for r in rows if r["status"] == "ok" and r.get("nfe") is None})
    if not unknown:
        return []
    return [("Counts", f"No count of evaluations is known of {_names(unknown)}: absent where the work is evaluations.")]


def _memory(rows: Sequence[Row]) -> list[Remark]:
    reasons: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if reason := str(row.get("memory_reason") or "").strip():
            reasons[reason].add(row["contender"])
    told = "; ".join(f"{reason} ({_names(sorted(names))})" for reason, names in sorted(reasons.items()))
    return [("Memory", f"It was not measured of all: {told}.")] if told else []


def _references(source: Source) -> list[Remark]:
    found = []
    solved = {row["problem"] for row in source.solves}
    for name, known in source.problems.items():
        least = number(known.get("agreement"))
        if name not in solved or not least > 0:
            continue
        below = [r for r in source.solves if r["problem"] == name and number(r.get("error_trajectory")) < 10 * least]
        if below:
            found.append(f"{name} (its references agree to {least:.1g})")
    if not found:
        return []
    return [
        (
            "References",
            "Some errors are within ten times of the reference's own error, and are not to be read: "
            f"{', '.join(found)}.",
        )
    ]


def _kinds(rows: Iterable[Row], key: str) -> dict[object, list[str]]:
    found: dict[object, set[str]] = defaultdict(set)
    for row in rows:
        if row.get(key) is not None:
            found[row[key]].add(row["contender"])
    return {kind: sorted(found[kind]) for kind in sorted(found, key=str)}


def _by_problem(rows: Iterable[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["problem"]].append(row)
    return groups


def _names(names: Sequence[str], most: int = 6) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _number(number: object, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
