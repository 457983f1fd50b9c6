"""Complex numbers on a field's way: the recording made again, on pairs of real numbers.

A graph holds real numbers. What a field computes from `torch.view_as_complex` on, and what autograd makes of it,
becomes arithmetic on real and imaginary parts.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import unset_fake_temporarily

from pynode.errors import TraceError
from pynode.field._complex_rules import OF_EITHER_PART, RULES, Pair, is_complex
from pynode.field._convert import target_name

__all__ = ["OnPairs", "has_complex"]


def has_complex(graph: fx.GraphModule) -> bool:
    """Whether a recording holds complex numbers."""
    return any(is_complex(n.meta.get("val")) for n in graph.graph.nodes)


class OnPairs(fx.Interpreter):
    """Runs a recording with a pair of real tensors for each complex one; run while another recording is made.

    Raises:
        TraceError: an operation has no counterpart on pairs, or a product is of a complex input.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.extra_traceback = False
        self.node: fx.Node = next(iter(graph.graph.nodes))
        self.attributes: dict[str, Any] = {}
        with unset_fake_temporarily():  # parts that are views: what is written to the tensor is seen in them
            for node in graph.graph.nodes:
                if node.op == "get_attr":
                    value = self.fetch_attr(str(node.target))
                    if isinstance(value, Tensor) and value.is_complex():
                        parts = torch.view_as_real(value.resolve_conj().detach())
                        self.attributes[str(node.target)] = Pair(parts[..., 0], parts[..., 1])

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        self.node = n
        return super().run_node(n)

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The results; products with Jacobians have to be those of real inputs."""
        if is_complex(args):
            raise TraceError(
                "a parameter of a module of torch.jit is complex, and a graph's inputs are real: keep the parameter as "
                'real numbers (…, 2) and let the module make torch.view_as_complex of it, or use engine="torch"'
            )
        return super().output(target, args, kwargs)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A tensor that the recording holds."""
        found = self.attributes.get(str(target))
        return super().get_attr(target, args, kwargs) if found is None else found

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """One operation, by its rule where numbers are complex."""
        if target is operator.getitem or not (
            is_complex(self.node.meta.get("val")) or is_complex(args) or is_complex(tuple(kwargs.values()))
        ):
            return super().call_function(target, args, kwargs)
        name = target_name(target)
        if isinstance(args[0], complex) and name in ("clone", "alias", "detach", "_to_copy"):
            return args[0]
        rule = RULES.get(name)
        if rule is not None:
            return rule(*args, **{k: v for k, v in kwargs.items() if k not in ("layout", "device", "pin_memory")})
        if name in OF_EITHER_PART and isinstance(args[0], Pair) and not is_complex(args[1:]):
            return args[0].each(lambda part: target(part, *args[1:], **kwargs))
        raise TraceError(
            f"the field uses the operation {target} of complex numbers{self.node.stack_trace or ''}, which pynode has "
            'no counterpart for: write it with real and imaginary parts, or use engine="torch"'
        )
