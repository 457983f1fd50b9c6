"""The signs that event functions have in the course of a solve, and which changes of them are events."""

from __future__ import annotations

import numpy as np

__all__ = ["Signs"]

Array = np.ndarray


class Signs:
    """The signs of the values of each unit.

    Args:
        count: the number of units.
        directions: for each value which changes count, see `EventSearch`.

    Attributes:
        known: `(units, values)`, the signs so far; 0 where a value has to take one.
        slack: `(units, values)`, no more than which a value counts as zero at the next start.
    """

    def __init__(self, count: int, directions: tuple[int, ...]) -> None:
        self.directions = np.array(directions)
        self.known = np.zeros((count, len(directions)))
        self.slack = np.zeros((count, len(directions)))

    def start(self, rows: Array, values: Array, slopes: Array, resolution: Array) -> Array:
        """Take the signs at a start; for each unit which value has changed its own on the way there, -1: none.

        A value that is zero has the sign that it is about to take.

        Args:
            rows: the units.
            values: `(units, values)`.
            slopes: their derivatives along the solve.
            resolution: `(units,)`, by how much times are rounded.
        """
        known = self.known[rows]
        is_zero = np.abs(values) <= np.maximum(resolution[:, None] * np.abs(slopes), self.slack[rows])
        new = np.where(is_zero, np.sign(slopes), np.sign(values))
        changed = (known * new < 0) & self._counts(known)
        self.slack[rows] = 0
        self.known[rows] = np.where(new != 0, new, known)
        return np.where(changed.any(1), changed.argmax(1), -1)

    def pass_on(self, rows: Array, values: Array) -> None:
        """Take the signs of values after which the solve goes on, where a change of them was no event."""
        known = self.known[rows]
        self.known[rows] = np.where((values != 0) & ((known == 0) | ~self._counts(known)), np.sign(values), known)

    def jump(self, rows: Array, before: Array, after: Array) -> None:
        """A jump of the state: a value that it carries across zero takes its sign anew, which is no event."""
        stays = (before == after) | (before * after > 0)
        self.known[rows] = np.where(stays, self.known[rows], 0)

    def met(self, rows: Array, index: Array, residual: Array) -> None:
        """An event of these values: each takes its sign anew, and is zero as nearly as the solve found it so."""
        self.known[rows, index] = 0
        self.slack[rows, index] = residual

    def _counts(self, known: Array) -> Array:
        return self.directions * known <= 0
