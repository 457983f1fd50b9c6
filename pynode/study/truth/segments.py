"""SciPy's solvers without their interpolation, where it is less exact than the solution."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.integrate import solve_ivp

from pynode.errors import StudyError

__all__ = ["solve"]


def solve(
    method: str,
    function: Callable[[float, np.ndarray], np.ndarray],
    y0: np.ndarray,
    t: np.ndarray,
    rtol: float,
    atol: np.ndarray | float,
    through: bool = False,
    **options: Any,
) -> np.ndarray:
    """The states at each of the times.

    Args:
        method: a solver of SciPy's.
        function: dy/dt.
        y0: the state at the first time.
        t: the times.
        rtol: relative tolerance.
        atol: absolute tolerance, of each component where they differ.
        through: whether the solver interpolates, rather than start afresh at each time: for backward differentiation
            formulas, which are polynomials through their past and are slow to start.
        options: of the solver, Jacobians.

    Raises:
        StudyError: the solver gave up.
    """
    states = [y0]
    for span in [t] if through else itertools.pairwise(t):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an overflow shows in the result
            ends = (span[0], span[-1])
            done = solve_ivp(
                function, ends, states[-1], method=method, t_eval=span[1:], rtol=rtol, atol=atol, **options
            )
        if not done.success or not np.isfinite(done.y).all():
            raise StudyError(
                f"SciPy's {method} at rtol {rtol:g} failed from t={span[0]:g} to {span[-1]:g}: {done.message} There "
                "is no reference from it: give the problem's own, Problem(…, reference=…), or a shorter span"
            )
        states.extend(done.y.T)
    return np.stack(states)
