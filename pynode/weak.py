"""What is known of objects for as long as they live.

Python code that runs while an object is taken apart (a `__del__`, the callbacks of `weakref.WeakKeyDictionary`) also
handles a signal that has come in the midst of that, and an exception raised there, such as the KeyboardInterrupt of
Ctrl-C, is printed and lost. What is here runs no Python code then.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

__all__ = ["Departure", "WeakMap"]

K = TypeVar("K")
V = TypeVar("V")


class WeakMap(Generic[K, V]):
    """A value for each key, by equality, until the key is no more."""

    def __init__(self) -> None:
        self._values: dict[weakref.ref[K], V] = {}

    def get(self, key: K) -> V | None:
        """The value of a key; `None` where it has none.

        Raises:
            TypeError: the key cannot be referred to weakly.
        """
        return self._values.get(weakref.ref(key))

    def setdefault(self, key: K, value: V) -> V:
        """The value of a key, which is this one where it has none; raises as `get`."""
        return self._values.setdefault(weakref.ref(key, self._values.__delitem__), value)


class Departure(weakref.ref[Any]):
    """Is appended to a list when an object is no more, if it is still held then: `Departure(object, list.append)`.

    Attributes:
        number: what tells which object it was.
        holds: what has to live until the departure itself is let go.
    """

    __slots__ = ("holds", "number")

    number: int
    holds: object

    @classmethod
    def of(cls, thing: object, append: Callable[[Any], None], number: int, holds: object = None) -> Departure:
        """That of an object, with its attributes."""
        made = cls(thing, append)
        made.number, made.holds = number, holds
        return made
