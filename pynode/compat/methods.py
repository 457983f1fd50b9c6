"""torchdiffeq's methods: which there are, and pynode's solvers that are the same."""

from __future__ import annotations

import importlib

from pynode.engine.solvers import SOLVERS, SolverInfo
from pynode.errors import unknown_name

__all__ = ["check_method", "counterpart"]

_COUNTERPARTS = {s.torch: s for s in SOLVERS.values() if s.torch is not None and s.julia is not None}
_COUNTERPARTS["tsit5"] = SOLVERS["tsit5"]  # torchdiffeq has it since its version 0.2.5


def counterpart(method: str) -> SolverInfo | None:
    """The solver that is torchdiffeq's method on the julia engine, if there is one."""
    return _COUNTERPARTS.get(method)


def check_method(name: str, method: str | None) -> None:
    """Refuse a method that the torchdiffeq at hand does not have.

    Where it does not tell, in its table, which it has, it is left to refuse it itself.

    Args:
        name: of the argument.
        method: its value.

    Raises:
        InputError: lists the methods, nearest first.
    """
    # The package has a function of this module's name.
    methods = getattr(importlib.import_module("torchdiffeq._impl.odeint"), "SOLVERS", None)
    if method is not None and methods is not None and method not in methods:
        raise unknown_name(name, method, methods)
