"""Time counted from the start of a solve.

torchdiffeq hands the time on in the state's dtype. A field that computes with it in double gets it from there by adding
the first time, so that its rounding is that of the span and not that of the time itself.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from torch import Tensor

from pynode.engine.protocol import Crossing, EventSearch, Integration, Problem

__all__ = ["counts_from_zero", "crossing_at", "from_zero", "integration_at", "search_from_zero"]


@dataclass(eq=False)
class _FromZero(Problem):
    """A problem whose times are counted from `origin`."""

    origin: Tensor | None = None

    def field_time(self, t: Tensor) -> Tensor:
        """As `Problem.field_time`."""
        return t if self.origin is None else t.double() + self.origin


def counts_from_zero(problem: Problem) -> bool:
    """Whether the field gets the time in another dtype than torchdiffeq hands it on in."""
    return problem.field.time_dtype != problem.z0[0].dtype and not isinstance(problem, _FromZero)


def from_zero(problem: Problem) -> Problem:
    """The problem with its times counted from the first."""
    given = {f.name: getattr(problem, f.name) for f in fields(problem) if f.init}
    return _FromZero(**{**given, "t": problem.t - problem.t[0], "origin": problem.t[0]})


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
