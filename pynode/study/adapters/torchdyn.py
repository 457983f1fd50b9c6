"""torchdyn: `ODEProblem`."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
from typing import ClassVar

import torch
from torch import Tensor

from pynode.errors import NotComparable
from pynode.study.adapter import Counts, Gradient, Solved
from pynode.study.adapters.in_torch import CountedField, differentiate
from pynode.study.adapters.option import Option
from pynode.study.adapters.package import Package, tolerances
from pynode.study.problem import Problem
from pynode.study.setting import Setting

__all__ = ["Torchdyn"]

_FIXED = ("euler", "midpoint", "rk4")


class Torchdyn(Package):
    """torchdyn's `ODEProblem`, as its tutorials 00 (quickstart) and 07 (templates of numerics) use it.

    The adjoint solve has the tolerances of the forward one. A solver with a fixed step goes over the times that it is
    given; it gets those of the problem with steps of at most `dt` between them.
    """

    NAME: ClassVar[str] = "torchdyn"
    DISTRIBUTION: ClassVar[str] = "torchdyn"
    MODULES: ClassVar[tuple[str, ...]] = ("torchdyn",)
    IMPORTS: ClassVar[tuple[str, ...]] = ("torchdyn.core",)
    PAGE: ClassVar[str] = "https://torchdyn.readthedocs.io"
    OPTIONS: ClassVar[dict[str, Option]] = {
        "solver": Option(("dopri5", "tsit5", *_FIXED), "dopri5"),
        "sensitivity": Option(("autograd", "adjoint", "interpolated_adjoint"), "autograd"),
    }

    def build(self, problem: Problem, setting: Setting, *, solver: str, sensitivity: str) -> None:  # type: ignore[override]
        """Make the `ODEProblem`."""
        from torchdyn.core import ODEProblem
        from torchdyn.numerics.solvers.ode import str_to_solver

        numbers = tolerances(f"torchdyn's {solver}", setting, solver not in _FIXED)
        self.problem, self.sensitivity = problem, sensitivity
        self.field = CountedField(problem)
        self.span, self.at = problem.t, torch.arange(len(problem.t))
        keywords = {}
        if solver in _FIXED:
            if sensitivity != "autograd":
                raise NotComparable(
                    "torchdyn's adjoints of a solver with a fixed step have no step of their own to set"
                )
            self.span, self.at = _grid(problem.t, numbers["dt"])
        else:
            keywords = {f"{kind}{of}": numbers[kind] for kind in ("rtol", "atol") for of in ("", "_adjoint")}
        method = str_to_solver(
            solver, problem.z0.dtype
        )  # by its name alone it has the coefficients of single precision
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that a field has no parameters
            self.ode = ODEProblem(self.field, solver=method, sensitivity=sensitivity, **keywords)

    def _states(self, z0: Tensor) -> Tensor:
        self.field.counted()
        t, z = self.ode(z0, self.span)
        if (
            self.sensitivity == "interpolated_adjoint"
        ):  # it returns all its steps, those that end on the times among them
            at = (t[:, None] - self.span).abs().argmin(0)
            return z[at]
        return z[self.at]

    def solve(self) -> Solved:
        """The states at the times."""
        with torch.no_grad():
            return Solved(self._states(self.problem.z0), Counts(nfe=self.field.counted()))

    def gradient(self) -> Gradient:
        """The gradient of the loss; an evaluation that is pulled back counts as one of the backward pass."""
        counts = Counts()

        def solve(z0: Tensor) -> Tensor:
            z = self._states(z0)
            counts.nfe = self.field.counted()
            return z

        loss, gradient = differentiate(self.problem, solve)
        counts.nfe_backward = counts.nfe if self.sensitivity == "autograd" else self.field.counted()
        return Gradient(loss, gradient, counts)


def _grid(t: Tensor, dt: float) -> tuple[Tensor, Tensor]:
    """The times with steps of at most `dt` between them, and where the times are among them."""
    pieces, at = [t[:1]], [0]
    for start, end in itertools.pairwise(t):
        n = max(1, math.ceil(abs((end - start).item()) / dt - 1e-9))
        pieces.append(start + (end - start) * torch.arange(1, n + 1, dtype=t.dtype) / n)
        at.append(at[-1] + n)
    return torch.cat(pieces), torch.tensor(at)
