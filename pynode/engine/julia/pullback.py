"""Cotangents of a solve that Julia keeps, pulled back to its inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pynode.engine.julia import runtime as julia_runtime
from pynode.engine.julia.call import Floats, Layout, address_of
from pynode.engine.julia.memory import in_order
from pynode.engine.julia.session import Kept, Session
from pynode.engine.protocol import Gradients, Problem, Stats

__all__ = ["Pullback", "PullbackCall"]


class PullbackCall:
    """What Julia is asked for by the pullback of a solve, the same for problems that differ in their numbers alone.

    Args:
        session: the Julia that runs.
        problem: one of them.
        device: Julia's number of the device.
    """

    def __init__(self, session: Session, problem: Problem, device: int) -> None:
        sensitivity = problem.sensitivity
        assert sensitivity is not None
        options = sensitivity.options
        self.floats = float(options.get("rtol", 0.0)), float(options.get("atol", 0.0))  # type: ignore[arg-type]
        self.wanted = problem.wanted
        values: list[int | None] = [device, session.number("sensitivity", sensitivity.name)]
        values += [int(options.get("checkpointing", -1)), None, len(problem.z0)]  # type: ignore[call-overload]
        for z in problem.z0:
            values += (z.numel(), None, None)
        rest = (*problem.args, *problem.parameters)
        values.append(len(rest))
        for x in rest:
            values += (x.numel(), None)
        self.layout = Layout(values)


class Pullback:
    """Pulls cotangents of the solution back through a kept solve.

    Args:
        kept: the solve.
        problem: what was solved.
        stats: where the evaluations are counted.
        call: what Julia is asked for.
    """

    def __init__(self, kept: Kept, problem: Problem, stats: Stats, call: PullbackCall) -> None:
        self.kept, self.problem, self.stats, self.call = kept, problem, stats, call

    @julia_runtime.alone
    def __call__(self, cotangents: Sequence[Tensor | None]) -> Gradients:
        """The gradients for cotangents of the states."""
        problem, call, kept = self.problem, self.call, self.kept
        julia = kept.session.start()
        n, inputs, dtype = len(problem.z0), problem.inputs, problem.z0[0].dtype
        rooms = [_room(x, dtype) if wanted else None for x, wanted in zip(inputs, call.wanted, strict=True)]
        if call.wanted[n]:
            rooms[n] = torch.empty(problem.t.shape, dtype=problem.t.dtype, device="cpu")
        given = [None if g is None else in_order(g) for g in cotangents]
        addresses = [address_of(rooms[n])]
        for g, room in zip(given, rooms[:n], strict=True):
            addresses += (address_of(g), address_of(room))
        addresses += map(address_of, rooms[n + 1 :])
        data, address, length = call.layout.at(addresses)
        floats = Floats(*call.floats)
        with kept.lowered:
            julia.pullback(kept.number, address, length, floats.address)
        del data
        self.stats.nfe_backward = int(floats.values[0])
        return Gradients.of(problem, [_taken(x, room) for x, room in zip(inputs, rooms, strict=True)])


def _room(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Memory for a cotangent in Julia's numbers, which are all of one type."""
    if x.dtype == dtype and x.is_contiguous():
        return torch.empty_like(x)
    return torch.empty(x.shape, dtype=dtype, device=x.device)


def _taken(x: Tensor, room: Tensor | None) -> Tensor | None:
    """The cotangent in the type of its tensor, and where that is."""
    if room is None or (room.dtype == x.dtype and room.device == x.device):
        return room
    return room.to(x)
