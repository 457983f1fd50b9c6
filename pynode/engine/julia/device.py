"""The device that Julia works on: the processor, or a GPU in step with PyTorch's current stream."""

from __future__ import annotations

import functools
import threading
from typing import Any

import torch
from torch import Tensor

from pynode.engine.julia import runtime as julia_runtime
from pynode.engine.julia.memory import in_order
from pynode.engine.protocol import Problem
from pynode.errors import EngineUnavailable, FieldError
from pynode.field._graph import FieldGraph
from pynode.field._trace import as_numbers

__all__ = ["Device", "device_of"]

_MOVE = 'move the field and the state to the CPU, or use engine="torch"'
# Operations that Julia has from libraries in C, with the names that the user knows: Bessel's functions, of AMOS.
_IN_C = {"i0": "torch.i0", **{f"special_{name}": f"torch.special.{name}" for name in ("i0e", "i1", "i1e")}}

# Sensitivities of stiff solvers on a GPU: the others solve for more than the cotangent of the state, with a Jacobian of
# another form.
_OF_STIFF = ("gauss", "quadrature", "forward")


class Device:
    """Where the tensors of a call to Julia lie; the context in which to make the call.

    Args:
        number: PyNODE.jl's number of the device, -1 for the processor.
        stream: of a GPU, the stream on which Julia works.
    """

    def __init__(self, number: int, stream: Any = None) -> None:
        self.number, self.stream = number, stream
        self._before: list[int] = []  # PyTorch's devices at the entries

    @property
    def is_gpu(self) -> bool:
        """Whether Julia works elsewhere than on the processor."""
        return self.number >= 0

    def contiguous(self, dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
        """Tensors as Julia reads them: their numbers in order, of the state's type, on the device."""
        if self.stream is not None:  # numbers may be the processor's even if all else is the GPU's
            tensors = tuple(x.to(self.stream.device) for x in tensors)
        return [in_order(as_numbers(x, dtype)) for x in tensors]

    def check_operations(self, graph: FieldGraph) -> None:
        """Refuse a graph that a GPU cannot compute.

        Raises:
            EngineUnavailable: it has an operation that Julia has on the processor alone.
        """
        if self.stream is not None and (names := {_IN_C[n.op] for n in graph.nodes if n.op in _IN_C}):
            raise EngineUnavailable(
                f"the julia engine computes {', '.join(sorted(names))} on the CPU only, and the state is on "
                f"{self.stream.device}: {_MOVE}"
            )

    def __enter__(self) -> None:
        if self.stream is not None:  # what Julia is to read is written by then
            self._before.append(torch.cuda.current_device())
            self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))

    def __exit__(self, *_: object) -> None:
        if self.stream is not None:  # PyTorch reads what Julia writes, and uses again what Julia has read, afterwards
            torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)
            before = self._before.pop()
            if before != self.number:  # Julia has made its own device the thread's
                torch.cuda.set_device(before)


_PROCESSOR = Device(-1)


def device_of(problem: Problem) -> Device:
    """The device that a problem's state is on.

    Raises:
        EngineUnavailable: Julia does not work on that device, or not on this kind of problem there.
        FieldError: the state is on a GPU, and a parameter or conditioning tensor is elsewhere.
    """
    where = problem.z0[0].device
    if where.type == "cpu":
        return _PROCESSOR
    if where.type != "cuda":
        raise EngineUnavailable(f"the julia engine works on CPU and CUDA tensors, the state is on {where}: {_MOVE}")
    if threading.current_thread() is not threading.main_thread():
        raise EngineUnavailable(
            f"the julia engine solves on a GPU on the main thread only, the state is on {where}: {_MOVE}, or "
            "solve there"
        )
    for what, has in (("mass matrices", problem.mass), ("the parts of a Split", problem.split)):
        if has is not None:
            raise EngineUnavailable(f"the julia engine takes {what} on the CPU only, the state is on {where}: {_MOVE}")
    how = problem.sensitivity
    if problem.solver.stiff and how is not None and how.name not in _OF_STIFF:
        raise EngineUnavailable(
            f"the julia engine has sensitivity={how.name!r} of the stiff solver {problem.solver.name!r} on the CPU "
            f"only, the state is on {where}: {_MOVE}, or pass sensitivity='gauss'"
        )
    for what, tensors in (("parameter", problem.parameters), ("conditioning tensor", problem.args)):
        for x in tensors:
            if x.device != where:
                raise FieldError(
                    f"the state is on {where}, and a {what} of shape {tuple(x.shape)} on {x.device}: move "
                    "the field, z0 and args to the same device"
                )
    return _gpu(where.index or 0)


@functools.cache
def _gpu(index: int) -> Device:
    number = julia_runtime.open_cuda(index)
    # Backward would run on a thread of autograd's own, and Julia runs on the main thread.
    torch.autograd.set_multithreading_enabled(False)
    return Device(index, torch.cuda.ExternalStream(number, device=index))
