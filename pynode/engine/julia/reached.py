"""What a solve in Julia reached before it failed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["take_reached"]


def take_reached(t: Tensor, out: Sequence[Tensor], reached: float) -> tuple[float, tuple[Tensor, ...]]:
    """The last time with a state that is finite, as far as it is known, and that state.

    Args:
        t: `(time,)`, the times of the solve.
        out: the states at these times, for each tensor `(time, batch, *features)`. Julia leaves the state that was
            reached at the last of them, which was not: it becomes NaN.
        reached: the time that Julia tells.
    """
    z = tuple(x[-1].clone() for x in out)
    for x in out:
        x[-1] = float("nan")
    if _finite(z):
        return reached, z
    # A fixed-step solver has stepped on from what was finite, and that is gone but for the times asked for.
    last = max((i for i in range(len(t)) if _finite([x[i] for x in out])), default=0)
    return float(t[last]), tuple(x[last].clone() for x in out)


def _finite(z: Sequence[Tensor]) -> bool:
    return all(bool(torch.isfinite(x).all()) for x in z)
