"""The search for an event in Julia: the event function becomes a graph like a field's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pynode.engine.julia.call import Floats, addresses, integers
from pynode.engine.julia.device import Device
from pynode.engine.julia.lowering import lower
from pynode.engine.julia.session import Session
from pynode.engine.protocol import Crossing, EventSearch, Problem
from pynode.errors import FieldError, TraceError
from pynode.field import Field
from pynode.field._derived import derived_field

__all__ = ["find_event"]


def find_event(session: Session, problem: Problem, search: EventSearch, device: Device) -> Crossing:
    """The first change of sign, found by steps that never call back into Python.

    Raises:
        TraceError: the field or the event function cannot be turned into a graph.
        InputError: a value of the event function is NaN.
    """
    state, n = problem.z0[0], len(search.signs)
    z0 = [z.contiguous() for z in problem.z0]
    t, batch = problem.t.cpu().contiguous(), state.shape[0]
    watched = (*z0[: search.n_states], state.new_zeros(batch, n))
    plain = replace(problem, sensitivity=None)
    try:
        event = Field(derived_field(_rates, search.owner, search.form), watched, problem.t, problem.args, True)
        of_event = lower(session, replace(plain, field=event, z0=watched, parameters=event.parameters), device)
    except (FieldError, TraceError) as error:
        raise type(error)(f"event: {error}") from error
    lowered = lower(session, plain, device)
    julia = session.start()
    signs = torch.tensor(search.signs, dtype=torch.float64)
    how, solver = problem.sensitivity, problem.solver
    split = how is not None and how.name != "discrete"  # the solve that follows runs in the same workspace
    assert solver.julia is not None
    values = [device.number, lowered.kernel, of_event.kernel, n, signs.data_ptr()]
    values += [session.number("solver", solver.julia), batch, len(t), 0, int(split)]
    values += [int(solver.adaptive), problem.max_steps, 0, t.data_ptr(), len(z0)]
    for z in z0:
        values += (z.numel(), z.data_ptr(), 0)
    data, address, length = integers(values + addresses(lowered.values) + addresses(of_event.values))
    floats = Floats(problem.rtol, problem.atol, problem.dt or 0.0)
    with lowered, of_event:
        julia.find_event(address, length, floats.address)
    del data
    nfe, found, index = floats.values[:3]
    if index == -2:
        raise search.not_a_number(found)
    return Crossing(found if index > 0 else None, int(index) - 1 if index > 0 else -1, int(nfe), failed=index == -1)


def _rates(event: Any, form: Any, owner: Any, t: Tensor, z: tuple[Tensor, ...], *args: Tensor) -> Any:
    """The values as the rates of the last state tensor, one row for each sample; all without a gradient."""
    values = event(t, form.state(z[:-1]), *form.args(args))
    return (*(torch.zeros_like(x) for x in z[:-1]), values.detach().reshape(-1).expand_as(z[-1]))
