"""Stochastic differential equations as an engine gets them, and the solvers of these by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from pynode.engine.protocol import Availability, Retcode, Stats
from pynode.errors import EngineUnavailable, InputError, unknown_name
from pynode.field import Field

__all__ = [
    "CALCULI",
    "NOISES",
    "StochasticEngine",
    "StochasticIntegration",
    "StochasticProblem",
    "StochasticSolver",
    "sde_solvers",
    "stochastic_solver",
]

NOISES = ("diagonal", "additive", "scalar", "general")
CALCULI = ("ito", "stratonovich")


@dataclass(frozen=True)
class StochasticSolver:
    """A solver of stochastic differential equations.

    Attributes:
        name: pynode's name.
        order: strong order of convergence for the noises and calculi that it takes; see `purpose` for exceptions.
        noises: kinds of noise that it takes.
        calculi: in whose sense it solves.
        adaptive: whether the julia engine can choose its steps by tolerances.
        purpose: what it is for, in a few words.
        torch: torchsde's name, or `None` where the torch engine lacks it.
        julia: StochasticDiffEq's, or `None` where the julia engine lacks it.
        entrywise: whether its order needs entry i of a diagonal diffusion to depend on entry i of the state alone.
    """

    name: str
    order: float
    noises: tuple[str, ...]
    calculi: tuple[str, ...]
    adaptive: bool
    purpose: str
    torch: str | None = None
    julia: str | None = None
    entrywise: bool = False

    @property
    def engines(self) -> tuple[str, ...]:
        """The engines that have this solver."""
        return tuple(e for e in ("julia", "torch") if getattr(self, e) is not None)


_ITO, _STRATONOVICH = ("ito",), ("stratonovich",)
_NOT_GENERAL = ("diagonal", "additive", "scalar")

_TABLE = [
    StochasticSolver(
        *("em", 0.5, NOISES, _ITO, False, "Euler-Maruyama: any noise; order 1 where it is additive", "euler", "EM")
    ),
    StochasticSolver(
        *(
            "rkmil",
            1.0,
            ("diagonal",),
            CALCULI,
            True,
            "Milstein without derivatives; order 1/2 for stratonovich where the diffusion is not linear",
            "milstein",
            "RKMil",
            True,
        )
    ),
    StochasticSolver("sriw1", 1.5, ("diagonal",), _ITO, True, "diagonal noise", None, "SRIW1", True),
    StochasticSolver(
        *("sosri", 1.5, ("diagonal",), _ITO, True, "diagonal noise, stable for longer steps", None, "SOSRI", True)
    ),
    StochasticSolver("sra1", 1.5, ("additive",), CALCULI, True, "additive noise", None, "SRA1"),
    StochasticSolver(
        *("sosra", 1.5, ("additive",), CALCULI, True, "additive noise, stable for longer steps", None, "SOSRA")
    ),
    StochasticSolver("srk", 1.5, _NOT_GENERAL, _ITO, False, "Rößler's methods SRI2 and SRA1", "srk", None, True),
    StochasticSolver(
        *("euler_heun", 0.5, NOISES, _STRATONOVICH, False, "any noise; order 1 where it commutes"),
        *("euler_heun", "EulerHeun"),
    ),
    StochasticSolver(
        *("midpoint", 0.5, NOISES, _STRATONOVICH, False, "any noise; order 1 where it commutes", "midpoint", None)
    ),
    StochasticSolver("heun", 0.5, NOISES, _STRATONOVICH, False, "any noise; order 1 where it commutes", "heun", None),
]

SDE_SOLVERS = {s.name: s for s in _TABLE}

# What "auto" is, by engine, calculus and noise.
_BEST = {
    ("julia", "ito"): {"diagonal": "sosri", "additive": "sosra", "scalar": "em", "general": "em"},
    ("julia", "stratonovich"): {"additive": "sosra"},
    ("torch", "ito"): {"diagonal": "srk", "additive": "srk", "scalar": "srk", "general": "em"},
    ("torch", "stratonovich"): {},
}
_FALLBACK = {"julia": "euler_heun", "torch": "midpoint"}


def sde_solvers() -> list[StochasticSolver]:
    """Every solver that `pynode.solve_sde` knows, with its strong order, the noises and calculi, and the engines."""
    return list(SDE_SOLVERS.values())


def stochastic_solver(name: str, engine: str, noise: str, calculus: str, adaptive: bool) -> StochasticSolver:
    """The solver of that name on that engine; `"auto"` is the one of the highest order for the noise.

    Raises:
        InputError: the name is unknown, or the solver does not take the noise or the calculus.
        EngineUnavailable: the engine lacks the solver, or steps by tolerances.
    """
    if name == "auto":
        info = SDE_SOLVERS[_BEST[engine, calculus].get(noise, _FALLBACK[engine])]
    elif name in SDE_SOLVERS:
        info = SDE_SOLVERS[name]
    else:
        raise unknown_name("solver", name, ["auto", *SDE_SOLVERS])

    def fits(s: StochasticSolver) -> bool:
        return noise in s.noises and calculus in s.calculi

    if not fits(info):
        others = ", ".join(f"{s.name!r} ({' and '.join(s.engines)})" for s in _TABLE if fits(s))
        raise InputError(
            f"the solver {info.name!r} takes {' or '.join(info.noises)} noise in the sense of "
            f"{' or '.join(info.calculi)}, got noise={noise!r}, calculus={calculus!r}: use one of {others}"
        )
    if engine not in info.engines:
        here = ", ".join(s.name for s in _TABLE if fits(s) and engine in s.engines)
        raise EngineUnavailable(
            f"the {engine} engine has no solver {info.name!r} of SDEs; it is on engine={info.engines[0]!r}. Pass that, "
            f"or one of the {engine} engine's for this noise: {here}"
        )
    if adaptive and engine == "torch":
        raise EngineUnavailable(
            'the torch engine takes fixed steps through an SDE: pass dt=… without rtol and atol, or engine="julia"'
        )
    if adaptive and not info.adaptive:
        able = ", ".join(s.name for s in _TABLE if fits(s) and s.adaptive) or "none for this noise"
        raise InputError(
            f"the solver {info.name!r} takes fixed steps: pass dt=… without rtol and atol, or a solver that chooses "
            f"its steps ({able})"
        )
    return info


@dataclass(eq=False)
class StochasticProblem:
    """One initial value problem of an SDE, validated, as an engine gets it; nothing changes it.

    Attributes:
        drift: the drift, whose state tensors are z and, where there is a running cost, its integral.
        diffusion: the diffusion. Of a diagonal one the state is z and the rate the diagonal; else a second state tensor
            `(batch, *features, channels)`, which it does not read, has the matrices as its rate.
        z0: z, and a zero `(batch,)` where there is a running cost; detached.
        t: `(time,)`, strictly increasing, float64, detached.
        args: conditioning tensors, detached.
        channels: Brownian motions of a sample; `None` where each number of z has its own.
        noise: kind of noise.
        calculus: `"ito"` or `"stratonovich"`.
        solver: the solver.
        rtol: relative tolerance; `None` for fixed steps.
        atol: absolute tolerance; `None` for fixed steps.
        dt: the step, or the first of an adaptive solver; `None`: automatic.
        max_steps: bound on the number of steps.
        seed: of the noise.
        sensitivity: how gradients will be asked for; `None` when nothing requires one.
        wants: for each of `inputs` whether a gradient is wanted.
    """

    drift: Field
    diffusion: Field
    z0: tuple[torch.Tensor, ...]
    t: torch.Tensor
    args: tuple[torch.Tensor, ...]
    channels: int | None
    noise: str
    calculus: str
    solver: StochasticSolver
    rtol: float | None
    atol: float | None
    dt: float | None
    max_steps: int
    seed: int
    sensitivity: str | None
    wants: tuple[bool, ...]

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        """What the solution depends on: `z0`, `args`, parameters of the drift, those of the diffusion."""
        return (*self.z0, *self.args, *self.drift.parameters, *self.diffusion.parameters)

    @property
    def diffusion_state(self) -> tuple[torch.Tensor, ...]:
        """Tensors like those of the diffusion's state."""
        z = self.z0[0]
        return (z,) if self.channels is None else (z, z.new_zeros(*z.shape, self.channels))


@dataclass
class StochasticIntegration:
    """What an engine returns.

    Attributes:
        z: for each state tensor, `(time, batch, *features)`; entries after a failure are NaN.
        stats: counts and time; `pullback` fills in `nfe_backward`.
        retcode: how it ended.
        t_end: the time that was reached.
        pullback: maps the cotangents of `z` (`None` for zero) to one for each of the problem's inputs, `None` where
            none is wanted; `None` without a sensitivity. May be called more than once.
        z_end: where the integration failed, the state at `t_end`, finite.
    """

    z: tuple[torch.Tensor, ...]
    stats: Stats
    retcode: Retcode
    t_end: float
    pullback: Callable[[Sequence[torch.Tensor | None]], Sequence[torch.Tensor | None]] | None = None
    z_end: tuple[torch.Tensor, ...] | None = None


class StochasticEngine(Protocol):
    """What solves SDEs."""

    name: str

    def available(self) -> Availability:
        """Whether it can do so here."""

    def sensitivities(self, calculus: str) -> tuple[str, ...]:
        """Names of the sensitivities that it has, its default first."""

    def solve(self, problem: StochasticProblem) -> StochasticIntegration:
        """Integrate; never raises for a failed integration (see `Retcode`).

        Raises:
            InputError: the state, a conditioning tensor or a parameter is not finite.
        """
