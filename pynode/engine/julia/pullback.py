"""Cotangents of a solve that Julia keeps, pulled back to its inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pynode.engine.julia import runtime as julia_runtime
from pynode.engine.julia.call import Floats, integers
from pynode.engine.julia.memory import in_order
from pynode.engine.julia.session import Kept
from pynode.engine.protocol import Gradients, Problem, Stats

__all__ = ["Pullback", "address_of"]


class Pullback:
    """Pulls cotangents of the solution back through a kept solve.

    Args:
        kept: the solve.
        problem: what was solved.
        stats: where the evaluations are counted.
    """

    def __init__(self, kept: Kept, problem: Problem, stats: Stats) -> None:
        self.kept, self.problem, self.stats = kept, problem, stats

    @julia_runtime.alone
    def __call__(self, cotangents: Sequence[Tensor | None]) -> Gradients:
        """The gradients for cotangents of the states."""
        problem, session = self.problem, self.kept.session
        julia = session.start()
        given = [None if g is None else in_order(g) for g in cotangents]
        dtype = problem.z0[0].dtype
        z0 = [_room(x, wanted, dtype) for x, wanted in zip(problem.z0, problem.wants["z0"], strict=True)]
        args = [_room(x, wanted, dtype) for x, wanted in zip(problem.args, problem.wants["args"], strict=True)]
        parameters = [_room(x, w, dtype) for x, w in zip(problem.parameters, problem.wants["parameters"], strict=True)]
        t = _room(problem.t.cpu(), problem.wants["t"][0], problem.t.dtype)
        sensitivity = problem.sensitivity
        assert sensitivity is not None
        options = sensitivity.options
        checkpointing = options.get("checkpointing", -1)
        values = [self.kept.lowered.device.number, session.number("sensitivity", sensitivity.name)]
        values += [int(checkpointing), address_of(t), len(z0)]  # type: ignore[call-overload]
        for x, g, room in zip(problem.z0, given, z0, strict=True):
            values += (x.numel(), address_of(g), address_of(room))
        values.append(len(args) + len(parameters))
        for x, room in zip((*problem.args, *problem.parameters), (*args, *parameters), strict=True):
            values += (x.numel(), address_of(room))
        data, address, length = integers(values)
        floats = Floats(float(options.get("rtol", 0.0)), float(options.get("atol", 0.0)))  # type: ignore[arg-type]
        with self.kept.lowered:
            julia.pullback(self.kept.number, address, length, floats.address)
        del data
        self.stats.nfe_backward = int(floats.values[0])
        return Gradients(
            z0,
            None if t is None else t.to(problem.t.device),
            [_taken(x, room) for x, room in zip(problem.args, args, strict=True)],
            [_taken(x, room) for x, room in zip(problem.parameters, parameters, strict=True)],
        )


def _room(x: Tensor, wanted: bool, dtype: torch.dtype) -> Tensor | None:
    """Memory for a cotangent in Julia's numbers, which are all of one type."""
    if not wanted:
        return None
    if x.dtype == dtype and x.is_contiguous():
        return torch.empty_like(x)
    return torch.empty(x.shape, dtype=dtype, device=x.device)


def _taken(x: Tensor, room: Tensor | None) -> Tensor | None:
    """The cotangent in the type of its tensor."""
    if room is None:
        return None
    return room if x.dtype == room.dtype else room.to(x.dtype)


def address_of(x: Tensor | None) -> int:
    """Where a tensor lies; 0 for none."""
    return 0 if x is None else x.data_ptr()
