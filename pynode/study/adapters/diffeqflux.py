"""DiffEqFlux and SciMLSensitivity: a solve in Julia that Zygote differentiates."""

from __future__ import annotations

import functools
import itertools
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pynode.errors import NotComparable
from pynode.study.adapter import Counts, Gradient, Solved
from pynode.study.adapters import in_julia
from pynode.study.adapters.in_torch import CountedField, pulled_back
from pynode.study.adapters.option import Option
from pynode.study.adapters.package import Package, tolerances
from pynode.study.problem import Problem
from pynode.study.setting import Setting

__all__ = ["DiffEqFlux"]

_ADJOINTS = ("auto", "GaussAdjoint", "InterpolatingAdjoint", "QuadratureAdjoint", "BacksolveAdjoint")
_FORWARD = ("ForwardDiffSensitivity", "ReverseDiffAdjoint", "ForwardSensitivity")
_VJPS = {"auto": "", "EnzymeVJP": "EnzymeVJP()", "ReverseDiffVJP": "ReverseDiffVJP()", "ZygoteVJP": "ZygoteVJP()",
         "compiled ReverseDiffVJP": "ReverseDiffVJP(true)"}  # fmt: skip
_LUX = ("DiffEqFlux", "Lux", "ComponentArrays", "Random")
_ACTIVATIONS: dict[type[nn.Module], str] = {nn.Tanh: "tanh", nn.ReLU: "Lux.relu", nn.Sigmoid: "Lux.sigmoid"}

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

_NEURAL_ODE = """
function (model, u0, p, ts, algorithm, sensealg, reltol, abstol, maxiters)
    sensealg = sensealg === nothing ? (;) : (; sensealg)
    node = NeuralODE(
        model, (first(ts), last(ts)), algorithm; saveat = ts, reltol, abstol, maxiters, sensealg...
    )
    ps, st = Lux.setup(Random.Xoshiro(0), node)
    axes = ComponentArrays.getaxes(ComponentArray(ps))
    return (u0, p) -> first(node(u0, ComponentArray(p, axes), st))
end
"""


class DiffEqFlux(Package):
    """The problem's field in Julia, with the problem's parameters, solved and differentiated by SciML's own means.

    `interface="solve"` is `Array(solve(remake(problem; u0, p), solver; sensealg))` of the problem's Julia code under
    Zygote, as the tutorials of SciMLSensitivity have it. `"NeuralODE"` is DiffEqFlux's layer around a Lux chain, as its
    tutorials have it, for a field that is a chain of linear layers and activations. `sensitivity="auto"` and
    `vjp="auto"` leave the choice to the package.
    """

    NAME: ClassVar[str] = "diffeqflux"
    DISTRIBUTION: ClassVar[str] = "SciMLSensitivity"
    PAGE: ClassVar[str] = "https://docs.sciml.ai/SciMLSensitivity/stable/"
    OPTIONS: ClassVar[dict[str, Option]] = {
        "solver": Option(tuple(in_julia.SOLVERS), "Tsit5"),
        "sensitivity": Option((*_ADJOINTS, *_FORWARD), "auto"),
        "vjp": Option(tuple(_VJPS), "auto"),
        "interface": Option(("solve", "NeuralODE"), "solve"),
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
        interface: str,
        max_steps: int,
    ) -> None:
        """Make the solve in Julia."""
        layers = _layers(problem) if interface == "NeuralODE" else []
        if interface == "NeuralODE":
            if lacking := in_julia.missing_packages("DiffEqFlux's NeuralODE", _LUX):
                raise NotComparable(lacking)
            if not layers:
                raise NotComparable("DiffEqFlux's NeuralODE is of a chain of layers, and this field is none")
        code = "" if layers else in_julia.julia(problem)
        if vjp != "auto" and sensitivity not in _ADJOINTS[1:]:
            raise NotComparable(f"SciMLSensitivity's {sensitivity!r} takes no vjp")
        numbers = tolerances(f"DiffEqFlux's {solver}", setting, True)
        self.problem = problem
        main = in_julia.start()
        main.seval(f"using SciMLBase, SciMLSensitivity, Zygote, {in_julia.SOLVERS[solver]}")
        vjps = f"; autojacvec = {_VJPS[vjp]}" if _VJPS[vjp] else ""
        how = main.seval("nothing" if sensitivity == "auto" else f"{sensitivity}({vjps})")
        u0, t, p = (in_julia.array(main, x) for x in (problem.z0, problem.t, in_julia.flat_parameters(problem)))
        arguments = (t, main.seval(f"{solver}()"), how, numbers["rtol"], numbers["atol"], max_steps)
        if layers:
            main.seval(f"using {', '.join(_LUX)}")
            self.names, p = _lux_parameters(main, problem)
            solve = main.seval(_NEURAL_ODE)(main.seval(f"Lux.Chain({', '.join(layers)})"), u0, p, *arguments)
        else:
            self.names = _order(problem)
            solve = main.seval(_SOLVE)(main.seval(code), u0, p, *arguments)
        self.transposed = bool(layers)
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
        for name, shape in self.names:
            size = shape.numel()
            part = flat[start : start + size]
            # Lux has a matrix column by column
            gradient[name] = part.reshape(shape[::-1]).T if self.transposed and len(shape) == 2 else part.reshape(shape)
            start += size
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


def _layers(problem: Problem) -> list[str]:
    """The layers of a field that is a chain of linear ones and activations, in Lux's terms; none if it is no such."""
    if not isinstance(problem.field, nn.Module) or problem.args or problem.z0.dim() != 2:
        return []
    leaves = [m for m in problem.field.modules() if not list(m.children())]
    linear = [m for m in leaves if isinstance(m, nn.Linear)]
    if not linear or not all(type(m) in (nn.Linear, *_ACTIVATIONS) for m in leaves) or leaves[0] is not linear[0]:
        return []
    if len(list(problem.field.parameters())) != sum(1 + (m.bias is not None) for m in linear):
        return []
    layers = []
    for module, after in itertools.zip_longest(leaves, leaves[1:]):
        if isinstance(module, nn.Linear):
            activation = _ACTIVATIONS.get(type(after), "identity")
            bias = "" if module.bias is not None else "; use_bias = false"
            layers.append(f"Lux.Dense({module.in_features} => {module.out_features}, {activation}{bias})")
    if sum(type(m) in _ACTIVATIONS for m in leaves) != sum("identity" not in layer for layer in layers):
        return []
    return layers if _is_chain(problem, leaves) else []


def _is_chain(problem: Problem, leaves: list[nn.Module]) -> bool:
    """Whether the field is these modules one after the other, whatever the time and the state."""
    field = CountedField(problem)
    with torch.no_grad():
        for t in (problem.t[0], problem.t[-1]):
            for z in (problem.z0, torch.randn_like(problem.z0)):
                try:
                    chained = functools.reduce(lambda x, module: module(x), leaves, z)
                except RuntimeError:
                    return False
                rates = field.rates(t, z)
                if chained.shape != rates.shape or not torch.allclose(chained, rates, rtol=1e-5, atol=1e-6):
                    return False
    return True


def _lux_parameters(main: Any, problem: Problem) -> tuple[list[tuple[str, torch.Size]], Any]:
    """Names and shapes in Lux's order, and the parameters in a row as Lux has them, matrices column by column."""
    order = _order(problem)
    values = [p.detach() for p in problem.field.parameters()]  # type: ignore[attr-defined]
    flat = [p.T.reshape(-1) if p.dim() == 2 else p for p in values]
    return order, in_julia.array(main, torch.cat(flat))
