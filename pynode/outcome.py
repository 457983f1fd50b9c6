"""What comes of a run: the solution, or the error that says why there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from pynode.derivatives import Again, Run
from pynode.engine.protocol import Retcode
from pynode.problem.failure import failure
from pynode.problem.independent import at_last_times
from pynode.problem.resolution import check_resolution
from pynode.problem.state import State
from pynode.solution import Solution, dtype_of_found_times, times_of

__all__ = ["outcome"]


def outcome(
    run: Run,
    z: tuple[Tensor, ...],
    field: Callable[..., Any],
    form: State,
    given: Tensor,
    times: Tensor,
    numbers: Sequence[Any] | None,
    *,
    with_cost: bool = False,
    again: Again | None = None,
) -> Solution:
    """The solution that a run has found.

    Args:
        run: the run, which has solved.
        z: the states, where it did not fail.
        field: the user's field.
        form: the form of the user's state.
        given: the times, in their own dtype.
        times: the times that were solved for.
        numbers: what these are, in the solve of a whole; `None` in that of a piece.
        with_cost: whether the last of the states is the running cost.
        again: what solves for a dense solution's derivatives between times, unless this one has failed.

    Raises:
        SolveError: it has failed, and that is to raise.
        InputError: the dtype of the time does not tell its steps apart.
    """
    done, problem = run.integration, run.problem
    if numbers is not None:
        check_resolution(problem, numbers, done.stats, z, None)
    engine, solver = run.engine.name, problem.solver.name
    failed_at = None
    if done.retcode is not Retcode.SUCCESS:
        assert done.z_end is not None
        each = done.stats.per_sample
        z_end = done.z_end[:-1] if with_cost else done.z_end
        t_end = times.new_tensor(done.t_end) if each is None else each.t_end.to(times)
        failed_at = t_end.detach().to(dtype_of_found_times(given, problem.z0)), z_end
        if run.throw:
            raise failure(field, form, solver, engine, done.retcode, failed_at, each)
    cost = None
    if with_cost:
        z, cost = z[:-1], z[-1][-1] if times.dim() == 1 else at_last_times(z[-1], times)
    return Solution(
        **times_of(given),
        z=z if form.is_tuple else z[0],
        running_cost=cost,
        stats=done.stats,
        retcode=done.retcode,
        engine=engine,
        solver=solver,
        _interpolant=done.interpolant,
        _failed_at=failed_at,
        _form=form,
        _again=None if failed_at else again,
    )
