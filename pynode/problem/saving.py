"""What a solution keeps: the states at the times asked for, at the end of each step, or what is computed from them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from pynode.engine.protocol import Watched
from pynode.errors import InputError, unknown_name
from pynode.transforms import example

__all__ = ["check_save", "saved", "times_of_steps"]


def check_save(save: Any, independent: bool) -> None:
    """Refuse what `solve` cannot save.

    Raises:
        InputError: it is something else, or asks for the steps of independent samples.
    """
    if callable(save):
        return
    if not isinstance(save, str):
        raise InputError(f"save must be 'times', 'steps' or a callable(t, z), got {type(save).__name__}")
    if save not in ("times", "steps"):
        raise unknown_name("save", save, ("times", "steps"))
    if save == "steps" and independent:
        raise InputError(
            "save='steps' has one series of times, and independent samples have steps of their own: solve each by "
            "itself, or pass the times at which the states are wanted"
        )


def times_of_steps(solve: Callable[[Watched], Any], times: Tensor, located: Collection[int]) -> Tensor:
    """The ends of the steps of a solve, from the first time to the last one, in double.

    The steps that end at an event whose time is solved for are left out: a solve that reports at these times finds it a
    little earlier or later, and would have the state before or after it by chance.

    Args:
        solve: solves without a gradient, and tells the steps.
        times: `(time,)`.
        located: the numbers of such events among those that may happen.
    """
    watched = Watched(shown=False, steps=[])
    with torch.no_grad():
        solution = solve(watched)
    assert watched.steps is not None
    first, last = (float(x) for x in example(times).double()[[0, -1]])
    low, high = min(first, last), max(first, last)
    log = solution.events if located else None
    found = zip(log.t.tolist(), log.index.tolist(), strict=True) if log is not None else ()
    at = [t for t, index in found if index in located]
    near = 1e-6 * (high - low) + 4 * torch.finfo(times.dtype).eps * max(abs(low), abs(high))
    inner = {t for t in watched.steps if low < t < high and all(abs(t - x) > near for x in at)}
    ends = sorted(inner, reverse=last < first)
    times = times.double()
    return torch.cat([times[:1], times.new_tensor(ends), times[-1:]])


def saved(save: Callable[[Tensor, Any], Any], t: Tensor, states: Callable[..., Any]) -> Any:
    """What a callable makes of the state at each time, stacked: tensors `(time, …)`.

    Samples with times of their own are given to it one by one, each with its time: rows of what it returns are put
    together, and numbers of 0 dimensions.

    Args:
        save: the user's.
        t: `(time,)`, or `(batch, time)`.
        states: gives the state at a time, by number, or the state of one sample there, by the two numbers.

    Raises:
        InputError: it returns no tensors, not the same ones each time, or of one sample more or less than a row.
    """
    rows: list[list[Tensor]] = []
    spec = None
    for i in range(t.shape[-1]):
        if t.dim() == 1:
            found, own = _tensors_of(save(t[i], states(i)))
        else:
            parts = [_tensors_of(save(t[b, i], states(i, b))) for b in range(len(t))]
            own = parts[0][1]
            if any(each != own for _, each in parts):
                raise InputError("save must return the same tensors for each sample")
            found = [_together(xs) for xs in zip(*(xs for xs, _ in parts), strict=True)]
        shapes = [x.shape for x in found]
        if spec is not None and (own != spec or shapes != [x.shape for x in rows[0]]):
            raise InputError(
                f"save must return tensors of the same shapes each time, got {[tuple(x.shape) for x in rows[0]]} at "
                f"first, and {[tuple(s) for s in shapes]} at t[{i}]"
            )
        spec = own
        rows.append(found)
    assert spec is not None
    return tree_unflatten([torch.stack(x) for x in zip(*rows, strict=True)], spec)


def _tensors_of(returned: Any) -> tuple[list[Tensor], TreeSpec]:
    found, spec = tree_flatten(returned)
    if not found or not all(isinstance(x, Tensor) for x in found):
        kinds = ", ".join(sorted({type(x).__name__ for x in found})) or "nothing"
        raise InputError(f"save must return a tensor, or several in a tuple or dictionary, got {kinds}")
    return found, spec


def _together(xs: Sequence[Tensor]) -> Tensor:
    """What was made of each sample, as that of a batch."""
    shapes = {tuple(x.shape) for x in xs}
    if shapes == {()}:
        return torch.stack(list(xs))
    shape = next(iter(shapes))
    if len(shapes) > 1 or shape == () or shape[0] != 1:
        raise InputError(
            "samples that have times of their own are given to save one by one, in a batch of one, of which it must "
            f"return a row, (1, …), of the same shape for each, or a number; got {sorted(shapes)}"
        )
    return torch.cat(list(xs))
