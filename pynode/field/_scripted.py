"""Modules of `torch.jit`, evaluated in Python, node by node of their graph.

TorchScript's own interpreter cannot be recorded: what is raised within it may end the process, and sizes are numbers in
it. Here they may be symbolic, so that what is recorded holds for any batch size.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from pynode.errors import TraceError

__all__ = ["Scripted"]


class Scripted(nn.Module):
    """A module of `torch.jit.script` or `torch.jit.trace` with the same `forward`.

    Args:
        module: the module.
    """

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.script = (module,)  # in a tuple, so that it is no submodule
        self.graph = module.inlined_graph

    def forward(self, *args: Any, **keywords: Any) -> Any:
        """Evaluate.

        Raises:
            TraceError: the graph has a node of another kind than those that are known here.
        """
        module = self.script[0]
        arguments = module.forward.schema.arguments[1:]  # type: ignore[attr-defined]  # the first one is the module
        given = {a.name: a.default_value for a in arguments if a.has_default_value()}
        given.update(zip([a.name for a in arguments], args, strict=False), **keywords)
        values = [module, *(given[a.name] for a in arguments)]
        names = [x.debugName() for x in self.graph.inputs()]
        (result,) = _run(self.graph, dict(zip(names, values, strict=True)))
        return result


def _run(block: Any, values: dict[str, Any]) -> list[Any]:
    """The outputs of a graph or a block, given the values by name."""
    for node in block.nodes():
        given = [values[x.debugName()] for x in node.inputs()]
        outputs = [x.debugName() for x in node.outputs()]
        if node.kind() == "prim::If":
            found = _run(list(node.blocks())[0 if given[0] else 1], values)
        elif node.kind() == "prim::Loop":
            (body,) = node.blocks()
            limit, goes_on, *found = given
            for i in range(limit):
                if not goes_on:
                    break
                values.update(zip([x.debugName() for x in body.inputs()], [i, *found], strict=True))
                goes_on, *found = _run(body, values)
        else:
            found = _evaluate(node, given)
        values.update(zip(outputs, found, strict=True))
    return [values[x.debugName()] for x in block.outputs()]


def _evaluate(node: Any, given: Sequence[Any]) -> list[Any]:
    kind = node.kind()
    if kind == "prim::Constant":
        return [node.output().toIValue()]
    if kind == "prim::GetAttr":
        return [getattr(given[0], node.s("name"))]
    if kind in ("prim::ListUnpack", "prim::TupleUnpack"):
        return list(given[0])
    if kind in _SIMPLE:
        return [_SIMPLE[kind](*given)]
    space, name = kind.split("::")
    if name in _NUMBERS and not any(isinstance(x, torch.Tensor) for x in given):
        return [_NUMBERS[name](*given)]
    if space == "prim":
        raise TraceError(
            f"a module of torch.jit has a node of kind {kind!r}, which a graph cannot hold: use the module from before "
            'torch.jit, or engine="torch"'
        )
    schema = torch._C.parse_schema(node.schema())
    operation = getattr(getattr(torch.ops, space), name)
    operation = getattr(operation, schema.overload_name or "default")
    by_position = [x for a, x in zip(schema.arguments, given, strict=True) if not a.kwarg_only]
    by_name = {a.name: x for a, x in zip(schema.arguments, given, strict=True) if a.kwarg_only}
    found = operation(*by_position, **by_name)
    return [found] if len(schema.returns) == 1 else list(found or ())


_NUMBERS: dict[str, Callable[..., Any]] = {
    name: getattr(operator, name)
    for name in ("add", "sub", "mul", "floordiv", "eq", "ne", "lt", "le", "gt", "ge", "neg")
}


def _size(x: torch.Tensor, dim: int | None = None) -> Any:
    return list(x.shape) if dim is None else x.shape[dim]


def _append(xs: list[Any], x: Any) -> list[Any]:
    xs.append(x)
    return xs


# Sizes, numbers computed from them, which TorchScript would make definite, and lists.
_SIMPLE: dict[str, Callable[..., Any]] = {
    "prim::ListConstruct": lambda *xs: list(xs),
    "prim::TupleConstruct": lambda *xs: xs,
    "prim::NumToTensor": lambda x: x,
    "prim::dtype": lambda x: x.dtype,
    "prim::device": lambda x: x.device,
    "prim::unchecked_cast": lambda x: x,
    "aten::size": _size,
    "aten::len": len,
    "aten::append": _append,
    "aten::__getitem__": operator.getitem,
    "aten::Int": lambda x: x if isinstance(x, int | torch.SymInt) else int(x),
    "aten::ScalarImplicit": lambda x: x if not isinstance(x, torch.Tensor) else x.item(),
    "aten::IntImplicit": lambda x: x if not isinstance(x, torch.Tensor) else int(x),
}
