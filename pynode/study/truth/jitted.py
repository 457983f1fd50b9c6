"""The derivatives of a field by its version for JAX, compiled: a twentieth of the time of PyTorch's."""

from __future__ import annotations

from typing import Any

import numpy as np

from pynode.errors import StudyError
from pynode.study.problem import Problem
from pynode.study.truth.flat import Flat

__all__ = ["Jitted"]

_SAME = 1e-12


class Jitted(Flat):
    """A problem in double precision whose field is `problem.jax`, which is held against PyTorch's at the start.

    Raises:
        StudyError: the problem has no field for JAX, or another one; or JAX has no double precision.
    """

    def __init__(self, problem: Problem) -> None:
        import jax

        super().__init__(problem)
        if problem.jax is None or problem.args:
            raise StudyError(f"{problem.name} has no field for JAX that takes no arguments: leave out jitted=True")
        if jax.numpy.zeros(()).dtype != "float64":
            raise StudyError('JAX is in single precision: call jax.config.update("jax_enable_x64", True) first')
        field, shape = problem.jax, self.z0.shape

        def of(y: Any, parameters: Any, t: Any) -> Any:
            return field(t, y.reshape(shape), parameters).reshape(-1)

        def all_of(t: Any, y: Any, given: Any) -> Any:
            by_state, by_parameters = jax.jacfwd(of, argnums=(0, 1))(y, given, t)
            columns = [x.reshape(self.n, -1) for x in by_parameters]
            return of(y, given, t), by_state, jax.numpy.concatenate([jax.numpy.zeros((self.n, 0)), *columns], 1)

        def second(t: Any, y: Any, given: Any) -> Any:
            by_state, by_parameters = jax.jacfwd(lambda y: all_of(t, y, given)[1:])(y)
            return jax.numpy.concatenate([by_state, by_parameters], 1)

        self._value_of, self._second_of = jax.jit(lambda t, y, given: of(y, given, t)), jax.jit(second)
        self._all_of = jax.jit(all_of)
        t, y = float(self.t[0]), self.z0.reshape(-1).numpy() + 0.01
        for ours, right in zip(self.derivatives(t, y), super().derivatives(t, y), strict=True):
            if not np.allclose(ours, right, rtol=_SAME, atol=_SAME * np.abs(right).max(initial=0)):
                raise StudyError(f"the field of {problem.name} for JAX is another one than that for PyTorch")

    def value(self, t: float, y: np.ndarray) -> np.ndarray:
        """dz/dt at a state, both as vectors."""
        return np.asarray(self._value_of(t, y, self._given()))

    def derivatives(self, t: float, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """dz/dt, ∂f/∂z and ∂f/∂θ."""
        value, by_state, by_parameters = self._all_of(t, y, self._given())
        return np.asarray(value), np.asarray(by_state), np.asarray(by_parameters)

    def second_derivatives(self, t: float, y: np.ndarray) -> np.ndarray:
        """∂²f/∂z² and ∂²f/∂θ∂z."""
        return np.asarray(self._second_of(t, y, self._given()))

    def _given(self) -> list[np.ndarray]:
        return [p.numpy() for p in self.parameters.values()]
