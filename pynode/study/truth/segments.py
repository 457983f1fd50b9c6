"""SciPy's solvers from one time to the next, started afresh at each, so that no interpolation is in the result."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.integrate import solve_ivp

from pynode.errors import StudyError

__all__ = ["scales", "solve"]

_Function = Callable[[float, np.ndarray], np.ndarray]


def solve(
    method: str,
    function: _Function,
    y0: np.ndarray,
    t: np.ndarray,
    scale: np.ndarray | float,
    rtol: float = 1e-12,
    atol: float = 1e-18,
    **options: Any,
) -> np.ndarray:
    """The states at each of the times.

    Args:
        method: a solver of SciPy's.
        function: dy/dt.
        y0: the state at the first time.
        t: the times.
        scale: how large each component is in the course, which its absolute tolerance is relative to.
        rtol: relative tolerance.
        atol: absolute tolerance over the scale.
        options: of the solver, Jacobians.

    Raises:
        StudyError: the solver gave up.
    """
    states = [y0]
    for start, end in itertools.pairwise(t):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an overflow shows in the result
            done = solve_ivp(
                function,
                (start, end),
                states[-1],
                method=method,
                t_eval=(end,),
                rtol=rtol,
                atol=atol * scale,
                **options,
            )
        if not done.success or not np.isfinite(done.y).all():
            raise StudyError(
                f"SciPy's {method} at rtol {rtol:g} ends at t={start:g}: {done.message} There is no reference from it: "
                "give the problem's own, Problem(…, reference=Reference(…)), or a shorter span"
            )
        states.append(done.y[:, -1])
    return np.stack(states)


def scales(states: np.ndarray) -> np.ndarray:
    """How large each component is in the course of a trajectory; those that stay zero have the least of the others."""
    largest = np.abs(states).max(0)
    positive = largest[largest > 0]
    return np.where(largest > 0, largest, positive.min() if positive.size else 1.0)
