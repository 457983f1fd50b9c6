"""The NumPy arrays that a field reads: `torch.as_tensor` makes tensors of them that share their memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pynode.errors import FieldError

__all__ = ["Arrays"]


class Arrays:
    """The numbers in the arrays of a field, whose changes autograd does not see.

    Args:
        arrays: the arrays, by name.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays = arrays
        self.numbers = self._now()

    def _now(self) -> dict[str, int]:
        return {name: hash(x.tobytes()) for name, x in self.arrays.items()}

    def settle(self) -> None:
        """Leave out those that have changed until now, which the field itself writes to."""
        now = self._now()
        self.numbers = {name: value for name, value in self.numbers.items() if now[name] == value}

    def check(self) -> None:
        """Refuse to go on where one has changed.

        Raises:
            FieldError: names it.
        """
        now = self._now()
        changed = [name for name, value in self.numbers.items() if now[name] != value]
        if changed:
            raise FieldError(
                f"the numbers in {', '.join(changed)}, NumPy's, were changed in place between the solve and its "
                "gradient, which may read them again: change them after backward(), or change a copy"
            )
