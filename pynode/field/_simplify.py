"""The graph without arithmetic on known numbers, on zeros, and on what all samples share.

Derivatives of derivatives are full of it: tangents that are zero or a row of the identity, one of each for every
sample, and the same function of the same numbers in several shapes. Here

- what depends on constants alone is computed now, and zeros and ones leave sums and products;
- a tensor that is the same along a dimension is computed once and repeated afterwards;
- dimensions of size 1 are taken out of arithmetic, so that equal operations are met as such;
- what goes through the same linear operation and is added up goes through it once, where that is less work.

Zero times any number counts as zero, as it does in torch's own forward derivatives; a literal of the field's code
(`0 * x`) is left alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch

from pynode.field._arithmetic import Arithmetic
from pynode.field._graph import Dim, FieldGraph, Node, Number, Operand
from pynode.field._ops import POINTWISE
from pynode.field._shapes import broadcast, countable, product
from pynode.field._sums import collected, work

__all__ = ["simplify"]


def simplify(graph: FieldGraph, dtype: torch.dtype) -> FieldGraph:
    """An equal graph with fewer operations; `dtype` is that of its numbers."""
    separate = _built(graph, _Simpler(dtype))
    together = _built(graph, _Together(dtype))
    return together if work(together) < work(separate) else separate


def _built(graph: FieldGraph, b: _Simpler) -> FieldGraph:
    place: list[int] = []
    for node in graph.nodes:
        inputs = tuple(place[i] if isinstance(i, int) else i for i in node.inputs)
        place.append(b.simpler(dataclasses.replace(node, inputs=inputs)))
    return dataclasses.replace(
        graph,
        nodes=tuple(b.nodes),
        value=tuple(place[i] for i in graph.value),
        vjp=tuple(None if i is None else place[i] for i in graph.vjp),
    )


# Operations with one operand that act along some dimensions, alike along all others.
_ALONG_ONE = ("slice", "embed", "index_select", "index_add", "cumsum", "cumprod", "cummax", "cummin", "logcumsumexp")


class _Simpler(Arithmetic):
    """Builds nodes that are equal to given ones."""

    def simpler(self, node: Node) -> int:
        """A node equal to this one, whose operands are here already."""
        operands = [i for i in node.inputs if isinstance(i, int)]
        if operands and (node.op in POINTWISE or node.op == "cast"):
            return self.arithmetic(node)
        if node.op == "reshape":
            return self.reshape(operands[0], node.shape)
        if node.op == "expand":
            return self.expand(operands[0], node.shape)
        if node.op == "permute":
            return self.permute(operands[0], node.attr("dims"))
        if node.op == "sum":
            return self._sum(operands[0], node)
        if node.op in _ALONG_ONE:
            return self._along(operands[0], node)
        if node.op == "cat":
            return self._cat(operands, node)
        if node.op in ("mm", "bmm"):
            if any(self.value(i) == 0.0 for i in operands):
                return self.full(0.0, node.shape)
            x, y = operands
            return self._mm(x, y, node) if node.op == "mm" else self._bmm(x, y, node)
        return self.as_it_is(node)

    def _along(self, i: int, node: Node) -> int:
        """An operation along one dimension, for what is different along the others."""
        d = node.attr("dim")
        core, whole = self.core(i), self.shape(i)
        if node.op in ("slice", "embed"):
            if self.value(i) is not None and (node.op == "slice" or self.value(i) == 0.0):
                return self.expand(core, node.shape)
            if node.op == "slice" and self.shape(core)[d] == 1:
                return self.expand(core, node.shape)
        small = [whole[k] if k == d else n for k, n in enumerate(self.shape(core))]
        shape = [n if k == d else small[k] for k, n in enumerate(node.shape)]
        inner = self._again(node, [self.expand(core, small)], shape)
        return self.expand(inner, node.shape)

    def _again(self, node: Node, operands: Sequence[Operand], shape: Sequence[Dim]) -> int:
        """The operation of a node on other operands."""
        return self.as_it_is(dataclasses.replace(node, inputs=tuple(operands), shape=tuple(shape)))

    def _cat(self, parts: Sequence[int], node: Node) -> int:
        d, cores = node.attr("dim"), list(map(self.core, parts))
        small = [n if k == d else broadcast([self.shape(c)[k] for c in cores], n) for k, n in enumerate(node.shape)]
        if tuple(small) == node.shape:
            return self.cat(parts, d, node.shape, node.dtype)
        wide = [
            self.expand(c, [*small[:d], self.shape(i)[d], *small[d + 1 :]]) for c, i in zip(cores, parts, strict=True)
        ]
        return self.expand(self.cat(wide, d, small, node.dtype), node.shape)

    def _sum(self, i: int, node: Node) -> int:
        """A sum of what is different along the dimensions, times how often it comes; without dimensions of size 1."""
        core, whole, dims = self.core(i), self.shape(i), node.attr("dims")
        shape = self.shape(core)
        kept = [d for d, n in enumerate(shape) if n != 1]
        over = tuple(k for k, d in enumerate(kept) if d in dims)
        left = tuple(shape[d] for d in kept if d not in dims)
        total = self.reshape(core, [shape[d] for d in kept])
        if over:
            total = self.as_it_is(Node("sum", (total,), left, "float", (("dims", over), ("keepdim", False))))
        total = self.reshape(total, [1 if d in dims else n for d, n in enumerate(shape)])
        for d in dims:
            if shape[d] != whole[d]:
                total = self.of("mul", total, Number(whole[d]))
        return self.reshape(self.expand(total, [1 if d in dims else n for d, n in enumerate(whole)]), node.shape)

    # ---- products of matrices -------------------------------------------------------------------------

    def _mm(self, x: int, y: int, node: Node) -> int:
        """A product of which a factor has equal rows, or rows that come again for each sample."""
        if self.shape(x)[1] == 1 and (self.value(x) is not None or self.value(y) is not None):
            return self.arithmetic(Node("mul", (x, y), node.shape))
        for i, other, d in ((x, y, 0), (y, x, 1)):
            value = self.value(i)
            if value is not None:  # times sums of the other factor's rows or columns
                kept = tuple(1 if k == d else n for k, n in enumerate(self.shape(other)))
                sums = self._sum(other, Node("sum", (other,), kept, "float", (("dims", (d,)), ("keepdim", True))))
                return self.expand(self.of("mul", sums, Number(value)), node.shape)
        found = self._of_rows(x, y, node.shape)
        if found is None:
            found = self._over_rows(x, y, node.shape)
        return self._again(node, [x, y], node.shape) if found is None else found

    def _rows(self, x: int) -> tuple[int, tuple[Dim, ...]] | None:
        """The different rows of a matrix that has them again and again, with leading dimensions; and all of these."""
        source = self.nodes[x].inputs[0] if self.nodes[x].op == "reshape" else x
        if not isinstance(source, int) or self.nodes[source].op not in ("expand", "full"):
            return None
        core, shape = self.core(source), self.shape(source)
        # At least one leading dimension is repeated, and the rows are whole.
        if not shape or not countable(shape) or shape[-1] != self.shape(x)[1] or self.shape(core)[:-1] == shape[:-1]:
            return None
        return self.expand(core, [*self.shape(core)[:-1], shape[-1]]), shape[:-1]

    def _of_rows(self, x: int, y: int, shape: tuple[Dim, ...]) -> int | None:
        """The product from that of the different rows of `x`."""
        found = self._rows(x)
        if found is None:
            return None
        (core, lead), width = found, shape[1]
        small = self.shape(core)[:-1]
        rows = self.reshape(core, [product(small), self.shape(core)[-1]])
        inner = self.simpler(Node("mm", (rows, y), (product(small), width)))
        return self.reshape(self.expand(self.reshape(inner, [*small, width]), [*lead, width]), shape)

    def _over_rows(self, x: int, y: int, shape: tuple[Dim, ...]) -> int | None:
        """The product of a transposed matrix with repeated rows, by sums over those rows of `y` that meet the same."""
        turned = self.nodes[x]
        if turned.op != "permute" or turned.attr("dims") != (1, 0):
            return None
        source = turned.inputs[0]
        found = self._rows(source) if isinstance(source, int) else None
        if found is None:
            return None
        (core, lead), width = found, self.shape(y)[1]
        small = self.shape(core)[:-1]
        over = [d for d, n in enumerate(small) if n == 1 != lead[d]]
        attrs = (("dims", tuple(over)), ("keepdim", True))
        total = self._sum(y := self.reshape(y, [*lead, width]), Node("sum", (y,), (*small, width), "float", attrs))
        count = product(small)
        left = self.permute(self.reshape(core, [count, shape[0]]), (1, 0))
        return self.simpler(Node("mm", (left, self.reshape(total, [count, width])), shape))

    def _bmm(self, x: int, y: int, node: Node) -> int:
        """Products of matrices, those of a column and a row by numbers."""
        if self.shape(x)[2] == 1:
            return self.arithmetic(Node("mul", (x, y), node.shape))
        cores = self.core(x), self.core(y)
        if all(self.shape(c)[0] == 1 != node.shape[0] for c in cores):
            both = [self.expand(c, [1, *self.shape(i)[1:]]) for c, i in zip(cores, (x, y), strict=True)]
            return self.expand(self._again(node, both, [1, *node.shape[1:]]), node.shape)
        return self._again(node, [x, y], node.shape)


class _Together(_Simpler):
    """As `_Simpler`, with sums of what a linear operation gives as the operation on sums."""

    def rules(self) -> Sequence[Callable[[Node], int | None]]:
        """As `Arithmetic.rules`."""
        return *super().rules(), lambda node: collected(self, node, self.simpler)
