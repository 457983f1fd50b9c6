"""Training steps in Julia, many in one call; see `julia/src/bridge/training.jl`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pynode.engine.julia.call import RETCODES, Floats, address_of, addresses, integers
from pynode.engine.julia.device import device_of
from pynode.engine.julia.lowering import Traced
from pynode.engine.julia.memory import in_order
from pynode.engine.julia.session import Session
from pynode.engine.protocol import Problem, Retcode

__all__ = ["Trained", "Update", "train"]


@dataclass
class Update:
    """How one tensor is trained; its numbers and what the optimiser remembers of it are changed in place.

    Attributes:
        x: the tensor, contiguous, of the state's dtype, on the CPU.
        adam: whether by Adam, else by gradient descent with momentum.
        numbers: seven floats, as `julia/src/bridge/training.jl` has them.
        first, second: the optimiser's moments; `None` where it has none.
        count: `(1,)`, int64, how often it has been updated.
    """

    x: Tensor
    adam: bool
    numbers: Tensor
    first: Tensor | None
    second: Tensor | None
    count: Tensor


@dataclass
class Trained:
    """How training went; it changes while Julia works, and holds after an interrupt too.

    Attributes:
        losses: `(steps,)`, before each step; those of steps that were not done mean nothing.
        floats: of the call.
    """

    losses: Tensor
    floats: Floats

    @property
    def nfe(self) -> int:
        """Evaluations of the field in all forward solves."""
        return int(self.floats.values[0])

    @property
    def nfe_backward(self) -> int:
        """Evaluations of its products in all backward ones."""
        return int(self.floats.values[1])

    @property
    def done(self) -> int:
        """Steps that were done."""
        return int(self.floats.values[2])

    @property
    def finite(self) -> bool:
        """Whether what the field and the loss read was finite, and the last loss."""
        return self.floats.values[3] >= 0

    @property
    def retcode(self) -> Retcode:
        """How the last solve ended."""
        return RETCODES[max(int(self.floats.values[3]), 0)]

    @property
    def reached(self) -> float:
        """The time that the last solve reached."""
        return self.floats.values[4]


def train(
    session: Session,
    problem: Problem,
    loss: Problem,
    inputs: Sequence[Tensor],
    updates: Sequence[Update],
    trained: Trained,
    memory: int,
) -> None:
    """Do training steps, as many as `trained` has room for the losses of.

    Args:
        session: the Julia that runs.
        problem: the solve, of one state tensor.
        loss: the field whose state is the solution at all times and the loss, which is its only rate.
        inputs: the state and the conditioning tensors themselves, of which `problem` has detached ones.
        updates: the tensors to be trained, all of which the solve or the loss reads.
        trained: what becomes of it.
        memory: the bytes that the steps kept of a solve may take.

    Raises:
        TraceError: the field or the loss cannot be turned into a graph.
    """
    device = device_of(problem)
    lowered, of_loss = Traced.of(session, problem, device), Traced.of(session, loss, device)
    julia = session.start()
    solver = problem.solver
    assert solver.julia is not None
    t, z0 = in_order(problem.t), in_order(problem.z0[0])
    values = [lowered.kernel, session.number("solver", solver.julia), z0.shape[0], len(t), int(solver.adaptive)]
    values += [problem.max_steps, memory, t.data_ptr(), of_loss.kernel]
    values += [len(trained.losses), trained.losses.data_ptr(), z0.numel(), z0.data_ptr()]
    values += addresses(lowered.values) + addresses(of_loss.values) + [len(updates)]
    parts = _parts(inputs[:1], (*inputs[1:], *problem.parameters), loss.parameters)
    optional = {
        id(x) for n, x in zip(problem.field.names, problem.parameters, strict=True) if n in problem.field.optional
    }
    for u in updates:
        values += [int(u.adam), u.x.numel(), u.x.data_ptr(), address_of(u.first), address_of(u.second)]
        found = parts[id(u.x)]
        values += [u.count.data_ptr(), u.numbers.data_ptr(), int(id(u.x) in optional), len(found) // 2, *found]
    data, address, length = integers(values)
    julia.train(address, length, trained.floats.address)
    del data


def _parts(*groups: Sequence[Tensor]) -> dict[int, list[int]]:
    """For each tensor the groups that it is in, counted from 1, and behind how many numbers of each."""
    found: dict[int, list[int]] = {}
    for k, tensors in enumerate(groups, 1):
        offset = 0
        for x in tensors:
            found.setdefault(id(x), []).extend((k, offset))
            offset += x.numel()
    return found
