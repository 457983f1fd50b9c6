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

__all__ = ["Found", "solve_variational"]

# Relative, and the absolute ones of states and of sensitivities over how large each gets: states that fall by orders of
# magnitude have every digit at the end too, sensitivities that cross zero are not asked for digits that they lack.
_TOLERANCES = 1e-12, 1e-18, 1e-13
_LOOSER = 100  # times for Radau, whose estimate is of order 3 and its solution of order 5: as exact all the same


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
    equations = _Equations(flat, flat.m if gradient else 0)
    times = flat.t.numpy()
    options = equations.options(method)
    first = "Radau" if flat.problem.stiff else "DOP853"
    rough = solve(first, equations.value, equations.start, times, 1e-6, 1e-9, **equations.options(first))
    rtol, of_states, of_sensitivities = _LOOSER * np.array(_TOLERANCES) if method == "Radau" else _TOLERANCES
    atol = np.where(np.arange(rough.shape[1]) < flat.n, of_states, of_sensitivities) * _scales(rough)
    states = solve(method, equations.value, equations.start, times, float(rtol), atol, **options)
    z = states[:, : flat.n]
    if not gradient:
        return Found(z, {}, float(flat.problem.loss_of(_shaped(flat, z))), f"SciPy's {method}")
    given = _shaped(flat, z).requires_grad_()
    with torch.enable_grad():
        loss = flat.problem.loss_of(given)
    (pulled,) = torch.autograd.grad(loss, given)
    sensitivities = torch.from_numpy(states[:, flat.n :].reshape(len(times), flat.m, flat.n))
    row = torch.einsum("tn,tmn->m", pulled.reshape(len(times), flat.n), sensitivities)
    return Found(z, flat.split(row), float(loss.detach()), f"SciPy's {method}, with the variational equations")


def _scales(states: np.ndarray) -> np.ndarray:
    """How large each number gets in the course of a trajectory; those that stay zero have the least of the others."""
    largest = np.abs(states).max(0)
    positive = largest[largest > 0]
    return np.where(largest > 0, largest, positive.min() if positive.size else 1.0)


def _shaped(flat: Flat, z: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(z.copy()).reshape(len(z), *flat.z0.shape)


class _Equations:
    """The field and the variational equations of `m` columns, one column after the other."""

    def __init__(self, flat: Flat, m: int) -> None:
        self.flat, self.m, n = flat, m, flat.n
        self.start = np.concatenate([flat.z0.reshape(-1).numpy(), np.eye(m, n, n - m).ravel()])

    def value(self, t: float, y: np.ndarray) -> np.ndarray:
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
