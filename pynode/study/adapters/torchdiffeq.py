"""torchdiffeq: `odeint` and `odeint_adjoint`."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import torch
from torch import Tensor

from pynode.errors import NotComparable
from pynode.study.adapter import Counts, Gradient, Solved
from pynode.study.adapters.in_torch import CountedField, differentiate
from pynode.study.adapters.option import Option
from pynode.study.adapters.package import Package, tolerances
from pynode.study.problem import Problem
from pynode.study.setting import Setting

__all__ = ["Torchdiffeq"]

_ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
_FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams")
_SCIPY = ("LSODA", "BDF", "Radau", "RK45", "RK23", "DOP853")  # through its scipy_solver


class Torchdiffeq(Package):
    """torchdiffeq, as its README and FURTHER_DOCUMENTATION describe it.

    `sensitivity="odeint"` backpropagates through the steps, `"odeint_adjoint"` solves the adjoint equation backwards,
    with the tolerances of the forward solve; `adjoint_norm="seminorm"` leaves the parameters' part of that out of the
    control of its error. SciPy's solvers are its `scipy_solver`, which only the adjoint differentiates. A solver
    with a fixed step gets `options={"step_size": dt}`.
    """

    NAME: ClassVar[str] = "torchdiffeq"
    DISTRIBUTION: ClassVar[str] = "torchdiffeq"
    MODULES: ClassVar[tuple[str, ...]] = ("torchdiffeq",)
    PAGE: ClassVar[str] = "https://github.com/rtqichen/torchdiffeq/blob/master/FURTHER_DOCUMENTATION.md"
    OPTIONS: ClassVar[dict[str, Option]] = {
        "solver": Option((*_ADAPTIVE, *_FIXED, *_SCIPY), "dopri5"),
        "sensitivity": Option(("odeint", "odeint_adjoint"), "odeint"),
        "adjoint_norm": Option(("mixed", "seminorm"), "mixed"),
    }

    def build(  # type: ignore[override]
        self, problem: Problem, setting: Setting, *, solver: str, sensitivity: str, adjoint_norm: str
    ) -> None:
        """Choose the function and its arguments."""
        import torchdiffeq

        numbers = tolerances(f"torchdiffeq's {solver}", setting, solver not in _FIXED)
        keywords: dict[str, Any] = {"method": solver, **numbers}
        if solver in _SCIPY:
            keywords.update(method="scipy_solver", options={"solver": solver})
        elif solver in _FIXED:
            keywords["options"] = {"step_size": keywords.pop("dt")}
        self.problem, self.solver, self.sensitivity = problem, solver, sensitivity
        self.field = _Stepped(problem) if solver in _ADAPTIVE else CountedField(problem)
        function = torchdiffeq.odeint
        if sensitivity == "odeint_adjoint":
            function = torchdiffeq.odeint_adjoint
            keywords["adjoint_params"] = tuple(problem.parameters.values())
            if solver in _SCIPY or solver in _FIXED:
                if adjoint_norm == "seminorm":
                    raise NotComparable(f"torchdiffeq's seminorm is for its adaptive solvers, and {solver} is none")
            elif adjoint_norm == "seminorm":
                keywords["adjoint_options"] = {"norm": "seminorm"}
        self.run = functools.partial(function, self.field, t=problem.t, **keywords)

    def _states(self, z0: Tensor) -> Tensor:
        self.field.counted()
        z = self.run(y0=z0)
        assert isinstance(z, Tensor)
        return z

    def _counts(self) -> Counts:
        accepted = rejected = None
        if isinstance(self.field, _Stepped):
            accepted, rejected = self.field.steps()
        return Counts(nfe=self.field.counted(), n_accepted=accepted, n_rejected=rejected)

    def solve(self) -> Solved:
        """The states at the times."""
        with torch.no_grad():
            return Solved(self._states(self.problem.z0), self._counts())

    def gradient(self) -> Gradient:
        """The gradient of the loss; an evaluation that is pulled back counts as one of the backward pass."""
        if self.solver in _SCIPY and self.sensitivity == "odeint":
            raise NotComparable("torchdiffeq's scipy_solver is differentiated by odeint_adjoint alone")
        counts = Counts()

        def solve(z0: Tensor) -> Tensor:
            nonlocal counts
            z = self._states(z0)
            counts = self._counts()
            return z

        loss, gradient = differentiate(self.problem, solve)
        backward = self.field.counted() if self.sensitivity == "odeint_adjoint" else counts.nfe
        counts.nfe_backward = backward
        return Gradient(loss, gradient, counts)


class _Stepped(CountedField):
    """A field whose solver tells it of its steps."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._steps = [0, 0]

    def callback_accept_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
        """Called at each accepted step of the forward solve."""
        self._steps[0] += 1

    def callback_reject_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
        """Called at each rejected step of the forward solve."""
        self._steps[1] += 1

    def steps(self) -> tuple[int, int]:
        """Accepted and rejected steps since it was asked last."""
        accepted, rejected = self._steps
        self._steps = [0, 0]
        return accepted, rejected
