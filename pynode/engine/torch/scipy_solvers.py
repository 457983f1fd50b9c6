"""SciPy's solvers as torchdiffeq calls them, which say what they reached and raise where they give up.

torchdiffeq asks `solve_ivp` for the states at the times and looks at nothing else: a backward solve that fails would
be read beyond its end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.integrate import BDF, LSODA, OdeSolver, Radau

from pynode.engine.protocol import Retcode
from pynode.engine.torch.rhs import GaveUp

__all__ = ["scipy_solver"]


class _Told:
    """A solver that tells a right-hand side of its steps."""

    tell: Callable[[float, Any], None]

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        if not isinstance(self, LSODA):
            keywords.pop("min_step", None)  # torchdiffeq passes it to all, and the others warn that they have none
        super().__init__(*arguments, **keywords)
        if isinstance(self, LSODA):
            integrator: Any = self._lsoda_solver._integrator
            integrator.runner = _raising(integrator.runner)

    def step(self) -> Any:
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found where it comes from
            message = super().step()  # type: ignore[misc]
        if self.status == "failed":  # type: ignore[attr-defined]
            raise GaveUp(Retcode.FAILURE)
        self.tell(self.t, self.y)  # type: ignore[attr-defined]
        return message


def _raising(runner: Callable[..., Any]) -> Callable[..., Any]:
    """LSODA's step, with an exception where SciPy would warn and go on to say that it failed."""

    def run(*arguments: Any) -> Any:
        y, t, istate = runner(*arguments)
        if istate < 0:
            raise GaveUp(Retcode.FAILURE)
        return y, t, istate

    return run


_SOLVERS: dict[str, type[OdeSolver]] = {"bdf": BDF, "lsoda": LSODA, "radau": Radau}


def scipy_solver(name: str, tell: Callable[[float, Any], None] = lambda t, y: None) -> type[OdeSolver]:
    """The class of that name, which calls `tell` with the time and the state at the end of each step."""
    return type(name, (_Told, _SOLVERS[name]), {"tell": staticmethod(tell)})
