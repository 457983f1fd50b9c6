"""Forward and second derivatives of the steps of an explicit solver, by Julia."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pynode.engine.continuous import Unchanged, direction_problem
from pynode.engine.julia import runtime as julia_runtime
from pynode.engine.julia.call import address_of, addresses, integers
from pynode.engine.julia.lowering import lower
from pynode.engine.julia.memory import in_order
from pynode.engine.julia.pullback import Pullback, PullbackCall
from pynode.engine.julia.session import Kept
from pynode.engine.protocol import Gradients, Problem, Stats

__all__ = ["DiscreteDerivatives"]


class DiscreteDerivatives:
    """The derivatives of a solve by its own steps: see `Derivatives`, and `julia/src/adjoint/tangent.jl`.

    Args:
        kept: the solve, with its steps.
        problem: what was solved.
        read: the tensors that the field reads.
    """

    def __init__(self, kept: Kept, problem: Problem, read: Sequence[Tensor]) -> None:
        self.kept, self.problem, self.unchanged = kept, problem, Unchanged(problem, read)

    @julia_runtime.alone
    def _follow(self, directions: Gradients, keep: bool) -> tuple[Kept, tuple[Tensor, ...], Problem]:
        """The derivative in a direction: the solve that Julia keeps, its states, and the problem of which it is one."""
        self.unchanged.check()
        problem, device, session = self.problem, self.kept.lowered.device, self.kept.session
        moves = directions.t is not None
        moved = direction_problem(problem, directions, time=moves)
        lowered = lower(session, moved, device)
        julia = session.start()
        n, state = len(problem.z0), problem.z0[0]
        z0 = [in_order(z) for z in moved.z0]
        out = [torch.empty((len(problem.t), *z.shape), device="cpu").to(z) for z in problem.z0]
        results: list[Tensor | None] = [None] * n + list(out) + [None] * (len(z0) - 2 * n)
        t = None if directions.t is None else in_order(directions.t.to("cpu", torch.float64))
        values = [device.number, lowered.kernel, state.shape[0], int(keep), address_of(t), len(z0)]
        for z, o in zip(z0, results, strict=True):
            values += (z.numel(), z.data_ptr(), address_of(o))
        data, address, length = integers(values + addresses(lowered.values))
        with lowered:
            number = julia.tangent(self.kept.number, address, length)
        del data
        lowered.keep()
        return Kept(session, number, lowered), tuple(out), lowered.problem

    def tangent(self, directions: Gradients) -> tuple[Tensor, ...]:
        """As `Derivatives.tangent`."""
        return self._follow(directions, keep=False)[1]

    def second(self, cotangents: Sequence[Tensor | None], directions: Gradients) -> Gradients:
        """As `Derivatives.second`."""
        kept, _, moved = self._follow(directions, keep=True)
        n, m = len(self.problem.z0), len(self.problem.args)
        still = len(moved.z0) - 2 * n
        call = PullbackCall(kept.session, moved, kept.lowered.device.number)
        found = Pullback(kept, moved, Stats(), call)([*[None] * n, *cotangents, *[None] * still])
        flat = [*found.z0[:n], found.t, *found.args[:m], *found.parameters]
        wanted = zip(flat, self.problem.wanted, strict=True)
        return Gradients.of(self.problem, [x if w else None for x, w in wanted])
