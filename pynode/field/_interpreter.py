"""Executes a graph in torch: the reference for every lowering."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.field._graph import FieldGraph, Number, dim_size
from pynode.field._ops import OPS, POINTWISE

__all__ = ["interpret", "values_of"]

_NEEDS_TYPE = {"arange", "cast", "const", "full"}


def interpret(
    graph: FieldGraph, inputs: Sequence[Tensor], *, vjp: bool = False
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Evaluate a graph.

    Args:
        graph: the graph.
        inputs: a tensor for each of `graph.inputs`, in order; the cotangents may be left out
            unless `vjp`.
        vjp: whether the vector-Jacobian products are wanted too.

    Returns:
        The tensors of `dz/dt`, and those of `graph.vjp` (empty unless `vjp`).
    """
    values = values_of(graph, inputs, vjp)
    products = [None if i is None else values[i] for i in graph.vjp] if vjp else []
    return [values[i] for i in graph.value], products


def values_of(graph: FieldGraph, inputs: Sequence[Tensor], vjp: bool) -> dict[int, Tensor]:
    """The value of each node that the results depend on; arguments as in `interpret`."""
    z = next(x for x, i in zip(inputs, graph.inputs, strict=False) if i.kind == "z")
    batch = z.shape[0] if z.dim() else 1
    values: dict[int, Tensor] = {}

    def operand(i: int | Number) -> Any:
        if isinstance(i, Number):
            return dim_size(i.value, batch) if isinstance(i.value, tuple) else i.value
        return values[i]

    for index in graph.live((*graph.value, *(graph.vjp if vjp else ()))):
        node = graph.nodes[index]
        if node.op == "input":
            values[index] = inputs[index]
            continue
        operands = [operand(i) for i in node.inputs]
        if node.op in POINTWISE:
            if node.dtype == "float" and not any(isinstance(x, Tensor) for x in operands):  # which have no dtype
                operands = [torch.tensor(float(x), dtype=z.dtype, device=z.device) for x in operands]
            values[index] = POINTWISE[node.op](*operands)
            assert (values[index].dtype == torch.bool) == (node.dtype == "bool"), node
            continue
        attrs = dict(node.attrs)
        for name in ("start", "stop"):
            if name in attrs:
                attrs[name] = dim_size(attrs[name], batch)
        attrs["shape"] = tuple(dim_size(d, batch) for d in node.shape)
        if node.op in _NEEDS_TYPE:
            attrs["float_dtype"] = z.dtype
        if node.op in ("arange", "const", "full"):
            attrs["device"] = z.device
        if node.op == "const":
            attrs["dtype"] = node.dtype
        values[index] = OPS[node.op](*operands, **attrs)
    return values
