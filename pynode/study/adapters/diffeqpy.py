"""diffeqpy: SciML's solvers called from Python, through the Julia that pynode uses."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import numpy as np
import torch

from pynode.errors import NotComparable
from pynode.study.adapter import Counts, Gradient, Solved
from pynode.study.adapters import in_julia
from pynode.study.adapters.in_torch import CountedField
from pynode.study.adapters.option import Option
from pynode.study.adapters.package import Package, missing_modules, tolerances
from pynode.study.problem import Problem
from pynode.study.setting import Setting

__all__ = ["DiffEqPy"]


class DiffEqPy(Package):
    """diffeqpy as its README uses it: `ode.ODEProblem` and `ode.solve`.

    `ode` is `from diffeqpy import ode` where Julia's environment has OrdinaryDiffEq, else the sub-package of the solver
    and SciMLBase by `diffeqpy.load_julia_packages`, which is what `ode` is made by: diffeqpy installs what it does not
    find, and a study installs nothing. `field="python"` is the problem's module as a function `f(du, u, p, t)` in
    Python, `"julia"` its Julia code by `seval`, which the README recommends for speed; `"auto"` that code where the
    problem has it. An implicit solver takes the Jacobian of a field in Python by differences. It has no gradient.
    """

    NAME: ClassVar[str] = "diffeqpy"
    DISTRIBUTION: ClassVar[str] = "diffeqpy"
    MODULES: ClassVar[tuple[str, ...]] = ("diffeqpy",)
    PAGE: ClassVar[str] = "https://github.com/SciML/diffeqpy"
    OPTIONS: ClassVar[dict[str, Option]] = {
        "solver": Option(tuple(in_julia.SOLVERS), "Tsit5"),
        "field": Option(("auto", "julia", "python"), "auto"),
        "max_steps": Option(int, 10**6),
    }

    @classmethod
    def missing(cls) -> str:
        """Why it cannot take part here."""
        return missing_modules(cls.NAME, cls.MODULES) or (
            in_julia.missing_packages(cls.NAME, ("OrdinaryDiffEq", "OrdinaryDiffEqDefault"))
            and in_julia.missing_packages(cls.NAME, ("SciMLBase", "ADTypes", *sorted(set(in_julia.SOLVERS.values()))))
        )

    def build(self, problem: Problem, setting: Setting, *, solver: str, field: str, max_steps: int) -> None:  # type: ignore[override]
        """Make the `ODEProblem`."""
        main = in_julia.start()
        self.problem, self.stack = problem, main.stack
        self.ode = _Modules(main, in_julia.SOLVERS[solver])
        numbers = tolerances(f"diffeqpy's {solver}", setting, True)
        in_python = field == "python" or (field == "auto" and not (problem.julia and not problem.args))
        self.field = CountedField(problem)
        function = self._rates if in_python else self.ode.seval(in_julia.julia(problem))
        u0, t = in_julia.array(main, problem.z0), in_julia.array(main, problem.t)
        p = in_julia.array(main, in_julia.flat_parameters(problem))
        self.ode_problem = self.ode.ODEProblem(function, u0, (t[0], t[len(t) - 1]), p)
        choice = {"autodiff": self.ode.AutoFiniteDiff()} if in_python and solver in in_julia.STIFF else {}
        self.algorithm = getattr(self.ode, solver)(**choice)
        self.keywords = {
            "saveat": t,
            "reltol": numbers["rtol"],
            "abstol": numbers["atol"],
            "maxiters": max_steps,
            "save_everystep": False,
        }

    def _rates(self, du: Any, u: Any, p: Any, t: float) -> None:
        like = self.problem.z0
        z = torch.from_numpy(np.asarray(u).T.reshape(like.shape))
        with torch.no_grad():
            rates = self.field(torch.tensor(t, dtype=like.dtype), z)
        np.asarray(du).T[...] = rates.numpy()

    def solve(self) -> Solved:
        """The states at the times.

        Raises:
            ArithmeticError: the solver gives up.
        """
        solution = self.ode.solve(self.ode_problem, self.algorithm, **self.keywords)
        if not self.ode.successful_retcode(solution):
            raise ArithmeticError(f"diffeqpy: the solution's retcode is {solution.retcode}")
        stats = solution.stats
        counts = Counts(nfe=stats.nf, n_accepted=stats.naccept, n_rejected=stats.nreject, jacobians=stats.njacs or None)
        return Solved(in_julia.numpy_of(self.stack(solution.u), self.problem), counts)

    def gradient(self) -> Gradient:
        """None: diffeqpy's documentation has no differentiation of a solve."""
        raise NotComparable("diffeqpy solves and does not differentiate: SciMLSensitivity is not part of it")


class _Modules:
    """diffeqpy's `ode`: names are looked up in the modules of Julia's that it consists of."""

    def __init__(self, main: Any, package: str) -> None:
        import diffeqpy

        there = main.seval("name -> Base.identify_package(name) !== nothing")
        wanted: tuple[str, ...] = ("OrdinaryDiffEq", "OrdinaryDiffEqDefault")
        if not all(map(there, wanted)):
            wanted = ("SciMLBase", package, "ADTypes")
        lacking = [name for name in wanted if not there(name)]
        if lacking:  # it would install them
            raise NotComparable(f"diffeqpy cannot take part: Julia's environment does not have {', '.join(lacking)}")
        path = os.environ.get("PATH", "")
        os.environ["PATH"] = os.pathsep.join([str(main.seval("Sys.BINDIR")), path])  # it looks for Julia there
        try:
            self.modules = tuple(diffeqpy.load_julia_packages(*wanted))
        finally:
            os.environ["PATH"] = path
        self.seval = main.seval

    def __getattr__(self, name: str) -> Any:
        for module in self.__dict__["modules"]:
            try:
                return getattr(module, name)
            except AttributeError:
                continue
        raise AttributeError(f"none of diffeqpy's modules of Julia has {name!r}")
