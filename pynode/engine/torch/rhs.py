"""The right-hand sides that torchdiffeq calls: they count, and watch for what cannot succeed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pynode.engine.protocol import Problem, Retcode, Stats

__all__ = ["SCIPY", "AdaptiveRhs", "Rhs", "Stop", "all_finite", "right_hand_side"]

# torchdiffeq runs these through scipy.integrate.solve_ivp.
SCIPY = ("lsoda", "bdf", "radau")


class Stop(Exception):
    """An integration that cannot go on."""

    def __init__(self, retcode: Retcode, t_end: float) -> None:
        super().__init__(retcode.value)
        self.retcode = retcode
        self.t_end = t_end


class Rhs:
    """The right-hand side as torchdiffeq calls it; counts, and watches for what cannot succeed."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.nfe = self.steps = 0
        self.t_last = float(problem.t[0])  # start of the last step that began

    def __call__(self, t: Tensor, z: Any) -> Any:
        """The field at `t` and `z`, counted."""
        self.nfe += 1
        field = self.problem.field
        dz = field(t, z if field.is_tuple else (z,), self.problem.args)
        return dz if field.is_tuple else dz[0]

    def stats(self) -> Stats:
        """The counts of the forward solve so far."""
        return Stats(self.nfe)

    @property
    def nfe_differentiated(self) -> int:
        """Evaluations through which the gradient of the forward solve passes."""
        return self.nfe

    def diagnose(self, error: Exception) -> Stop:
        """What ended the solve.

        Raises:
            Exception: the error itself, where it was not the solver's.
        """
        if isinstance(error, Stop):
            return error
        raise error


class _FixedRhs(Rhs):
    """Of a fixed-step solver, which by itself would step on through NaN."""

    def callback_step(self, t: Tensor, z: Any, dt: Tensor) -> None:
        """At the start of each step."""
        self.steps += 1
        self.t_last = t.item()
        if not all_finite(z if isinstance(z, tuple) else (z,)):
            raise Stop(Retcode.NON_FINITE, self.t_last)

    callback_step_adjoint = callback_step

    def stats(self) -> Stats:
        """As `Rhs.stats`."""
        return Stats(self.nfe, n_accepted=self.steps, n_rejected=0)


class AdaptiveRhs(Rhs):
    """Of an adaptive Runge-Kutta solver."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.accepted: list[tuple[float, float]] = []  # start and length of each step, cut short or not
        self.rejected = 0
        self.under_way: tuple[Tensor, Any, Tensor] | None = None
        self.nfe_before = self.nfe_rejected = 0

    def callback_step(self, t: Tensor, z: Any, dt: Tensor) -> None:
        """At the start of each attempted step."""
        self.under_way = (t, z, dt)
        self.t_last = t.item()
        self.nfe_before = self.nfe
        self.steps += 1
        if self.steps > self.problem.max_steps:
            raise Stop(Retcode.MAX_STEPS, self.t_last)

    callback_step_adjoint = callback_step

    @property
    def dt_last(self) -> float:
        """The last step that was accepted, as it was before the end of the span cut it short."""
        assert self.under_way is not None
        return self.under_way[2].item()

    def callback_accept_step(self, t: Tensor, z: Any, dt: Tensor) -> None:
        """After a step that was accepted."""
        self.accepted.append((t.item(), dt.item()))

    def callback_reject_step(self, t: Tensor, z: Any, dt: Tensor) -> None:
        """After a step that was rejected."""
        self.rejected += 1
        self.nfe_rejected += self.nfe - self.nfe_before

    def stats(self) -> Stats:
        """As `Rhs.stats`."""
        self.under_way = None  # it would hold on to the graph
        return Stats(self.nfe, n_accepted=len(self.accepted), n_rejected=self.rejected)

    @property
    def nfe_differentiated(self) -> int:
        """As `Rhs.nfe_differentiated`."""
        return self.nfe - self.nfe_rejected

    def diagnose(self, error: Exception) -> Stop:
        """As `Rhs.diagnose`; torchdiffeq asserts before each step that it can be taken."""
        if not isinstance(error, AssertionError) or self.under_way is None:
            return super().diagnose(error)
        t, z, dt = self.under_way
        if not all_finite(z if isinstance(z, tuple) else (z,)) or not dt > 0:  # a step of NaN is made zero
            return Stop(Retcode.NON_FINITE, self.t_last)
        if t + dt == t:
            return Stop(Retcode.STEP_UNDERFLOW, self.t_last)
        raise error


class _ScipyRhs(Rhs):
    """Of one of SciPy's solvers, which bound neither their steps nor, in LSODA's case, mind a NaN."""

    def diagnose(self, error: Exception) -> Stop:
        """As `Rhs.diagnose`; the linear algebra of the implicit ones refuses what is not finite."""
        if isinstance(error, ValueError) and "infs or NaNs" in str(error):
            return Stop(Retcode.NON_FINITE, self.t_last)
        return super().diagnose(error)

    def __call__(self, t: Tensor, z: Any) -> Any:
        now = t.item()
        if now != self.t_last:
            self.t_last = now
            self.steps += 1
            # SciPy does not tell its steps. Ten different times per step are more than any of them looks at.
            if self.steps > 10 * self.problem.max_steps:
                raise Stop(Retcode.MAX_STEPS, now)
        dz = super().__call__(t, z)
        if not all_finite(dz if isinstance(dz, tuple) else (dz,)):
            raise Stop(Retcode.NON_FINITE, now)
        return dz


def right_hand_side(problem: Problem) -> Rhs:
    """The right-hand side of a problem, with the callbacks that torchdiffeq offers its kind of solver."""
    if problem.solver.name in SCIPY:
        return _ScipyRhs(problem)
    return AdaptiveRhs(problem) if problem.solver.adaptive else _FixedRhs(problem)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no entry is infinite or NaN."""
    return all(bool(torch.isfinite(x).all()) for x in tensors)
