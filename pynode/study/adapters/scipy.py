"""SciPy: `scipy.integrate.solve_ivp`."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pynode.errors import NotComparable
from pynode.study.adapter import Counts, Gradient, Solved
from pynode.study.adapters.in_torch import CountedField
from pynode.study.adapters.option import Option
from pynode.study.adapters.package import Package, tolerances
from pynode.study.problem import Problem
from pynode.study.setting import Setting

__all__ = ["SciPy"]

_EXPLICIT = ("RK45", "RK23", "DOP853")
_IMPLICIT = ("Radau", "BDF", "LSODA")


class SciPy(Package):
    """`solve_ivp`, which has no gradient.

    It keeps the state in double precision; the field is evaluated in the problem's own. `jacobian="torch"` gives the
    implicit solvers the dense Jacobian of the flattened state, by `torch.func.jacrev`, as its page recommends where one
    is known; `"differences"` leaves it to SciPy.
    """

    NAME: ClassVar[str] = "scipy"
    DISTRIBUTION: ClassVar[str] = "scipy"
    MODULES: ClassVar[tuple[str, ...]] = ("scipy",)
    PAGE: ClassVar[str] = "https://docs.scipy.org/doc/scipy/reference/generated/scipy.integrate.solve_ivp.html"
    OPTIONS: ClassVar[dict[str, Option]] = {
        "solver": Option((*_EXPLICIT, *_IMPLICIT), "RK45"),
        "jacobian": Option(("torch", "differences"), "torch"),
    }

    def build(self, problem: Problem, setting: Setting, *, solver: str, jacobian: str) -> None:  # type: ignore[override]
        """Make the functions of arrays."""
        import scipy.integrate

        self.integrate = scipy.integrate.solve_ivp
        self.problem = problem
        self.field = CountedField(problem)
        self.t, self.z0 = problem.t.double().numpy(), problem.z0.reshape(-1).double().numpy()
        self.keywords: dict[str, Any] = {"method": solver, **tolerances(f"SciPy's {solver}", setting, True)}
        self.jacobians: int | None = 0 if solver in _IMPLICIT else None
        if solver in _IMPLICIT and jacobian == "torch":
            self.keywords["jac"] = self._jacobian
            self.tangents = torch.func.jacrev(self._flat, argnums=1)
            try:
                self._jacobian(self.t[0], self.z0)
            except Exception as error:
                raise NotComparable(
                    f"torch.func.jacrev cannot differentiate the field ({error}); choose jacobian='differences'"
                ) from error

    def _flat(self, t: Tensor, z: Tensor) -> Tensor:
        return self.field.rates(t, z.reshape(self.problem.z0.shape)).reshape(-1)

    def _tensors(self, t: float, z: np.ndarray) -> tuple[Tensor, Tensor]:
        like = self.problem.z0
        return torch.tensor(t, dtype=like.dtype), torch.from_numpy(z).to(like.dtype)

    def _rates(self, t: float, z: np.ndarray) -> np.ndarray:
        time, state = self._tensors(t, z)
        with torch.no_grad():
            rates = self.field(time, state.reshape(self.problem.z0.shape))
        array: np.ndarray = rates.reshape(-1).double().numpy()
        return array

    def _jacobian(self, t: float, z: np.ndarray) -> np.ndarray:
        array: np.ndarray = self.tangents(*self._tensors(t, z)).detach().double().numpy()
        return array

    def solve(self) -> Solved:
        """The states at the times.

        Raises:
            ArithmeticError: the solver gives up.
        """
        self.field.counted()
        found = self.integrate(self._rates, (self.t[0], self.t[-1]), self.z0, t_eval=self.t, **self.keywords)
        if not found.success:
            raise ArithmeticError(f"solve_ivp: {found.message}")
        jacobians = None if self.jacobians is None else int(found.njev)
        z = found.y.T.reshape(len(self.t), *self.problem.z0.shape)
        return Solved(z, Counts(nfe=self.field.counted(), jacobians=jacobians))

    def gradient(self) -> Gradient:
        """None: SciPy does not differentiate what it solves."""
        raise NotComparable("SciPy's solve_ivp has no gradient")
