"""What an engine is: the problem it gets, the integration it returns, and the small protocol between."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as field_of
from typing import Any, Protocol

import torch

from pynode.engine.solvers import SolverInfo
from pynode.errors import InputError
from pynode.field import Field
from pynode.sensitivity import Sensitivity
from pynode.step_control import StepControl

__all__ = [
    "Availability",
    "Crossing",
    "Derivatives",
    "Engine",
    "EventSearch",
    "Gradients",
    "Integration",
    "Mass",
    "PerSample",
    "Problem",
    "Retcode",
    "Stats",
    "StepChoice",
    "Watched",
]


class Retcode(enum.Enum):
    """How an integration ended; the value is the remedy."""

    SUCCESS = "the solution reached the last time, or the event"
    MAX_STEPS = "max_steps was reached: raise max_steps, loosen rtol/atol, or use a stiff solver"
    STEP_UNDERFLOW = (
        "the step size fell below what the floating-point type resolves: the solution blows up or the field "
        "is stiff there; shorten t, use a stiff solver, or bound the field. Far from zero count the times from t[0]"
    )
    NON_FINITE = (
        "the state or the field became infinite or NaN: shorten t, bound the field (e.g. tanh), "
        "or reduce dt of a fixed-step solver"
    )
    ZENO = (
        "events follow one another without time passing in between, as the bounces of a ball that comes to rest: end "
        "the solve before (Event(terminal=n), or a further event that is terminal, such as a small speed), or let "
        "affect take the state away from zero"
    )
    MAX_EVENTS = "max_events was reached: raise max_events, or end the solve before (Event(terminal=n))"
    FAILURE = (
        "the solver gave up: reduce dt of a fixed-step solver, or try another solver (a stiff one for a stiff field) "
        "or looser tolerances"
    )
    OFF_TRAJECTORY = (
        "the state, which backsolve computes once more backwards, has left the trajectory, and the gradient would be "
        "wrong: use a sensitivity that keeps the state (discrete, gauss, interpolating), or tighter tolerances"
    )


@dataclass
class PerSample:
    """What the solve of each of several independent samples cost: tensors `(batch,)`, on the CPU.

    Attributes:
        nfe: evaluations of the vector field, each of one sample, in the forward solve.
        nfe_backward: evaluations in the backward pass; `None` until backward has run.
        n_accepted: accepted steps, `None` where the solver does not tell.
        n_rejected: rejected steps, `None` where the solver does not tell.
        retcode: how each ended.
        t_end: the time that each reached.
    """

    nfe: torch.Tensor
    nfe_backward: torch.Tensor | None
    n_accepted: torch.Tensor | None
    n_rejected: torch.Tensor | None
    retcode: tuple[Retcode, ...]
    t_end: torch.Tensor


@dataclass
class Stats:
    """What a solve cost.

    Attributes:
        nfe: evaluations of the vector field in the forward solve.
        nfe_backward: evaluations of the field or of its vector-Jacobian product in the backward pass;
            `None` until backward has run.
        n_accepted: accepted steps, `None` where the solver does not tell.
        n_rejected: rejected steps, `None` where the solver does not tell.
        seconds: wall time of the forward solve.
        per_sample: the counts of each sample, where the samples are independent; those above are then their sums.
    """

    nfe: int = 0
    nfe_backward: int | None = None
    n_accepted: int | None = None
    n_rejected: int | None = None
    seconds: float = 0.0
    per_sample: PerSample | None = field_of(default=None, repr=False)


@dataclass(frozen=True)
class Availability:
    """Whether an engine can run here, why not, and the command or setting that mends it."""

    ok: bool
    why: str = ""
    fix: str = ""


@dataclass(frozen=True)
class StepChoice:
    """How an adaptive solver is to choose its steps.

    Attributes:
        control: the user's, or one that leaves everything to the solver.
        tolerances: relative and absolute ones of each number of the state tensors, or of one independent sample;
            `None` where two numbers say all.
    """

    control: StepControl
    tolerances: tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]] | None

    def tolerances_of(
        self, state: Sequence[torch.Tensor]
    ) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]] | None:
        """Those of each number of a state, `None` for another one: an extended one has the least for all."""
        if self.tolerances is None or [x.shape for x in self.tolerances[0]] != [z.shape for z in state]:
            return None
        return self.tolerances


@dataclass(frozen=True, eq=False)
class Mass:
    """The constant matrix M of M dz/dt = f(t, z), over the n numbers of a sample; in double, on the CPU.

    Attributes:
        matrix: M, `(n, n)`.
        left: orthonormal columns that span the null space of Mᵀ, `(n, m)`.
        right: those that span that of M.
        initial: see `pynode.MassMatrix`.
    """

    matrix: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor
    initial: str


@dataclass
class Watched:
    """How far a solve is; what an engine sets may be called on another thread while it solves.

    Attributes:
        look: the time that was reached, and the step, NaN where it is not known.
        samples: how many independent samples are done.
        shown: whether anyone looks.
        steps: what an engine adds the times to at which its steps ended; `None`: not wanted.
    """

    look: Callable[[], tuple[float, float]] | None = None
    samples: Callable[[], int] | None = None
    shown: bool = True
    steps: list[float] | None = None


@dataclass(eq=False)  # not frozen, which makes it eight times as long in the making
class Problem:
    """One initial value problem, validated, as an engine gets it; nothing changes it.

    Attributes:
        field: the vector field under one calling convention.
        z0: state tensors, each `(batch, *features)`, detached.
        t: `(time,)`, strictly monotone, float64 whatever the state's dtype, detached; or `(batch, time)`, which asks
            for independent samples, each row possibly ending in NaN for times that its sample is not asked for.
        args: conditioning tensors, detached.
        parameters: the leaf tensors of `field.parameters`, in that order.
        solver: which solver, resolved for the engine.
        rtol: relative tolerance, the least of all components.
        atol: absolute tolerance, the same.
        steps: what else is asked of the choice of steps.
        dt: step of a fixed-step solver, or first step of an adaptive one (`None`: automatic).
        max_steps: bound on the number of steps.
        sensitivity: how gradients will be asked for; `None` when nothing requires one.
        wants: which gradients are wanted, by group: `z0`, `t`, `args`, `parameters`, each a tuple of bools
            (`t` a single-element tuple).
        dense: whether an interpolant is wanted.
        lowering: how the field comes to an engine that does not run in Python: `"trace"`, `"callback"` or `"auto"`.
        watched: where the engine lets others see how far it is, if they want to.
        mass: the matrix in M dz/dt = f(t, z), with a consistent `z0`; `None`: the identity.
        split: where the field is a `Split` and the solver takes its parts apart, of how many of the state tensors it
            has the rates (a running cost's integral is one more); else `None`.
        kinks: times, in double, in any order and maybe beyond the span, at which an adaptive solver is to end a step
            and to go on, since the field has a kink there; `None`: there are none.
        known: what engines keep, by their names, of problems that differ from this one in the numbers in their tensors
            alone, which have the same dictionary; `None` where there will be no other. Another problem that is made of
            this one by `dataclasses.replace` has none.
    """

    field: Field
    z0: tuple[torch.Tensor, ...]
    t: torch.Tensor
    args: tuple[torch.Tensor, ...]
    parameters: tuple[torch.Tensor, ...]
    solver: SolverInfo
    rtol: float
    atol: float
    dt: float | None
    max_steps: int
    sensitivity: Sensitivity | None
    wants: Mapping[str, tuple[bool, ...]]
    dense: bool = False
    lowering: str = "trace"
    watched: Watched | None = None
    steps: StepChoice | None = None
    mass: Mass | None = None
    split: int | None = None
    kinks: torch.Tensor | None = None
    known: dict[str, Any] | None = field_of(init=False, default=None)

    def kinks_within(self, t: torch.Tensor) -> torch.Tensor:
        """Those between the first and the last of these times, in their dtype and on their device."""
        t = t.detach()
        if self.kinks is None:
            return t[:0]
        kinks, (low, high) = self.kinks.to(t), sorted((float(t[0]), float(t[-1])))
        return kinks[(kinks > low) & (kinks < high)].unique()

    def users_time(self, t: torch.Tensor) -> torch.Tensor:
        """A time of the problem's as the user's."""
        return t

    def field_time(self, t: torch.Tensor) -> torch.Tensor:
        """The time that the field is to see at a time of the problem's."""
        return t

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        """What the solution depends on: `z0`, `t`, `args`, `parameters`."""
        return (*self.z0, self.t, *self.args, *self.parameters)

    @property
    def wanted(self) -> tuple[bool, ...]:
        """`wants` for each of `inputs`."""
        return (*self.wants["z0"], *self.wants["t"], *self.wants["args"], *self.wants["parameters"])


@dataclass
class Gradients:
    """A tensor for each input of a `Problem`: its cotangent, or a direction in which it moves.

    `None` where it is not wanted, or does not move.
    """

    z0: Sequence[torch.Tensor | None]
    t: torch.Tensor | None
    args: Sequence[torch.Tensor | None]
    parameters: Sequence[torch.Tensor | None]

    @property
    def flat(self) -> tuple[torch.Tensor | None, ...]:
        """One after the other."""
        return (*self.z0, self.t, *self.args, *self.parameters)

    @staticmethod
    def of(problem: Problem, flat: Sequence[torch.Tensor | None]) -> Gradients:
        """From the inverse of `flat`."""
        n, m = len(problem.z0), len(problem.args)
        return Gradients(flat[:n], flat[n], flat[n + 1 : n + 1 + m], flat[n + 1 + m :])


class Derivatives(Protocol):
    """What follows the gradient: derivatives of the solution z(x), x the inputs of a `Problem` that are wanted."""

    def tangent(self, directions: Gradients) -> tuple[torch.Tensor, ...]:
        """The derivative of `z` as its inputs move: J(x) w, in the shapes of `z`."""

    def second(self, cotangents: Sequence[torch.Tensor | None], directions: Gradients) -> Gradients:
        """The gradient of <v, J(x) w> in x, v the cotangents of `z` and w the directions."""


@dataclass
class Integration:
    """What an engine returns.

    Attributes:
        z: for each state tensor, `(time, batch, *features)`; entries after a failure are NaN.
        stats: counts and time; `pullback` fills in `nfe_backward`.
        retcode: how it ended.
        t_end: the time that was reached; of independent samples, that of the first that failed.
        pullback: maps the cotangents of `z` (same shapes; `None` for zero) to `Gradients`; `None` when
            `Problem.sensitivity` is `None`. May be called more than once.
        derivatives: the further ones, by the same sensitivity; `None` where there are none.
        interpolant: maps times `(n,)` to a tuple of `(n, batch, *features)`; `None` unless `Problem.dense`.
        z_end: where the integration failed, the state at `t_end`: for each state tensor `(batch, *features)`, finite.
    """

    z: tuple[torch.Tensor, ...]
    stats: Stats
    retcode: Retcode
    t_end: float
    pullback: Callable[[Sequence[torch.Tensor | None]], Gradients] | None = None
    interpolant: Callable[[torch.Tensor], tuple[torch.Tensor, ...]] | None = None
    z_end: tuple[torch.Tensor, ...] | None = None
    derivatives: Derivatives | None = None


@dataclass(frozen=True)
class EventSearch:
    """What a solve is watched for.

    Attributes:
        function: maps `t`, 0-d, the state tensors and the conditioning tensors to the values, `(n_events,)`.
        owner: the user's callable, which takes `t`, a state and the conditioning tensors.
        n_states: how many of the state tensors are that state.
        form: what puts together what `owner` takes: `form.state(tensors)`, `form.args(args)`.
        signs: of each value at the start; 0 for one that takes its sign later.
        directions: for each value which changes of its sign count: 1 those to positive, -1 those to negative, 0 all.
    """

    function: Callable[..., torch.Tensor]
    owner: Callable[..., torch.Tensor]
    n_states: int
    form: Any
    signs: tuple[float, ...]
    directions: tuple[int, ...]

    def not_a_number(self, t: float) -> InputError:
        """The error for a value that is NaN, of which nobody knows whether it changes its sign."""
        return InputError(
            f"event must return numbers, got NaN at t={t:.6g}, in the course of the solve. Look at what computes it "
            "(the logarithm or the root of a negative number?), and clamp what it takes"
        )


@dataclass(frozen=True)
class Crossing:
    """Where a value of an `EventSearch` first changes its sign in a direction that counts.

    Attributes:
        t: the time; `None` if none does before the last time, or the integration fails.
        index: which value.
        nfe: evaluations of the vector field that the search took.
        failed: whether the integration failed before any did.
    """

    t: float | None
    index: int
    nfe: int
    failed: bool = False


class Engine(Protocol):
    """An engine: solves a `Problem` and can pull cotangents back through the solution."""

    name: str

    def available(self) -> Availability:
        """Whether it can run here."""

    def sensitivities(self, solver: SolverInfo) -> tuple[str, ...]:
        """Names of the sensitivities that it has for that solver, its default first."""

    def solve(self, problem: Problem) -> Integration:
        """Integrate; never raises for a failed integration (see `Retcode`).

        Raises:
            InputError: the state, a conditioning tensor or a parameter is not finite (see `Field.check_finite`).
        """

    def find_event(self, problem: Problem, search: EventSearch) -> Crossing:
        """Integrate, without regard to `sensitivity` and `dense`, to where a value first changes its sign."""

    def find_event_each(
        self, problem: Problem, search: EventSearch, signs: Sequence[tuple[float, ...]]
    ) -> Sequence[Crossing]:
        """The same for each of independent samples, with signs of its own in the place of the search's."""
