"""The parts of a split field, each as a kernel of its own."""

from __future__ import annotations

from pynode.engine.julia import runtime
from pynode.engine.julia.call import addresses, integers
from pynode.engine.julia.device import Device
from pynode.engine.julia.session import Session, earlier_version
from pynode.engine.protocol import Problem
from pynode.field._part import PartField
from pynode.field._trace import trace_field
from pynode.nn._split import PARTS

__all__ = ["give_split"]


def give_split(session: Session, problem: Problem, device: Device) -> float:
    """Tell Julia of the parts of the next solve's field; 1 if they are taken apart, else 0.

    Raises:
        TraceError: a part cannot be turned into a graph.
        EngineUnavailable: Julia's PyNODE is of a version without them.
    """
    if problem.split is None:
        return 0.0
    session.start()
    if not hasattr(runtime.module(), "set_split"):
        raise earlier_version("Split")
    dtype, held = problem.z0[0].dtype, []
    values = [problem.z0[0].shape[0]]
    for part in PARTS:
        field = PartField(problem.field, part, problem.split)
        trace = trace_field(field, problem.z0, problem.t, problem.args)
        tensors = device.contiguous(dtype, *problem.args, *trace.bound(field))
        held.append(tensors)
        values += [session.kernel(trace, dtype), *addresses(tensors)]
    data, address, length = integers(values)
    runtime.module().set_split(address, length)
    del data, held
    return 1.0
