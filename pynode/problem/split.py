"""What a solve by an implicit-explicit method asks for."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pynode.engine.solvers import SolverInfo
from pynode.errors import InputError
from pynode.problem.event import Events

__all__ = ["check_split"]


def check_split(
    is_split: bool, solver: SolverInfo, state: Sequence[Tensor], lowering: str, events: Events | None
) -> int | None:
    """Of how many state tensors a `Split` has the rates; `None` where its sum is solved, or where there is none.

    Args:
        is_split: whether the field is a `Split`.
        solver: the solver.
        state: the tensors that are solved, without that of a running cost.
        lowering: how the engine is to have the field.
        events: what is to happen in the course of the solve.

    Raises:
        InputError: something cannot be had where the parts are taken apart.
    """
    if not is_split or not solver.splits:
        return None
    if lowering != "trace":
        raise InputError(
            f"the solver {solver.name!r} takes the parts of a Split apart, by their graphs: expected lowering='trace', "
            f"got {lowering!r}. Another stiff solver, e.g. 'fbdf', solves the sum"
        )
    if events is not None and events.watched:
        raise InputError(
            f"the solver {solver.name!r}, which takes the parts of a Split apart, finds no events (pynode.At is "
            "possible): use another stiff solver, e.g. 'rodas5p', which solves the sum"
        )
    return len(state)
