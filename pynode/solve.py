"""`solve`: the one door to every engine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from pynode.control import Control
from pynode.field._outside import outside_of_compile
from pynode.mass_matrix import MassMatrix
from pynode.nn._split import Split
from pynode.problem.asked import Asked
from pynode.problem.controlled import check_control, kinks_of, reads_control, with_jumps
from pynode.problem.event import At, Event, events_of
from pynode.problem.independent import per_sample_times
from pynode.problem.inputs import check_args, check_times
from pynode.problem.late import once_known
from pynode.problem.progress import Progress, ended, shown
from pynode.problem.saving import check_save, times_of_steps
from pynode.problem.settings import Settings
from pynode.problem.state import state_of, with_args
from pynode.problem.tolerances import first_step
from pynode.recent import Recent, as_tensor
from pynode.repeated import Repeated
from pynode.sensitivity import Sensitivity
from pynode.solution import Solution, in_form, saved_of
from pynode.solving import solve_tensors
from pynode.step_control import StepControl
from pynode.torch_state import leaves_thread_state

__all__ = ["solution_of", "solve"]


@outside_of_compile
def solve(
    field: Callable[..., Any],
    z0: Any,
    t: Tensor | Sequence[float],
    *,
    args: Sequence[Tensor] = (),
    solver: str = "auto",
    rtol: Any = 1e-3,
    atol: Any = 1e-6,
    dt: float | None = None,
    step_control: StepControl | None = None,
    sensitivity: str | Sensitivity = "auto",
    running_cost: Callable[..., Tensor] | None = None,
    event: Callable[..., Tensor] | Event | At | Sequence[Callable[..., Tensor] | Event | At] | None = None,
    batching: str = "joint",
    tstops: Tensor | Sequence[float] | str | None = (),
    control: Control | None = None,
    mass: Tensor | MassMatrix | None = None,
    lowering: str = "trace",
    max_steps: int = 10_000,
    max_events: int = 10_000,
    engine: str = "auto",
    save: str | Callable[[Tensor, Any], Any] = "times",
    dense: bool = False,
    progress: bool | Callable[[Progress], object] = False,
    throw: bool = True,
) -> Solution:
    """Solve dz/dt = f(t, z, *args) from z(t[0]) = z0, differentiably.

    Gradients flow to `z0`, to the field's parameters, to `args` and to the entries of `t`. Any thread may solve, and
    several at once. With its default number of threads torch can solve a small model many times slower than with one:
    set `OMP_NUM_THREADS=1` or call `torch.set_num_threads(1)`; `pynode doctor` measures it.

    Args:
        field: an `nn.Module` or a callable `f(t, z, *args)` that returns dz/dt in the shape of `z`; `t` is 0-d, in the
            state's dtype, or in double if the field's attribute `time_dtype` is `torch.float64` (see below). One that
            takes the state alone, `f(z)`, as `nn.Sequential` and its layers do, is an autonomous field. A
            `pynode.Split` is the sum of a stiff part and another one, which some solvers treat apart.
        z0: `(batch, *features)`, float32 or float64; or a tuple, named tuple or dictionary of such, of one batch size,
            and then the field takes and returns the same. A complex tensor is solved as pairs of real numbers, a 0-d
            one as a batch of one.
        t: `(time,)`, at least two entries, strictly increasing or decreasing. The state is reported at each. Or
            `(batch, time)`: each sample at its own times, NaN behind them where it has fewer; this implies
            `batching="independent"`. They keep their dtype: float64 times beside a float32 state are integrated in
            double. A list of numbers gets the state's dtype, unless it cannot hold the differences between them
            (times of day as seconds since 1970 in float32, say): then they are float64.
        args: tensors that condition the field.
        solver: a name from `pynode.solvers()`, or `"auto"` for the engine's best 5(4) Runge-Kutta pair. On torch the
            adaptive solvers other than dopri5 and SciPy's step to each reported time, since torchdiffeq interpolates
            between their steps less accurately than they solve: with many times they cost at least a step for each.
        rtol: relative tolerance; a number, or a tensor that broadcasts against the state, for a tuple of states a tuple
            of such. The error that is kept below 1 is the root mean square over all components of all samples, each
            divided by `atol + rtol * |z|`; see `StepControl.norm` for others. An extended system, such as that of a
            continuous adjoint, is solved to the least of them.
        atol: absolute tolerance, like `rtol`.
        dt: the step of a fixed-step solver (from each `t[i]`, the last step cut to end on `t[i + 1]`), or the
            first step of an adaptive one.
        step_control: how an adaptive solver chooses its steps in the forward solve: controller, bounds, norm.
        sensitivity: how gradients are computed: `"auto"`, a name, or an object with options (`pynode.Discrete`,
            `Backsolve`, `Interpolating`, `Quadrature`, `Gauss`, `Forward`).
        running_cost: `l(t, z, *args) -> (batch,)`; its integral over `t` is `Solution.running_cost`.
        event: what happens in the course of the solve: a `pynode.Event`, where a function of time and state changes
            sign; a `pynode.At`, jumps of the state at given times, such as doses; or a sequence of these. A callable
            `g(t, z, *args)`, 0-d or `(n_events,)`, is `Event(g)`: the solve ends where an entry first changes sign,
            see `Solution.event_t`. An event may change the state, and the solve then goes on; `Solution.events` has
            all that happened. Gradients flow to the events' times and states, and through them, and to what the
            functions read. An entry that is zero at `t[0]` counts from when it has left zero. A sign that changes
            twice within one step may be missed. A state that is reported at the time of a jump is that before it.
        batching: `"joint"`, one step size for the whole batch, or `"independent"`, one for each sample, so that a hard
            sample costs the others nothing. On julia the samples are solved side by side on its threads, of which
            `torch.get_num_threads()` work at most; on torch one after the other, which is slow. The samples are the
            first dimension of `z0`, and the states are `(time, batch, *features)` as in a joint solve, also where `t`
            is `(batch, time)`. `args` with the batch as first dimension have a row for each sample; the field and the
            event function see one sample at a time, as a batch of one.
        tstops: times, in any order, where the field or its derivatives jump: every solver steps exactly to those
            within the span and starts afresh there, by the field's values on the other side. Gradients flow to them.
            Jumps because the field, the running cost or the event function compares t, `(t >= 5) & (t < 5.02)`,
            rounds it (`floor`, `%`, `t.long()`) or looks it up (`searchsorted`) are found without, with the gradient
            to a threshold such as a `Parameter`. Not found are those that depend on the state too (see `event`), on
            `float(t)` or `t.item()`, or are within a `JuliaField`; and one that is undone before the next of the 64
            or more places at which a comparison with a nonlinear function of t is looked at. `None`: no search.
            `"knots"`, with a `control`: afresh at all the times that it was made of, whatever path and solver.
        control: a path through data, see `pynode.control`, that the field reads: `f(t, z, X, *args)`, with `X(t)` and
            `X.derivative(t)`; `running_cost` and `event` get it too. Gradients flow to what it was made of. A solve
            starts afresh at the knots of one that is not smooth there, and by an adaptive solver (SciPy's apart) ends a
            step at the knots of a smooth one whose times all samples share, unless `tstops` is `None`.
        mass: the matrix M of M dz/dt = f(t, z, *args), constant and possibly singular: `(n, n)`, or its diagonal
            `(n,)`, over the n numbers of a sample; or a `pynode.MassMatrix`, which says what becomes of a `z0` that
            violates the algebraic equations. For equations of index 1, by `rodas5p` and `fbdf` on julia. M z0 decides
            on the solution: nothing but `Solution.z[0]` depends on the algebraic part of `z0`. There are derivatives of
            the first order, by reverse mode, to the tolerances.
        lowering: how the julia engine has the field. `"trace"`: as native code, made of its graph. `"callback"`: Julia
            calls it in Python at each evaluation, and torch differentiates it, whatever it does on its way (control
            flow on values, NumPy, other libraries); that costs some microseconds each time beside the field's own work.
            `"auto"`: as native code, or by calls where there is no graph, with a warning that says why. The torch
            engine calls the field anyway.
        max_steps: the number of steps, accepted or not, after which the solve is given up.
        max_events: the number of events (of one sample, where they are independent; doses do not count) after which
            the solve is given up, as it is before where events follow one another without time passing in between.
        engine: `"julia"`, `"torch"`, or `"auto"`: what the variable `PYNODE_ENGINE` says, else the first
            available one of these that has the solver and the sensitivity that are asked for.
        save: `"times"`, the state at each entry of `t`; `"steps"`, at the end of each step that the solver takes from
            `t[0]` to `t[-1]`, which are then `Solution.t`, without those that end at an `Event`; or a callable
            `save(t, z)` that returns a tensor, or several in a tuple or dictionary, which `Solution.z` has in the place
            of the states, stacked over the times: some of the features, an energy. Samples that have times of their own
            are given to it one by one, in a batch of one, each with its time. Gradients flow through it, and of the
            states is kept what that needs. Steps are found by a solve of their own, and are no function of anything
            to a gradient.
        dense: whether the solution can be interpolated, see `Solution.__call__`.
        progress: whether to show a bar with the time that was reached, the step and the rate, at a terminal, in a
            notebook, or every ten seconds in a log; or a callable, which gets a `pynode.Progress` at most ten times a
            second, and once at the end, on a thread of its own.
        throw: whether a failed integration raises, rather than come back with its `retcode`.

    Time is kept in double within a solve. The field, `running_cost` and `event` get it in the state's dtype all the
    same, so that what they compute from it has that dtype: in float32 times around 1.7e9 are 128 apart. A callable that
    computes with such a t is refused. Subtract a reference from the times before the solve; or set the attribute
    `time_dtype = torch.float64` of the callable, and let it subtract one, `t - self.t0`, before t meets the state. The
    julia engine, whose graphs hold numbers of one dtype, has that for float64 states only.

    Returns:
        The solution.

    Raises:
        InputError: an argument is not usable; or a callable computes with times that its dtype of t does not resolve.
        FieldError: the field or the running cost returns a wrong shape, dtype or device.
        TraceError: the engine needs a graph of the field and cannot have one; see `lowering`.
        EngineUnavailable: the engine is not there, or lacks what is asked for.
        SolveError: the integration did not reach the last time.
    """
    asked = Asked(
        solver=solver,
        rtol=rtol,
        atol=atol,
        dt=first_step(dt, step_control),
        step_control=step_control,
        sensitivity=sensitivity,
        running_cost=running_cost,
        events=events_of(event),
        batching=batching,
        tstops=tstops,
        control=control,
        mass=mass,
        lowering=lowering,
        max_steps=max_steps,
        max_events=max_events,
        engine=engine,
        save=save,
        dense=dense,
        progress=progress,
        throw=throw,
    )
    t = as_tensor(t, z0)
    recent = Recent.of(field, t, asked)
    found = None if recent is None else recent.solve(field, z0, t, args)
    if found is None:
        return _solve(field, z0, t, args, asked, repeated=None if recent is None else recent.repeated)
    return found


def solution_of(
    field: Callable[..., Any],
    z0: Any,
    t: Tensor | Sequence[float],
    args: Sequence[Tensor],
    asked: Asked,
    settings: Settings | None = None,
    repeated: dict[bool, Repeated] | None = None,
) -> Solution:
    """`solve`, with its other keywords in `asked`; the others are as in `solve_tensors`."""
    form = state_of(z0)
    state = form.tensors(z0)
    given_args, is_split, control, save = check_args(args), isinstance(field, Split), asked.control, asked.save
    if control is not None:
        check_control(control, field, state[0], t)
        reads = functools.partial(reads_control, form=control.form)
        asked = replace(
            asked,
            tstops=with_jumps(asked.tstops, control, state[0], t),
            kinks=kinks_of(control, asked.tstops, t),
            running_cost=reads(asked.running_cost),
            events=None if asked.events is None else asked.events.of(reads),
        )
        field = reads_control(field, control.form, len(given_args))
        given_args = (*control.tensors, *given_args)
    form, given = with_args(form, given_args)
    found = functools.partial(
        solve_tensors, form, field, state, args=given, asked=asked, is_split=is_split, repeated=repeated
    )
    if asked.progress is False and save == "times":
        solution = once_known(functools.partial(found, t, settings=settings))
    else:
        times = functools.partial(_known_times, t, state[0], asked.batching)
        check_save(save, asked.batching != "joint" or (isinstance(t, Tensor) and t.dim() == 2))
        with shown(asked.progress, times) as watched:
            if save == "steps":
                first = functools.partial(found, t, settings=settings)
                located = () if asked.events is None else asked.events.watched
                t = times_of_steps(lambda w: once_known(functools.partial(first, watched=w)), times(), located)
                settings = None  # which are those of the times that were given
            solution = once_known(functools.partial(found, t, settings=settings, watched=watched))
            if watched is not None:
                ended(watched, solution.t_end)
    solution = solution if form.is_plain else in_form(form, solution)
    return saved_of(solution, save) if callable(save) else solution


_solve = leaves_thread_state(solution_of)


def _known_times(t: Any, like: Tensor, batching: str) -> Tensor:
    times, _ = check_times(t, like)
    independent = batching != "joint" or times.dim() == 2
    return per_sample_times(times, like) if independent else times
