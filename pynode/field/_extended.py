"""Fields that are made of another one, and have its tensors."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pynode.field._field import Field

__all__ = ["ExtendedField"]


class ExtendedField(Field):
    """A field whose state begins with that of another, which it evaluates.

    Args:
        base: the other.
        n_states: how many tensors its state has.
    """

    def __init__(self, base: Field, n_states: int) -> None:
        self.__dict__.update(base.__dict__)
        self.base, self.n_states = base, n_states
        self.is_tuple = True

    def replaced(self, values: Mapping[str, Tensor]) -> ExtendedField:
        """As `Field.replaced`."""
        other = copy.copy(self)
        other.base = self.base.replaced(values)
        other.parameters = other.base.parameters
        return other

    def as_written(self) -> ExtendedField:
        """As `Field.as_written`."""
        other = copy.copy(self)
        other.base = self.base.as_written()
        return other

    def freeze(self) -> None:
        """As `Field.freeze`."""
        self.base.freeze()

    def settle(self) -> None:
        """As `Field.settle`."""
        self.base.settle()

    def recomputing(self) -> contextlib.AbstractContextManager[Any]:
        """As `Field.recomputing`."""
        return self.base.recomputing()

    def state(self) -> dict[Any, Any]:
        """As `Field.state`."""
        return self.base.state()

    def check_unchanged(self, before: Mapping[Any, Any]) -> None:
        """As `Field.check_unchanged`."""
        self.base.check_unchanged(before)
