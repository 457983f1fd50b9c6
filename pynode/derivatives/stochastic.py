"""A solve of an SDE as a function of its inputs, for autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.derivatives.run import Failed
from pynode.engine.protocol import Retcode
from pynode.engine.refused import no_derivative_of
from pynode.engine.stochastic import StochasticEngine, StochasticIntegration, StochasticProblem
from pynode.errors import SolveError
from pynode.torch_state import leaves_thread_state

__all__ = ["StochasticRun", "differentiable_sde"]


class StochasticRun:
    """One solve.

    Args:
        engine: what solves.
        problem: what is to be solved.
        throw: whether a failed integration raises `Failed`.
    """

    def __init__(self, engine: StochasticEngine, problem: StochasticProblem, throw: bool) -> None:
        self.engine, self.problem, self.throw = engine, problem, throw
        self.integration: StochasticIntegration

    def solve(self) -> tuple[Tensor, ...]:
        """The states.

        Raises:
            Failed: the integration failed, and that is to raise.
        """
        found = self.engine.solve(self.problem)
        z, found.z = found.z, ()  # which would hold the graph that holds this
        self.integration = found
        if self.throw and found.retcode is not Retcode.SUCCESS:
            raise Failed
        return z


def differentiable_sde(run: StochasticRun, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The solution, `(time, batch, *features)` of each state tensor, differentiable in its inputs."""
    z: tuple[Tensor, ...] = _SolveSDE.apply(run, *inputs)
    return z


class _SolveSDE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: StochasticRun, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.run = run
        ctx.save_for_backward(*inputs)  # so that autograd refuses a backward pass after one was changed in place
        ctx.set_materialize_grads(False)
        return run.solve()

    @staticmethod
    @leaves_thread_state
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        run, inputs = ctx.run, ctx.saved_tensors
        problem, done = run.problem, run.integration
        if all(g is None for g in cotangents):
            return (None,) * (1 + len(inputs))
        if done.retcode is not Retcode.SUCCESS:
            raise SolveError(f"no gradient, since the integration failed: {done.retcode.value}", done.retcode)
        with torch.no_grad():
            found = list(done.pullback([None if g is None else g.detach() for g in cotangents]))
        optional = [
            *[False] * (len(problem.z0) + len(problem.args)),
            *[name in field.optional for field in (problem.drift, problem.diffusion) for name in field.names],
        ]
        for i, g in enumerate(found):
            if g is not None and optional[i] and not bool(g.any()):
                found[i] = None
        if torch.is_grad_enabled():
            at = [i for i, g in enumerate(found) if g is not None]
            remedy = "differentiate torchsde's own solve, operation by operation"
            given = [x for x in (*cotangents, *inputs) if x is not None]
            for i, g in zip(
                at, no_derivative_of("a solve of an SDE", remedy, [found[i] for i in at], given), strict=True
            ):
                found[i] = g
        return None, *found
