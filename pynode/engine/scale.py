"""What a solve is linear in, solved for at the scale of its state.

A solver keeps errors below an absolute tolerance, which is in units of the state. Cotangents and derivatives have
units of their own: of a mean over many samples the cotangents may all lie below the tolerance, so that the solver takes
any step for a good one, and the gradient is wrong. Both are linear in what they begin with. So they are solved for
multiplied by a power of two, by which the result is divided; they are made larger, never smaller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from pynode.engine.protocol import Gradients, Problem

__all__ = ["at_scale", "exponent", "exponent_of_directions", "largest", "multiplied", "spans"]

_MOST = {torch.float32: 120}  # exponents of powers of two that are finite, and so are their inverses
_MOST_OF_OTHERS = 1000


def largest(tensors: Iterable[Tensor | None]) -> float:
    """The largest absolute value in any of them; 0 where there is none."""
    return max((x.detach().abs().max().item() for x in tensors if x is not None and x.numel()), default=0.0)


def exponent(own: float, wanted: float, dtype: torch.dtype) -> int:
    """The exponent of the power of two that brings numbers of one size to another size.

    It is 0 where they are no smaller already, or where a size is zero or not finite.
    """
    if not 0 < own < wanted < math.inf:
        return 0
    return min(round(math.log2(wanted) - math.log2(own)), _MOST.get(dtype, _MOST_OF_OTHERS))


def spans(problem: Problem) -> tuple[Tensor, ...]:
    """For each of the problem's inputs what has its size: of the times those since the first."""
    return (*problem.z0, problem.t - problem.t[0], *problem.args, *problem.parameters)


def exponent_of_directions(problem: Problem, directions: Gradients) -> int:
    """The exponent of the power of two by which directions are brought to the size of the inputs that they move.

    Args:
        problem: the problem.
        directions: how its inputs move.
    """
    relative = 0.0
    for x, d in zip(spans(problem), directions.flat, strict=True):
        if d is not None:
            relative = max(relative, largest([d]) / (largest([x]) or 1.0))
    return exponent(relative, 1.0, problem.z0[0].dtype)


def multiplied(gradients: Gradients, exponent: int) -> Gradients:
    """All of them multiplied by a power of two."""
    if exponent == 0:
        return gradients
    factor = 2.0**exponent

    def each(of: Sequence[Tensor | None]) -> list[Tensor | None]:
        return [None if x is None else x * factor for x in of]

    (t,) = each([gradients.t])
    return Gradients(each(gradients.z0), t, each(gradients.args), each(gradients.parameters))


def at_scale(
    pullback: Callable[[Sequence[Tensor | None]], Gradients], problem: Problem, z: Sequence[Tensor]
) -> Callable[[Sequence[Tensor | None]], Gradients]:
    """A pullback of whose cotangents the largest is so large that the relative tolerance bears on it.

    From atol / rtol on, the relative tolerance is more than the absolute one. Where the solution itself is smaller than
    that, the largest cotangent is as large as the solution.

    Args:
        pullback: by a backward solve; see `Integration.pullback`.
        problem: what was solved; an absolute tolerance of its sensitivity is one of the cotangents as they come.
        z: the solution, `(time, …)` of each state tensor.
    """
    how = problem.sensitivity
    assert how is not None
    if "atol" in how.options:
        return pullback
    rtol = float(how.options.get("rtol", problem.rtol))  # type: ignore[arg-type]
    enough = problem.atol / rtol if rtol > 0 else math.inf
    states = tuple(x.detach() for x in z)  # not those that will have a graph, which holds the pullback

    def scaled(cotangents: Sequence[Tensor | None]) -> Gradients:
        # Those of the first time are not solved for: they are added to the result.
        own = largest(None if g is None else g[1:] for g in cotangents)
        power = exponent(own, min(enough, largest(states)), states[0].dtype)
        if power == 0:
            return pullback(cotangents)
        return multiplied(pullback([None if g is None else g * 2.0**power for g in cotangents]), -power)

    return scaled
