"""Builds arithmetic in which what is known, or the same for several entries, is computed once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch

from pynode.field._builder import Builder
from pynode.field._graph import Dim, Node, Number, Operand
from pynode.field._known import known
from pynode.field._shapes import broadcast, countable, groups

__all__ = ["Arithmetic"]

_NUMBER_FIRST = ("add", "sub", "mul", "div", "maximum", "minimum")
_EITHER_WAY = ("add", "mul", "maximum", "minimum", "logical_and", "logical_or", "eq", "ne")
_NUMBER_SECOND = (*_NUMBER_FIRST, "pow", "lt", "le", "gt", "ge", "eq", "ne")


class Arithmetic(Builder):
    """Builds views and arithmetic; `dtype` is that of the numbers."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def as_it_is(self, node: Node) -> int:
        """The node, or its values where they are known."""
        values = known(self.nodes, node, self._dtype)
        if values is not None:
            return self.const(values, node.shape, node.dtype)
        return self.add(node.op, node.inputs, node.shape, node.dtype, **dict(node.attrs))

    # ---- what is the same along a dimension ----------------------------------------------------------

    def value(self, i: Operand) -> float | None:
        """The number that all entries of a tensor are; `None` where it is not known, or where that is a literal."""
        if isinstance(i, Number) or self.nodes[i].op != "full":
            return None
        number = self.nodes[i].inputs[0]
        assert isinstance(number, Number)
        return None if isinstance(number.value, tuple) else float(number.value)

    def core(self, i: int) -> int:
        """A tensor before it was repeated: of the same rank, with 1 where it is the same along a dimension."""
        node, rank = self.nodes[i], len(self.shape(i))
        if node.op == "full":
            return self.add("full", node.inputs, (1,) * rank, node.dtype)
        if node.op != "expand":
            return i
        source = node.inputs[0]
        assert isinstance(source, int)
        shape = self.shape(source)
        return self.reshape(source, (1,) * (rank - len(shape)) + shape)

    def expand(self, i: int, shape: Sequence[Dim]) -> int:
        """The node broadcast to a shape, in one go."""
        if self.nodes[i].op == "expand" and self.shape(i) != tuple(shape):
            i = self.nodes[i].inputs[0]  # type: ignore[assignment]
        return super().expand(i, shape)

    def reshape(self, i: int, shape: Sequence[Dim]) -> int:
        """The node with another shape; what is repeated is repeated afterwards, where the shapes allow it."""
        while self.nodes[i].op == "reshape":
            i = self.nodes[i].inputs[0]  # type: ignore[assignment]
        node, shape = self.nodes[i], tuple(shape)
        if node.op == "full":
            return self.add("full", node.inputs, shape, node.dtype)
        if node.op == "const":
            return self.add("const", [], shape, node.dtype, data=node.attr("data"))
        if node.op == "expand" and node.shape != shape and 0 not in shape and countable(node.shape):
            core = self.shape(self.core(i))
            small: list[Dim] = [1] * len(shape)
            for before, after in groups(node.shape, shape):
                same = all(core[d] == 1 for d in before)
                if not same and any(core[d] != node.shape[d] for d in before):
                    break
                for d in after:
                    small[d] = 1 if same else shape[d]
            else:
                return self.expand(super().reshape(self.core(i), small), shape)
        return super().reshape(i, shape)

    def permute(self, i: int, dims: Sequence[int]) -> int:
        """The node with its dimensions in another order; what is repeated is repeated afterwards."""
        node, shape = self.nodes[i], self.shape(i)
        if node.op == "full":
            return self.add("full", node.inputs, [shape[d] for d in dims], node.dtype)
        if node.op == "expand":
            return self.expand(self.permute(self.core(i), dims), [shape[d] for d in dims])
        moved = [d for d in dims if shape[d] != 1]
        if shape and moved == sorted(moved):
            return self.reshape(i, [shape[d] for d in dims])
        return super().permute(i, dims)

    # ---- arithmetic -----------------------------------------------------------------------------------

    def arithmetic(self, node: Node) -> int:
        """Arithmetic on operands before they are repeated, which is left to the result."""
        inputs = [self._before(i) for i in node.inputs]
        shapes = [self.shape(i) for i in inputs if isinstance(i, int)]
        rank = max(map(len, shapes))
        wide = [(1,) * (rank - len(s)) + s for s in shapes]
        whole = node.shape[len(node.shape) - rank :]
        small = tuple(broadcast([s[d] for s in wide], n) for d, n in enumerate(whole))
        # Dimensions of size 1 are left out where there are two others.
        kept = [d for d, n in enumerate(small) if n != 1]
        if 2 <= len(kept) < rank:
            inputs = [self._picked(i, kept, rank) for i in inputs]
            squeezed = tuple(small[d] for d in kept)
            found = self.reshape(
                self._rearranged(dataclasses.replace(node, inputs=tuple(inputs), shape=squeezed)), small
            )
        else:
            found = self._rearranged(dataclasses.replace(node, inputs=tuple(inputs), shape=small))
        return self.expand(found, node.shape)

    def _before(self, i: Operand) -> Operand:
        """An operand before it was repeated, which arithmetic does by itself."""
        node = self.nodes[i] if isinstance(i, int) else None
        if node is None or node.op not in ("full", "expand"):
            return i
        return self.add("full", node.inputs, (), node.dtype) if node.op == "full" else node.inputs[0]

    def _picked(self, i: Operand, kept: Sequence[int], rank: int) -> Operand:
        if not isinstance(i, int):
            return i
        shape = self.shape(i)
        return self.reshape(i, [shape[d - rank + len(shape)] for d in kept if d >= rank - len(shape)])

    def of(self, op: str, *inputs: Operand) -> int:
        """Arithmetic that gives numbers, of the shape that the operands have together."""
        return self.arithmetic(Node(op, inputs, self._together(*inputs)))

    def rules(self) -> Sequence[Callable[[Node], int | None]]:
        """What arithmetic may be instead: each gives a node, or `None` where it has nothing to say."""
        return self._without_zeros, self._by_factors, self._put_together

    def _rearranged(self, node: Node) -> int:
        for rule in self.rules():
            found = rule(node)
            if found is not None:
                return self.expand(found, node.shape)
        return self._with_numbers(node)

    def _by_factors(self, node: Node) -> int | None:
        """Products with those factors first that can be computed once for several products.

        These are factors of a smaller shape, and those that are peculiar to a derivative: what is g where a number is
        large, and g u / (u + 1) elsewhere, is g times a factor.
        """
        x, y = node.inputs[:2] if len(node.inputs) > 1 else (node.inputs[0], None)
        if node.op == "mul":
            for a, b in ((x, y), (y, x)):
                for g, u in self._factors(a):
                    if isinstance(b, int) and self.shape(g) == node.shape != self._together(u, b):
                        return self.of("mul", g, self.of("mul", u, b))
        elif node.op == "div" and isinstance(y, int):
            for g, u in self._factors(x):
                of_u = self._viewed(u) in self.nodes[self._viewed(y)].inputs
                if of_u or self.shape(g) == node.shape != self._together(u, y):
                    return self.of("mul", g, self.of("div", u, y))
        elif node.op == "where":
            for g, u in self._factors(node.inputs[2]):
                if g == y:
                    return self.of("mul", g, self.of("where", x, self.full(1.0, ()), u))
        return None

    def _viewed(self, i: int) -> int:
        """The tensor of which this one is another shape."""
        source = self.nodes[i].inputs[0] if self.nodes[i].op == "reshape" else i
        assert isinstance(source, int)
        return source

    def _factors(self, i: Operand | None) -> Sequence[tuple[int, int]]:
        """The two factors of a product, in both orders; none of what is no such product."""
        node = self.nodes[i] if isinstance(i, int) else None
        if node is None or node.op != "mul" or node.dtype != "float":
            return ()
        a, b = node.inputs
        return ((a, b), (b, a)) if isinstance(a, int) and isinstance(b, int) else ()

    def _together(self, *operands: Operand) -> tuple[Dim, ...]:
        """The shape of a broadcast of some operands."""
        shape: tuple[Dim, ...] = ()
        for s in (self.shape(i) for i in operands if isinstance(i, int)):
            rank = max(len(shape), len(s))
            pairs = zip((1,) * (rank - len(shape)) + shape, (1,) * (rank - len(s)) + s, strict=True)
            shape = tuple(b if a == 1 else a for a, b in pairs)
        return shape

    def _put_together(self, node: Node) -> int | None:
        """The sum of two parts among zeros that lie side by side: one tensor of both."""
        if node.op != "add" or not all(isinstance(i, int) and self.nodes[i].op == "embed" for i in node.inputs):
            return None
        parts = sorted((self.nodes[i] for i in node.inputs if isinstance(i, int)), key=lambda n: str(n.attr("start")))
        dims = {n.attr("dim") for n in parts}
        if len(dims) > 1 or any(n.attr("step") != 1 or n.shape != node.shape for n in parts):
            return None
        d = dims.pop()
        if [n.attr("start") for n in parts] != [0, parts[0].attr("stop")] or parts[1].attr("stop") != node.shape[d]:
            return None
        return self.cat([i for n in parts for i in n.inputs if isinstance(i, int)], d, node.shape)

    def cat(self, parts: Sequence[int], dim: int, shape: Sequence[Dim], dtype: str = "float") -> int:
        """Tensors one behind the other; neighbouring slices of a tensor are one slice."""
        found: list[int] = []
        for i in parts:
            last = self.nodes[found[-1]] if found else None
            if last is not None and self._follows(self.nodes[i], last, dim):
                start, stop, size = last.attr("start"), self.nodes[i].attr("stop"), self.nodes[i].shape[dim]
                wide = [*last.shape[:dim], last.shape[dim] + size, *last.shape[dim + 1 :]]  # type: ignore[operator]
                found[-1] = self.slice(last.inputs[0], dim, start, stop, 1, wide)  # type: ignore[arg-type]
            else:
                found.append(i)
        if len(found) == 1:
            return found[0]
        return self.as_it_is(Node("cat", tuple(found), tuple(shape), dtype, (("dim", dim),)))

    def _follows(self, node: Node, last: Node, dim: int) -> bool:
        """Whether a slice goes on where another one of the same tensor ends, along a dimension of known size."""
        both = node.op == last.op == "slice" and node.inputs == last.inputs
        if not both or {n.attr("dim") for n in (node, last)} != {dim} or {n.attr("step") for n in (node, last)} != {1}:
            return False
        return last.attr("stop") == node.attr("start") and all(isinstance(n.shape[dim], int) for n in (node, last))

    def _with_numbers(self, node: Node) -> int:
        """Arithmetic with tensors of one value as numbers, where torch takes them, and not all are."""
        inputs = node.inputs
        places: Sequence[int] = ()
        if node.op == "where":
            places = (1, 2) if node.dtype == "float" else ()
        elif len(inputs) == 2:
            places = [k for k, ops in enumerate((_NUMBER_FIRST, _NUMBER_SECOND)) if node.op in ops]
        values = {k: self.value(inputs[k]) for k in places}
        if None in values.values():
            numbers = {k: Number(value) for k, value in values.items() if value is not None}
            inputs = tuple(numbers.get(k, i) for k, i in enumerate(inputs))
        if node.op in _EITHER_WAY:
            inputs = tuple(sorted(inputs, key=lambda i: (isinstance(i, Number), i if isinstance(i, int) else 0)))
        new = dataclasses.replace(node, inputs=inputs)
        if node.op == "cast" or known(self.nodes, new, self._dtype) is not None:
            return self.as_it_is(new)
        return self.pointwise(node.op, inputs, node.shape, node.dtype)

    def _without_zeros(self, node: Node) -> int | None:
        """A sum without a term that is zero, a product without a factor that is one, or zero."""
        if node.op == "where":
            _, x, y = node.inputs
            return x if x == y and isinstance(x, int) else self._chosen(node)
        if node.op not in ("add", "sub", "mul", "div") or node.dtype != "float":
            return None
        x, y = node.inputs
        a, b = self.value(x), self.value(y)
        if node.op == "mul":
            if a == 0.0 or b == 0.0:
                return self.full(0.0, node.shape)
            return y if a == 1.0 and isinstance(y, int) else x if b == 1.0 and isinstance(x, int) else None
        if node.op == "div":
            return self.full(0.0, node.shape) if a == 0.0 else x if b == 1.0 and isinstance(x, int) else None
        if b == 0.0 and isinstance(x, int):
            return x
        if a == 0.0 and isinstance(y, int):
            return y if node.op == "add" else self.arithmetic(Node("neg", (y,), self.shape(y)))
        return None

    def _chosen(self, node: Node) -> int | None:
        """The branch that a condition which is known chooses everywhere."""
        condition = node.inputs[0]
        source = condition
        if not isinstance(source, int) or self.nodes[source].op != "const":
            return None
        data = self.nodes[source].attr("data")
        if len(set(data)) != 1:
            return None
        branch = node.inputs[1 if data[0] else 2]
        return branch if isinstance(branch, int) else None
