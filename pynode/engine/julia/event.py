"""The search for an event in Julia: the event function becomes a graph like a field's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pynode.engine.each import find_each, sample_of
from pynode.engine.julia.call import addresses, integers
from pynode.engine.julia.device import Device
from pynode.engine.julia.lowering import lower, traced
from pynode.engine.julia.memory import in_order
from pynode.engine.julia.rows import own_and_shared
from pynode.engine.julia.session import Session
from pynode.engine.protocol import Crossing, EventSearch, Problem
from pynode.errors import FieldError, TraceError
from pynode.field import Field
from pynode.field._derived import derived_field

__all__ = ["find_event", "find_event_each"]


def find_event(session: Session, problem: Problem, search: EventSearch, device: Device) -> Crossing:
    """The first change of sign, found by steps that never call back into Python.

    Raises:
        TraceError: the field or the event function cannot be turned into a graph.
        InputError: a value of the event function is NaN.
    """
    state, n = problem.z0[0], len(search.signs)
    z0 = [in_order(z) for z in problem.z0]
    t, batch = in_order(problem.t.cpu()), state.shape[0]
    plain = replace(problem, sensitivity=None)
    with _told_of_event():
        of_event = lower(session, _watched(plain, search), device)
    lowered = lower(session, plain, device)
    julia = session.start()
    signs, directions = (torch.tensor(x, dtype=torch.float64, device="cpu") for x in (search.signs, search.directions))
    how, solver = problem.sensitivity, problem.solver
    split = how is not None and how.name != "discrete"  # the solve that follows runs in the same workspace
    assert solver.julia is not None
    values = [device.number, lowered.kernel, of_event.kernel, n, signs.data_ptr(), directions.data_ptr()]
    values += [session.number("solver", solver.julia), batch, len(t), 0, int(split)]
    values += [int(solver.adaptive), problem.max_steps, 0, 0, t.data_ptr(), len(z0)]
    for z in z0:
        values += (z.numel(), z.data_ptr(), 0)
    data, address, length = integers(values + addresses(lowered.values) + addresses(of_event.values))
    floats = session.floats_of(problem)
    with lowered, of_event:
        julia.find_event(address, length, floats.address)
    del data
    nfe, found, index = floats.values[:3]
    if index == -2:
        raise search.not_a_number(found)
    return Crossing(found if index > 0 else None, int(index) - 1 if index > 0 else -1, int(nfe), failed=index == -1)


def find_event_each(
    session: Session, problem: Problem, search: EventSearch, signs: Sequence[tuple[float, ...]], device: Device
) -> Sequence[Crossing]:
    """The first event of each sample, all in one call; on a GPU, and where Python evaluates the field, one by one.

    Raises:
        TraceError: the field or the event function cannot be turned into a graph.
        InputError: a value of the event function is NaN.
    """
    plain = replace(problem, sensitivity=None)
    first, batch = sample_of(plain, 0), len(problem.t)
    lowered = None if device.is_gpu else traced(session, first, device)
    of_event = None
    if lowered is not None:
        with _told_of_event():
            of_event = traced(session, _watched(first, search), device)
    if lowered is None or of_event is None:
        return find_each(lambda one, look: find_event(session, one, look, device), plain, search, signs)
    julia = session.start()
    z0 = [in_order(z) for z in problem.z0]
    t = in_order(problem.t)
    counts = (~t.isnan()).sum(1)
    known, directions = (torch.tensor(x, dtype=torch.float64, device="cpu") for x in (signs, search.directions))
    results = torch.zeros(batch, 3, dtype=torch.float64, device="cpu")
    solver = problem.solver
    assert solver.julia is not None
    values = [lowered.kernel, of_event.kernel, len(search.directions), known.data_ptr(), directions.data_ptr()]
    values += [session.number("solver", solver.julia), batch, t.shape[1], int(solver.adaptive), problem.max_steps]
    values += [t.data_ptr(), counts.data_ptr(), results.data_ptr(), len(z0)]
    for z in z0:
        values += (z.numel() // batch, z.data_ptr())
    read = [own_and_shared(problem, x.read) for x in (lowered, of_event)]
    for tensors in read:
        values += tensors.layout
    data, address, length = integers(values)
    floats = session.floats_of(problem)
    julia.find_event_each(address, length, floats.address)
    del data, read
    found = []
    for nfe, at, index in results.tolist():
        if index == -2:
            raise search.not_a_number(at)
        met = index > 0
        found.append(Crossing(at if met else None, int(index) - 1 if met else -1, int(nfe), failed=index == -1))
    return found


@contextlib.contextmanager
def _told_of_event() -> Iterator[None]:
    """What is refused within is the event function."""
    try:
        yield
    except (FieldError, TraceError) as error:
        raise type(error)(f"event: {error}") from error


def _watched(problem: Problem, search: EventSearch) -> Problem:
    """The problem whose field is the event function."""
    state = problem.z0[0]
    z0 = (*problem.z0[: search.n_states], state.new_zeros(state.shape[0], len(search.directions)))
    field = Field(derived_field(_rates, search.owner, search.form), z0, problem.t, problem.args, True)
    return replace(problem, field=field, z0=z0, parameters=field.parameters)


def _rates(event: Any, form: Any, owner: Any, t: Tensor, z: tuple[Tensor, ...], *args: Tensor) -> Any:
    """The values as the rates of the last state tensor, one row for each sample; all without a gradient."""
    values = event(t, form.state(z[:-1]), *form.args(args))
    return (*(torch.zeros_like(x) for x in z[:-1]), values.detach().reshape(-1).expand_as(z[-1]))
