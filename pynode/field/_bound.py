"""For which batch sizes a recording holds, and what binds it to one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch

from pynode.field._lines import is_users, place

__all__ = ["Assumptions", "BoundToBatch", "Validity"]


class BoundToBatch(Exception):
    """A recording holds for one batch size only; the text says by what."""


class Assumptions(list[Any]):
    """What a recording assumes of its sizes, in place of `ShapeEnv.guards`, each with what made it do so.

    A recording for any batch size ends as soon as it would take the number that stands for the batch size for that: a
    loop over the samples would go on for thousands of rounds.

    Args:
        symbol: the batch size; `None` where it is a number.
        outside: the file of which nothing further out belongs to the recording.

    Attributes:
        where: for each assumption the line of the user's code, or the derivative, as ` at …`.
        bound: why the recording was ended, or should have been. No exception, since torch's caches may keep this
            object, and an exception has all that the recording had met.
    """

    def __init__(self, symbol: Any, outside: str) -> None:
        super().__init__()
        self.symbol, self.outside = symbol, outside
        self.where: list[str] = []
        self.bound = ""

    def append(self, guard: Any) -> None:
        """One more assumption, made now.

        Raises:
            BoundToBatch: it holds for one batch size only.
        """
        super().append(guard)
        self.where.append(self._now())
        expr = guard.expr
        equation = getattr(expr, "rel_op", "") == "==" and expr.free_symbols == {self.symbol}  # SymPy is imported late
        if equation and expr.lhs.is_polynomial(self.symbol):
            self.bound = self.bound or f"a number is made of the batch size{self.where[-1]}"
            raise BoundToBatch(self.bound)

    def _now(self) -> str:
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and frame.f_code.co_filename != self.outside:
            if is_users(frame.f_code.co_filename):
                return place(frame.f_code.co_filename, frame.f_lineno)
            frame = frame.f_back
        node = torch._C._current_autograd_node()
        return "" if node is None else f" in a derivative, {node.name()}"


class Validity:
    """Whether a recording holds for a batch size; called with one.

    Args:
        symbol: the batch size in the assumptions; `None` where it is a number.
        assumptions: what is assumed of it.
        where: what made the recording do so.
    """

    def __init__(self, symbol: Any, assumptions: Sequence[Any], where: Sequence[str]) -> None:
        self.symbol = symbol
        pairs = zip(assumptions, where, strict=True)
        self.conditions = [(g.expr, at) for g, at in pairs if symbol is not None and symbol in g.expr.free_symbols]
        self._answers: dict[int, bool] = {}

    def __call__(self, batch: int) -> bool:
        if batch not in self._answers:
            self._answers[batch] = not self.broken(batch)
        return self._answers[batch]

    def broken(self, batch: int) -> list[str]:
        """Where a batch size is asked for with another outcome than the recording's."""
        return [at for condition, at in self.conditions if not _met(condition, self.symbol, batch)]


def _met(condition: Any, symbol: Any, batch: int) -> bool:
    try:
        return bool(condition.subs(symbol, batch))
    except ZeroDivisionError:  # a condition on a remainder by what is zero
        return False
