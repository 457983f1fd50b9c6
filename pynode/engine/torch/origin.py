"""Time counted from the start of a solve.

torchdiffeq hands the time on in the state's dtype, and its clock adds step to step. Counted from the first time their
rounding is that of the span, not that of the time itself: so for a field that computes with the time in double, and for
spans that are short beside the times.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from torch import Tensor

from pynode.engine.protocol import Crossing, EventSearch, Integration, Problem

__all__ = ["counts_from_zero", "crossing_at", "from_zero", "integration_at", "search_from_zero"]

# Spans this many times shorter than their times are far from zero: nearer, less than a millionth of a step is lost.
_FAR = 1024


@dataclass(eq=False)
class _FromZero(Problem):
    """A problem whose times are counted from `origin`."""

    origin: Tensor | None = None

    def users_time(self, t: Tensor) -> Tensor:
        """As `Problem.users_time`."""
        return t if self.origin is None else t.double() + self.origin

    def field_time(self, t: Tensor) -> Tensor:
        """As `Problem.field_time`."""
        return self.users_time(t).to(self.field.time_dtype)


def counts_from_zero(problem: Problem) -> bool:
    """Whether the rounding of times would matter to torchdiffeq otherwise."""
    if isinstance(problem, _FromZero):
        return False
    if problem.field.time_dtype != problem.z0[0].dtype:
        return True
    first, last = float(problem.t[0]), float(problem.t[-1])
    return max(abs(first), abs(last)) > _FAR * abs(last - first)


def from_zero(problem: Problem) -> Problem:
    """The problem with its times counted from the first."""
    given = {f.name: getattr(problem, f.name) for f in fields(problem) if f.init}
    origin = problem.t[0]
    kinks = None if problem.kinks is None else problem.kinks.to(origin) - origin.detach()
    return _FromZero(**{**given, "t": problem.t - origin, "kinks": kinks, "origin": origin})


def search_from_zero(search: EventSearch, origin: Tensor) -> EventSearch:
    """The search by a function of the time since the origin."""
    return replace(search, function=lambda t, z, args: search.function(t.double() + origin, z, args))


def crossing_at(crossing: Crossing, origin: Tensor) -> Crossing:
    """The crossing by the user's times."""
    return crossing if crossing.t is None else replace(crossing, t=crossing.t + float(origin))


def integration_at(done: Integration, origin: Tensor) -> Integration:
    """The integration by the user's times; their cotangents are those of the times since the first."""
    interpolant = done.interpolant
    return replace(
        done,
        t_end=done.t_end + float(origin),
        interpolant=None if interpolant is None else lambda times: interpolant(times - origin),
    )
