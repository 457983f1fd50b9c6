"""The right-hand sides that torchdiffeq calls: they count, and watch for what cannot succeed."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.engine.protocol import Problem, Retcode, Stats
from pynode.engine.scale import largest
from pynode.errors import EngineUnavailable

__all__ = ["SCIPY", "UNBOUNDED", "AdaptiveRhs", "Course", "GaveUp", "Rhs", "Stop", "all_finite", "right_hand_side"]

# torchdiffeq runs these through scipy.integrate.solve_ivp.
SCIPY = ("lsoda", "bdf", "radau")


class Stop(Exception):
    """An integration that cannot go on."""

    def __init__(self, retcode: Retcode, t_end: float) -> None:
        super().__init__(retcode.value)
        self.retcode = retcode
        self.t_end = t_end


class GaveUp(AssertionError):
    """A step that a solver cannot take; like an assertion of torchdiffeq's, to be told by `Rhs.diagnose`."""

    def __init__(self, retcode: Retcode) -> None:
        super().__init__(retcode.value)
        self.retcode = retcode


# How far from the trajectory, relative to its largest number, backsolve's state may be at a time that was asked for.
_DRIFT = 0.1


class Course:
    """The states that backsolve's, which it starts from anew at each of the times, should come to.

    Args:
        problem: what was solved.
        states: the solution, `(time, …)` of each of the state's tensors.
    """

    def __init__(self, problem: Problem, states: Sequence[Tensor]) -> None:
        self.times = problem.t.tolist()
        self.states = [x.detach() for x in states]
        self.most = _DRIFT * largest(self.states) + 100 * problem.atol
        self.next, self.drift = len(self.times) - 2, 0.0

    def follow(self, t: float, z: Sequence[Tensor]) -> None:
        """Look at a state that the field is evaluated at.

        The last one at a time that is not the trajectory's own ends a step there: before it are steps that were
        rejected, and after it the solve starts from the trajectory.
        """
        if self.next < 0 or not math.isclose(t, self.times[self.next], rel_tol=1e-15, abs_tol=1e-300):
            return
        drift = max((x - y[self.next]).abs().max().item() for x, y in zip(z, self.states, strict=True))
        if drift == 0 and self.next:
            self.end()
        else:
            self.drift = drift

    def end(self) -> None:
        """Go on to the next time."""
        if not self.drift <= self.most:
            finite = math.isfinite(self.drift)
            raise Stop(Retcode.OFF_TRAJECTORY if finite else Retcode.NON_FINITE, self.times[self.next])
        self.next, self.drift = self.next - 1, 0.0


class Rhs:
    """The right-hand side as torchdiffeq calls it; counts, and watches for what cannot succeed."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.nfe = self.steps = 0
        self.starts: list[float] = []  # of a fixed-step solver's steps
        self.t_last = float(problem.t[0])  # start of the last step that began
        self.trail = deque([(self.t_last, problem.z0)], maxlen=2)  # where the forward solve's last steps ended
        self.course: Course | None = None  # of a backward solve, where that can be followed
        if problem.watched is not None and problem.watched.shown:
            problem.watched.look = self.look

    def __call__(self, t: Tensor, z: Any) -> Any:
        """The field at `t` and `z`, counted."""
        self.nfe += 1
        field = self.problem.field
        states = z if field.is_tuple else (z,)
        # A part of torchdiffeq's flat adjoint state may begin anywhere, and torch.view_as_complex takes even places.
        states = tuple(x.clone() if x.storage_offset() % 2 else x for x in states)
        dz = field(self.problem.field_time(t), states, self.problem.args)
        if torch.is_grad_enabled() and not any(x.requires_grad for x in dz):
            # torchdiffeq's adjoint differentiates whatever it gets, also a field that depends on nothing here.
            dz = tuple(_DependsOn.apply(x, z) for x, z in zip(dz, states, strict=True))
        return dz if field.is_tuple else dz[0]

    def look(self) -> tuple[float, float]:
        """See `Watched`; the solver may be within a step."""
        return self.shown(self.t_last), math.nan

    def shown(self, t: float) -> float:
        """A time of the solver's as the user's."""
        return float(self.problem.users_time(torch.tensor(t, dtype=torch.float64, device="cpu")))

    def steps_taken(self) -> list[float]:
        """See `Watched`.

        Raises:
            EngineUnavailable: the solver does not tell.
        """
        raise EngineUnavailable(
            f"the torch engine's {self.problem.solver.name!r}, which is SciPy's, does not tell its steps: use another "
            "solver, or pass the times at which the states are wanted"
        )

    def tell(self, t: float, z: Any) -> None:
        """Take note of the end of a step of the forward solve."""
        self.trail.append((t, tuple(x.detach() for x in as_tuple(z))))

    def reached(self) -> tuple[float, tuple[Tensor, ...]]:
        """The last time at which the forward solve's state was finite, and that state."""
        return next((end for end in reversed(self.trail) if all_finite(end[1])), self.trail[0])

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
        if isinstance(error, GaveUp):
            return Stop(error.retcode, self.t_last)
        raise error


class _DependsOn(torch.autograd.Function):
    """The first of two tensors, with a derivative of zero in the second."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[None, None]:
        return None, None


class _SteppedRhs(Rhs):
    """Of a solver that tells of its steps."""

    def callback_step_adjoint(self, t: Tensor, z: Any, dt: Tensor) -> None:
        """At the start of each step of a backward solve; where times decrease, torchdiffeq gives -t."""
        self.begin(t if self.problem.t[-1] > self.problem.t[0] else -t, z, dt)

    def begin(self, t: Tensor, z: Any, dt: Tensor) -> None:
        """At the start of each step of either solve."""
        raise NotImplementedError


class _FixedRhs(_SteppedRhs):
    """Of a fixed-step solver, which by itself would step on through NaN."""

    def look(self) -> tuple[float, float]:
        """As `Rhs.look`."""
        return self.shown(self.t_last), self.problem.dt or math.nan

    def steps_taken(self) -> list[float]:
        """As `Rhs.steps_taken`."""
        return [self.shown(t) for t in self.starts]

    def callback_step(self, t: Tensor, z: Any, dt: Tensor) -> None:
        """At the start of each step."""
        self.begin(t, z, dt)
        self.tell(self.t_last, z)

    def begin(self, t: Tensor, z: Any, dt: Tensor) -> None:
        """As `_SteppedRhs.begin`."""
        self.steps += 1
        self.t_last = t.item()
        self.starts.append(self.t_last)
        if not all_finite(as_tuple(z)):
            raise Stop(Retcode.NON_FINITE, self.t_last)

    def stats(self) -> Stats:
        """As `Rhs.stats`."""
        return Stats(self.nfe, n_accepted=self.steps, n_rejected=0)


# For torchdiffeq's implicit Adams method, which warns where its corrector has not converged after that many iterations
# and goes on with what it has: here it is the right-hand side that ends them.
UNBOUNDED = {"max_iters": sys.maxsize}
_ITERATIONS = 4


class _AdamsRhs(_FixedRhs):
    """Of the implicit Adams method."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        assert problem.dt is not None
        steps = (problem.t - problem.t[0]).abs() / problem.dt
        self.nfe_before = 0
        # A step evaluates the field once at its start, in each iteration, and once for each time that it reports.
        self.most = 1 + _ITERATIONS + 2 * int(steps.long().bincount().max())

    def begin(self, t: Tensor, z: Any, dt: Tensor) -> None:
        """As `_SteppedRhs.begin`."""
        super().begin(t, z, dt)
        self.nfe_before = self.nfe

    def __call__(self, t: Tensor, z: Any) -> Any:
        """As `Rhs.__call__`, no more often than a step may take."""
        if self.nfe - self.nfe_before >= self.most:
            raise Stop(Retcode.FAILURE, self.t_last)
        return super().__call__(t, z)


class AdaptiveRhs(_SteppedRhs):
    """Of an adaptive Runge-Kutta solver."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.accepted: list[tuple[float, float]] = []  # start and length of each step, cut short or not
        self.rejected = 0
        self.under_way: tuple[Tensor, Any, Tensor] | None = None
        self.nfe_before = self.nfe_rejected = 0

    def __call__(self, t: Tensor, z: Any) -> Any:
        """As `Rhs.__call__`; this kind of solver evaluates the field at the end of each step."""
        if self.course is not None:
            self.course.follow(t.item(), as_tuple(z))
        return super().__call__(t, z)

    def callback_step(self, t: Tensor, z: Any, dt: Tensor) -> None:
        """At the start of each attempted step."""
        if dt.requires_grad:  # torchdiffeq differentiates its choice of the first step, which is none of the solution's
            dt.detach_()
        self.tell(t.item(), z)
        self.begin(t, z, dt)

    def begin(self, t: Tensor, z: Any, dt: Tensor) -> None:
        """As `_SteppedRhs.begin`, of each attempted step."""
        self.under_way = (t, z, dt)
        self.t_last = t.item()
        self.nfe_before = self.nfe
        self.steps += 1
        if self.steps > self.problem.max_steps:
            raise Stop(Retcode.MAX_STEPS, self.t_last)

    def look(self) -> tuple[float, float]:
        """As `Rhs.look`."""
        return self.shown(self.t_last), self.accepted[-1][1] if self.accepted else math.nan

    def steps_taken(self) -> list[float]:
        """As `Rhs.steps_taken`."""
        return [self.shown(t) for t, _ in self.accepted]

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
        if not all_finite(as_tuple(z)) or not dt > 0:  # a step of NaN is made zero
            return Stop(Retcode.NON_FINITE, self.t_last)
        if t + dt == t:
            return Stop(Retcode.STEP_UNDERFLOW, self.t_last)
        raise error


class _ScipyRhs(Rhs):
    """Of one of SciPy's solvers, which bound neither their steps nor, in LSODA's case, mind a NaN."""

    def tell(self, t: float, z: Any) -> None:
        """As `Rhs.tell`, of SciPy's numbers: where time runs backwards, it is the negative one."""
        problem = self.problem
        flat = torch.as_tensor(z, device="cpu").to(problem.z0[0])
        parts = flat.split([x.numel() for x in problem.z0])
        state = tuple(part.reshape(x.shape) for part, x in zip(parts, problem.z0, strict=True))
        super().tell(t if problem.t[-1] > problem.t[0] else -t, state)

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
        if not all_finite(as_tuple(dz)):
            raise Stop(Retcode.NON_FINITE, now)
        return dz


def right_hand_side(problem: Problem) -> Rhs:
    """The right-hand side of a problem, with the callbacks that torchdiffeq offers its kind of solver."""
    if problem.solver.name in SCIPY:
        return _ScipyRhs(problem)
    if problem.solver.name == "adams":
        return _AdamsRhs(problem)
    return AdaptiveRhs(problem) if problem.solver.adaptive else _FixedRhs(problem)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no entry is infinite or NaN."""
    return all(bool(torch.isfinite(x).all()) for x in tensors)


def as_tuple(z: Any) -> tuple[Tensor, ...]:
    """A state as torchdiffeq hands it over, as a tuple."""
    return z if isinstance(z, tuple) else (z,)
