"""What a solver of a state of two halves, such as positions and momenta, asks of a solve."""

from __future__ import annotations

from torch import Tensor

from pynode.engine.solvers import SolverInfo
from pynode.errors import InputError
from pynode.problem.event import Events
from pynode.problem.state import State

__all__ = ["check_halves_solve"]


def check_halves_solve(
    solver: SolverInfo, form: State, state: tuple[Tensor, ...], cost: object, events: Events | None, dense: bool
) -> None:
    """Refuse what symplectic and Nyström solvers have not; nothing of other solvers.

    Raises:
        InputError: the state is not a pair of one shape; or the solve is to find events, or to be interpolated, or to
            integrate a running cost.
    """
    if not solver.of_pairs:
        return
    what = f"the {'symplectic' if solver.separable else 'Nyström'} solver {solver.name!r}"
    if len(form.complex) != 2 or state[0].shape != state[1].shape:
        got = ", ".join(f"{name} of shape {tuple(z.shape)}" for name, z in zip(form.names, state, strict=True))
        if solver.separable:
            does, names, rates = "moves positions and momenta in turn", "(q, p)", "(dq/dt, dp/dt)"
        else:
            does, names, rates = "takes equations of the second order", "(q, v)", "(v, dv/dt)"
        raise InputError(
            f"{what} {does}: z0 must be a pair {names} of tensors of one shape, and the field return {rates}; got {got}"
        )
    if cost is not None:
        raise InputError(f"{what} has no running_cost: integrate it from the states, or use e.g. 'vern9'")
    if events is not None and events.watched:
        raise InputError(f"{what} finds no events (pynode.At is possible): use another solver, e.g. 'vern9'")
    if dense:
        raise InputError(f"{what} has no interpolant: leave dense out and ask for the times, or use e.g. 'vern9'")
