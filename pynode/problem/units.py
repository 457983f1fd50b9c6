"""What is solved by steps of its own, and has events of its own: the whole batch, or each of independent samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pynode.engine.each import is_per_sample

__all__ = ["Args", "Units"]

Function = Callable[[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]], tuple[Tensor, ...]]


class Args(NamedTuple):
    """Conditioning tensors of some units.

    Attributes:
        tensors: what there is.
        has_rows: for each whether it has a row for each of these units.
    """

    tensors: tuple[Tensor, ...]
    has_rows: tuple[bool, ...]


class Units:
    """The units of a solve; their tensors are `(units, batch of a unit, *features)`.

    Args:
        joint: whether the whole batch is one unit, rather than each sample.
        batch: the number of samples.
    """

    def __init__(self, joint: bool, batch: int) -> None:
        self.joint, self.batch = joint, batch
        self.count = 1 if joint else batch
        self._unmapped: set[int] = set()  # functions that torch.vmap cannot map

    def split(self, x: Tensor, dim: int = 0) -> Tensor:
        """A state tensor, whose batch is this dimension, as that of the units."""
        return x.unsqueeze(dim if self.joint else dim + 1)

    def join(self, x: Tensor, dim: int = 0) -> Tensor:
        """The inverse of `split`."""
        return x.select(dim if self.joint else dim + 1, 0)

    def own(self, args: Sequence[Tensor], rows: Tensor) -> Args:
        """The conditioning tensors of some units."""
        has_rows = tuple(not self.joint and is_per_sample(a, self.batch) for a in args)
        return Args(tuple(a[rows] if has else a for a, has in zip(args, has_rows, strict=True)), has_rows)

    def over(self, function: Function, t: Tensor, z: Sequence[Tensor], args: Args, key: object) -> tuple[Tensor, ...]:
        """A function of one unit on several: mapped by `torch.vmap`, or where that cannot be, called for each.

        Args:
            function: takes the time, 0-d, the tensors and the conditioning tensors of one; returns tensors.
            t: `(units,)`.
            z: `(units, …)` each.
            args: of these units, see `own`.
            key: what the user's own part in the function is.

        Returns:
            What the function does, `(units, …)` each.
        """
        n = len(t)
        has_rows = args.has_rows
        lifted = [a.unsqueeze(1) if rows else a for a, rows in zip(args.tensors, has_rows, strict=True)]

        def one(i: int) -> tuple[Tensor, ...]:
            own = tuple(a[i] if rows else a for a, rows in zip(lifted, has_rows, strict=True))
            return function(t[i], tuple(x[i] for x in z), own)

        if n == 1:
            return tuple(x.unsqueeze(0) for x in one(0))
        if id(key) not in self._unmapped:
            dims = (0, (0,) * len(z), tuple(0 if rows else None for rows in has_rows))
            try:
                found: tuple[Tensor, ...] = torch.vmap(function, in_dims=dims)(t, tuple(z), tuple(lifted))
                return found
            except Exception:  # whatever it is, calls of its own say it in the user's terms
                self._unmapped.add(id(key))
        return tuple(torch.stack(x) for x in zip(*(one(i) for i in range(n)), strict=True))
