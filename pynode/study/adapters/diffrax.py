"""diffrax: `diffeqsolve`, compiled by JAX."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from pynode.errors import NotComparable
from pynode.study.adapter import Counts, Gradient, Solved
from pynode.study.adapters.in_torch import pulled_back
from pynode.study.adapters.option import Option
from pynode.study.adapters.package import Package, tolerances
from pynode.study.problem import Problem
from pynode.study.setting import Setting

__all__ = ["Diffrax"]

_EXPLICIT = ("Tsit5", "Dopri5", "Dopri8", "Bosh3", "Heun", "Ralston", "Midpoint")
_IMPLICIT = ("Kvaerno3", "Kvaerno4", "Kvaerno5")
_FIXED = ("Euler", "ImplicitEuler")  # without an estimate of the error
_ADJOINTS = ("RecursiveCheckpointAdjoint", "DirectAdjoint", "BacksolveAdjoint")


class Diffrax(Package):
    """diffrax's `diffeqsolve` under `jax.jit`, as its pages "Getting started" and "Adjoints" recommend.

    The problem has to have its field for JAX. The gradient is that of one jitted function where the loss is the mean
    square; a loss of the user's is PyTorch's, so that there the solve and its pullback are jitted each.

    diffrax tells its steps; evaluations of explicit solvers follow from them, and those of implicit ones are not known.
    """

    NAME: ClassVar[str] = "diffrax"
    DISTRIBUTION: ClassVar[str] = "diffrax"
    MODULES: ClassVar[tuple[str, ...]] = ("jax", "diffrax")
    PAGE: ClassVar[str] = "https://docs.kidger.site/diffrax/usage/getting-started/"
    OPTIONS: ClassVar[dict[str, Option]] = {
        "solver": Option((*_EXPLICIT, *_IMPLICIT, *_FIXED), "Tsit5"),
        "sensitivity": Option(_ADJOINTS, "RecursiveCheckpointAdjoint"),
        "max_steps": Option(int, 16**4),
    }

    compiles_for_shapes: ClassVar[bool] = True  # so that its memory is that of the second call with the same

    def build(self, problem: Problem, setting: Setting, *, solver: str, sensitivity: str, max_steps: int) -> None:  # type: ignore[override]
        """Bring the problem to JAX, and make the functions that are compiled at their first call."""
        if problem.jax is None:
            raise NotComparable("the problem has no field for JAX: pass Problem(jax=f(t, z, parameters))")
        import diffrax
        import jax

        if problem.z0.dtype == torch.float64:
            jax.config.update("jax_enable_x64", True)

        self.problem, self.wait = problem, jax.block_until_ready
        adaptive = setting.dt is None
        numbers: dict[str, Any] = tolerances(f"diffrax's {solver}", setting, adaptive and solver not in _FIXED)
        t = jax.numpy.asarray(problem.t.numpy())
        sign = 1 if problem.t[-1] > problem.t[0] else -1
        step = None if adaptive else sign * numbers.pop("dt")
        controller = diffrax.PIDController(**numbers) if adaptive else diffrax.ConstantStepSize()

        def field(t: Any, z: Any, p: Any) -> Any:
            assert problem.jax is not None
            return problem.jax(t, z, p)

        def run(z0: Any, p: Any) -> Any:
            return diffrax.diffeqsolve(
                diffrax.ODETerm(field),
                getattr(diffrax, solver)(),
                t[0],
                t[-1],
                step,
                z0,
                args=p,
                saveat=diffrax.SaveAt(ts=t),
                stepsize_controller=controller,
                adjoint=getattr(diffrax, sensitivity)(),
                max_steps=max_steps,
            )

        parameters = list(problem.field.parameters()) if isinstance(problem.field, nn.Module) else []
        self.names = _names(problem)
        self.inputs = (
            jax.numpy.asarray(problem.z0.numpy()),
            [jax.numpy.asarray(p.detach().numpy()) for p in parameters],
        )

        def states(z0: Any, p: Any) -> Any:
            solution = run(z0, p)
            return solution.ys, solution.stats

        def mean_square(inputs: Any) -> Any:
            z, stats = states(*inputs)
            return jax.numpy.mean(z**2), stats

        self.run = jax.jit(states)
        self.fused = jax.jit(jax.value_and_grad(mean_square, has_aux=True))
        self.forward = jax.jit(lambda z0, p: jax.vjp(states, z0, p, has_aux=True))
        self.pull = jax.jit(lambda pullback, cotangent: pullback(cotangent))
        made = getattr(diffrax, solver)()
        self.per_step, self.first = _evaluations(made)
        self.first += 2 * adaptive  # for the choice of the first step

    def _counts(self, stats: Any) -> Counts:
        accepted, rejected = int(stats["num_accepted_steps"]), int(stats["num_rejected_steps"])
        nfe = None if self.per_step is None else self.first + self.per_step * (accepted + rejected)
        return Counts(nfe, n_accepted=accepted, n_rejected=rejected)

    def solve(self) -> Solved:
        """The states at the times."""
        z, stats = self.wait(self.run(*self.inputs))
        return Solved(z, self._counts(stats))

    def gradient(self) -> Gradient:
        """The gradient of the loss."""
        if self.problem.loss is None:
            (loss, stats), found = self.wait(self.fused(self.inputs))
        else:
            z, pullback, stats = self.forward(*self.inputs)
            loss, cotangent = pulled_back(self.problem, np.array(z))
            found = self.wait(self.pull(pullback, cotangent))
        of_z0, of_parameters = found
        pairs = zip(self.names, of_parameters, strict=True)
        gradient = {"z0": of_z0, **{name: g for name, g in pairs if name in self.problem.parameters}}
        return Gradient(float(loss), gradient, self._counts(stats))


def _names(problem: Problem) -> list[str]:
    return [name for name, _ in problem.field.named_parameters()] if isinstance(problem.field, nn.Module) else []


def _evaluations(solver: Any) -> tuple[int | None, int]:
    """How often a solver evaluates the field in a step, `None` where that is not fixed, and before the first step."""
    tableau = getattr(solver, "tableau", None)
    if type(solver).__name__ in _EXPLICIT and tableau is not None:
        return tableau.num_stages - tableau.fsal, int(tableau.fsal)
    return (1 if type(solver).__name__ == "Euler" else None), 0
