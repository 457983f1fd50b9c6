"""States and gradient from the variational equations, solved forward with the state by two solvers of SciPy's.

S = ∂z/∂(θ, z0) obeys S' = (∂f/∂z) S + (∂f/∂θ, 0) from (0, 1), and the gradient of a loss is (∂L/∂z) S: none of the
sensitivities that a study compares is in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch

from pynode.study.truth.flat import Flat
from pynode.study.truth.segments import scales, solve

__all__ = ["Found", "solve_variational"]

_TOLERANCES = 1e-12, 1e-18
# Radau's estimate is of order 3 and its solution of order 5: the errors are below 1e-12 all the same.
_LOOSER = {"Radau": (1e-10, 1e-16)}


@dataclass(frozen=True)
class Found:
    """States `(time, n)`, the gradient of the loss by name, the loss, and by which solver."""

    z: np.ndarray
    gradient: dict[str, np.ndarray]
    loss: float
    how: str


def solve_variational(flat: Flat, method: str, gradient: bool = True) -> Found:
    """The states, and the gradient, by one of SciPy's solvers to a relative error of some 1e-12 a step.

    Implicit solvers have a Jacobian without the second derivatives of the field: what couples S to the state is of
    another order of the same triangle, and their iterations end all the same.
    """
    equations = _Equations(flat, flat.m if gradient else 0)
    times = flat.t.numpy()
    options = equations.options(method)
    rough = solve(method, equations.value, equations.start, times, 1.0, 1e-6, 1e-9, **options)
    tolerances = _LOOSER.get(method, _TOLERANCES)
    states = solve(method, equations.value, equations.start, times, scales(rough), *tolerances, **options)
    z = states[:, : flat.n]
    if not gradient:
        return Found(z, {}, float(flat.problem.loss_of(_shaped(flat, z))), method)
    given = _shaped(flat, z).requires_grad_()
    with torch.enable_grad():
        loss = flat.problem.loss_of(given)
    (pulled,) = torch.autograd.grad(loss, given)
    sensitivities = torch.from_numpy(states[:, flat.n :].reshape(len(times), flat.m, flat.n))
    row = torch.einsum("tn,tmn->m", pulled.reshape(len(times), flat.n), sensitivities)
    return Found(z, flat.split(row), float(loss.detach()), method)


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
        if method == "DOP853":
            return {}
        if method == "LSODA":
            return {"jac": self._banded, "lband": self.flat.n - 1, "uband": self.flat.n - 1}
        return {"jac": self._sparse}

    def _sparse(self, t: float, y: np.ndarray) -> scipy.sparse.csc_matrix:
        block = self.flat.derivatives(t, y[: self.flat.n])[1]
        return scipy.sparse.csc_matrix(scipy.sparse.block_diag([block] * (1 + self.m)))

    def _banded(self, t: float, y: np.ndarray) -> np.ndarray:
        n, block = self.flat.n, self.flat.derivatives(t, y[: self.flat.n])[1]
        band = np.zeros((2 * n - 1, n))
        i, j = np.indices((n, n))
        band[i - j + n - 1, j] = block
        return np.tile(band, 1 + self.m)
