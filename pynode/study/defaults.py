"""Who takes part in a study that names nobody."""

from __future__ import annotations

from dataclasses import replace

from pynode.engine.choose import engines
from pynode.errors import StudyError
from pynode.study.contender import Contender
from pynode.study.problem import Problem
from pynode.study.training import Training

__all__ = ["default_contenders", "quick_contenders"]

# Orders 3, 5, 7 and 8 in Julia, 3, 5 and 8 without.
_EXPLICIT = {"torch": ("dopri5", "bosh3", "dopri8"), "julia": ("tsit5", "bosh3", "vern7", "dopri8")}
_QUICK = {"torch": ("dopri5", "dopri8"), "julia": ("tsit5", "vern7")}
_STIFF = {"torch": ("radau", "bdf"), "julia": ("rodas5p", "trbdf2", "kencarp4", "fbdf")}


def default_contenders(problem: Problem | Training, quick: bool = False) -> list[Contender]:
    """The engines that are here with some solvers each, and other packages, as the problem is stiff or not.

    Args:
        problem: what is solved, or a training.
        quick: pynode's engines, torchdiffeq and SciPy alone, with fewer solvers at the first three settings, so that a
            study is done in two minutes.

    Raises:
        StudyError: it is a training that names none.
    """
    if isinstance(problem, Training):
        if not problem.contenders:
            raise StudyError(
                f"the training {problem.name!r} names no contenders: give a study some, whose options go to make_model"
            )
        return list(problem.contenders)
    here = [engine for engine, status in engines().items() if status.ok]
    solvers = _STIFF if problem.stiff else _QUICK if quick else _EXPLICIT
    found = [c for engine in here for c in Contender.grid("pynode", engine=engine, solver=list(solvers[engine]))]
    if problem.stiff:
        found += Contender.grid("torchdiffeq", solver=["LSODA"], sensitivity="odeint_adjoint")
        found += Contender.grid("scipy", solver=["Radau", "BDF", "LSODA"])
    else:
        found += Contender.grid("torchdiffeq", solver=["dopri5"] if quick else ["dopri5", "bosh3", "dopri8"])
        found += Contender.grid("scipy", solver=["RK45", "DOP853"])
    if quick:
        return [replace(c, settings=problem.settings[:3]) for c in found]
    return [*found, *_others(problem)]


def quick_contenders(problem: Problem) -> list[Contender]:
    """Those of a study that is done in two minutes."""
    return default_contenders(problem, quick=True)


def _others(problem: Problem) -> list[Contender]:
    """What costs the time that JAX and Julia take to compile, or is slow on small states."""
    found = []
    if not problem.stiff:
        found += [Contender("torchode", {"solver": "tsit5"}), Contender("torchdyn", {"solver": "tsit5"})]
    if problem.jax is not None:
        found += Contender.grid("diffrax", solver=["Kvaerno5"] if problem.stiff else ["Tsit5", "Dopri8"])
    if problem.julia and engines()["julia"].ok:
        solver = "Rodas5P" if problem.stiff else "Tsit5"
        found += [Contender("diffeqpy", {"solver": solver}), Contender("diffeqflux", {"solver": solver})]
    return found
