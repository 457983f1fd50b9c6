"""pynode itself: its engines, solvers, sensitivities, batching and lowering."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

import pynode
from pynode.engine.solvers import SOLVERS
from pynode.errors import EngineUnavailable, NotComparable
from pynode.sensitivity import Discrete
from pynode.study.adapter import Counts, Gradient, Solved
from pynode.study.adapters.in_torch import differentiate
from pynode.study.adapters.option import Option
from pynode.study.adapters.package import Package, tolerances
from pynode.study.problem import Problem
from pynode.study.setting import Setting

__all__ = ["PyNODE"]

_SENSITIVITIES = ("auto", "discrete", "backsolve", "interpolating", "quadrature", "gauss", "forward")


class PyNODE(Package):
    """`pynode.solve` with its keywords.

    `memory` is that of `pynode.Discrete`, e.g. `"32MiB"`: what is kept of a solve beyond that are checkpoints. Of
    independent samples nfe and steps are the mean of a sample, so that they compare with those of a joint solve.
    """

    NAME: ClassVar[str] = "pynode"
    PAGE: ClassVar[str] = "pynode.solve"
    OPTIONS: ClassVar[dict[str, Option]] = {
        "engine": Option(("auto", "julia", "torch"), "auto"),
        "solver": Option(("auto", *SOLVERS), "auto"),
        "sensitivity": Option(_SENSITIVITIES, "auto"),
        "batching": Option(("joint", "independent"), "joint"),
        "lowering": Option(("trace", "callback", "auto"), "trace"),
        "memory": Option(str, ""),
        "max_steps": Option(int, 10**6),
    }

    @classmethod
    def version(cls) -> str:
        """The version of this package."""
        return pynode.__version__

    def build(  # type: ignore[override]
        self,
        problem: Problem,
        setting: Setting,
        *,
        engine: str,
        solver: str,
        sensitivity: str,
        memory: str,
        **more: Any,
    ) -> None:
        """Resolve the engine, and start Julia where it is that one."""
        from pynode.engine.choose import choose

        if memory and sensitivity not in ("auto", "discrete"):
            raise NotComparable(f"memory is an option of the discrete sensitivity, and this is {sensitivity!r}")
        if more["batching"] == "independent" and problem.z0.dim() < 2:
            raise NotComparable("independent samples need a state with a batch, and this one has a single dimension")
        how = Discrete(memory=memory) if memory else sensitivity
        try:
            chosen, info, _ = choose(engine, solver, how)
        except EngineUnavailable as error:
            raise NotComparable(str(error)) from error
        if chosen.name == "julia":
            from pynode.engine.julia import runtime

            runtime.start()
        numbers = tolerances(f"pynode's {info.name}", setting, info.adaptive)
        self.problem = problem
        self.keywords = {"engine": chosen.name, "solver": solver, "sensitivity": how, **numbers, **more}
        self.batch = len(problem.z0) if more["batching"] == "independent" else 1

    def _solution(self, z0: Tensor) -> pynode.Solution:
        problem = self.problem
        return pynode.solve(problem.field, z0, problem.t, args=problem.args, **self.keywords)

    def solve(self) -> Solved:
        """The states at the times."""
        with torch.no_grad():
            solution = self._solution(self.problem.z0)
        return Solved(solution.z, self._counts(solution))

    def gradient(self) -> Gradient:
        """The gradient of the loss."""
        solutions: list[pynode.Solution] = []

        def solve(z0: Tensor) -> Tensor:
            solutions.append(self._solution(z0))
            z: Tensor = solutions[0].z
            return z

        try:
            loss, gradient = differentiate(self.problem, solve)
        except EngineUnavailable as error:
            raise NotComparable(str(error)) from error
        return Gradient(loss, gradient, self._counts(solutions[0]))

    def _counts(self, solution: pynode.Solution) -> Counts:
        stats = solution.stats
        counts = [stats.nfe, stats.nfe_backward, stats.n_accepted, stats.n_rejected]
        return Counts(*(n if n is None else round(n / self.batch) for n in counts))
