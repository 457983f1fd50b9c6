"""Values of nodes that depend on constants alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.field._graph import Dim, Node, Number
from pynode.field._ops import OPS, POINTWISE
from pynode.field._shapes import product

__all__ = ["known"]

_MOST = 4096  # entries: larger ones would make the graph large
_OPS = {*POINTWISE, "cast", "reshape", "permute", "expand", "slice", "embed", "flip", "cat", "sum", "mm", "bmm"}
_OPS |= {"index_select", "index_add", "amax", "amin", "prod", "cumsum", "cumprod"}


def known(nodes: Sequence[Node], node: Node, dtype: torch.dtype) -> tuple[Any, ...] | None:
    """The values of a node in row-major order if its operands are constants, and not too many of them; else `None`."""
    if node.op not in _OPS or node.dtype == "int" or not node.inputs:
        return None
    if not _static(node.shape) or not 0 < product(node.shape) <= _MOST:  # type: ignore[operator]
        return None
    values: list[Any] = []
    for i in node.inputs:
        value = _number(i) if isinstance(i, Number) else _constant(nodes[i], dtype)
        if value is None:
            return None
        values.append(value)
    attrs: dict[str, Any] = dict(node.attrs)
    if node.op == "cast":
        attrs["float_dtype"] = dtype
    if not any(isinstance(v, Tensor) for v in values):
        return None
    out = POINTWISE[node.op](*values) if node.op in POINTWISE else OPS[node.op](*values, **attrs, shape=node.shape)
    if (out.dtype == torch.bool) != (node.dtype == "bool"):
        return None
    return tuple(out.expand(node.shape).reshape(-1).tolist())  # type: ignore[arg-type]


def _static(shape: Sequence[Dim]) -> bool:
    return all(isinstance(n, int) for n in shape)


def _number(i: Number) -> float | int | bool | None:
    return None if isinstance(i.value, tuple) else i.value


def _constant(node: Node, dtype: torch.dtype) -> Tensor | None:
    shape: Any = node.shape
    if node.dtype == "int" or not _static(shape) or product(shape) > _MOST:  # type: ignore[operator]
        return None
    if node.op == "const":
        return torch.tensor(
            node.attr("data"), dtype=torch.bool if node.dtype == "bool" else dtype, device="cpu"
        ).reshape(shape)
    if node.op == "full" and isinstance(node.inputs[0], Number) and not isinstance(node.inputs[0].value, tuple):
        return torch.full(shape, node.inputs[0].value, dtype=dtype, device="cpu")
    return None
