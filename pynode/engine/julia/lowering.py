"""How a problem's field comes to Julia: as a kernel made of its graph, or as calls of Python."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence

from torch import Tensor

from pynode.engine.julia.callback import PythonField
from pynode.engine.julia.device import Device
from pynode.engine.julia.halves import check_called, check_halves
from pynode.engine.julia.session import Lowered, Session
from pynode.engine.julia.tangent import link_tangent
from pynode.engine.protocol import Problem
from pynode.errors import PyNODEWarning, TraceError
from pynode.field._trace import trace_field

__all__ = ["Kernel", "Traced", "lower", "traced"]


class Kernel:
    """A field that Julia has as a kernel, the same for several problems; see `Lowered`.

    Args:
        device: where the tensors lie.
        kernel: Julia's number of the field.
        read: the tensors that the field reads.
    """

    def __init__(self, device: Device, kernel: int, read: Sequence[Tensor]) -> None:
        self.device, self.kernel, self.read = device, kernel, read
        self.called: object = None

    def keep(self) -> None:
        """Julia has copied all that it reads."""

    def __enter__(self) -> None:
        self.device.__enter__()

    def __exit__(self, *_: object) -> None:
        self.device.__exit__()


class Traced(Kernel):
    """The field of one problem, that Julia has as a kernel; see `Lowered`.

    Args:
        problem: the problem.
        device: where its tensors lie.
        kernel: Julia's number of the field.
        read: the tensors that the field reads.
    """

    def __init__(self, problem: Problem, device: Device, kernel: int, read: Sequence[Tensor]) -> None:
        super().__init__(device, kernel, read)
        self.problem = problem
        self.values: Sequence[Tensor] = device.contiguous(problem.z0[0].dtype, *problem.args, *read)

    @classmethod
    def of(cls, session: Session, problem: Problem, device: Device) -> Traced:
        """The field of a problem.

        Raises:
            TraceError: the field cannot be turned into a graph.
        """
        trace = trace_field(problem.field, problem.z0, problem.t, problem.args)
        check_halves(trace.graph, problem.solver)
        device.check_operations(trace.graph)
        kernel = session.kernel(trace, problem.z0[0].dtype)
        if problem.solver.matrix_free:
            session.start()  # refuses a process that was forked, to which the kernel may be known
            link_tangent(session, problem, trace, kernel)
        return cls(problem, device, kernel, trace.bound(problem.field))


def traced(session: Session, problem: Problem, device: Device) -> Traced | None:
    """The field as a kernel; `None` where Julia is to call Python.

    Raises:
        TraceError: the field cannot be turned into a graph, and nothing else is to be done.
    """
    if problem.lowering == "callback":
        check_called(problem.solver)
        return None
    try:
        return Traced.of(session, problem, device)
    except TraceError as error:
        if problem.lowering == "auto":
            check_called(problem.solver)
            _tell(str(error))
            return None
        raise TraceError(
            f"{error}. Or pass lowering='callback', and Julia calls the field at each evaluation, or lowering='auto'"
        ) from error


def lower(session: Session, problem: Problem, device: Device) -> Lowered:
    """The field of a problem, as its `lowering` says."""
    found: Lowered | None = traced(session, problem, device)
    return PythonField(session, problem, device) if found is None else found


@functools.lru_cache(maxsize=256)
def _tell(why: str) -> None:
    """Say that Julia calls Python, once for each reason."""
    warnings.warn(
        f"lowering='auto': Julia calls the field at each evaluation, since it cannot be traced: {why}",
        PyNODEWarning,
        stacklevel=2,
    )
