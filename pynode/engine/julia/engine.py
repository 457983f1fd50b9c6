"""The julia engine: traced fields, solved by OrdinaryDiffEq and differentiated natively by PyNODE.jl."""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import Tensor

from pynode.engine.forward import solve_forward
from pynode.engine.julia import device as julia_device
from pynode.engine.julia import runtime as julia_runtime
from pynode.engine.julia.each import solve_samples
from pynode.engine.julia.event import find_event, find_event_each
from pynode.engine.julia.lowering import lower
from pynode.engine.julia.session import Session
from pynode.engine.julia.solve import Solve
from pynode.engine.julia.training import Trained, Update, train
from pynode.engine.protocol import (
    Availability,
    Crossing,
    EventSearch,
    Integration,
    Problem,
)
from pynode.engine.solvers import SolverInfo
from pynode.sensitivity import Forward

__all__ = ["JuliaEngine"]

_CONTINUOUS = ("gauss", "interpolating", "quadrature", "backsolve")
_MEMORY = 2**30  # what `Discrete` keeps at most unless told otherwise


class JuliaEngine:
    """Solves and differentiates in Julia; no step of a solve calls back into Python, unless that is asked for."""

    name = "julia"

    def __init__(self) -> None:
        self.session = Session()

    def available(self) -> Availability:
        """Whether Julia with PyNODE can be started here; starts nothing."""
        return julia_runtime.available()

    def sensitivities(self, solver: SolverInfo) -> tuple[str, ...]:
        """The discrete adjoint for explicit Runge–Kutta methods, SciMLSensitivity's continuous adjoints, `forward`."""
        if solver.matrix_free:  # the tangents have no derivative of their own in a trace
            return _CONTINUOUS
        if solver.of_pairs:
            return ("discrete",)
        if solver.multistep:  # whose interpolant is far less accurate than its steps
            return ("backsolve", "forward")
        steps_are_ours = not (solver.stiff or solver.opaque)
        return ("discrete", *_CONTINUOUS, "forward") if steps_are_ours else (*_CONTINUOUS, "forward")

    @julia_runtime.alone
    def solve(self, problem: Problem) -> Integration:
        """Integrate; see `Engine.solve`.

        Raises:
            TraceError: the field cannot be turned into a graph.
            EngineUnavailable: Julia cannot be started, or does not work on the state's device.
        """
        started = time.perf_counter()
        known = problem.known
        solve: Solve | None = None if known is None else known.get(self.name)
        if solve is not None:
            return solve.again(problem, started)
        device = julia_device.device_of(problem)
        if problem.watched is not None and problem.watched.shown:
            self.session.watch(problem.watched)
        if problem.t.dim() == 2:
            return solve_samples(self.session, problem, self.solve, device, _memory(problem))
        if isinstance(problem.sensitivity, Forward):
            return solve_forward(self.solve, problem, True, "gauss")
        lowered = lower(self.session, problem, device)
        solve = Solve(self.session, problem, lowered, _memory(problem), self.solve)
        integration = solve(problem, lowered, started)
        if known is not None and solve.kernel is not None:
            known[self.name] = solve
        return integration

    @julia_runtime.alone
    def train(
        self,
        problem: Problem,
        loss: Problem,
        inputs: Sequence[Tensor],
        updates: Sequence[Update],
        trained: Trained,
    ) -> None:
        """Do training steps; see `pynode.engine.julia.training.train`.

        Raises:
            TraceError: the field or the loss cannot be turned into a graph.
            EngineUnavailable: Julia cannot be started.
        """
        train(self.session, problem, loss, inputs, updates, trained, _memory(problem))

    @julia_runtime.alone
    def find_event(self, problem: Problem, search: EventSearch) -> Crossing:
        """Step until a value has changed its sign, and find the time within that step.

        Raises:
            TraceError: the field or the event function cannot be turned into a graph.
            EngineUnavailable: Julia cannot be started, or does not work on the state's device.
        """
        return find_event(self.session, problem, search, julia_device.device_of(problem))

    @julia_runtime.alone
    def find_event_each(
        self, problem: Problem, search: EventSearch, signs: Sequence[tuple[float, ...]]
    ) -> Sequence[Crossing]:
        """As `find_event`, for all samples in one call."""
        return find_event_each(self.session, problem, search, signs, julia_device.device_of(problem))


def _memory(problem: Problem) -> int:
    """The bytes that the steps kept for the discrete adjoint may take."""
    how = problem.sensitivity
    return _MEMORY if how is None else int(how.options.get("memory", _MEMORY))  # type: ignore[call-overload]
