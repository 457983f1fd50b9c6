"""The julia engine's stochastic differential equations: StochasticDiffEq on the traced drift and diffusion."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from pynode.engine.julia import runtime as julia_runtime
from pynode.engine.julia.call import RETCODES, Floats, address_of, addresses, integers
from pynode.engine.julia.memory import in_order
from pynode.engine.julia.reached import take_reached
from pynode.engine.julia.session import Kept, Session
from pynode.engine.protocol import Availability, Retcode, Stats
from pynode.engine.stochastic import StochasticIntegration, StochasticProblem
from pynode.errors import EngineUnavailable, PyNODEError, TraceError
from pynode.field import Field
from pynode.field._trace import as_numbers, trace_field

__all__ = ["JuliaStochastic"]

_PROCESSOR = -1  # PyNODE.jl's number of the device
_SENSITIVITIES = "discrete", "backsolve"  # PyNODE.jl has them as 1 and 2


class JuliaStochastic:
    """Solves and differentiates in Julia; no step calls back into Python.

    Args:
        session: the Julia that runs.
    """

    name = "julia"

    def __init__(self, session: Session) -> None:
        self.session = session

    def available(self) -> Availability:
        """Whether Julia with PyNODE and StochasticDiffEq can be started here; starts nothing."""
        return julia_runtime.available_with("StochasticDiffEq")

    def sensitivities(self, calculus: str) -> tuple[str, ...]:
        """`discrete`, the exact transpose of the steps; `backsolve`, in the sense of Stratonovich."""
        return _SENSITIVITIES if calculus == "stratonovich" else _SENSITIVITIES[:1]

    @julia_runtime.alone
    def solve(self, problem: StochasticProblem) -> StochasticIntegration:
        """As `StochasticEngine.solve`.

        Raises:
            TraceError: drift or diffusion cannot be turned into a graph.
            EngineUnavailable: Julia cannot be started, or the state is not on the CPU.
        """
        state = problem.z0[0]
        if state.device.type != "cpu":
            raise EngineUnavailable(
                f'the julia engine solves SDEs on the CPU, and the state is on {state.device}: use engine="torch"'
            )
        started = time.perf_counter()
        session = self.session
        drift = _lowered(session, "drift", problem.drift, problem.z0, problem)
        diffusion = _lowered(session, "diffusion", problem.diffusion, problem.diffusion_state, problem)
        z0, t = [in_order(z) for z in problem.z0], in_order(problem.t.cpu())
        out = [z.new_empty((len(t), *z.shape)) for z in z0]
        assert problem.solver.julia is not None
        values = [drift.kernel, diffusion.kernel, len(state), session.number("stochastic_solver", problem.solver.julia)]
        values += [int(problem.calculus == "stratonovich"), problem.channels or 0]
        how = 0 if problem.sensitivity is None else 1 + _SENSITIVITIES.index(problem.sensitivity)
        values += [how, int(problem.rtol is not None), problem.max_steps, problem.seed]
        values += [len(t), t.data_ptr(), len(z0)]
        for z, o in zip(z0, out, strict=True):
            values += (z.numel(), z.data_ptr(), o.data_ptr())
        values += addresses(drift.values) + addresses(diffusion.values)
        data, address, length = integers(values)
        floats = Floats(problem.rtol or 0.0, problem.atol or 0.0, problem.dt or 0.0)
        kept = session.stochastic(address, length, floats.address)
        del data
        nfe, accepted, rejected, outcome, reached = floats.values[:5]
        if outcome < 0:
            for field in (problem.drift, problem.diffusion):
                field.check_finite(problem.z0, problem.args)
            raise PyNODEError("Julia found an input that is not finite, and Python does not: please report this")
        stats = Stats(int(nfe), None, int(accepted), int(rejected), time.perf_counter() - started)
        done = StochasticIntegration(tuple(out), stats, RETCODES[int(outcome)], reached)
        if done.retcode is not Retcode.SUCCESS:
            done.t_end, done.z_end = take_reached(problem.t, out, reached)
        if kept:
            done.pullback = _Pullback(Kept(session, kept, cast(Any, drift)), problem, stats)
        return done


@dataclass
class _Lowered:
    """A traced drift or diffusion in Julia.

    Attributes:
        kernel: Julia's number of it.
        values: the tensors whose values Julia takes: conditioning tensors, then what else it reads.
    """

    kernel: int
    values: Sequence[Tensor]
    called: object = None


def _lowered(
    session: Session, part: str, field: Field, state: tuple[Tensor, ...], problem: StochasticProblem
) -> _Lowered:
    try:
        trace = trace_field(field, state, problem.t, problem.args)
    except TraceError as error:
        raise TraceError(f'{part}: {error}. Or pass engine="torch"') from error
    dtype = state[0].dtype
    read = [in_order(as_numbers(x, dtype)) for x in (*problem.args, *trace.bound(field))]
    return _Lowered(session.kernel(trace, dtype), read)


class _Pullback:
    """Pulls cotangents of the solution back through a kept solve."""

    def __init__(self, kept: Kept, problem: StochasticProblem, stats: Stats) -> None:
        self.kept, self.problem, self.stats = kept, problem, stats

    @julia_runtime.alone
    def __call__(self, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The gradients for cotangents of the states."""
        problem = self.problem
        julia = self.kept.session.start()
        given = [None if g is None else in_order(g) for g in cotangents]
        n, dtype = len(problem.z0), problem.z0[0].dtype
        wants, inputs = problem.wants, problem.inputs
        rooms = [
            torch.empty(x.shape, dtype=dtype, device="cpu") if w else None for x, w in zip(inputs, wants, strict=True)
        ]
        m, k = len(problem.args), len(problem.drift.parameters)
        values = [_PROCESSOR, n]
        for x, g, room in zip(problem.z0, given, rooms, strict=False):
            values += (x.numel(), address_of(g), address_of(room))
        # Both read the conditioning tensors: the diffusion's cotangents of these come by themselves, and are added.
        twice = [torch.empty_like(room) if room is not None else None for room in rooms[n : n + m]]
        for of_args, of_own in ((rooms[n : n + m], slice(n + m, n + m + k)), (twice, slice(n + m + k, None))):
            values.append(m + len(inputs[of_own]))
            for x, room in zip((*problem.args, *inputs[of_own]), (*of_args, *rooms[of_own]), strict=True):
                values += (x.numel(), address_of(room))
        data, address, length = integers(values)
        floats = Floats(0.0)
        julia.pullback(self.kept.number, address, length, floats.address)
        del data
        self.stats.nfe_backward = int(floats.values[0])
        for room, more in zip(rooms[n : n + m], twice, strict=True):
            if room is not None and more is not None:
                room += more
        return [None if room is None else room.to(x.dtype) for x, room in zip(inputs, rooms, strict=True)]
