"""The graph of a vector field: its value and its vector-Jacobian product as plain data.

A graph is a list of nodes in topological order. Every node has an op of the small vocabulary in
`_ops.py`, operands (earlier nodes, or numbers), a shape and a kind of element. Shapes are PyTorch's; a
dimension is an int, or `(a, b)` which stands for `a * batch + b`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

__all__ = ["Dim", "FieldGraph", "Input", "Node", "Number", "Operand", "dim_size"]

VERSION = 1

Dim = int | tuple[int, int]


def dim_size(dim: Dim, batch: int) -> int:
    """The number that a dimension stands for at this batch size."""
    return dim if isinstance(dim, int) else dim[0] * batch + dim[1]


@dataclass(frozen=True)
class Number:
    """A literal operand: a number, or the size of a dimension."""

    value: float | int | bool | tuple[int, int]


Operand = int | Number


@dataclass(frozen=True)
class Input:
    """One input of the graph.

    Attributes:
        kind: `"t"`, `"z"`, `"arg"`, `"parameter"`, `"buffer"`, `"constant"` or `"cotangent"`.
        name: the tensor's dotted name for parameters and buffers, else the position in its kind.
        shape: its dimensions.
    """

    kind: str
    name: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
        op: a name of the vocabulary.
        inputs: earlier nodes by index, or numbers.
        shape: the dimensions of the result.
        dtype: `"float"` (the state's type), `"bool"` or `"int"`.
        attrs: further arguments by name, sorted.
    """

    op: str
    inputs: tuple[Operand, ...]
    shape: tuple[Dim, ...]
    dtype: str = "float"
    attrs: tuple[tuple[str, Any], ...] = ()

    def attr(self, name: str) -> Any:
        """The argument of that name."""
        return dict(self.attrs)[name]


@dataclass(frozen=True)
class FieldGraph:
    """The value `f(t, z, *args)` of a field and the products of a cotangent with its Jacobians.

    Attributes:
        inputs: what the graph reads; the first `len(inputs)` nodes have op `"input"`, in this order.
        nodes: the operations, in topological order.
        value: the nodes of `dz/dt`, one for each state tensor.
        vjp: for each of `t`, the state tensors, `args` and the parameters, in input order, the node of its
            cotangent; `None` where the value does not depend on it.
        batch: the batch size the graph is restricted to; `None` when it holds for any.
    """

    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    value: tuple[int, ...]
    vjp: tuple[int | None, ...]
    batch: int | None = None

    def live(self, outputs: Iterable[int | None]) -> list[int]:
        """The nodes that these outputs need, inputs included, in topological order."""
        needed: set[int] = set()
        stack = [o for o in outputs if o is not None]
        while stack:
            index = stack.pop()
            if index not in needed:
                needed.add(index)
                stack.extend(i for i in self.nodes[index].inputs if isinstance(i, int))
        return sorted(needed)

    def differentiable(self) -> list[int]:
        """The inputs that the entries of `vjp` belong to."""
        return [i for i, x in enumerate(self.inputs) if x.kind in ("t", "z", "arg", "parameter")]

    def to_dict(self) -> dict[str, Any]:
        """The graph as data that JSON can carry; see `from_dict`."""
        return {
            "version": VERSION,
            "batch": self.batch,
            "inputs": [{"kind": i.kind, "name": i.name, "shape": list(i.shape)} for i in self.inputs],
            "nodes": [
                {
                    "op": n.op,
                    "in": [i if isinstance(i, int) else {"number": _plain(i.value)} for i in n.inputs],
                    "shape": list(n.shape),
                    "dtype": n.dtype,
                    "attrs": {k: _plain(v) for k, v in n.attrs},
                }
                for n in self.nodes
            ],
            "value": list(self.value),
            "vjp": list(self.vjp),
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> FieldGraph:
        """The graph of `to_dict`, also after a passage through JSON.

        Raises:
            ValueError: the data is of another version.
        """
        if data.get("version") != VERSION:
            raise ValueError(f"expected a graph of version {VERSION}, got {data.get('version')!r}: trace again")

        def operand(i: Any) -> Operand:
            return i if isinstance(i, int) else Number(_read(i["number"]))

        return FieldGraph(
            tuple(Input(i["kind"], i["name"], _read(i["shape"])) for i in data["inputs"]),
            tuple(
                Node(
                    n["op"],
                    tuple(map(operand, n["in"])),
                    _read(n["shape"]),
                    n["dtype"],
                    tuple(sorted((k, _read(v)) for k, v in n["attrs"].items())),
                )
                for n in data["nodes"]
            ),
            tuple(data["value"]),
            tuple(data["vjp"]),
            data["batch"],
        )

    @cached_property
    def key(self) -> str:
        """A hash of all but the names: fields of one structure share it."""
        data = self.to_dict()
        for item in data["inputs"]:
            del item["name"]
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """As JSON has it: tuples become lists, and numbers that JSON lacks strings."""
    if isinstance(value, tuple):
        return list(map(_plain, value))
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _read(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_read, value))
    return float(value) if isinstance(value, str) else value
