"""The steps that the julia engine makes of a graph: which operations are fused, and which copies there are.

This says in Python what `julia/src/lower/lower.jl` decides (`plan!`, `affine!`, `materialise!`) and what
`julia/src/lower/kernel.jl` computes before a solve (`frontier`; `turned_weights` in `products.jl`), so that it can be
told without a Julia; the tests hold the two together.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pynode.field._graph import FieldGraph, Node
from pynode.field._ops import POINTWISE

__all__ = ["CHEAP", "Plan", "Step", "computed_once", "steps"]


@dataclass(frozen=True)
class Step:
    """What is computed in one go: a loop over pointwise operations, a call for any other.

    Attributes:
        computed: the nodes that are computed, in order, each with the node whose entries it is computed for.
        read: the nodes whose tensors are read from memory.
        written: the nodes whose tensors are written.
    """

    computed: tuple[tuple[int, int], ...]
    read: tuple[int, ...]
    written: tuple[int, ...]


# As in `julia/src/lower/pointwise.jl`: they may be computed twice.
CHEAP = {
    *("neg", "add", "sub", "mul", "abs", "relu", "maximum", "minimum", "lt", "le", "gt", "ge", "eq", "ne"),
    *("where", "logical_not", "logical_and", "logical_or", "cast", "expand", "full"),
}
_SHORT = 16
_LEAST_TURNED, _MOST_TURNED = 8, 2**18  # see `julia/src/lower/products.jl`
_LOOPED = {*POINTWISE, "cast", "expand", "full"}
_WITHOUT_COPY = {"sum", "amax", "amin", "prod", "cumsum", "cumprod", "index_select", "index_add", "slice", "flip"}
_WITHOUT_COPY |= {"cummax", "cummin", "logcumsumexp"}
_GIVEN = ("const", "full", "arange")  # without operands


def steps(graph: FieldGraph, outputs: Sequence[int], given: Collection[int]) -> list[Step]:
    """The steps that compute nodes from the tensors of others, in order.

    Args:
        graph: the graph.
        outputs: the nodes whose tensors are wanted, each in memory of its own.
        given: the nodes whose tensors are there, the inputs among them.
    """
    return _Program(Plan(graph, outputs, given), outputs).steps


def computed_once(graph: FieldGraph) -> list[int]:
    """The nodes that are computed once for each solve: they depend on neither t, the state nor a cotangent."""
    fixed: set[int] = set()
    for i, node in enumerate(graph.nodes):
        if node.op == "input":
            if graph.inputs[i].kind in ("arg", "parameter", "buffer", "constant"):
                fixed.add(i)
        elif node.op not in _GIVEN:
            operands = _operands(node)
            known = all(j in fixed or graph.nodes[j].op in _GIVEN for j in operands)
            if known and any(j in fixed for j in operands):
                fixed.add(i)
    found: set[int] = set()
    turned = _turned_weights(graph, fixed)

    def visit(i: int) -> None:
        op = graph.nodes[i].op
        if i in turned:
            found.add(i)
        elif op in ("permute", "reshape", "expand", "slice"):  # other views are left to where they are used
            for j in _operands(graph.nodes[i]):
                visit(j)
        elif op not in ("input", *_GIVEN):
            found.add(i)

    wanted = {*graph.value, *graph.vjp}
    for i in graph.live((*graph.value, *graph.vjp)):
        if i not in fixed:
            for j in _operands(graph.nodes[i]):
                if j in fixed:
                    visit(j)
        elif i in wanted:
            visit(i)
    return sorted(found)


def _turned_weights(graph: FieldGraph, fixed: Collection[int]) -> set[int]:
    """The transpositions of weights, of a size worth it, that matrix products alone read, as the second factor."""
    readers: dict[int, list[Node]] = {}
    for i in graph.live((*graph.value, *graph.vjp)):
        for j in set(_operands(graph.nodes[i])):
            readers.setdefault(j, []).append(graph.nodes[i])
    found = set()
    for i in readers.keys() & set(fixed) - {*graph.value, *graph.vjp}:
        node = graph.nodes[i]
        if node.op != "permute" or node.attr("dims") != (1, 0) or node.dtype != "float":
            continue
        rows, columns = node.shape
        if not (isinstance(rows, int) and isinstance(columns, int)):
            continue
        if columns < _LEAST_TURNED or rows * columns > _MOST_TURNED:
            continue
        if all(n.op == "mm" and n.inputs[1] == i and n.inputs[0] != i for n in readers[i]):
            found.add(i)
    return found


def _operands(node: Node) -> list[int]:
    return [i for i in node.inputs if isinstance(i, int)]


class Plan:
    """Which operations are fused in the computation of some nodes from others.

    Attributes:
        order: the nodes that are needed.
        users: of each of them the nodes that read it.
        inlined: pointwise nodes that are computed where they are used.
        sums: sums of a product of matrices and a bias, which the product starts from: the product and the bias.
    """

    def __init__(self, graph: FieldGraph, outputs: Sequence[int], given: Collection[int]) -> None:
        self.graph, self.outputs, self.given = graph, set(outputs), set(given)
        self.order = self._needed()
        self.users: dict[int, list[int]] = {i: [] for i in self.order}
        for i in self.order:
            for j in set() if i in self.given else set(_operands(graph.nodes[i])):
                self.users[j].append(i)
        self.inlined: set[int] = set()
        self.sums: dict[int, tuple[int, int]] = {}
        leaves: dict[int, int] = {}
        mixed: set[int] = set()  # of the inlined, those that read operands of several shapes
        for i in self.order:
            node = graph.nodes[i]
            leaves[i] = 1
            if i in self.given or node.op not in _LOOPED or self._starts_from_bias(i):
                continue
            count = max(1, sum(leaves[j] if j in self.inlined else 1 for j in _operands(node)))
            is_mixed = any(
                j in mixed if j in self.inlined else graph.nodes[j].shape not in (node.shape, ())
                for j in _operands(node)
            )
            if self._is_inlined(i, count, is_mixed):
                self.inlined.add(i)
                leaves[i] = count
                if is_mixed:
                    mixed.add(i)

    def _needed(self) -> list[int]:
        needed: set[int] = set()
        stack = list(self.outputs)
        while stack:
            i = stack.pop()
            if i not in needed:
                needed.add(i)
                stack.extend(() if i in self.given else _operands(self.graph.nodes[i]))
        return sorted(needed)

    def _is_inlined(self, i: int, leaves: int, is_mixed: bool) -> bool:
        """Whether a pointwise node that reads so many tensors is computed where it is used."""
        node, users = self.graph.nodes[i], [self.graph.nodes[j] for j in self.users[i]]
        if i in self.outputs or not all(n.op in _LOOPED or n.op in ("cat", "embed") for n in users):
            return False
        # An inner loop over operands of several shapes that is too short to be vectorised: what is dear stands apart.
        has_short_rows = len(node.shape) > 1 and isinstance(node.shape[-1], int) and node.shape[-1] < _SHORT
        if is_mixed and has_short_rows and any(n.op in _LOOPED - CHEAP for n in users):
            return False
        if node.op in ("expand", "full"):
            return True
        cheap = node.op in CHEAP and leaves <= 3
        alone = len(users) == 1 and users[0].shape == node.shape
        return leaves <= 8 and (cheap or alone)

    def _starts_from_bias(self, i: int) -> bool:
        """Whether a node adds a bias to a product of matrices that nothing else reads."""
        node = self.graph.nodes[i]
        if node.op != "add" or len(node.shape) != 2:
            return False
        for product, bias in (node.inputs, node.inputs[::-1]):
            if not isinstance(product, int) or not isinstance(bias, int):
                continue
            p = self.graph.nodes[product]
            fits = p.op == "mm" and p.shape == node.shape and self.graph.nodes[bias].shape == node.shape[1:]
            if fits and product not in self.given and product not in self.outputs and self.users[product] == [i]:
                self.sums[i] = product, bias
                return True
        return False


class _Program:
    """The steps of a plan, in order.

    Attributes:
        steps: the steps.
        inlined: pointwise nodes that have no tensor in memory, by now.
        contiguous: of each node with a tensor in memory whether that is in one piece.
        placed: the nodes that were written where a result is wanted.
    """

    def __init__(self, plan: Plan, outputs: Sequence[int]) -> None:
        self.plan, self.graph = plan, plan.graph
        self.steps: list[Step] = []
        self.inlined = set(plan.inlined)
        self.with_sum = {product for product, _ in plan.sums.values()}
        self.contiguous = {i: True for i in plan.given if not self._is_time(i)}  # t is a number, not a tensor
        self.placed: set[int] = set()
        for i in plan.order:
            if i not in self.contiguous and i not in self.inlined and i not in self.with_sum and not self._is_time(i):
                self._lower(i)
        for k, i in enumerate(outputs):
            if self._is_time(i):
                self._assign(i)
            elif i in outputs[:k] or i not in self.placed:
                self._materialise(i)
                self._copy(i)

    def _is_time(self, i: int) -> bool:
        return self.graph.nodes[i].op == "input" and self.graph.inputs[i].kind == "t"

    def _lower(self, i: int) -> None:
        node = self.graph.nodes[i]
        if i in self.plan.sums:
            product, bias = self.plan.sums[i]
            read = [*map(self._factor, _operands(self.graph.nodes[product])), bias]
            self._materialise(bias)
            self._add(((product, product), (i, i)), read, [i])
        elif node.op in _LOOPED:
            self._assign(i)
        elif node.op in ("const", "arange"):
            self.contiguous[i] = True
        elif node.op == "reshape":
            self._materialise(_operands(node)[0], contiguous=True)
            self.contiguous[i] = True
        elif node.op in ("slice", "flip"):
            self._materialise(_operands(node)[0])
            self.contiguous[i] = False
        elif node.op in ("cat", "embed"):
            self._put_together(i, node)
        elif not (node.op == "permute" and self._is_left_to_products(i)):
            self._call(i, node)

    def _call(self, i: int, node: Node) -> None:
        """Any other operation: products, reductions, convolutions, …."""
        if node.op in ("mm", "bmm"):
            read = [self._factor(j) for j in _operands(node)]
        else:
            read = [j for j in _operands(node) if not (node.op.startswith("julia") and self._is_time(j))]
            for j in read:
                self._materialise(j, contiguous=node.op not in _WITHOUT_COPY)
        if node.op == "julia_product":  # those at the same operands are computed together
            same = [
                j
                for j in self.plan.order
                if j not in self.plan.given and self._is_same_product(node, self.graph.nodes[j])
            ]
            self._add([(j, j) for j in same], read, same)
            self.placed.difference_update(j for j in same if j != i)
        else:
            self._add([(i, i)], read, [i])

    def _is_same_product(self, a: Node, b: Node) -> bool:
        return b.op == a.op and b.inputs == a.inputs and b.attr("number") == a.attr("number")

    def _put_together(self, i: int, node: Node) -> None:
        """The parts of a tensor, each computed where it is put."""
        computed: dict[tuple[int, int], None] = {}
        read: dict[int, None] = {}
        for j in _operands(node):
            self._expression(j, j, computed, read)
        if node.op == "cat":
            self._add([*computed, (i, i)], list(read), [i])
        else:  # zeros of its own, of which the rest is never written
            part = _operands(node)[0]
            self.steps.append(Step((*computed, (i, part)), tuple(read), (part,)))
            self.contiguous[i] = True

    def _expression(self, i: int, at: int, computed: dict[tuple[int, int], None], read: dict[int, None]) -> None:
        if i in self.inlined:
            for j in _operands(self.graph.nodes[i]):
                self._expression(j, at, computed, read)
            computed[i, at] = None
        elif not self._is_time(i):
            read[i] = None

    def _assign(self, i: int) -> None:
        """Compute a pointwise node, with what is computed where it is used, into memory."""
        computed: dict[tuple[int, int], None] = {}
        read: dict[int, None] = {}
        if not self._is_time(i):
            self.inlined.add(i)
            self._expression(i, i, computed, read)
            self.inlined.discard(i)
        self._add(list(computed), list(read), [i])

    def _copy(self, i: int) -> None:
        self.steps.append(Step((), (i,), (i,)))

    def _add(self, computed: Sequence[tuple[int, int]], read: Sequence[int], written: Sequence[int]) -> None:
        self.steps.append(Step(tuple(computed), tuple(dict.fromkeys(read)), tuple(written)))
        self.contiguous.update(dict.fromkeys(written, True))
        self.placed.update(written)

    def _materialise(self, i: int, contiguous: bool = False) -> None:
        if i not in self.contiguous:
            self._assign(i)
        elif contiguous and not self.contiguous[i]:
            self._copy(i)
            self.contiguous[i] = True

    def _swapped(self, i: int) -> bool:
        node = self.graph.nodes[i]
        return node.op == "permute" and node.attr("dims") in ((1, 0), (0, 2, 1))

    def _is_left_to_products(self, i: int) -> bool:
        """Whether a transposed matrix is only read by products, which take it as it is."""
        products = all(self.graph.nodes[j].op in ("mm", "bmm") for j in self.plan.users[i])
        return self._swapped(i) and i not in self.plan.outputs and products

    def _factor(self, i: int) -> int:
        """A factor of a product of matrices as it is read."""
        if self._swapped(i) and i not in self.plan.given:
            i = _operands(self.graph.nodes[i])[0]
        node = self.graph.nodes[i]
        strided = node.op == "slice" and len(node.shape) == 2 and node.attr("step") == 1
        self._materialise(i, contiguous=not strided)
        return i
