"""Gradients by central differences of tight solves: for stiff fields whose sensitivities grow and fall by many orders.

A solver's estimate of the error is of what is there now: of a sensitivity that has grown by 10⁶ where the state jumps,
and is to fall as far again, it keeps fewer digits than were asked. States do not lose them so.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from pynode.errors import StudyError
from pynode.study.truth.flat import Flat
from pynode.study.truth.segments import solve
from pynode.study.truth.variational import Found, Variations, pulled, tolerances

__all__ = ["solve_differences"]

_STENCIL = {1: 4 / 5, 2: -1 / 5, 3: 4 / 105, 4: -1 / 280}  # of order 8
# How far the displaced number is to move the states, relative to how large each gets. What the stencil leaves out grows
# with it, what the solver gets wrong falls: the best is told by how well it agrees with its neighbour.
_MOVES = 0.1, 0.03, 0.01, 0.003


@dataclass(frozen=True)
class _Slope:
    """∂L/∂p of one number by a step, and by the next smaller one: how far these are apart."""

    value: float
    apart: float


def solve_differences(flat: Flat, method: str, gradient: bool = True) -> Found:
    """The states, and the gradient by central differences of order 8 of the states, at tolerances of 1e-12.

    Raises:
        StudyError: the solver gave up.
    """
    states_alone = Variations(flat, 0)
    rough = Variations(flat, flat.m if gradient else 0).rough()
    how = f"SciPy's {method}"
    z = _states(flat, method, tolerances(rough[:, : flat.n], flat, method), states_alone)
    loss, slopes = pulled(flat, z)
    if not gradient:
        return Found(z, {}, loss, how)
    row = np.array([_slope(flat, method, rough, slopes, j).value for j in range(flat.m)])
    return Found(z, flat.split(row), loss, f"{how}, with central differences of order 8")


def _slope(flat: Flat, method: str, rough: np.ndarray, slopes: np.ndarray, j: int) -> _Slope:
    """The derivative of the loss in the `j`-th number of parameters and initial state."""
    n = flat.n
    sizes = np.abs(rough[:, :n]).max(0)
    moved = np.abs(rough[1:, n * (1 + j) : n * (2 + j)])
    rate = float((moved / np.where(sizes > 0, sizes, 1.0)).max())
    if rate == 0:  # the number is not in the states that the loss sees
        return _Slope(0.0, 0.0)
    tight = tolerances(rough[:, :n], flat, method)
    found: list[float] = []
    for move in _MOVES:
        step, total = move / rate / max(_STENCIL), 0.0
        try:
            for k, weight in _STENCIL.items():
                ahead, behind = (flat.displaced(j, sign * k * step) for sign in (1, -1))
                change = _states(ahead, method, tight) - _states(behind, method, tight)
                total += weight / step * float((slopes * change).sum())
        except StudyError:  # of a state that is not a state of the problem any more
            found.append(np.nan)
            continue
        found.append(total)
    pairs = [_Slope(b, abs(b - a)) for a, b in itertools.pairwise(found)]
    usable = [pair for pair in pairs if np.isfinite(pair.apart)]
    if not usable:
        raise StudyError(f"SciPy's {method} gave up beside the problem's parameters: there is no gradient from it")
    return min(usable, key=lambda pair: pair.apart)


def _states(
    flat: Flat, method: str, tight: tuple[float, np.ndarray], equations: Variations | None = None
) -> np.ndarray:
    equations = equations or Variations(flat, 0)
    rtol, atol = tight
    return solve(method, equations.value, equations.start, flat.t.numpy(), rtol, atol, **equations.options(method))
