"""One ATen call, and the table of what turns it into nodes of the graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pynode.field._builder import Builder
from pynode.field._graph import Number, Operand

__all__ = ["HANDLERS", "Call", "Ref", "Unsupported", "handles", "supported_ops", "target_name"]


Handler = Callable[["Call"], Any]
HANDLERS: dict[str, Handler] = {}


class Unsupported(Exception):
    """The operation has no counterpart in the graph; the text says why and what to use instead."""


class Ref(int):
    """An argument that is a node of the graph, as against a number."""


class Call:
    """One ATen call: its arguments (`Ref`s, numbers, sizes), its result's shape and kind of element.

    Attributes:
        integers: whether its result are integers, which are of the kind `float` unless they are known.
        unread: the arguments by name that nothing has asked for.
    """

    def __init__(
        self,
        b: Builder,
        op: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        shape: Any,
        dtype: Any,
        integers: bool = False,
    ) -> None:
        self.b, self.op, self.args = b, op, args
        self.unread = dict(kwargs)
        self.shape: Any = shape
        self.dtype, self.integers = dtype, integers

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """The argument at a position or of a name."""
        return self.args[position] if len(self.args) > position else self.keyword(name, default)

    def keyword(self, name: str, default: Any = None) -> Any:
        """The argument of a name. What is left unread is refused."""
        return self.unread.pop(name, default)

    def operand(self, x: Any) -> Operand:
        """An argument as an operand of a pointwise node."""
        return int(x) if isinstance(x, Ref) else Number(x)

    def dim(self, position: int, name: str, i: int, default: int = 0) -> int:
        """A dimension argument, counted from the front."""
        rank = len(self.b.shape(i))
        return int(self.arg(position, name, default)) % max(rank, 1)

    def dims(self, i: int, position: int = 1, name: str = "dim") -> list[int]:
        """A list of dimensions, counted from the front; all of them when none is given."""
        rank = len(self.b.shape(i))
        dims = self.arg(position, name)
        if dims is None or dims == []:
            return list(range(rank))
        return [int(d) % max(rank, 1) for d in (dims if isinstance(dims, list | tuple) else [dims])]


def supported_ops() -> list[str]:
    """The ATen operations that a field may use, besides those that decompose into them."""
    return sorted(HANDLERS)


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Registers a function `Call -> node` (or list of nodes) for ATen operations of these names."""

    def register(handler: Handler) -> Handler:
        for name in names:
            HANDLERS[name] = handler
        return handler

    return register


def target_name(target: Any) -> str:
    """The name of an fx target: the ATen operation without its overload."""
    if target is operator.getitem:
        return "getitem"
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.split("::")[-1]
    return str(getattr(target, "__name__", target))
