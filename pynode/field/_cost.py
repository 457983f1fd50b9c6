"""What the operations of a graph cost, by their shapes.

Counted are the floating-point operations of the leading terms: `2 m n k` for a product of matrices, `2` for each weight
that meets a pixel in a convolution, one for each entry of a pointwise operation (a `tanh` or an `exp` as one, a
comparison too) and for each entry that a reduction reads. Views, copies, conversions and picking by an index are free.
Linear algebra is as in Golub and Van Loan, "Matrix Computations": n³/3 for a Cholesky factorisation, 2n³/3 for LU, n²
for each column behind a triangle, 9n³ for eigenvalues with eigenvectors, 4mn² - 4n³/3 for Q and R, 14mn² + 8n³ for
singular values with their vectors; the exponential of a matrix, of Higham 2005, is six products and a solve without its
squarings, whose number depends on the norm. A fast Fourier transform of n real numbers counts 2.5 n log₂ n.
"""

from __future__ import annotations

import math

from pynode.field._graph import FieldGraph, dim_size
from pynode.field._ops import POINTWISE
from pynode.field._steps import Step

__all__ = ["bytes_of", "elements", "flops_of"]


def elements(graph: FieldGraph, i: int, batch: int) -> int:
    """The number of entries of a node."""
    return math.prod(dim_size(d, batch) for d in graph.nodes[i].shape)


def flops_of(graph: FieldGraph, step: Step, batch: int) -> int | None:
    """Floating-point operations of a step; `None` where they are not known: code in Julia."""
    total = 0
    for i, at in step.computed:
        op = graph.nodes[i].op
        if op.startswith("julia"):
            return None
        total += elements(graph, at, batch) if op in POINTWISE else _flops(graph, i, batch)
    return total


def bytes_of(graph: FieldGraph, step: Step, batch: int, size: int) -> int:
    """Bytes that a step reads and writes, each tensor once; `size`: of a floating-point number."""
    read = {_viewed(graph, i): _bytes(graph, i, batch, size) for i in step.read}
    written = sum(_bytes(graph, i, batch, size) for i in step.written)
    if len(step.computed) == 1 and graph.nodes[step.computed[0][0]].op in ("index_select", "gather"):
        source = _viewed(graph, step.read[0])  # of which only what is picked is read
        read[source] = min(read[source], written)
    return sum(read.values()) + written


def _viewed(graph: FieldGraph, i: int) -> int:
    """The node whose memory a node with another shape is."""
    while graph.nodes[i].op == "reshape":
        (i,) = (j for j in graph.nodes[i].inputs if isinstance(j, int))
    return i


def _bytes(graph: FieldGraph, i: int, batch: int, size: int) -> int:
    return elements(graph, i, batch) * (1 if graph.nodes[i].dtype == "bool" else size)


def _flops(graph: FieldGraph, i: int, batch: int) -> int:
    """Of a node that is not pointwise."""
    node = graph.nodes[i]
    operands = [j for j in node.inputs if isinstance(j, int)]
    shapes = [[dim_size(d, batch) for d in graph.nodes[j].shape] for j in operands]
    sizes = [math.prod(s) for s in shapes]
    out = elements(graph, i, batch)
    if node.op in ("mm", "bmm"):
        return 2 * out * shapes[0][-1]
    if node.op == "conv_weight" and graph.nodes[operands[0]].op == "full":  # sums of the cotangent over boxes
        return sizes[1] * dim_size(node.shape[-1], batch)
    if node.op in ("conv", "conv_input", "conv_weight"):
        # The pixels on the weights' far side: of the result, or of the cotangent.
        pixels = out if node.op == "conv" else sizes[0] if node.op == "conv_input" else sizes[1]
        weight = [dim_size(d, batch) for d in node.shape] if node.op == "conv_weight" else shapes[1]
        return 2 * pixels * math.prod(weight[1:])
    if node.op in ("sum", "amax", "amin", "prod", "scatter_add", "index_add", *_RUNNING):
        return sizes[0]
    if node.op == "argsort":
        return out * _halvings(shapes[0][node.attr("dim")])
    if node.op == "searchsorted":
        return out * _halvings(shapes[0][-1] + 1)
    if node.op in ("fourier", "fourier_sum"):
        points = node.attr("points")
        return round(2.5 * points * math.log2(max(points, 2)) * sizes[0] / max(shapes[0][-1], 1))
    if node.op in ("qr", "svd"):
        m, n = max(shapes[0][-2:]), min(shapes[0][-2:])
        each = 4 * m * n**2 - 4 * n**3 / 3 if node.op == "qr" else 14 * m * n**2 + 8 * n**3
        return round(each * sizes[0] / (m * n)) if m * n else 0
    if node.op in _OF_MATRICES:
        n = shapes[0][-1]
        cubed, squared = _OF_MATRICES[node.op]
        # Columns on the right, of all matrices.
        columns = out // n if squared else 0
        matrices = sizes[0] // n**2 if n else 0
        return round(cubed * n**3 * matrices) + squared * n**2 * columns
    return 0


_RUNNING = ("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp")

# Multiples of n³ for each matrix, and of n² for each column on the right.
_OF_MATRICES = {
    "lu": (2 / 3, 0),
    "cholesky": (1 / 3, 0),
    "eigh": (9, 0),
    "matrix_exp": (6 * 2 + 2 / 3 + 2, 0),
    "lu_solve": (0, 2),
    "solve_triangular": (0, 1),
}


def _halvings(n: int) -> int:
    """Comparisons for one entry among `n` sorted ones."""
    return max(n - 1, 0).bit_length()
