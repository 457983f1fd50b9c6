"""Which engine solves: the registry, and the choice by name, availability and what is asked for."""

from __future__ import annotations

import functools
import importlib
import logging
import os
from collections.abc import Callable, Iterable
from typing import TypeVar

from pynode.engine.protocol import Availability, Engine
from pynode.engine.solvers import SolverInfo, resolve_solver
from pynode.errors import EngineUnavailable, InputError, unknown_name
from pynode.interrupts import deferred
from pynode.sensitivity import Sensitivity, find_sensitivity

__all__ = ["announce", "choose", "engines", "first_able", "get_engine", "named_engine"]

logger = logging.getLogger("pynode")

Chosen = TypeVar("Chosen")

# In the order in which `engine="auto"` prefers them; imported when first asked for.
_REGISTRY = {
    "julia": ("pynode.engine.julia.engine", "JuliaEngine"),
    "torch": ("pynode.engine.torch.engine", "TorchEngine"),
}


@functools.cache
def get_engine(name: str) -> Engine:
    """The engine of that name; the same object at each call."""
    module, cls = _REGISTRY[name]
    with deferred():  # of torchdiffeq and SciPy
        engine: Engine = getattr(importlib.import_module(module), cls)()
    return engine


def engines() -> dict[str, Availability]:
    """Every engine by name, with whether it can run here, why not, and the remedy."""
    return {name: get_engine(name).available() for name in _REGISTRY}


def named_engine(engine: str) -> str:
    """The name that was asked for; for `"auto"`, the environment variable `PYNODE_ENGINE`, if set.

    Raises:
        InputError: the name is unknown; the message lists the valid ones, nearest first.
    """
    name, kind = engine, "engine"
    if engine == "auto":
        name, kind = os.environ.get("PYNODE_ENGINE") or "auto", "engine (in PYNODE_ENGINE)"
    if name != "auto" and name not in _REGISTRY:
        raise unknown_name(kind, name, ["auto", *_REGISTRY])
    return name


def choose(engine: str, solver: str, sensitivity: str | Sensitivity) -> tuple[Engine, SolverInfo, Sensitivity]:
    """The engine, the solver and the sensitivity that a call of `solve` names.

    A named engine is taken or refused, never substituted. `"auto"` takes what `PYNODE_ENGINE` names; without
    that, the first available engine, in the order julia, torch, that has the solver and the sensitivity.
    A choice once made holds for the process.

    Args:
        engine: `"auto"` or an engine's name.
        solver: `"auto"` or a solver's name.
        sensitivity: `"auto"`, a sensitivity's name, or one with its options.

    Returns:
        The engine, the solver and the sensitivity.

    Raises:
        InputError: a name is unknown.
        EngineUnavailable: the engine cannot run here, or lacks the solver or the sensitivity.
    """
    for kind, name in (("engine", engine), ("solver", solver)):
        if not isinstance(name, str):
            raise InputError(f"{kind} must be a name, got {type(name).__name__}. Pass e.g. {kind}='auto'")
    if not isinstance(sensitivity, str | Sensitivity):
        raise InputError(
            f"sensitivity must be a name or a pynode.Sensitivity, got {type(sensitivity).__name__}. "
            "Pass e.g. sensitivity='auto'"
        )
    return _choose(named_engine(engine), solver, sensitivity)


@functools.lru_cache(maxsize=256)
def _choose(engine: str, solver: str, sensitivity: str | Sensitivity) -> tuple[Engine, SolverInfo, Sensitivity]:
    return first_able(engine, _REGISTRY, lambda name: _resolve(name, solver, sensitivity))


def first_able(engine: str, names: Iterable[str], resolve: Callable[[str], Chosen]) -> Chosen:
    """What `resolve` returns for the engine that is named, or, where that is `"auto"`, for the first that it accepts.

    Raises:
        EngineUnavailable: it refuses the one that is named, or all.
    """
    if engine != "auto":
        return resolve(engine)
    passed: list[str] = []
    for name in names:
        try:
            chosen = resolve(name)
        except EngineUnavailable as error:
            passed.append(str(error))
            continue
        announce(name, "; ".join(passed) or "it is available, and preferred")
        return chosen
    raise EngineUnavailable("; ".join(reversed(passed)))


def _resolve(name: str, solver: str, sensitivity: str | Sensitivity) -> tuple[Engine, SolverInfo, Sensitivity]:
    engine = get_engine(name)
    state = engine.available()
    if not state.ok:
        raise EngineUnavailable(f"the {name} engine is not available here: {state.why}. {state.fix}".rstrip(" ."))
    info = resolve_solver(solver, engine.name)
    wanted = find_sensitivity(sensitivity)
    names = engine.sensitivities(info)
    if wanted is None:
        wanted = find_sensitivity(names[0])
        assert wanted is not None
    elif wanted.name not in names:
        raise EngineUnavailable(
            f"the {engine.name} engine has no sensitivity {wanted.name!r} for the solver {info.name!r}: pass one "
            f"of {', '.join(map(repr, names))}, or another solver or engine"
        )
    return engine, info, wanted


@functools.lru_cache(maxsize=256)
def announce(engine: str, why: str) -> None:
    """Log a choice, once per engine and reason."""
    logger.info('engine="auto" takes %s (%s)', engine, why)
