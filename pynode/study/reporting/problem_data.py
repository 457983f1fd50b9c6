"""What the page shows of a problem: its points as columns, fronts and recommendations for each choice of axes."""

from __future__ import annotations

import math
from typing import Any

from pynode.study.reporting.failures import absent, failures
from pynode.study.reporting.front import advise, asked, front, usual
from pynode.study.reporting.measures import ERRORS, MEASURES, WORKS, Measure, accuracy, work
from pynode.study.reporting.points import disturbed, points
from pynode.study.reporting.source import Row, Source, number
from pynode.study.reporting.style import Look
from pynode.study.reporting.units import scientific

__all__ = ["problem_data"]

_COLUMNS = (
    *("error_trajectory", "error_end", "gradient_error", "drift"),
    *("seconds", "seconds_q1", "seconds_q3", "prepare_seconds", "seconds_first", "cpu_seconds"),
    *("gradient_seconds", "gradient_seconds_q1", "gradient_seconds_q3", "gradient_seconds_first"),
    *("gradient_cpu_seconds", "nfe", "nfe_backward", "n_accepted", "n_rejected", "jacobians"),
    *("peak_mb", "gradient_peak_mb"),
)


def problem_data(source: Source, name: str, place: int, styles: dict[str, Look]) -> dict[str, Any]:
    """What the template prints of a problem, and under "data" what the script draws."""
    rows = [row for row in source.solves if row["problem"] == name]
    found = points(rows, disturbed(source.rows))
    labels = list(dict.fromkeys(point["contender"] for point in found))
    by_label = {point["contender"]: styles[_original(point, styles)] for point in found}
    shown = [m for m in MEASURES if any(math.isfinite(accuracy(p, m, e)) for p in found for e in m.errors)]
    return {
        "name": name,
        "id": f"problem-{place}",
        "about": source.problems.get(name, {}),
        "notes": _notes(source.problems.get(name, {})),
        "points": found,
        "measures": [{"name": measure.name, **_first(found, measure)} for measure in shown],
        "failures": failures(rows),
        "absent": absent(rows),
        "data": {
            "id": f"problem-{place}",
            "contenders": [
                {"label": label, "family": by_label[label].family, **by_label[label].swatch} for label in labels
            ],
            "points": {
                "contender": [labels.index(point["contender"]) for point in found],
                "setting": [point["setting"] for point in found],
                "size": [_size(point) for point in found],
                "note": [_note(point) for point in found],
                **{key: [number(point.get(key)) for point in found] for key in _COLUMNS},
            },
            "measures": {measure.name: _measure(found, measure) for measure in shown},
        },
    }


def _original(point: Row, styles: dict[str, Look]) -> str:
    """The contender's label before threads or dtype were added to it."""
    label = str(point["contender"])
    return label if label in styles else label.rpartition(" (")[0]


def _measure(found: list[Row], measure: Measure) -> dict[str, Any]:
    works = [kind for kind in WORKS if any(math.isfinite(work(point, measure, kind)) for point in found)]
    told: dict[str, Any] = {"works": works, "errors": {}, "status": [p.get(measure.status) == "ok" for p in found]}
    for error in measure.errors:
        decades = asked(found, measure, error)
        if not decades:
            continue
        told["errors"][error] = {
            "title": ERRORS[error],
            "asked": decades,
            "usual": usual(found, measure, error),
            "front": {kind: front(found, measure, error, kind) for kind in works},
            "advice": {
                kind: [
                    {"winner": a.winner, "ties": a.ties, "sentence": a.sentence}
                    for a in (advise(found, measure, error, decade, kind) for decade in decades)
                ]
                for kind in works
            },
        }
    return told


def _first(found: list[Row], measure: Measure) -> dict[str, Any]:
    """The recommendation that is printed before the reader chooses."""
    error = next(e for e in measure.errors if asked(found, measure, e))
    target = usual(found, measure, error)
    assert target is not None
    return {"error": error, "asked": target, "advice": advise(found, measure, error, target), "spec": measure}


def _size(point: Row) -> float:
    """What settings are sorted by: the tolerance or the step."""
    return number(point["dt"] if point.get("dt") is not None else point.get("rtol"))


def _note(point: Row) -> str:
    marks: list[str] = [] if point["status"] == "ok" else [point["status"].replace("_", " ")]
    if point["status"] == "ok" and (point.get("gradient_status") or "ok") != "ok":
        marks.append(f"gradient {point['gradient_status'].replace('_', ' ')}")
    for measure in MEASURES:
        if point.get(measure.status) == "ok" and point.get(measure.seconds) is None and point.get(measure.reason):
            marks.append(str(point[measure.reason]))  # why there is an error and no time
    if 0 < point["passes_ok"] < point["passes"]:
        marks.append(f"{point['passes_ok']} of {point['passes']} passes")
    signs = [sign for sign, key in (("†", "disturbed"), ("‡", "beside")) if point[key]]
    return " ".join(filter(None, ["; ".join(marks), *signs]))


def _size_of(about: dict[str, Any]) -> str:
    """How large the problem is, in words."""
    parts = []
    if shape := about.get("shape"):
        parts.append(f"State of shape {' × '.join(map(str, shape))}")
    for key, noun in (("times", "time"), ("parameters", "parameter")):
        if isinstance(n := about.get(key), int):
            parts.append(f"{n} {noun}" + ("" if n == 1 else "s"))
    return ", ".join(parts) + "." if parts else ""


def _notes(about: dict[str, Any]) -> list[str]:
    notes = [_size_of(about)]
    if about.get("source"):
        notes.append(f"Source: {about['source']}".rstrip(".") + ".")
    if about.get("how"):
        text = f"Reference: {about['how']}".rstrip(".")
        agreement, gradient = number(about.get("agreement")), number(about.get("gradient_agreement"))
        if agreement > 0:
            text += f"; its two ways agree to {scientific(agreement)}"
        if gradient > 0:
            text += f", of gradients to {scientific(gradient)}"
        notes.append(text + ".")
    if about.get("no_gradient"):
        notes.append(f"Gradients are not compared: {about['no_gradient']}".rstrip(".") + ".")
    return [note for note in notes if note]
