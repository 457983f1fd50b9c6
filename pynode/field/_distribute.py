"""Products of matrices that are put together or cut, and convolutions of images that are: those of their parts instead.

`[x, t] Wᵀ`, as a layer that takes the time writes it, is `x W₁ᵀ + t w₂ᵀ`: a smaller product and a bias. Putting the
columns together, and cutting them apart in the derivative, would cost more than the product, since they are strided;
and the product of a part that does not depend on the state is computed once for a whole solve. So is the convolution of
the time as a channel: up to its factor it is that of an image of ones.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pynode.field._builder import Builder
from pynode.field._graph import Dim, FieldGraph, Node

__all__ = ["distribute"]

_MOST = 4  # parts; more of them are cheaper together


def distribute(graph: FieldGraph) -> FieldGraph:
    """The same graph with products of parts, and with one bias where there were several."""
    b = _Products(graph)
    users = Counter(i for n in graph.nodes for i in set(n.inputs) if isinstance(i, int))
    users.update(i for i in (*graph.value, *graph.vjp) if i is not None)
    slices = Counter(n.inputs[0] for n in graph.nodes if n.op == "slice")
    place: list[int] = []
    for i, node in enumerate(graph.nodes):
        inputs = tuple(place[j] if isinstance(j, int) else j for j in node.inputs)
        new = dataclasses.replace(node, inputs=inputs)
        source = next((j for j in node.inputs if isinstance(j, int)), 0)
        once = users[source] == 1
        if node.op == "mm":
            place.append(b.mm(inputs[0], inputs[1]))  # type: ignore[arg-type]
        elif node.op == "conv":
            place.append(b.conv(new))
        elif node.op == "conv_weight":
            place.append(b.conv_weight(new))
        elif node.op == "conv_input" and slices[i] == users[i] <= _MOST:
            place.append(b.copy(new))
            # Made here, so that it comes before the products with the derivative in the weights, made along with it.
            for part in (_Part.of(n) for n in graph.nodes if n.op == "slice" and n.inputs[0] == i):
                b.part(place[-1], part)
        elif node.op == "add" and all(isinstance(j, int) for j in inputs):
            place.append(b.total(new))
        elif node.op == "permute" and node.attr("dims") == (1, 0):
            place.append(b.transpose(place[source], once))
        elif node.op == "slice" and slices[source] == users[source] <= _MOST:
            place.append(b.part(place[source], _Part.of(new)))
        elif node.op == "sum":
            place.append(b.sum(new, once))
        else:
            place.append(b.copy(new))
    return dataclasses.replace(
        graph,
        nodes=tuple(b.nodes),
        value=tuple(place[i] for i in graph.value),
        vjp=tuple(None if i is None else place[i] for i in graph.vjp),
    )


@dataclass(frozen=True)
class _Part:
    """What lies in `start:stop:step` along a dimension."""

    dim: int
    start: Dim
    stop: Dim
    step: int
    size: Dim

    @staticmethod
    def of(node: Node) -> _Part:
        """What a slice reads."""
        dim = node.attr("dim")
        return _Part(dim, node.attr("start"), node.attr("stop"), node.attr("step"), node.shape[dim])


class _Products(Builder):
    """Builds products of matrices from those of their parts."""

    def __init__(self, graph: FieldGraph) -> None:
        super().__init__()
        self.kinds = [i.kind for i in graph.inputs]
        self.moves: list[bool] = []  # whether a node depends on the state or on a cotangent

    def copy(self, node: Node) -> int:
        """A node as it is."""
        return self.add(node.op, node.inputs, node.shape, node.dtype, **dict(node.attrs))

    def moving(self, i: int) -> bool:
        """Whether a node depends on the state or on a cotangent."""
        for node in self.nodes[len(self.moves) :]:
            self.moves.append(
                self.kinds[node.attr("index")] in ("z", "cotangent")
                if node.op == "input"
                else any(self.moves[j] for j in node.inputs if isinstance(j, int))
            )
        return self.moves[i]

    # ---- products -----------------------------------------------------------------------------------

    def mm(self, x: int, y: int) -> int:
        """The product of `x`, `(M, K)`, and `y`, `(K, N)`."""
        found = self._by_parts(x, y)
        if found is None:
            swapped = self._by_parts(self.transpose(y), self.transpose(x))
            found = None if swapped is None else self.transpose(swapped, once=True)
        return self.add("mm", [x, y], [self.shape(x)[0], self.shape(y)[1]]) if found is None else found

    def _by_parts(self, x: int, y: int) -> int | None:
        """The product from parts of `x`; `None` where it has none."""
        node, shape = self.nodes[x], (self.shape(x)[0], self.shape(y)[1])
        if node.op == "embed":
            (source,), part = node.inputs, _Part.of(node)
            assert isinstance(source, int)
            part = dataclasses.replace(part, size=self.shape(source)[part.dim])
            if part.dim == 1:
                return self.mm(source, self.part(y, dataclasses.replace(part, dim=0)))
            return self.embed(self.mm(source, y), 0, part.start, part.stop, part.step, shape)
        if node.op == "cat" and self._divisible(node):
            sources = [i for i in node.inputs if isinstance(i, int)]
            if node.attr("dim") == 0:
                return self.add("cat", [self.mm(i, y) for i in sources], shape, dim=0)
            products, start = [], 0
            for i in sources:
                size = self.shape(i)[1]
                assert isinstance(size, int)
                products.append(self.mm(i, self.part(y, _Part(0, start, start + size, 1, size))))
                start += size
            return self._add_up(products, shape)
        row = self._repeated(x, 0)
        if row is not None:
            return self.expand(self.mm(row, y), shape)
        column = self._repeated(x, 1)
        if column is not None:
            return self.pointwise("mul", [column, self._sum_of_rows(y)], shape)
        if self.shape(x)[1] == 1 and 1 in shape:
            return self.pointwise("mul", [x, y], shape)
        return None

    def _divisible(self, node: Node) -> bool:
        """Whether the parts of a matrix are few, and all but one of them do not depend on the state."""
        sources = [i for i in node.inputs if isinstance(i, int)]
        sized = all(isinstance(self.shape(i)[node.attr("dim")], int) for i in sources)
        return sized and len(sources) <= _MOST and sum(map(self.moving, sources)) <= 1

    def _repeated(self, x: int, dim: int) -> int | None:
        """The line of a matrix whose lines along a dimension are all alike, or the only one of several matrices."""
        node, shape = self.nodes[x], self.shape(x)
        if node.op != "expand" or shape[dim] == 1:
            return None
        source = node.inputs[0]
        assert isinstance(source, int)
        inner = (1,) * (len(shape) - len(self.shape(source))) + self.shape(source)
        line = [1 if d == dim else n for d, n in enumerate(shape)]
        return self.expand(self.reshape(source, inner), line) if inner[dim] == 1 else None

    def _sum_of_rows(self, x: int) -> int:
        """The sum over the first dimension, which is kept."""
        node, width = self.nodes[x], self.shape(x)[1]
        if node.op == "permute":
            source = node.inputs[0]
            assert isinstance(source, int)
            return self.reshape(self.reduce("sum", source, [1], True, (width, 1)), (1, width))
        return self.reduce("sum", x, [0], True, (1, width))

    def sum(self, node: Node, once: bool) -> int:
        """A sum, of a product by its factors' sums; `once`: what is summed is not needed otherwise."""
        (source,) = (i for i in node.inputs if isinstance(i, int))
        dims, inner = node.attr("dims"), self.nodes[source]
        if once and inner.op == "mm" and 0 in dims and inner.shape[0] != 1:
            return self._sum_of_product(node, inner)
        if once and node.shape == ():
            image = inner
            while image.op == "reshape":
                image = self.nodes[image.inputs[0]]  # type: ignore[index]
            if image.op == "conv_input" and image.attr("groups") == 1:
                return self._sum_of_image(image)
        over_batch = self._found("sum", [source], (1, *inner.shape[1:]), dims=(0,), keepdim=True)
        if over_batch is not None and len(dims) > 1 and 0 in dims:
            kept = tuple(n for d, n in enumerate(inner.shape) if d not in dims)
            return self.reshape(self.reduce("sum", over_batch, dims, False, kept), node.shape)
        return self.copy(node)

    def _found(self, op: str, inputs: Sequence[int], shape: Sequence[Dim], **attrs: object) -> int | None:
        """The node that is there already, if it is."""
        return self._index.get(Node(op, tuple(inputs), tuple(shape), "float", tuple(sorted(attrs.items()))))

    def _sum_of_product(self, node: Node, inner: Node) -> int:
        """A sum over the rows of a product: the product with the sum of the first factor's rows."""
        dims = node.attr("dims")
        x, y = (i for i in inner.inputs if isinstance(i, int))
        row = self.mm(self._sum_of_rows(x), y)
        whole = 1 in dims and inner.shape[1] != 1
        return self.reshape(self.reduce("sum", row, [1], True, (1, 1)) if whole else row, node.shape)

    # ---- convolutions -----------------------------------------------------------------------------------

    def conv(self, node: Node) -> int:
        """A convolution; of channels that are put together, that of those that depend on the state, and the others'."""
        x, w = (i for i in node.inputs if isinstance(i, int))
        parts = self._channels(x, node)
        if parts is None:
            return self.copy(node)
        moving, rest = None, None
        for i, start, stop in parts:
            part = self.part(w, _Part(1, start, stop, 1, stop - start))
            if self.moving(i):
                moving = self._conv_like(node, [i, part], node.shape)
                continue
            fixed, factor = self._image(i)
            term = self._conv_like(node, [fixed, part], (1, *node.shape[1:]))
            if factor is not None:
                term = self.pointwise("mul", [factor, term], self.shape(term))
            rest = term if rest is None else self.pointwise("add", [rest, term], self.shape(term))
        assert moving is not None
        assert rest is not None
        return self.pointwise("add", [moving, rest], node.shape)

    def conv_weight(self, node: Node) -> int:
        """The products with the derivative of such a convolution in its weights."""
        x, dy = (i for i in node.inputs if isinstance(i, int))
        parts = self._channels(x, node)
        if parts is None:
            return self.copy(node)
        terms, summed = [], self.reduce("sum", dy, [0], True, (1, *self.shape(dy)[1:]))
        for i, start, stop in parts:
            shape = (node.shape[0], stop - start, *node.shape[2:])
            if self.moving(i):
                terms.append(self._conv_like(node, [i, dy], shape))
                continue
            fixed, factor = self._image(i)
            term = self._conv_like(node, [fixed, summed], shape)
            terms.append(term if factor is None else self.pointwise("mul", [factor, term], shape))
        return self.add("cat", terms, node.shape, dim=1)

    def _conv_like(self, node: Node, inputs: Sequence[int], shape: Sequence[Dim]) -> int:
        return self.add(node.op, inputs, shape, **dict(node.attrs))

    def _channels(self, x: int, node: Node) -> list[tuple[int, int, int]] | None:
        """Images whose channels make up those of an image, with where they start and stop; one depends on the state.

        `None` where there are no such images, or one is neither the state's nor the same for all samples.
        """
        cat = self.nodes[x]
        if cat.op != "cat" or cat.attr("dim") != 1 or node.attr("groups") != 1:
            return None
        sources = [i for i in cat.inputs if isinstance(i, int)]
        others = [i for i in sources if not self.moving(i)]
        if len(sources) > _MOST or len(others) != len(sources) - 1 or any(self._shared(i) is None for i in others):
            return None
        found, start = [], 0
        for i in sources:
            size = self.shape(i)[1]
            assert isinstance(size, int)
            found.append((i, start, start + size))
            start += size
        return found

    def _shared(self, i: int) -> int | None:
        """The image of one sample that all samples have."""
        return i if self.shape(i)[0] == 1 else self._repeated(i, 0)

    def _image(self, i: int) -> tuple[int, int | None]:
        """The image of one sample that all samples have, or of ones and the number that it has everywhere."""
        node, shape = self.nodes[i], (1, *self.shape(i)[1:])
        if node.op == "expand":
            (source,) = (j for j in node.inputs if isinstance(j, int))
            if all(n == 1 for n in self.shape(source)):
                return self.full(1.0, shape), self.reshape(source, ())
        row = self._shared(i)
        assert row is not None
        return row, None

    def _sum_of_image(self, node: Node) -> int:
        """The sum of all numbers of a convolution's transpose: the product with the convolution of an image of ones."""
        dy, w = (i for i in node.inputs if isinstance(i, int))
        shape = (1, *self.shape(dy)[1:])
        summed = self.reduce("sum", dy, [0], True, shape)
        ones = self.full(1.0, (1, *node.shape[1:]))
        product = self.pointwise("mul", [summed, self.add("conv", [ones, w], shape, **dict(node.attrs))], shape)
        return self.reduce("sum", product, range(len(shape)), False, ())

    # ---- parts and transposes -------------------------------------------------------------------------

    def part(self, x: int, part: _Part) -> int:
        """Part of a node; of a product of matrices, the product with part of a factor."""
        node = self.nodes[x]
        shape = tuple(part.size if d == part.dim else n for d, n in enumerate(node.shape))
        if shape == node.shape:
            return x
        if node.op == "mm":
            a, b = (i for i in node.inputs if isinstance(i, int))
            return self.mm(self.part(a, part), b) if part.dim == 0 else self.mm(a, self.part(b, part))
        if node.op == "conv_input" and part.dim == 1 and node.attr("groups") == 1:
            dy, w = (i for i in node.inputs if isinstance(i, int))
            return self._conv_like(node, [dy, self.part(w, part)], shape)
        if node.op == "permute" and node.attr("dims") == (1, 0):
            (source,) = (i for i in node.inputs if isinstance(i, int))
            return self.transpose(self.part(source, dataclasses.replace(part, dim=1 - part.dim)))
        if node.op == "expand" and len(self.shape(x)) == 2:
            row = self._repeated(x, part.dim)
            if row is not None:
                return self.expand(row, shape)
        return self.slice(x, part.dim, part.start, part.stop, part.step, shape)

    def transpose(self, x: int, once: bool = False) -> int:
        """A matrix transposed; `once`: it is not needed otherwise."""
        node, shape = self.nodes[x], self.shape(x)[::-1]
        inputs = [i for i in node.inputs if isinstance(i, int)]
        if 1 in shape and node.op != "expand":
            return self.reshape(x, shape)
        if node.op == "cat":
            return self.add("cat", [self.transpose(i, once) for i in inputs], shape, dim=1 - node.attr("dim"))
        if node.op == "embed":
            part = _Part.of(node)
            return self.embed(self.transpose(inputs[0], once), 1 - part.dim, part.start, part.stop, part.step, shape)
        if node.op == "expand":
            inner = (1,) * (2 - len(self.shape(inputs[0]))) + self.shape(inputs[0])
            return self.expand(self.transpose(self.reshape(inputs[0], inner)), shape)
        if once and node.op == "mm":
            return self.mm(self.transpose(inputs[1]), self.transpose(inputs[0]))
        if once and node.op == "add" and all(self.shape(i) == node.shape for i in node.inputs if isinstance(i, int)):
            turned = [self.transpose(i, once) for i in inputs]
            if len(inputs) == 2 and all(self.nodes[i].op != "permute" for i in turned):
                return self.add("add", turned, shape)
        return self.permute(x, (1, 0))

    # ---- sums -----------------------------------------------------------------------------------------

    def total(self, node: Node) -> int:
        """A sum of matrices, or of one and of rows: what does not depend on the state is added up on its own."""
        terms = self._terms(node)
        moving = [i for i in terms if self.moving(i)]
        usable = all(self.shape(i) == node.shape or (i not in moving and len(self.shape(i)) < 2) for i in terms)
        if len(node.shape) != 2 or len(moving) != 1 or len(terms) < 3 or not usable:
            return self.copy(node)
        return self._add_up(terms, node.shape)

    def _terms(self, node: Node) -> list[int]:
        """The terms of a sum; those of a sum within it that has a fixed one too."""
        terms: list[int] = []
        for i in (i for i in node.inputs if isinstance(i, int)):
            inner = self.nodes[i]
            both = inner.op == "add" and all(isinstance(j, int) for j in inner.inputs)
            divided = both and {self.moving(j) for j in inner.inputs if isinstance(j, int)} == {True, False}
            terms += self._terms(inner) if divided else [i]
        return terms

    def _add_up(self, terms: Sequence[int], shape: tuple[Dim, ...]) -> int:
        """The sum of matrices and rows: of those that depend on the state, then the rows, then the other fixed ones.

        In this order a product of matrices can start from the row.
        """
        moving = [i for i in terms if self.moving(i)]
        fixed = [self._row(i) for i in terms if not self.moving(i)]
        rows = [i for i in fixed if len(self.shape(i)) < 2]
        total: int | None = None
        for group in (moving, rows, [i for i in fixed if i not in rows]):
            part: int | None = None
            for i in group:
                widest = max(self.shape(i), () if part is None else self.shape(part), key=len)
                part = i if part is None else self.pointwise("add", [part, i], widest)
            if part is not None:
                total = part if total is None else self.pointwise("add", [total, part], shape)
        assert total is not None
        return self.expand(total, shape)

    def _row(self, i: int) -> int:
        """The row, `(N,)`, of a matrix whose rows are all the same; else the matrix."""
        row = self._repeated(i, 0) if len(self.shape(i)) == 2 else None
        return i if row is None else self.reshape(row, self.shape(i)[1:])
