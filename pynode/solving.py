"""The solve of tensors: what is asked for is checked, made a problem of an engine's, and its solution is read."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pynode.derivatives import Again, Failed, Run, differentiable
from pynode.engine.protocol import Problem, Retcode, Stats, Watched
from pynode.engine.recorded import record
from pynode.errors import EngineUnavailable
from pynode.field import Field
from pynode.field._kept import check_no_cache
from pynode.field._outside import is_recording
from pynode.outcome import outcome
from pynode.problem.asked import Asked
from pynode.problem.consistent import consistent_state
from pynode.problem.course import solve_course
from pynode.problem.crossing import event_reads_time
from pynode.problem.failure import failure
from pynode.problem.halves import check_halves_solve
from pynode.problem.independent import check_apart, check_unmixed, is_apart
from pynode.problem.inputs import check_state
from pynode.problem.mass import check_mass, check_no_stops
from pynode.problem.precision import autocast_dtype, in_full_precision, without_autocast
from pynode.problem.resolution import check_recorded, check_resolution
from pynode.problem.settings import Settings, check_settings
from pynode.problem.solved_field import solved_field
from pynode.problem.split import check_split
from pynode.problem.state import State
from pynode.problem.stops import check_continuous, check_stops, find_stops
from pynode.problem.tolerances import check_unchosen, step_choice
from pynode.problem.watch import NO_TRANSFORMS
from pynode.repeated import Repeated
from pynode.solution import Solution, at_given_times, in_dtype_of
from pynode.transforms import (
    differentiated,
    example,
    is_active,
    is_mapped,
    is_wrapped,
    levels,
    moves,
    untransformed,
)

__all__ = ["solve_tensors"]


def solve_tensors(
    form: State,
    field: Callable[..., Any],
    state: tuple[Tensor, ...],
    t: Tensor | Sequence[float],
    args: tuple[Tensor, ...],
    asked: Asked,
    *,
    is_split: bool,
    watched: Watched | None = None,
    settings: Settings | None = None,
    repeated: dict[bool, Repeated] | None = None,
) -> Solution:
    """Solve as `solve` does, outside of autocast and in full precision.

    Args:
        form: of the state, whose tensors are solved.
        field: `f(t, z, *args)`, of states of that form.
        state: the initial state's tensors.
        t: `(time,)` or `(batch, time)`.
        args: tensors that condition the field.
        asked: what the solve is asked for; its control, progress and way of saving are the caller's.
        is_split: whether the field is a `Split`, whose parts some solvers treat apart.
        watched: who is told of the steps.
        settings: what of `asked` has been looked at before.
        repeated: takes what solves the like once more, by whether gradients are enabled, if solves are to follow.

    Returns:
        The solution, whose states are tensors, a tuple of them if `form.is_tuple`.

    Raises:
        PyNODEError: as `solve`.
    """
    more: dict[str, Any] = {"is_split": is_split, "watched": watched, "settings": settings, "repeated": repeated}
    autocast = autocast_dtype(state)
    if autocast is None:
        return _solve(form, field, state, t, args, asked, **more)
    with without_autocast(state):
        solution = _solve(form, field, in_full_precision(state), t, in_full_precision(args), asked, autocast, **more)
        return in_dtype_of(state, solution)


def _solve(
    form: State,
    field: Callable[..., Any],
    state: tuple[Tensor, ...],
    t: Tensor | Sequence[float],
    args: tuple[Tensor, ...],
    asked: Asked,
    autocast: torch.dtype | None = None,
    *,
    is_split: bool,
    watched: Watched | None,
    settings: Settings | None = None,
    repeated: dict[bool, Repeated] | None = None,
    on_field: Field | None = None,
) -> Solution:
    """The same, with the inputs in full precision.

    Or the solve of one piece of it, where the field is `on_field`, and nothing happens in between.
    """
    state = check_state(form, state)
    if settings is None:
        settings = check_settings(form, state, t, asked)
    given, times, independent = settings.given, settings.times, settings.independent
    rtol, atol, dt, step_control = settings.rtol, settings.atol, settings.dt, settings.step_control
    running_cost, events, dense = asked.running_cost, asked.events, asked.dense
    chosen, info, how = settings.engine, settings.solver, settings.sensitivity
    recording = is_recording()
    matrix = check_mass(asked.mass, form, state, settings, asked.lowering, events, running_cost, recording)
    check_halves_solve(info, form, state, running_cost, events, dense)
    split = check_split(is_split, info, state, asked.lowering, events)
    given_state = state
    is_tuple = form.is_tuple or running_cost is not None
    if running_cost is not None:
        state = (*state, state[0].new_zeros(state[0].shape[0]))
    if recording:
        check_unchosen(step_control, rtol, atol)
        function = solved_field(field, running_cost, form, len(args))
        check_recorded(function, state, times, args, is_tuple, dt)
        check_continuous(function, state, times, args, is_tuple, asked.tstops)
        plain = not (independent or events is not None or dense)
        *states, last = record(chosen.name, function, state, times, args, is_tuple, info, dt, plain)
        states, cost = ([*states, last], None) if running_cost is None else (states, last[-1])
        result = tuple(states) if form.is_tuple else states[0]
        return Solution(given, result, cost, Stats(), Retcode.SUCCESS, chosen.name, info.name, _form=form)
    examples, at, values = tuple(map(example, state)), example(times), tuple(map(example, args))
    given_field = on_field
    if given_field is None:
        function = solved_field(field, running_cost, form, len(args))
        given_field = Field(function, examples, at, values, is_tuple, autocast)
    vector_field = given_field
    if matrix is not None:
        state = consistent_state(matrix, vector_field, state, times, args, rtol, atol)
        examples = tuple(map(example, state))
    inputs = (*state, times, *args, *vector_field.parameters)
    active = is_active()
    transformed = active and any(map(is_wrapped, inputs))
    if transformed:
        vector_field = vector_field.replaced(
            {n: example(p) for n, p in zip(vector_field.names, vector_field.parameters, strict=True)}
        )
    check = check_unmixed if independent else check_apart if is_apart(field) else None
    if check is not None and on_field is None:
        with untransformed():
            check(vector_field, examples, at, values)
    if active:
        wanted = tuple(map(differentiated, inputs))
    else:
        tracked = torch.is_grad_enabled()
        wanted = tuple([tracked and x.requires_grad for x in inputs])
    n, m = len(state), len(args)
    wants = {
        "z0": wanted[:n],
        "t": wanted[n : n + 1],
        "args": wanted[n + 1 : n + 1 + m],
        "parameters": wanted[n + 1 + m :],
    }
    if any(wanted):
        check_no_cache(vector_field.facts.cached, zip(vector_field.names, vector_field.parameters, strict=True))
    problem = Problem(
        field=vector_field,
        z0=examples,
        t=at,
        args=values,
        parameters=vector_field.parameters,
        solver=info,
        rtol=rtol.least,
        atol=atol.least,
        dt=dt,
        max_steps=settings.max_steps,
        sensitivity=how if any(wanted) else None,
        wants=wants,
        dense=dense,
        lowering=asked.lowering,
        watched=watched,
        steps=step_choice(step_control, rtol, atol, examples, independent),
        mass=matrix,
        split=split,
        kinks=asked.kinks,
    )
    if dense and transformed:
        raise EngineUnavailable(
            "solve(dense=True) has no interpolant within torch.func's transforms: ask for times instead"
        )
    tstops = asked.tstops
    looked_for = events is not None or not (type(tstops) is tuple and not tstops)
    if on_field is None and state[0].shape[0] and (looked_for or vector_field.facts.switches):
        observed = None if events is None else events.function
        if observed is not None and (transformed or any(map(moves, inputs))):
            raise EngineUnavailable(NO_TRANSFORMS)
        stops = find_stops(check_stops(tstops, state[0]), tstops is not None, problem, inputs, observed, form)
        check_no_stops(matrix, stops)
        if stops or events is not None:
            if independent and any(map(is_mapped, inputs)):
                raise EngineUnavailable(
                    "torch.vmap over independent samples that start afresh at stops or doses is not supported: call "
                    "solve once for each, or use batching='joint'"
                )
            alone = replace(
                asked, rtol=rtol, atol=atol, dt=dt, step_control=step_control, events=None, tstops=(), throw=False
            )

            def piece(
                state: tuple[Tensor, ...],
                t: Tensor,
                args: tuple[Tensor, ...],
                *,
                batching: str,
                max_steps: int,
                on_field: Field,
            ) -> Solution:
                own = replace(alone, batching=batching, max_steps=max_steps)
                return _solve(
                    form, field, state, t, args, own, autocast, is_split=is_split, watched=watched, on_field=on_field
                )

            solution, culprit = solve_course(
                piece,
                chosen,
                replace(problem, field=given_field),
                form,
                given_state,
                times,
                args,
                stops,
                events,
                settings.max_steps,
                settings.max_events,
            )
            reads = None if observed is None else functools.partial(event_reads_time, observed, form, problem)
            check_resolution(problem, settings.numbers, solution.stats, tree_leaves(solution.z), reads)
            if asked.throw and solution.retcode is not Retcode.SUCCESS:
                raise failure(
                    field,
                    form,
                    info.name,
                    chosen.name,
                    solution.retcode,
                    solution._failed_at,
                    solution.stats.per_sample,
                    culprit,
                )
            return at_given_times(solution, given, state)
    latest = None
    if repeated is not None and asked.is_plain and form.is_plain:
        latest = None if active or independent or vector_field.facts.switches or split else vector_field.latest()
    if latest is not None:
        problem.known = {}
    of_inputs = list(map(levels, inputs)) if active else [frozenset()] * len(inputs)
    run = Run(chosen, problem, of_inputs, asked.throw, given=not transformed)
    z: tuple[Tensor, ...] = ()
    try:
        if transformed or any(wanted):
            z = differentiable(run, (*state, times, *inputs[n + 1 :]))
        else:  # a transform under way is none of these tensors', and no business of the engine's
            with untransformed() if active else contextlib.nullcontext():
                z = run.solve(inputs)
    except Failed:
        pass  # the run tells of it
    again_later = dense and any(wanted) and on_field is None and not independent
    again = Again(chosen, problem, of_inputs, (*state, times, *inputs[n + 1 :])) if again_later else None
    numbers = settings.numbers if on_field is None else None
    solution = outcome(run, z, field, form, given, times, numbers, with_cost=running_cost is not None, again=again)
    if problem.known and latest is not None and repeated is not None:
        made = Repeated(latest, problem, chosen, asked.throw, form, field, state, args)
        repeated[made.tracked] = made
    return solution
