"""One part of a field that is a `Split`, as a field."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pynode.field._extended import ExtendedField
from pynode.field._field import Field
from pynode.nn._split import part_alone

__all__ = ["PartField"]


class PartField(ExtendedField):
    """A part of a field, which reads what the whole field reads.

    Args:
        base: a field that evaluates a `Split`.
        part: `"stiff"` or `"nonstiff"`.
        n_states: of how many state tensors the `Split` has the rates. Those of others, integrals of a running cost, are
            in the part that is not stiff.
    """

    def __init__(self, base: Field, part: str, n_states: int) -> None:
        self.__dict__.update({k: v for k, v in base.__dict__.items() if k != "_live"})
        self.base, self.part, self.n_states = base, part, n_states

    @property
    def key(self) -> object:
        """As `Field.key`."""
        return (self.base.key, self.part, self.n_states)

    def __call__(self, t: Tensor, z: Sequence[Tensor], args: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
        """The rates of this part."""
        with part_alone(self.part):
            rates = self.base(t, z, args)
        if self.part == "nonstiff":
            return rates
        return (*rates[: self.n_states], *(torch.zeros_like(x) for x in z[self.n_states :]))
