"""Who takes part in a study that names nobody."""

from __future__ import annotations

from pynode.engine.choose import engines
from pynode.study.contender import Contender
from pynode.study.problem import Problem

__all__ = ["default_contenders"]

_EXPLICIT = {"torch": ("dopri5", "bosh3", "dopri8"), "julia": ("tsit5", "bosh3", "vern7", "dopri8")}
_STIFF = {"torch": ("radau", "bdf"), "julia": ("rodas5p", "trbdf2", "kencarp4", "fbdf")}


def default_contenders(problem: Problem) -> list[Contender]:
    """The engines that are here with a few solvers each, torchdiffeq and SciPy, as the problem is stiff or not."""
    solvers = _STIFF if problem.stiff else _EXPLICIT
    found = [
        contender
        for engine, here in engines().items()
        if here.ok
        for contender in Contender.grid("pynode", engine=engine, solver=solvers[engine])
    ]
    if problem.stiff:
        return [*found, *Contender.grid("scipy", method=["Radau", "BDF", "LSODA"])]
    return [
        *found,
        *Contender.grid("torchdiffeq", method=["dopri5", "bosh3", "dopri8"]),
        *Contender.grid("scipy", method=["RK45", "DOP853"]),
    ]
