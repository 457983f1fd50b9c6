"""What is compared: an error against a work, of the state and of the gradient."""

from __future__ import annotations

from dataclasses import dataclass

from pynode.study.reporting.source import Row, number

__all__ = ["ERRORS", "MEASURES", "WORKS", "Measure", "accuracy", "work"]


@dataclass(frozen=True)
class Measure:
    """A work-precision diagram.

    Attributes:
        name: "state" or "gradient".
        errors: the columns of errors that it can show, the first at the start.
        status: the column that says whether it went well.
        seconds: the column of the median time.
    """

    name: str
    errors: tuple[str, ...]
    status: str
    reason: str
    seconds: str
    cpu: str
    first: str
    peak: str


MEASURES = (
    Measure(
        "state",
        ("error_trajectory", "error_end"),
        "status",
        "reason",
        "seconds",
        "cpu_seconds",
        "seconds_first",
        "peak_mb",
    ),
    Measure(
        "gradient",
        ("gradient_error",),
        "gradient_status",
        "gradient_reason",
        "gradient_seconds",
        "gradient_cpu_seconds",
        "gradient_seconds_first",
        "gradient_peak_mb",
    ),
)
WORKS = {
    "seconds": "time of one call",
    "cpu": "CPU time of one call",
    "nfe": "evaluations of the field",
}
ERRORS = {
    "error_trajectory": "error over the trajectory (relative RMS)",
    "error_end": "error at the end (relative RMS)",
    "gradient_error": "error of the gradient (relative)",
}


def work(point: Row, measure: Measure, kind: str) -> float:
    """The work of a point: seconds, CPU seconds or evaluations (of a gradient: forward and backward)."""
    if kind == "nfe":
        forward, backward = number(point.get("nfe")), number(point.get("nfe_backward"))
        return forward + backward if measure.name == "gradient" else forward
    return number(point.get(measure.seconds if kind == "seconds" else measure.cpu))


def accuracy(point: Row, measure: Measure, error: str) -> float:
    """The error of a point that went well; NaN for one that did not."""
    return number(point.get(error)) if point.get(measure.status) == "ok" else float("nan")
