"""Builds a graph node by node: equal nodes are one node, identities disappear, constants fold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pynode.field._graph import Dim, Node, Number, Operand

__all__ = ["Builder"]


class Builder:
    """Collects nodes; every method that adds one returns its index."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._index: dict[Node, int] = {}

    def add(self, op: str, inputs: Sequence[Operand], shape: Sequence[Dim], dtype: str = "float", **attrs: Any) -> int:
        """A node with this operation, or the equal one that is there already."""
        node = Node(op, tuple(inputs), tuple(shape), dtype, tuple(sorted(attrs.items())))
        if op == "input" or node not in self._index:
            self._index[node] = len(self.nodes)
            self.nodes.append(node)
        return self._index[node]

    def shape(self, i: int) -> tuple[Dim, ...]:
        """The shape of a node."""
        return self.nodes[i].shape

    def dtype(self, i: Operand) -> str:
        """The kind of element of an operand."""
        if isinstance(i, Number):
            return "bool" if isinstance(i.value, bool) else "number"
        return self.nodes[i].dtype

    def pointwise(self, op: str, inputs: Sequence[Operand], shape: Sequence[Dim], dtype: str = "float") -> int:
        """A pointwise node; `x * 1`, `x + 0` and `x ** 1` are `x`."""
        if op in ("mul", "div", "pow", "add", "sub"):
            neutral = 0 if op in ("add", "sub") else 1
            for position in (1, 0) if op in ("mul", "add") else (1,):
                number, other = inputs[position], inputs[1 - position]
                if (
                    isinstance(number, Number)
                    and number.value == neutral
                    and isinstance(other, int)
                    and self.dtype(other) == dtype
                    and self.shape(other) == tuple(shape)
                ):
                    return other
        return self.add(op, inputs, shape, dtype)

    def cast(self, i: int) -> int:
        """The node as floating point."""
        node = self.nodes[i]
        if node.dtype == "float":
            return i
        if node.op == "const":
            return self.const([float(x) for x in node.attr("data")], node.shape, "float")
        if node.dtype == "int":
            # Integers are known ones in other places, and engines hold none: the numbers are what is moved.
            (inner, *others) = (self.cast(x) for x in node.inputs if isinstance(x, int))
            if node.op == "expand":
                return self.expand(inner, node.shape)
            return self.add(node.op, [inner, *others], node.shape, **dict(node.attrs))
        return self.add("cast", [i], node.shape)

    def truth(self, i: int) -> int:
        """The node as truth values."""
        if self.dtype(i) == "bool":
            return i
        return self.pointwise("ne", [self.cast(i), Number(0)], self.shape(i), "bool")

    def reshape(self, i: int, shape: Sequence[Dim]) -> int:
        """The node with another shape of equal size, in row-major order."""
        while self.nodes[i].op == "reshape":
            i = self.nodes[i].inputs[0]  # type: ignore[assignment]
        if self.shape(i) == tuple(shape):
            return i
        return self.add("reshape", [i], shape, self.dtype(i))

    def permute(self, i: int, dims: Sequence[int]) -> int:
        """The node with its dimensions in another order."""
        if self.nodes[i].op == "permute":
            inner = self.nodes[i].attr("dims")
            dims = [inner[d] for d in dims]
            i = self.nodes[i].inputs[0]  # type: ignore[assignment]
        if list(dims) == list(range(len(dims))):
            return i
        shape = self.shape(i)
        return self.add("permute", [i], [shape[d] for d in dims], self.dtype(i), dims=tuple(dims))

    def expand(self, i: int, shape: Sequence[Dim]) -> int:
        """The node broadcast to a shape."""
        if self.shape(i) == tuple(shape):
            return i
        if self.nodes[i].op == "full":
            return self.add("full", self.nodes[i].inputs, shape)
        return self.add("expand", [i], shape, self.dtype(i))

    def full(self, value: float | int | bool, shape: Sequence[Dim], dtype: str = "float") -> int:
        """A tensor of one value."""
        if dtype == "float":
            return self.add("full", [Number(float(value))], shape)
        if not all(isinstance(d, int) for d in shape):
            if dtype != "bool":
                raise NotImplementedError("an int tensor whose size depends on the batch")
            return self.pointwise("ne", [self.full(float(value), shape), Number(0)], shape, "bool")
        count = math.prod(d for d in shape if isinstance(d, int))
        return self.const([value] * count, shape, dtype)

    def const(self, data: Sequence[Any], shape: Sequence[Dim], dtype: str) -> int:
        """A tensor of known values, given flat in row-major order."""
        if dtype == "float" and data and all(x == data[0] for x in data):
            return self.full(data[0], shape)
        return self.add("const", [], shape, dtype, data=tuple(data))

    def positions(self, shape: Sequence[Dim], d: int) -> int:
        """0, 1, 2, … along dimension `d` of a shape, with size 1 in all others."""
        size = shape[d]
        ones = [size if k == d else 1 for k in range(len(shape))]
        if not isinstance(size, int):
            return self.add("arange", [], ones)
        return self.const([float(k) for k in range(size)], ones, "float")

    def slice(self, i: int, dim: int, start: Dim, stop: Dim, step: int, shape: Sequence[Dim]) -> int:
        """Every `step`-th entry of `start:stop` along a dimension."""
        if self.shape(i) == tuple(shape):
            return i
        return self.add("slice", [i], shape, self.dtype(i), dim=dim, start=start, stop=stop, step=step)

    def embed(self, i: int, dim: int, start: Dim, stop: Dim, step: int, shape: Sequence[Dim]) -> int:
        """Zeros of a shape with the node in `start:stop:step` along a dimension: the transpose of `slice`."""
        if self.shape(i) == tuple(shape):
            return i
        return self.add("embed", [i], shape, self.dtype(i), dim=dim, start=start, stop=stop, step=step)

    def reduce(self, op: str, i: int, dims: Sequence[int], keepdim: bool, shape: Sequence[Dim]) -> int:
        """A reduction over dimensions; over none, and over some of size 1, it is the node itself, in this shape."""
        if not dims:
            return i
        if self.dtype(i) == "float" and all(self.shape(i)[d] == 1 for d in dims):
            return self.reshape(i, shape)
        return self.add(op, [i], shape, dims=tuple(sorted(dims)), keepdim=keepdim)
