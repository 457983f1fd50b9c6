"""Sums of a linear operation's results as the operation on a sum.

A derivative of derivatives has the same layers several times, each with a cotangent of its own; what they give is added
up in the end. Added up at first, they go through each layer together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence

from pynode.field._builder import Builder
from pynode.field._graph import FieldGraph, Node, dim_size

__all__ = ["collected", "work"]


def collected(b: Builder, node: Node, build: Callable[[Node], int]) -> int | None:
    """The sum that a node is, with one linear operation for all terms that have the same; `None` where none have.

    Args:
        b: where the operands are.
        node: an addition.
        build: adds a node.
    """
    if node.op != "add" or not all(isinstance(i, int) and b.shape(i) == node.shape for i in node.inputs):
        return None
    terms = [t for i in node.inputs if isinstance(i, int) for t in _terms(b, i)]
    if len(set(terms)) < len(terms):
        return None
    found = Counter(key for t in terms for key, _, _ in _ways(b, t))
    key, count = max(found.items(), key=lambda item: item[1], default=((), 0))
    if count < 2:
        return None
    parts: list[int] = []
    others: list[int] = []
    for t in terms:
        matching = next((w for w in _ways(b, t) if w[0] == key), None)
        if matching is None:
            others.append(t)
        else:
            _, part, position = matching
            parts.append(part)
            last = b.nodes[t]
    total = parts[0]
    for p in parts[1:]:
        total = build(Node("add", (total, p), b.shape(p)))
    inputs = tuple(total if k == position else i for k, i in enumerate(last.inputs))
    result = build(Node(last.op, inputs, last.shape, last.dtype, last.attrs))
    for t in others:
        result = build(Node("add", (result, t), node.shape))
    return result


def _terms(b: Builder, i: int) -> Iterator[int]:
    """The terms of a sum of tensors of one shape."""
    node = b.nodes[i]
    if node.op == "add" and all(isinstance(j, int) and b.shape(j) == node.shape for j in node.inputs):
        for j in node.inputs:
            assert isinstance(j, int)
            yield from _terms(b, j)
    else:
        yield i


def _ways(b: Builder, i: int) -> Iterator[tuple[Hashable, int, int]]:
    """How a node is linear in an operand: what has to be the same in another node, the operand, its position."""
    node = b.nodes[i]
    if node.op in ("mm", "bmm", "mul"):
        for k, (part, other) in enumerate((node.inputs, node.inputs[::-1])):
            if isinstance(part, int) and part != other:
                where = k if node.op != "mul" else -1
                yield (node.op, where, other, b.shape(part), node.shape), part, k
    elif node.op in ("reshape", "permute", "sum", "slice", "embed", "neg"):
        (part,) = node.inputs
        assert isinstance(part, int)
        kept = [n for n in b.shape(part) if n != 1]
        if node.op == "reshape" and 2 <= len(kept) < len(b.shape(part)):
            return  # arithmetic leaves out dimensions of size 1, and would come back here
        yield (node.op, b.shape(part), node.shape, node.attrs), part, 0


_BATCH = 64


def work(graph: FieldGraph) -> int:
    """What a graph's arithmetic costs, about: a step of a product of matrices is a quarter of other ones."""
    return sum(_work(graph, graph.nodes[i]) for i in graph.live((*graph.value, *graph.vjp)))


def _work(graph: FieldGraph, node: Node) -> int:
    if node.op in ("reshape", "permute", "slice", "expand", "input", "const", "full"):
        return 0
    shape: Sequence[int] = [dim_size(n, _BATCH) for n in node.shape]
    size = 1
    for n in shape:
        size *= n
    if node.op in ("mm", "bmm"):
        first = node.inputs[0]
        assert isinstance(first, int)
        return 4 * size + size * dim_size(graph.nodes[first].shape[-1], _BATCH)
    return 4 * size
