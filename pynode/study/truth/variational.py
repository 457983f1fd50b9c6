"""States and gradient from the variational equations, solved forward with the state by two solvers of SciPy's.

S = ∂z/∂(θ, z0) obeys S' = (∂f/∂z) S + (∂f/∂θ, 0) from (0, 1), and the gradient of a loss is (∂L/∂z) S: none of the
sensitivities that a study compares is in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pynode.study.truth.flat import Flat
from pynode.study.truth.segments import solve

__all__ = ["Found", "Variations", "pulled", "solve_variational", "tolerances"]

# Relative, and the absolute ones of states and of sensitivities over how large each gets: states that fall by orders of
# magnitude have every digit at the end too, sensitivities that cross zero are not asked for digits that they lack.
_TOLERANCES = 1e-12, 1e-18, 1e-13
_LOOSER = 100  # times for Radau, whose estimate is of order 3 and its solution of order 5: as exact all the same
_ROUGH = 1e-6, 1e-9
_UNKNOWN = 1e-9  # of the largest: numbers that the rough solve does not tell from zero
_OF_UNKNOWN = 1e-15  # their absolute tolerance, relative to the largest: below it are rounding errors


@dataclass(frozen=True)
class Found:
    """States `(time, n)`, the gradient of the loss by name, the loss, and by which solver."""

    z: np.ndarray
    gradient: dict[str, np.ndarray]
    loss: float
    how: str


def solve_variational(flat: Flat, method: str, gradient: bool = True) -> Found:
    """The states, and the gradient, by one of SciPy's solvers to a relative error of some 1e-12 a step.

    The absolute tolerance of each number is relative to how large it gets, which a rough solve tells.
    """
    equations = Variations(flat, flat.m if gradient else 0)
    times = flat.t.numpy()
    rtol, atol = tolerances(equations.rough(), flat, method)
    states = solve(method, equations.value, equations.start, times, rtol, atol, **equations.options(method))
    z = states[:, : flat.n]
    loss, slopes = pulled(flat, z)
    if not gradient:
        return Found(z, {}, loss, f"SciPy's {method}")
    row = np.einsum("tn,tmn->m", slopes, states[:, flat.n :].reshape(len(times), flat.m, flat.n))
    return Found(z, flat.split(row), loss, f"SciPy's {method}, with the variational equations")


def tolerances(rough: np.ndarray, flat: Flat, method: str) -> tuple[float, np.ndarray]:
    """The relative tolerance, and the absolute one of each number, from a rough solve `(time, numbers)`."""
    rtol, of_states, of_sensitivities = _LOOSER * np.array(_TOLERANCES) if method == "Radau" else _TOLERANCES
    sizes = np.abs(rough).max(0).reshape(-1, flat.n)  # the states, and the sensitivity to each number
    largest = sizes.max(1, keepdims=True)
    largest = np.where(largest > 0, largest, 1.0)
    factors = np.where(np.arange(len(sizes)) == 0, of_states, of_sensitivities)[:, None]
    atol = np.where(sizes > _UNKNOWN * largest, factors * sizes, _OF_UNKNOWN * largest)
    return float(rtol), atol.ravel()


def pulled(flat: Flat, z: np.ndarray) -> tuple[float, np.ndarray]:
    """The loss of states `(time, n)`, and its derivative with respect to them."""
    given = torch.from_numpy(z.copy()).reshape(len(z), *flat.z0.shape).requires_grad_()
    with torch.enable_grad():
        loss = flat.problem.loss_of(given)
    (slopes,) = torch.autograd.grad(loss, given)
    return float(loss.detach()), slopes.reshape(len(z), flat.n).numpy()


class Variations:
    """The field and the variational equations of `m` columns, one column after the other."""

    def __init__(self, flat: Flat, m: int) -> None:
        self.flat, self.m, n = flat, m, flat.n
        self.start = np.concatenate([flat.z0.reshape(-1).numpy(), np.eye(m, n, n - m).ravel()])

    def rough(self) -> np.ndarray:
        """What a quick solve makes of it, `(time, numbers)`."""
        method = "Radau" if self.flat.problem.stiff else "DOP853"
        return solve(method, self.value, self.start, self.flat.t.numpy(), *_ROUGH, **self.options(method))

    def value(self, t: float, y: np.ndarray) -> np.ndarray:
        """The derivative at a state and its sensitivities, in a row."""
        n = self.flat.n
        if not self.m:
            return self.flat.value(t, y)
        f, by_state, by_parameters = self.flat.derivatives(t, y[:n])
        rows = y[n:].reshape(self.m, n) @ by_state.T
        rows[: self.m - n] += by_parameters.T
        return np.concatenate([f, rows.ravel()])

    def options(self, method: str) -> dict[str, Any]:
        """A full Jacobian for a stiff field; its blocks for another, should LSODA change to an implicit formula."""
        if method == "DOP853":
            return {}
        if self.flat.problem.stiff:
            return {"jac": self._full, "through": method == "LSODA"}
        return {"jac": self._banded, "lband": self.flat.n - 1, "uband": self.flat.n - 1}

    def _full(self, t: float, y: np.ndarray) -> np.ndarray:
        n, m = self.flat.n, self.m
        block = self.flat.derivatives(t, y[:n])[1]
        full = np.kron(np.eye(1 + m), block)
        if m:
            second = self.flat.second_derivatives(t, y[:n])
            coupled = np.einsum("mj,ijl->mil", y[n:].reshape(m, n), second[:, :n])
            coupled[: m - n] += second[:, n:].transpose(1, 0, 2)
            full[n:, :n] = coupled.reshape(m * n, n)
        return full

    def _banded(self, t: float, y: np.ndarray) -> np.ndarray:
        n, block = self.flat.n, self.flat.derivatives(t, y[: self.flat.n])[1]
        band = np.zeros((2 * n - 1, n))
        i, j = np.indices((n, n))
        band[i - j + n - 1, j] = block
        return np.tile(band, 1 + self.m)
