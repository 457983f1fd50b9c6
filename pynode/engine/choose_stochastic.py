"""Which engine solves a stochastic differential equation."""

from __future__ import annotations

import functools
from typing import Any

from pynode.engine.choose import first_able, get_engine, named_engine
from pynode.engine.protocol import Availability
from pynode.engine.stochastic import StochasticEngine, StochasticSolver, stochastic_solver
from pynode.errors import EngineUnavailable, InputError
from pynode.interrupts import deferred
from pynode.sensitivity import find_sensitivity

__all__ = ["choose_stochastic"]


def _julia() -> StochasticEngine:
    from pynode.engine.julia.stochastic import JuliaStochastic

    julia: Any = get_engine("julia")
    return JuliaStochastic(julia.session)


def _torch() -> StochasticEngine:
    from pynode.engine.torch.stochastic import TorchStochastic

    return TorchStochastic()


# In the order in which `engine="auto"` prefers them; imported when first asked for.
_REGISTRY = {"julia": _julia, "torch": _torch}


@functools.cache
def _engine(name: str) -> StochasticEngine:
    with deferred():
        return _REGISTRY[name]()


@functools.lru_cache(maxsize=256)
def choose_stochastic(
    engine: str, solver: str, noise: str, calculus: str, adaptive: bool, sensitivity: str
) -> tuple[StochasticEngine, StochasticSolver, str]:
    """The engine, the solver and the name of the sensitivity that a call of `solve_sde` asks for.

    A named engine is taken or refused, never substituted; a choice once made holds for the process.

    Raises:
        InputError: a name is unknown, or the solver does not take the noise.
        EngineUnavailable: the engine cannot run here, or lacks what is asked for.
    """
    for kind, name in (("engine", engine), ("solver", solver), ("sensitivity", sensitivity)):
        if not isinstance(name, str):
            raise InputError(f"{kind} must be a name, got {type(name).__name__}. Pass e.g. {kind}='auto'")
    find_sensitivity(sensitivity)
    return first_able(
        named_engine(engine), _REGISTRY, lambda name: _resolve(name, solver, noise, calculus, adaptive, sensitivity)
    )


def _resolve(
    name: str, solver: str, noise: str, calculus: str, adaptive: bool, sensitivity: str
) -> tuple[StochasticEngine, StochasticSolver, str]:
    info = stochastic_solver(solver, name, noise, calculus, adaptive)
    chosen = _engine(name)
    state: Availability = chosen.available()
    if not state.ok:
        raise EngineUnavailable(f"the {name} engine does not solve SDEs here: {state.why}. {state.fix}".rstrip(" ."))
    names = chosen.sensitivities(calculus)
    if sensitivity != "auto" and sensitivity not in names:
        others = [e for e in _REGISTRY if e != name and sensitivity in _engine(e).sensitivities(calculus)]
        raise EngineUnavailable(
            f"the {name} engine has no sensitivity {sensitivity!r} of SDEs: pass {' or '.join(map(repr, names))}"
            + "".join(f", or engine={e!r}" for e in others)
        )
    return chosen, info, names[0] if sensitivity == "auto" else sensitivity
