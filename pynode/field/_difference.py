"""Which operation of a recording its conversion gives another value to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pynode.field._capture import Captured, user_line
from pynode.field._conversion import Conversion
from pynode.field._graph import FieldGraph
from pynode.field._interpreter import values_of

__all__ = ["first_difference"]


def first_difference(
    got: Captured,
    done: Conversion,
    inputs: tuple[Sequence[Tensor], Sequence[Tensor]],
    tolerance: float,
) -> str:
    """The first operation whose value differs, with the user's line; empty where there is none.

    Args:
        got: a recording for one batch size.
        done: its conversion.
        inputs: those of the recording, and those of the graph.
        tolerance: of rounding, beside the largest number in a tensor.
    """
    every = tuple(range(len(done.b.nodes)))
    values = values_of(FieldGraph(tuple(done.inputs), tuple(done.b.nodes), every, (), None), inputs[1], vjp=False)
    found: list[str] = []

    class Compared(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            wanted, node = super().run_node(n), done.values.get(n)
            if not found and n.op == "call_function" and node is not None:
                several = isinstance(node, list)
                pairs = zip(wanted if several else [wanted], node if several else [node], strict=False)
                if any(i is not None and not _same(x, values[i], tolerance) for x, i in pairs):
                    found.append(f"{n.target}{user_line(n)}")
            return wanted

    Compared(got.graph).run(*inputs[0])
    return found[0] if found else ""


def _same(wanted: Any, value: Tensor, tolerance: float) -> bool:
    """Whether a value is the wanted one, but for rounding; integers and truth values are numbers too."""
    if not isinstance(wanted, Tensor) or not wanted.numel():
        return True
    wanted, value = wanted.double(), value.double()
    sizes = wanted[wanted.isfinite()].abs()
    least = tolerance * max(sizes.max().item() if sizes.numel() else 0.0, 1.0)
    return wanted.shape == value.shape and torch.allclose(wanted, value, tolerance, least, equal_nan=True)
