"""The Pareto front of a problem, and the sentence that recommends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pynode.study.reporting.measures import Measure, accuracy, work
from pynode.study.reporting.source import Row, number
from pynode.study.reporting.units import amount, scientific

__all__ = ["Advice", "advise", "asked", "fastest", "front", "usual"]

_FINEST, _COARSEST = -14, 0  # decades of error that may be asked for
_FEW = 3  # calls: of fewer no spread is known


def front(points: Sequence[Row], measure: Measure, error: str, kind: str) -> list[int]:
    """The places of the points that no other beats in error and work at once, the cheapest first."""
    values = [(work(point, measure, kind), accuracy(point, measure, error)) for point in points]
    known = [i for i, pair in enumerate(values) if all(map(math.isfinite, pair))]
    best, found = math.inf, []
    for i in sorted(known, key=lambda i: values[i]):
        if values[i][1] < best:
            best = values[i][1]
            found.append(i)
    return found


def fastest(points: Sequence[Row], measure: Measure, error: str, asked: float, kind: str = "seconds") -> list[int]:
    """The place of each contender's cheapest point whose error is at most `asked`, the cheapest contender first."""
    chosen: dict[str, int] = {}
    for i, point in enumerate(points):
        cost = work(point, measure, kind)
        if not (accuracy(point, measure, error) <= asked and math.isfinite(cost)):
            continue
        before = chosen.get(point["contender"])
        if before is None or cost < work(points[before], measure, kind):
            chosen[point["contender"]] = i
    return sorted(chosen.values(), key=lambda i: work(points[i], measure, kind))


def asked(points: Sequence[Row], measure: Measure, error: str) -> list[float]:
    """The decades of error that may be asked for: from the one that all reach to one that a contender reaches."""
    errors = [accuracy(point, measure, error) for point in points]
    errors = [value for value in errors if math.isfinite(value)]
    if not errors:
        return []

    def decade(value: float) -> int:
        exponent = math.ceil(math.log10(value) - 1e-9) if value > 0 else _FINEST
        return min(max(exponent, _FINEST), _COARSEST)

    return [10.0**k for k in range(decade(max(errors)), decade(min(errors)) - 1, -1)]


def usual(points: Sequence[Row], measure: Measure, error: str) -> float | None:
    """The error that is asked for where the reader asks for none: the finest that half of the contenders reach."""
    decades = asked(points, measure, error)
    contenders = {p["contender"] for p in points if math.isfinite(accuracy(p, measure, error))}
    reached = [d for d in decades if 2 * len(fastest(points, measure, error, d)) >= len(contenders)]
    return reached[-1] if reached else (decades[0] if decades else None)


@dataclass(frozen=True)
class Advice:
    """A recommendation.

    Attributes:
        winner: the place of the point that is recommended; `None` where no contender reached the error.
        ties: places of points that cannot be told from it: their quartiles overlap.
        sentence: the same in words.
    """

    winner: int | None
    ties: tuple[int, ...]
    sentence: str


def advise(points: Sequence[Row], measure: Measure, error: str, asked: float, kind: str = "seconds") -> Advice:
    """The cheapest contender at an error, with what is uncertain about it."""
    order = fastest(points, measure, error, asked, kind)
    goal = f"For {_NOUN[error]} of at most {scientific(asked)}"
    if not order:
        errors = [accuracy(point, measure, error) for point in points]
        errors = [value for value in errors if math.isfinite(value)]
        if not errors:
            return Advice(None, (), f"No contender has {_NOUN[error]}: see the failures.")
        least = min(errors)
        return Advice(None, (), f"{goal} there is no contender: the least that was reached is {scientific(least)}.")
    winner = points[order[0]]
    ties = tuple(i for i in order[1:] if _overlap(winner, points[i], measure, kind))
    cost = work(winner, measure, kind)
    parts = [f"{goal}, {_name(winner)} {_CHEAPEST[kind]}: {_cost(winner, measure, kind)}, with an error of "]
    parts[0] += f"{scientific(accuracy(winner, measure, error))}."
    calls = int(winner.get(f"{measure.seconds}_n") or _FEW)
    if kind != "nfe" and calls < _FEW:
        told = "1 call of it was" if calls == 1 else f"{calls} calls of it were"
        parts.append(f"Only {told} timed: how its times spread is unknown.")
    if kind != "nfe" and winner.get("disturbed"):
        parts.append("The machine was disturbed while it was measured: measure again before relying on it.")
    elif kind != "nfe" and winner.get("beside"):
        parts.append("It was measured beside other cells, which changes times.")
    if ties:
        names = _listed([_name(points[i]) for i in ties])
        what = "their quartiles overlap" if kind == "seconds" else "they cost the same"
        parts.append(f"It cannot be told apart from {names}: {what}.")
    rest = [i for i in order[1:] if i not in ties]
    if rest:
        ratio = work(points[rest[0]], measure, kind) / cost if cost else math.inf
        times = f"{ratio:.2g}" if ratio < 9.95 else f"{ratio:.0f}"
        parts.append(f"{'Then comes' if ties else 'Next is'} {_name(points[rest[0]])}, at {times} times the cost.")
    elif not ties:
        parts.append("No other contender reached it.")
    return Advice(order[0], ties, " ".join(parts))


_NOUN = {
    "error_trajectory": "an error over the trajectory",
    "error_end": "an error at the end",
    "gradient_error": "an error of the gradient",
}
_CHEAPEST = {"seconds": "is the fastest", "cpu": "takes the least CPU time", "nfe": "needs the fewest evaluations"}


def _name(point: Row) -> str:
    return f"{point['contender']} ({point['setting']})"


def _cost(point: Row, measure: Measure, kind: str) -> str:
    text = amount(work(point, measure, kind), kind)
    low, high = (number(point.get(f"{measure.seconds}_{end}")) for end in ("q1", "q3"))
    if kind == "seconds" and low < high:
        text += f" (quartiles {amount(low, kind)} to {amount(high, kind)})"
    return text


def _overlap(winner: Row, other: Row, measure: Measure, kind: str) -> bool:
    if kind != "seconds":
        return work(other, measure, kind) <= work(winner, measure, kind)
    high = number(winner.get(f"{measure.seconds}_q3"))
    low = number(other.get(f"{measure.seconds}_q1"))
    return low <= high


def _listed(names: Sequence[str], most: int = 4) -> str:
    shown = list(names[:most])
    if len(names) > most:
        shown.append(f"{len(names) - most} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
