"""Products of a field's Jacobian with a vector, for the julia engine's solvers that make no Jacobian."""

from __future__ import annotations

import operator

from pynode.engine.julia import runtime
from pynode.engine.julia.session import Session
from pynode.engine.protocol import Problem
from pynode.errors import TraceError
from pynode.field._tangents import TangentField
from pynode.field._trace import Trace, trace_field

__all__ = ["link_tangent"]


def link_tangent(session: Session, problem: Problem, trace: Trace, kernel: int) -> None:
    """Let Julia know the kernel of the field with its derivative in one direction.

    Where there is none, since the field has operations without a second derivative or is a `JuliaField`, the solver
    takes differences.
    """
    z0, batch = problem.z0, problem.z0[0].shape[0]
    if (kernel, batch) in session.tangents:
        return
    session.tangents[kernel, batch] = False
    if problem.field.facts.runs_on is not None:
        return
    nothing = [None] * len(problem.args), [None] * len(problem.parameters)
    field = TangentField(problem.field, len(z0), 1, *nothing)
    states = (*z0, *(z.unsqueeze(1) for z in z0))
    try:
        found = trace_field(field, states, problem.t, problem.args)
    except (TraceError, RuntimeError):
        return
    if _reads(found) == _reads(trace) and all(map(operator.is_, found.constants, trace.constants)):
        runtime.module().link_tangent(kernel, batch, session.kernel(found, z0[0].dtype))
        session.tangents[kernel, batch] = True


def _reads(trace: Trace) -> list[object]:
    """What a graph reads besides time, state and cotangents."""
    return [i for i in trace.graph.inputs if i.kind not in ("t", "z", "cotangent")]
