"""SciMLSensitivity, which DiffEqFlux trains by: a solve in Julia that Zygote differentiates."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pynode.errors import NotComparable
from pynode.study.adapter import Counts, Gradient, Solved
from pynode.study.adapters import in_julia
from pynode.study.adapters.in_torch import pulled_back
from pynode.study.adapters.option import Option
from pynode.study.adapters.package import Package, tolerances
from pynode.study.problem import Problem
from pynode.study.setting import Setting

__all__ = ["DiffEqFlux"]

_ADJOINTS = ("auto", "GaussAdjoint", "InterpolatingAdjoint", "QuadratureAdjoint", "BacksolveAdjoint")
_FORWARD = ("ForwardDiffSensitivity", "ReverseDiffAdjoint", "ForwardSensitivity")
_VJPS = {"auto": "", "EnzymeVJP": "EnzymeVJP()", "ReverseDiffVJP": "ReverseDiffVJP()", "ZygoteVJP": "ZygoteVJP()",
         "compiled ReverseDiffVJP": "ReverseDiffVJP(true)"}  # fmt: skip

# (solve, u0, p) -> a function of the states, and one of the states and what takes a cotangent back to u0 and p
_RUNS = """
function (solver, u0, p)
    stats = Ref{Any}(nothing)
    function states(u0, p)
        solution = solver(u0, p)
        Zygote.ignore() do
            SciMLBase.successful_retcode(solution) || error("the retcode is $(solution.retcode)")
            stats[] = solution.stats
        end
        return Array(solution)
    end
    return () -> (states(u0, p), stats[]), () -> (Zygote.pullback(states, u0, p)..., stats[])
end
"""

_SOLVE = """
function (field, u0, p, ts, algorithm, sensealg, reltol, abstol, maxiters)
    problem = ODEProblem{true}(field, u0, (first(ts), last(ts)), p)
    sensealg = sensealg === nothing ? (;) : (; sensealg)
    return (u0, p) -> solve(
        remake(problem; u0, p), algorithm; saveat = ts, reltol, abstol, maxiters, sensealg...
    )
end
"""


class DiffEqFlux(Package):
    """The problem's Julia code with the problem's parameters, solved and differentiated by SciML's own means.

    It is `Array(solve(remake(problem; u0, p), solver; sensealg))` under Zygote, as the tutorials of SciMLSensitivity
    have it, and as DiffEqFlux's `NeuralODE` does around a Lux model, whose weights would be its own.
    `sensitivity="auto"` and `vjp="auto"` leave the choice to the package.
    """

    NAME: ClassVar[str] = "diffeqflux"
    DISTRIBUTION: ClassVar[str] = "SciMLSensitivity"
    PAGE: ClassVar[str] = "https://docs.sciml.ai/SciMLSensitivity/stable/"
    OPTIONS: ClassVar[dict[str, Option]] = {
        "solver": Option(tuple(in_julia.SOLVERS), "Tsit5"),
        "sensitivity": Option((*_ADJOINTS, *_FORWARD), "auto"),
        "vjp": Option(tuple(_VJPS), "auto"),
        "max_steps": Option(int, 10**6),
    }

    @classmethod
    def missing(cls) -> str:
        """Why it cannot take part here."""
        packages = ("SciMLSensitivity", "SciMLBase", "Zygote")
        return in_julia.missing_packages(cls.NAME, (*packages, *sorted(set(in_julia.SOLVERS.values()))))

    @classmethod
    def version(cls) -> str:
        """The version in Julia's environment."""
        return in_julia.version_of(cls.DISTRIBUTION)

    def build(  # type: ignore[override]
        self,
        problem: Problem,
        setting: Setting,
        *,
        solver: str,
        sensitivity: str,
        vjp: str,
        max_steps: int,
    ) -> None:
        """Make the solve in Julia."""
        code = in_julia.julia(problem)
        if vjp != "auto" and sensitivity not in _ADJOINTS[1:]:
            raise NotComparable(f"SciMLSensitivity's {sensitivity!r} takes no vjp")
        numbers = tolerances(f"SciMLSensitivity's {solver}", setting, True)
        self.problem = problem
        main = in_julia.start()
        main.seval(f"using SciMLBase, SciMLSensitivity, Zygote, {in_julia.SOLVERS[solver]}")
        vjps = f"; autojacvec = {_VJPS[vjp]}" if _VJPS[vjp] else ""
        how = main.seval("nothing" if sensitivity == "auto" else f"{sensitivity}({vjps})")
        u0, t, p = (in_julia.array(main, x) for x in (problem.z0, problem.t, in_julia.flat_parameters(problem)))
        arguments = (t, main.seval(f"{solver}()"), how, numbers["rtol"], numbers["atol"], max_steps)
        solve = main.seval(_SOLVE)(main.seval(code), u0, p, *arguments)
        self.forward, self.pullback = main.seval(_RUNS)(solve, u0, p)

    def solve(self) -> Solved:
        """The states at the times."""
        states, stats = self.forward()
        return Solved(in_julia.numpy_of(states, self.problem), _counts(stats))

    def gradient(self) -> Gradient:
        """The gradient of the loss, which is PyTorch's, by the pullback of the solve."""
        states, back, stats = self.pullback()
        loss, cotangent = pulled_back(self.problem, in_julia.numpy_of(states, self.problem))
        of_z0, of_p = back(in_julia.array(_main(), torch.from_numpy(cotangent)))
        flat = torch.from_numpy(in_julia.flat_of(of_p))
        gradient: dict[str, Tensor] = {"z0": torch.from_numpy(in_julia.flat_of(of_z0)).reshape(self.problem.z0.shape)}
        start = 0
        for name, shape in _order(self.problem):
            gradient[name] = flat[start : start + shape.numel()].reshape(shape)
            start += shape.numel()
        kept = {"z0", *self.problem.parameters}
        return Gradient(loss, {name: g for name, g in gradient.items() if name in kept}, _counts(stats))


def _main() -> Any:
    from juliacall import Main

    return Main


def _counts(stats: Any) -> Counts:
    return Counts(stats.nf, n_accepted=stats.naccept, n_rejected=stats.nreject, jacobians=stats.njacs or None)


def _order(problem: Problem) -> list[tuple[str, torch.Size]]:
    if not isinstance(problem.field, nn.Module):
        return []
    return [(name, p.shape) for name, p in problem.field.named_parameters()]
