"""What a solve is asked for beside its field and its state: all that need not be looked at again at the next call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pynode.engine.choose import choose, named_engine
from pynode.engine.protocol import Engine
from pynode.engine.solvers import SolverInfo
from pynode.errors import InputError
from pynode.field._outside import is_recording
from pynode.problem.asked import Asked
from pynode.problem.independent import check_batching, check_has_batch, per_sample_times
from pynode.problem.inputs import check_count, check_lowering, check_number, check_times
from pynode.problem.state import State
from pynode.problem.tolerances import Tolerance, check_step_control, check_tolerance
from pynode.sensitivity import Sensitivity
from pynode.step_control import StepControl

__all__ = ["Settings", "check_settings"]


@dataclass(eq=False)
class Settings:
    """What a solve is asked for, checked.

    Attributes:
        given: the times, in their own dtype.
        numbers: what they are.
        times: the times that are solved for, in double.
        independent: whether each sample has steps of its own.
        rtol: relative tolerance.
        atol: absolute tolerance.
        dt: the step, or the first one; `None` where the solver finds it.
        step_control: how steps are chosen.
        max_steps: bound on their number.
        max_events: bound on the number of events.
        engine: what solves.
        solver: by which solver.
        sensitivity: how gradients are computed.
    """

    given: Tensor
    numbers: list[Any]
    times: Tensor
    independent: bool
    rtol: Tolerance
    atol: Tolerance
    dt: float | None
    step_control: StepControl | None
    max_steps: int
    max_events: int
    engine: Engine
    solver: SolverInfo
    sensitivity: Sensitivity


def check_settings(form: State, state: Sequence[Tensor], t: Tensor | Sequence[float], asked: Asked) -> Settings:
    """Check what `solve` is asked for, of tensors `state` that are solved.

    Raises:
        InputError: something is not usable.
        EngineUnavailable: the engine is not there, or lacks what is asked for.
    """
    given, numbers = check_times(t, state[0])
    times = given.double()
    independent = asked.batching != "joint" or times.dim() == 2
    if independent:
        check_batching(asked.batching)
        check_has_batch(times, state, form.is_single)
        times = per_sample_times(times, state[0])
    rtol, atol = check_tolerance("rtol", asked.rtol, form, state), check_tolerance("atol", asked.atol, form, state)
    dt = None if asked.dt is None else check_number("dt", asked.dt)
    max_steps = check_count("max_steps", asked.max_steps, "10_000")
    max_events = check_count("max_events", asked.max_events)
    check_lowering(asked.lowering)
    on_torch = is_recording() and named_engine(asked.engine) == "auto"
    engine, solver, sensitivity = choose("torch" if on_torch else asked.engine, asked.solver, asked.sensitivity)
    step_control = check_step_control(asked.step_control, solver)
    if dt is None and not solver.adaptive:
        raise InputError(
            f"the fixed-step solver {solver.name!r} needs its step: pass dt=…, or use an adaptive solver, e.g. 'auto'"
        )
    return Settings(
        given=given,
        numbers=numbers,
        times=times,
        independent=independent,
        rtol=rtol,
        atol=atol,
        dt=dt,
        step_control=step_control,
        max_steps=max_steps,
        max_events=max_events,
        engine=engine,
        solver=solver,
        sensitivity=sensitivity,
    )
