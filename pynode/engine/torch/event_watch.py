"""Watches the steps of torchdiffeq for a value that changes its sign."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from scipy.optimize import brentq
from torch import Tensor

from pynode.engine.protocol import EventSearch
from pynode.engine.torch.rhs import Rhs, all_finite

__all__ = ["Crossed", "EventWatch"]

_ROUNDING = 4 * sys.float_info.epsilon  # the least that brentq takes


class EventWatch:
    """Looks at the state at the start of each step that a right-hand side is told of.

    Args:
        search: the values, and their signs at the start.
        rhs: its callback is replaced.
        args: the conditioning tensors.
    """

    def __init__(self, search: EventSearch, rhs: Rhs, args: Sequence[Tensor]) -> None:
        self.search, self.rhs, self.args = search, rhs, args
        self.signs = list(search.signs)
        self.before: tuple[Tensor, tuple[Tensor, ...]] | None = None
        begin: Callable[..., None] = rhs.callback_step  # type: ignore[attr-defined]

        def callback(t: Tensor, z: Any, dt: Tensor) -> None:
            begin(t, z, dt)
            self(t, z if isinstance(z, tuple) else (z,))

        rhs.callback_step = callback  # type: ignore[attr-defined]

    def __call__(self, t: Tensor, z: tuple[Tensor, ...]) -> None:
        """At the end of a step.

        Raises:
            Crossed: a value has changed its sign.
            InputError: one is NaN.
        """
        values = self.search.function(t, z, self.args).tolist()
        if any(map(math.isnan, values)) and all_finite(z):
            raise self.search.not_a_number(self.rhs.shown(float(t)))
        if self.before is not None:
            told = enumerate(zip(self.signs, values, self.search.directions, strict=True))
            found = [i for i, (s, v, d) in told if s and s * v <= 0 and d * s <= 0]
            if found:
                raise Crossed(self, *self.before, t, found)
        new = [(v > 0) - (v < 0) for v in values]
        if self.before is None:  # what is zero at the start may have the other sign by rounding
            self.signs = [s or v for s, v in zip(self.signs, new, strict=True)]
        else:
            self.signs = [v or s for s, v in zip(self.signs, new, strict=True)]
        self.before = (t.detach(), tuple(x.detach().clone() for x in z))


class Crossed(Exception):
    """A step at whose end a value has another sign than at its start.

    Attributes:
        start: 0-d, the time at which it starts.
        z: the state there.
        end: 0-d, the time at which it ends.
    """

    def __init__(
        self, watch: EventWatch, start: Tensor, z: tuple[Tensor, ...], end: Tensor, indices: list[int]
    ) -> None:
        super().__init__("an event was met")
        self.watch, self.start, self.z, self.end, self.indices = watch, start.double(), z, end.double(), indices

    def locate(self, interpolant: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[float, int]:
        """The first time at which a value is zero, and its index."""
        watch, like = self.watch, self.start
        a, b = self.start.item(), self.end.item()

        def value(t: float, i: int) -> float:
            at = torch.tensor([t], dtype=like.dtype, device=like.device)
            return float(watch.search.function(at[0], [x[0] for x in interpolant(at)], watch.args)[i])

        times = []
        for i in self.indices:
            before, after = value(a, i), value(b, i)
            if before * after < 0:
                times.append((brentq(value, a, b, args=(i,), xtol=1e-15, rtol=_ROUNDING, maxiter=10_000), i))
            else:  # zero at one end, but for rounding
                times.append((b if abs(after) <= abs(before) else a, i))
        return min(times, key=lambda found: abs(found[0] - a))
