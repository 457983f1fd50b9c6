"""What is known of a callable from the solves before, for as long as it lives."""

from __future__ import annotations

import functools
import types
from typing import Any

from pynode.field._substitution import LateRead
from pynode.weak import WeakMap

__all__ = ["Memory", "memory_of"]


class Memory:
    """What is known of one callable, for as long as it lives."""

    def __init__(self) -> None:
        self.facts = _Recent()
        self.traces = _Recent()
        self.callbacks = _Recent()  # what Julia knows of the field where it calls it, see `PythonField`
        self.latest: Any = None  # the `Field` of the latest solve, see `_field`
        self.recent: Any = None  # what that was asked for, see `pynode.recent`
        self.attributes: set[tuple[str, str]] = set()  # that evaluating the field reads
        self.volatile: set[Any] = set()  # parts of the fingerprint that evaluating the field changes, e.g. a counter
        self.late: set[str] = set()  # names of tensors that are read only in the course of a solve

    def learn(self, late: LateRead) -> None:
        """Take note of a tensor that was read late: the next `Field` has it among its parameters."""
        self.late.add(late.name)
        self.latest = None


class _Recent(dict[Any, Any]):
    """A dictionary of the latest entries."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if len(self) >= _KEPT:
            self.pop(next(iter(self)), None)
        super().__setitem__(key, value)


_KEPT = 64
_MEMORIES: WeakMap[Any, Memory] = WeakMap()


def memory_of(function: Any) -> Memory:
    """What is known of a callable."""
    # Methods, partials and functions are often made anew for each call: what they are made of lives on.
    while isinstance(function, (types.MethodType, functools.partial)):
        function = function.__self__ if isinstance(function, types.MethodType) else function.func
    if isinstance(function, types.FunctionType):
        function = function.__code__
    try:
        found = _MEMORIES.get(function)
        return _MEMORIES.setdefault(function, Memory()) if found is None else found
    except TypeError:  # not weakly referenceable
        return Memory()
