"""Which engine solves: the registry, and the choice by name, availability and what is asked for."""

from __future__ import annotations

import functools
import importlib
import logging
import os

from pynode.engine._protocol import Availability, Engine
from pynode.engine._solvers import SolverInfo, resolve_solver
from pynode.errors import EngineUnavailable, unknown_name
from pynode.sensitivity import Sensitivity, find_sensitivity

__all__ = ["choose", "engines", "get_engine"]

logger = logging.getLogger("pynode")

# In the order in which `engine="auto"` prefers them. Imported when first asked for.
_REGISTRY = {
    "julia": ("pynode.engine.julia_engine", "JuliaEngine"),
    "torch": ("pynode.engine.torch_engine", "TorchEngine"),
}


@functools.cache
def get_engine(name: str) -> Engine:
    """The engine of that name.

    Raises:
        InputError: the name is unknown; the message lists the valid ones, nearest first.
    """
    if name not in _REGISTRY:
        raise unknown_name("engine", name, ["auto", *_REGISTRY])
    module, cls = _REGISTRY[name]
    engine: Engine = getattr(importlib.import_module(module), cls)()
    return engine


def engines() -> dict[str, Availability]:
    """Every engine by name, with whether it can run here, why not, and the remedy."""
    return {name: _availability(name) for name in _REGISTRY}


def _availability(name: str) -> Availability:
    try:
        return get_engine(name).available()
    except ModuleNotFoundError as error:
        if error.name != _REGISTRY[name][0]:
            raise
        return Availability(False, "this version of pynode lacks it")


@functools.lru_cache(maxsize=256)
def choose(
    engine: str, environment: str, solver: str, sensitivity: str | Sensitivity
) -> tuple[Engine, SolverInfo, Sensitivity]:
    """The engine, the solver and the sensitivity that a call of `solve` names.

    A named engine is taken or refused, never substituted. `"auto"` takes the first available engine that has
    what is asked for, in the order julia, torch. A choice once made holds for the process.

    Args:
        engine: `"auto"` or an engine's name.
        environment: what stands for `"auto"`: the value of `PYNODE_ENGINE`, or `"auto"`.
        solver: `"auto"` or a solver's name.
        sensitivity: `"auto"`, a sensitivity's name, or one with its options.

    Returns:
        The engine, the solver and the sensitivity.

    Raises:
        InputError: a name is unknown.
        EngineUnavailable: the engine cannot run here, or lacks the solver or the sensitivity.
    """
    name = environment if engine == "auto" else engine
    if name != "auto":
        get = get_engine(name) if name not in _REGISTRY else None  # an unknown name raises here
        assert get is None
        state = _availability(name)
        if not state.ok:
            raise EngineUnavailable(f"the {name} engine is not available: {state.why}. {state.fix}".rstrip())
        return _resolve(get_engine(name), solver, sensitivity)
    refusals: list[EngineUnavailable] = []
    missing = ""
    for candidate, state in engines().items():
        if not state.ok:
            missing += f"; the {candidate} engine is not available here: {state.why}. {state.fix}".rstrip()
            continue
        try:
            chosen = _resolve(get_engine(candidate), solver, sensitivity)
        except EngineUnavailable as error:
            refusals.append(error)
            continue
        why = missing.removeprefix("; ") or (
            str(refusals[0]) if refusals else "it is available and preferred"
        )
        _announce(candidate, why)
        return chosen
    raise EngineUnavailable(f"{refusals[0]}{missing}")


def _resolve(
    engine: Engine, solver: str, sensitivity: str | Sensitivity
) -> tuple[Engine, SolverInfo, Sensitivity]:
    info = resolve_solver(solver, engine.name)
    chosen = find_sensitivity(sensitivity)
    names = engine.sensitivities(info)
    if chosen is None:
        chosen = find_sensitivity(names[0])
        assert chosen is not None
    elif chosen.name not in names:
        raise EngineUnavailable(
            f"the {engine.name} engine has no sensitivity {chosen.name!r} for the solver {info.name!r}; "
            f"expected one of {', '.join(map(repr, names))}. Pass one of these, or another engine or solver"
        )
    return engine, info, chosen


@functools.cache
def _announce(engine: str, why: str) -> None:
    """Log once per engine and reason."""
    logger.info('engine="auto" takes %s (%s)', engine, why)


def environment_engine() -> str:
    """What stands for `engine="auto"`: the variable `PYNODE_ENGINE`, if set."""
    return os.environ.get("PYNODE_ENGINE") or "auto"
