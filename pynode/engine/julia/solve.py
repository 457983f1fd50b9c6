"""The solve of a problem by Julia, and of others that differ from it in the numbers in their tensors alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from pynode.engine.continuous import ContinuousDerivatives
from pynode.engine.julia import runtime as julia_runtime
from pynode.engine.julia.call import RETCODES, Layout, integers
from pynode.engine.julia.derivatives import DiscreteDerivatives
from pynode.engine.julia.lowering import Kernel, Traced
from pynode.engine.julia.memory import in_order
from pynode.engine.julia.pullback import Pullback, PullbackCall
from pynode.engine.julia.reached import take_reached
from pynode.engine.julia.session import InJulia, Kept, Lowered, Session
from pynode.engine.julia.split import give_split
from pynode.engine.protocol import Integration, Problem, Retcode, Stats
from pynode.engine.scale import at_scale
from pynode.errors import PyNODEError

__all__ = ["Solve"]

_KEEP = {"ends": 1, "stages": 2, "dense": 3, "saved": 4, "times": 5}
# What a sensitivity needs of the forward solve's steps; "saved" is the states at the times asked for.
_NEEDS = {"discrete": "stages", "backsolve": "saved"}


class Solve:
    """How Julia solves a problem, with all that is the same for problems that differ in their numbers alone.

    Nothing in it holds the field.

    Args:
        session: the Julia that runs.
        problem: the problem.
        lowered: its field.
        memory: the bytes that the steps kept for the discrete adjoint may take.
        engine: solves a problem, as continuous derivatives need it.

    Attributes:
        kernel: the field, where other problems may be solved by this one's; else `None`.
    """

    def __init__(
        self,
        session: Session,
        problem: Problem,
        lowered: Lowered,
        memory: int,
        engine: Callable[[Problem], Integration],
    ) -> None:
        self.session, self.engine, self.device = session, engine, lowered.device
        self.read = lowered.read
        session.start()
        sensitivity, solver, z0 = problem.sensitivity, problem.solver, problem.z0
        self.own_steps = solver.of_pairs
        with_steps = problem.watched is not None and problem.watched.steps is not None
        keep = "dense" if problem.dense else "times" if with_steps else "ends"
        if self.own_steps and with_steps:
            keep = "stages"
        if sensitivity is not None and not (problem.dense and sensitivity.name == "backsolve"):
            keep = _NEEDS.get(sensitivity.name, "dense")
        batch, n = z0[0].shape[0] if z0[0].dim() else 1, problem.t.shape[0]
        self.shapes = [(n, *z.shape) for z in z0]
        assert solver.julia is not None
        split = sensitivity is not None and sensitivity.name != "discrete"
        values: list[int | None] = [
            self.device.number,
            lowered.kernel,
            session.number("solver", solver.julia),
            batch,
            n,
        ]
        values += [_KEEP[keep], int(split), int(solver.adaptive), problem.max_steps, memory, int(problem.wants["t"][0])]
        values += [None, len(z0)]
        for z in z0:
            values += (z.numel(), None, None)
        values.append(len(lowered.values))
        for x in lowered.values:
            values += (x.numel(), None)
        self.layout = Layout(values)
        self.pullback = None if sensitivity is None else PullbackCall(session, problem, self.device.number)
        # Of a kernel autograd looks at the parameters, which come first, and are saved.
        self.beside = self.read[len(problem.parameters) :] if isinstance(lowered, Traced) else self.read
        self.kernel: Kernel | None = None
        if problem.known is not None and isinstance(lowered, Traced) and self.device.stream is None:
            read = (*problem.args, *self.read)
            if all([x.layout is torch.strided and x.is_floating_point() for x in read]):
                self.kernel = Kernel(self.device, lowered.kernel, self.read)

    def again(self, problem: Problem, started: float) -> Integration:
        """Integrate another problem; see `__call__`."""
        assert self.kernel is not None
        return self._solve(problem, self.kernel, list(map(in_order, (*problem.args, *self.read))), started)

    def __call__(self, problem: Problem, lowered: Lowered, started: float) -> Integration:
        """Integrate; see `Engine.solve`.

        Args:
            problem: a problem.
            lowered: its field.
            started: when the solve began.
        """
        return self._solve(problem, lowered, lowered.values, started)

    def _solve(self, problem: Problem, lowered: InJulia, values: Sequence[Tensor], started: float) -> Integration:
        session = self.session
        julia = session.start()
        z0, t = [in_order(z) for z in problem.z0], in_order(problem.t.cpu())
        out = [z.new_empty(shape) for z, shape in zip(z0, self.shapes, strict=True)]
        addresses = [t.data_ptr()]
        for z, o in zip(z0, out, strict=True):
            addresses += (z.data_ptr(), o.data_ptr())
        addresses += map(Tensor.data_ptr, values)
        data, address, length = self.layout.at(addresses)
        floats = session.floats_of(problem, session.give_mass(problem), give_split(session, problem, self.device))
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
            self._keep(integration, Kept(session, kept, lowered), lowered, problem)
        return integration

    def _keep(self, integration: Integration, held: Kept, lowered: InJulia, problem: Problem) -> None:
        """What is to be had of a solve that Julia keeps."""
        if problem.watched is not None and problem.watched.steps is not None:
            problem.watched.steps += map(float, julia_runtime.module().step_times(held.number))
        lowered.keep()
        if lowered is not self.kernel:
            problem = cast(Lowered, lowered).problem
        sensitivity = problem.sensitivity
        if sensitivity is not None:
            assert self.pullback is not None
            pullback = Pullback(held, problem, integration.stats, self.pullback)
            discrete = sensitivity.name == "discrete"
            integration.pullback = pullback if discrete else at_scale(pullback, problem, integration.z)
            if discrete and not self.own_steps:
                integration.derivatives = DiscreteDerivatives(held, problem, self.beside)
            elif not discrete and problem.mass is None:
                integration.derivatives = ContinuousDerivatives(self.engine, problem, self.beside)
        if problem.dense:
            integration.interpolant = _Interpolant(held, problem)


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
