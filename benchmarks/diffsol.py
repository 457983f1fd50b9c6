"""pydiffsol as a contender of the studies: solvers in Rust, on equations that it compiles itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from pynode.errors import NotComparable
from pynode.study import Gradient, Problem, Setting, Solved

__all__ = ["Diffsol"]

# Right sides in diffsol's language, by problem of pynode's library. Inputs are the parameters, then the initial state.
EQUATIONS = {
    "LotkaVolterra": """
in_i { a = 1, b = 1, c = 1, d = 1, x0 = 1, y0 = 1 }
u_i { x = x0, y = y0 }
F_i { a * x - b * x * y, d * x * y - c * y }
""",
    "Lorenz": """
in_i { s = 1, r = 1, b = 1, x0 = 1, y0 = 1, w0 = 1 }
u_i { x = x0, y = y0, w = w0 }
F_i { s * (y - x), x * (r - w) - y, x * y - b * w }
""",
    "VanDerPol": """
in_i { mu = 1, x0 = 1, y0 = 1 }
u_i { x = x0, y = y0 }
F_i { y, mu * (1 - x * x) * y - x }
""",
    "Robertson": """
in_i { k1 = 1, k2 = 1, k3 = 1, x0 = 1, y0 = 1, w0 = 1 }
u_i { x = x0, y = y0, w = w0 }
F_i { k3 * y * w - k1 * x, k1 * x - k2 * y * y - k3 * y * w, k2 * y * y }
""",
}


class Diffsol:
    """pydiffsol's `Ode`, which `pip install --no-deps pydiffsol` installs.

    The gradient of the mean square is by its adjoint, or by its forward sensitivities.
    """

    def prepare(self, problem: Problem, setting: Setting, solver: str = "tsit45", sensitivity: str = "adjoint") -> None:
        """Compile the equations."""
        try:
            import pydiffsol
        except ImportError as error:
            raise NotComparable("pydiffsol is not installed: pip install --no-deps pydiffsol") from error
        name = type(problem.field).__name__
        if name not in EQUATIONS or len(problem.z0) != 1 or problem.loss is not None:
            raise NotComparable(f"its equations are written for {', '.join(EQUATIONS)} alone, for one sample")
        if setting.dt is not None:
            raise NotComparable("diffsol's steps are adaptive")
        ode = pydiffsol.Ode(
            EQUATIONS[name], matrix_type=pydiffsol.nalgebra_dense, ode_solver=getattr(pydiffsol, solver)
        )
        ode.rtol, ode.atol = setting.rtol, setting.atol
        if sensitivity == "forward":
            ode.sens_rtol, ode.sens_atol = setting.rtol, setting.atol
        self.ode, self.problem, self.sensitivity = ode, problem, sensitivity
        (self.of_field,) = problem.parameters.values()
        self.name = next(iter(problem.parameters))
        values = [self.of_field.detach().numpy().ravel(), problem.z0.numpy().ravel()]
        self.inputs, self.t = np.concatenate(values), problem.t.numpy()

    def _states(self, ys: np.ndarray) -> np.ndarray:
        return ys.T[:, None]

    def solve(self) -> Solved:
        """The states at the times."""
        return Solved(self._states(self.ode.solve_dense(self.inputs, self.t).ys))

    def gradient(self) -> Gradient:
        """The gradient of the mean square of the states."""
        if self.sensitivity == "adjoint":
            solution, checkpoint = self.ode.solve_adjoint_fwd(self.inputs, self.t)
            cotangent = 2 * solution.ys / solution.ys.size
            found = np.asarray(self.ode.solve_adjoint_bkwd(solution, checkpoint, cotangent)).ravel()
        else:
            solution = self.ode.solve_fwd_sens(self.inputs, self.t)
            cotangent = 2 * solution.ys / solution.ys.size
            found = np.array([(of_one * cotangent).sum() for of_one in solution.sens])
        n = self.of_field.numel()
        gradient: dict[str, Any] = {"z0": found[n:].reshape(1, -1), self.name: found[:n]}
        return Gradient(float((solution.ys**2).mean()), gradient)
