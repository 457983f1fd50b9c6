"""One solve: the problem, and once it is solved, what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pynode.engine.protocol import Derivatives, Engine, Gradients, Integration, Problem, Retcode, Stats
from pynode.errors import EngineUnavailable, SolveError
from pynode.field._arrays import Arrays
from pynode.problem.counts import total
from pynode.problem.inputs import check_times
from pynode.problem.precision import as_solved

__all__ = ["Failed", "Run"]


class Failed(Exception):
    """An integration that did not reach its last time; `Run.integration` tells of it."""


class Run:
    """One solve.

    Args:
        engine: what solves.
        problem: what is to be solved. Where a transform maps over inputs, its tensors are an example of them.
        levels: for each of the problem's inputs the levels of the transforms that differentiate it.
        throw: whether a failed integration raises `Failed`.
        given: whether the problem's tensors are those that are solved for, as they are without transforms.

    Attributes:
        bare: whether neither the solve nor its pullback enters a context of PyTorch's.
        parts: the runs that this one was split or joined into, by what was mapped over; see `mapped`.
    """

    def __init__(
        self, engine: Engine, problem: Problem, levels: Sequence[frozenset[int]], throw: bool, given: bool = True
    ) -> None:
        self.engine, self.problem, self.levels = engine, problem, levels
        self.throw, self.given, self.bare = throw, given, False
        self.parts: dict[Any, Any] = {}
        self._integration: Integration | None = None
        self._arrays: Arrays | None = None

    def like(self, problem: Problem) -> Run:
        """A run of a part of this one's problem, or of several of it."""
        return Run(self.engine, problem, self.levels, self.throw, given=False)

    @property
    def integration(self) -> Integration:
        """What came of it, without the states; of several, where a transform mapped over it, all that they cost."""
        if self._integration is not None:
            return self._integration
        found = [x for part in self.parts.values() for run in part.runs if (x := run.integration) is not None]
        first = next((x for x in found if x.retcode is not Retcode.SUCCESS), found[0])
        stats = Stats(
            sum(x.stats.nfe for x in found),
            None,
            total(x.stats.n_accepted for x in found),
            total(x.stats.n_rejected for x in found),
            sum(x.stats.seconds for x in found),
        )
        return replace(first, stats=stats, interpolant=None)

    def solve(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Solve for these values of the problem's inputs; the states.

        Raises:
            Failed: the integration failed, and that is to raise.
        """
        problem = self.problem if self.given else with_inputs(self.problem, inputs)
        self._arrays = None if problem.sensitivity is None else problem.field.arrays()
        found = self.engine.solve(problem) if problem.z0[0].shape[0] else _solve_empty(problem)
        if self._arrays is not None:
            self._arrays.settle()
        z, found.z = found.z, ()  # which would hold the graph that holds this
        self._integration = found
        if self.throw and found.retcode is not Retcode.SUCCESS:
            raise Failed
        return z

    def _solved(self, inputs: Sequence[Tensor]) -> Integration:
        if self._integration is None:
            self.solve(inputs)
        found = self._integration
        assert found is not None
        if found.retcode is not Retcode.SUCCESS:
            raise SolveError(f"no gradient, since the integration failed: {found.retcode.value}", found.retcode)
        if self._arrays is not None:
            self._arrays.check()
        return found

    def pull_back(self, cotangents: Sequence[Tensor | None], inputs: Sequence[Tensor]) -> Gradients:
        """The gradients for cotangents of the solution; called where no graph is made.

        Raises:
            SolveError: the integration, or a solve of the adjoint, failed.
        """
        pullback = self._solved(inputs).pullback
        assert pullback is not None
        with as_solved(self.problem.z0):
            return pullback(cotangents)

    def tangent(self, directions: Sequence[Tensor | None], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The derivative of the solution as the inputs move; called where no graph is made.

        Raises:
            SolveError: the integration, or a solve of the derivative, failed.
            EngineUnavailable: there is none.
        """
        derivatives = self._derivatives(inputs)
        with as_solved(self.problem.z0):
            return derivatives.tangent(Gradients.of(self.problem, directions))

    def second(
        self, cotangents: Sequence[Tensor | None], directions: Sequence[Tensor | None], inputs: Sequence[Tensor]
    ) -> Gradients:
        """The gradient of the product of cotangents with `tangent`; raises as that does."""
        derivatives = self._derivatives(inputs)
        with as_solved(self.problem.z0):
            return derivatives.second(cotangents, Gradients.of(self.problem, directions))

    def _derivatives(self, inputs: Sequence[Tensor]) -> Derivatives:
        found = self._solved(inputs).derivatives
        if found is None:
            if self.problem.mass is not None:
                raise EngineUnavailable(
                    "a solve with a mass matrix has first derivatives by reverse mode alone: use backward() or "
                    "torch.autograd.grad without create_graph; or, where the algebraic equations can be solved, put "
                    "their solution into the field and leave mass out"
                )
            how = self.problem.sensitivity
            raise EngineUnavailable(
                f"the {self.engine.name} engine has no forward and no second derivatives of {self.problem.solver.name} "
                f"by {how.name!r}: use sensitivity='discrete' with an explicit solver, or the torch engine"  # type: ignore[union-attr]
            )
        return found


def with_inputs(problem: Problem, inputs: Sequence[Tensor]) -> Problem:
    """The problem for other values of its inputs, which are looked at here: a transform has hidden them until now."""
    n, m = len(problem.z0), len(problem.args)
    x = [y.detach() for y in inputs]
    check_times(x[n], x[0])
    names = problem.field.names
    field = problem.field.replaced(dict(zip(names, x[n + 1 + m :], strict=True)))
    return replace(
        problem, z0=tuple(x[:n]), t=x[n], args=tuple(x[n + 1 : n + 1 + m]), field=field, parameters=field.parameters
    )


class _Nothing:
    """Derivatives of the solution of an empty batch."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def tangent(self, directions: Gradients) -> tuple[Tensor, ...]:
        """As `Derivatives.tangent`."""
        return tuple(x.new_empty((self.problem.t.shape[-1], *x.shape)) for x in self.problem.z0)

    def second(self, cotangents: Sequence[Tensor | None], directions: Gradients | None = None) -> Gradients:
        """As `Derivatives.second`."""
        problem = self.problem
        pairs = zip(problem.inputs, problem.wanted, strict=True)
        return Gradients.of(problem, [torch.zeros_like(x) if w else None for x, w in pairs])


def _solve_empty(problem: Problem) -> Integration:
    """The integration for a batch of size 0, which needs no engine."""
    problem.field.check_finite(problem.z0, problem.args)
    nothing = _Nothing(problem)
    return Integration(
        nothing.tangent(Gradients((), None, (), ())),
        Stats(n_accepted=0, n_rejected=0),
        Retcode.SUCCESS,
        float("nan"),
        nothing.second,
        (lambda t: tuple(x.new_empty((len(t), *x.shape)) for x in problem.z0)) if problem.dense else None,
        derivatives=nothing,
    )
