"""Multiple shooting: a long trajectory fitted in short pieces that have to meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from pynode.errors import InputError
from pynode.problem.inputs import check_times
from pynode.solve import solve

__all__ = ["multiple_shooting_loss"]

_NOT_HERE = ("running_cost", "save", "dense")  # what the loss has no use for
Loss = Callable[[Tensor, Tensor], Tensor]


def multiple_shooting_loss(
    field: Callable[..., Any],
    data: Tensor,
    t: Tensor | Sequence[float],
    group_size: int,
    *,
    loss: Loss | None = None,
    continuity_loss: Loss | None = None,
    continuity_term: float = 100.0,
    args: Sequence[Tensor] = (),
    **solver_keywords: Any,
) -> Tensor:
    """The loss of direct multiple shooting, as DiffEqFlux's `multiple_shoot` defines it.

    The times are cut into groups that share their end points. From the data at its first time each group is solved by
    itself; beside the loss of each, the end of a solution is held to the data at which the next one starts.
    Solved by `pynode.solve`, on any engine, for fields and losses in torch; differentiable in the field's parameters,
    `args`, `data` and `t`.

    Args:
        field: `f(t, z, *args)`, as `pynode.solve` takes it, or a `pynode.JuliaField`.
        data: `(time, batch, *features)`.
        t: `(time,)`, strictly monotone.
        group_size: number of times in a group, both ends counted, at least 2; the last group may be shorter.
        loss: `loss(data, solution)` of a group, a scalar; both `(group, batch, *features)`. The sum of squares
            where `None`.
        continuity_loss: `continuity_loss(end, start)`, a scalar, of the state at which a group ends and of the data at
            which the next one starts, `(batch, *features)`. The sum of absolute differences where `None`.
        continuity_term: the weight of the continuity loss.
        args: tensors that condition the field.
        solver_keywords: as `pynode.solve` takes: `solver`, `rtol`, `atol`, `engine`, …, but for `running_cost`, `save`
            and `dense`; an `event` may change the state, and must not end a solve.

    Returns:
        The loss, a scalar.

    Raises:
        InputError: an argument is not usable.
        SolveError: a group could not be solved; with `throw=False` the loss is NaN then.

    Source:
        H. G. Bock and K. J. Plitt, "A Multiple Shooting Algorithm for Direct Solution of Optimal Control Problems",
        IFAC 1984; E. M. Turan and J. Jäschke, "Multiple Shooting for Training Neural Differential Equations on
        Time Series", 2021.
    """
    if not isinstance(data, Tensor) or data.dim() < 2:
        got = f"shape {tuple(data.shape)}" if isinstance(data, Tensor) else type(data).__name__
        raise InputError(f"data must be a tensor (time, batch, *features), got {got}")
    times, _ = check_times(t, data)
    if len(times) != len(data):
        raise InputError(f"t must have one entry for each of the {len(data)} times of data, got {len(times)}")
    if not isinstance(group_size, int) or not 2 <= group_size <= len(data):
        raise InputError(f"group_size must be an int from 2 to the number of times, {len(data)}, got {group_size!r}")
    for name in _NOT_HERE:
        if name in solver_keywords:
            raise InputError(
                f"{name} is no keyword of multiple_shooting_loss, which compares states at the times of data: leave it "
                "out, and put what it is for into loss, or beside a pynode.solve of your own"
            )
    loss, continuity_loss = loss or _squares, continuity_loss or _differences
    total, end = data.new_zeros(()), None
    for first in range(0, len(data) - 1, group_size - 1):
        group = slice(first, min(first + group_size, len(data)))
        solution = solve(field, data[first], times[group], args=args, **solver_keywords)
        z = solution.z
        if solution.event_t is not None and not bool(solution.event_t.isnan().all()):
            raise InputError(
                f"an event ended the solve from t={float(times[first]):g} on, so that there are no states to compare "
                "at its last times: pass events that change the state (affect=…) and let it go on"
            )
        total = total + loss(data[group], z)
        if end is not None:
            total = total + continuity_term * continuity_loss(end, data[first])
        end = z[-1]
    return total


def _squares(data: Tensor, solution: Tensor) -> Tensor:
    return (data - solution).square().sum()


def _differences(end: Tensor, start: Tensor) -> Tensor:
    return (end - start).abs().sum()
