"""The julia engine: traced fields, solved by OrdinaryDiffEq and differentiated natively by PyNODE.jl."""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import Tensor

from pynode.engine.continuous import ContinuousDerivatives
from pynode.engine.forward import solve_forward
from pynode.engine.julia import device as julia_device
from pynode.engine.julia import runtime as julia_runtime
from pynode.engine.julia.call import RETCODES, Floats, addresses, integers
from pynode.engine.julia.derivatives import DiscreteDerivatives
from pynode.engine.julia.each import solve_samples
from pynode.engine.julia.event import find_event, find_event_each
from pynode.engine.julia.lowering import lower
from pynode.engine.julia.memory import in_order
from pynode.engine.julia.pullback import Pullback
from pynode.engine.julia.reached import take_reached
from pynode.engine.julia.session import Kept, Session
from pynode.engine.julia.split import give_split
from pynode.engine.julia.training import Trained, Update, train
from pynode.engine.protocol import (
    Availability,
    Crossing,
    EventSearch,
    Integration,
    Problem,
    Retcode,
    Stats,
)
from pynode.engine.solvers import SolverInfo
from pynode.errors import PyNODEError
from pynode.sensitivity import Forward

__all__ = ["JuliaEngine"]

_CONTINUOUS = ("gauss", "interpolating", "quadrature", "backsolve")
_KEEP = {"ends": 1, "stages": 2, "dense": 3, "saved": 4}
# What a sensitivity needs of the forward solve's steps; "saved" is the states at the times asked for.
_NEEDS = {"discrete": "stages", "backsolve": "saved"}
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
        state = problem.z0[0]
        device = julia_device.device_of(problem)
        if problem.watched is not None and problem.watched.shown:
            self.session.watch(problem.watched)
        if problem.t.dim() == 2:
            return solve_samples(self.session, problem, self.solve, device, _memory(problem))
        if isinstance(problem.sensitivity, Forward):
            return solve_forward(self.solve, problem, True, "gauss")
        started = time.perf_counter()
        session = self.session
        lowered = lower(session, problem, device)
        julia = session.start()
        sensitivity = problem.sensitivity
        steps = None if problem.watched is None else problem.watched.steps
        own_steps = problem.solver.of_pairs
        keep = "dense" if problem.dense or steps is not None else "ends"
        if own_steps and steps is not None:
            keep = "stages"
        if sensitivity is not None and not (problem.dense and sensitivity.name == "backsolve"):
            keep = _NEEDS.get(sensitivity.name, "dense")
        z0 = [in_order(z) for z in problem.z0]
        t = in_order(problem.t.cpu())
        n = t.shape[0]
        out = [z.new_empty((n, *z.shape)) for z in z0]
        batch = state.shape[0] if state.dim() else 1
        split = sensitivity is not None and sensitivity.name != "discrete"
        assert problem.solver.julia is not None
        values = [device.number, lowered.kernel, session.number("solver", problem.solver.julia), batch, n, _KEEP[keep]]
        values += [int(split), int(problem.solver.adaptive), problem.max_steps, _memory(problem), t.data_ptr(), len(z0)]
        for z, o in zip(z0, out, strict=True):
            values += (z.numel(), z.data_ptr(), o.data_ptr())
        data, address, length = integers(values + addresses(lowered.values))
        told = session.choose_steps(problem), session.give_mass(problem), give_split(session, problem, device)
        floats = Floats(problem.rtol, problem.atol, problem.dt or 0.0, 0.0, 0.0, *told)
        with lowered:
            kept = julia.forward(address, length, floats.address)
        del data
        nfe, accepted, rejected, outcome, reached = floats.values[:5]
        if outcome < 0:
            problem.field.check_finite(problem.z0, problem.args)
            raise PyNODEError("Julia found an input that is not finite, and Python does not: please report this")
        stats = Stats(int(nfe), None, int(accepted), int(rejected), time.perf_counter() - started)
        integration = Integration(tuple(out), stats, RETCODES[int(outcome)], reached)
        if integration.retcode is not Retcode.SUCCESS:
            integration.t_end, integration.z_end = take_reached(problem.t, out, reached)
        if kept:
            held = Kept(session, kept, lowered)
            if steps is not None:
                steps += map(float, session.module.step_times(kept))
            lowered.keep()
            problem = lowered.problem
            if sensitivity is not None:
                integration.pullback = Pullback(held, problem, stats)
                if sensitivity.name == "discrete" and not own_steps:
                    integration.derivatives = DiscreteDerivatives(held, problem, lowered.read)
                elif sensitivity.name != "discrete" and problem.mass is None:
                    integration.derivatives = ContinuousDerivatives(self.solve, problem, lowered.read)
            if problem.dense:
                integration.interpolant = _Interpolant(held, problem)
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


class _Interpolant:
    """A kept dense solve as a function of time."""

    def __init__(self, kept: Kept, problem: Problem) -> None:
        self.kept, self.problem = kept, problem

    @julia_runtime.alone
    def __call__(self, times: Tensor) -> tuple[Tensor, ...]:
        julia = self.kept.session.start()
        times = in_order(times.cpu())
        out = [z.new_empty((len(times), *z.shape)) for z in self.problem.z0]
        values = [self.kept.lowered.device.number, len(times), times.data_ptr(), len(out)]
        for z, o in zip(self.problem.z0, out, strict=True):
            values += (z.numel(), o.data_ptr())
        data, address, length = integers(values)
        with self.kept.lowered:
            julia.interpolate(self.kept.number, address, length)
        del data
        return tuple(out)
