"""Where a fixed-step solver steps: one convention for every engine."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["step_grid", "substeps"]

# A step may be this fraction longer than `dt`, so that rounding in `t` makes no sliver of a step.
_SLACK = 1e-3


def substeps(t: Iterable[float], dt: float) -> list[int]:
    """How many steps of `dt` a fixed-step solver takes between consecutive times.

    From each `t[i]` the solver takes steps of `dt`; the last one is cut to end on `t[i + 1]`, so that every
    reported state is a computed one and none is interpolated.

    Args:
        t: the times, strictly monotone.
        dt: the step, positive.

    Returns:
        `len(t) - 1` counts, each at least 1.
    """
    return [max(1, math.ceil(abs(b - a) / dt - _SLACK)) for a, b in itertools.pairwise(t)]


def step_grid(t: Tensor, dt: float) -> Tensor:
    """Steps of `dt` from each entry of `t`, cut short at the next one (see `substeps`); differentiable."""
    counts = torch.tensor(substeps(t.tolist(), dt), device=t.device)
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    offset = (torch.arange(len(first), device=t.device) - first).to(t.dtype) * dt
    return torch.cat([t[:-1].repeat_interleave(counts) + (offset if t[1] > t[0] else -offset), t[-1:]])
