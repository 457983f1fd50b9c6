"""Fixed graphs, and layers on the features of their nodes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pynode.errors import InputError, unknown_name

__all__ = ["Graph", "GraphConv", "GraphLayer"]

_NORMALISATIONS = ("symmetric", "row")
_PARTS = ("edge_index", "weight", "normalise", "self_loops", "dense")  # what the operator is made of
_DENSE = 64  # nodes up to which the product with the matrix is the faster one, however few edges there are


class Graph(nn.Module):
    """A fixed graph as an operator on the features of its nodes: (A z)ᵢ = Σⱼ wⱼᵢ zⱼ, over the edges from j to i.

    Args:
        edge_index: `(2, edges)`, integers: edge k goes from node `edge_index[0, k]` to node `edge_index[1, k]`. An edge
            of an undirected graph is there twice, once for each direction.
        weight: w, `(edges,)`; ones where `None`. An `nn.Parameter` is trained. Other weights are changed by the
            assignment of a new `weight`; what is done to them in place is not seen.
        n_nodes: how many nodes there are; by default one more than the largest number in `edge_index`.
        normalise: `"symmetric"`: D^(-1/2) A D^(-1/2); `"row"`: D⁻¹ A, a mean over the neighbours, with D the sums of
            the weights that enter a node; `None`: A as it is. A node that no edge enters keeps a row of zeros, and 1 is
            taken for its sum where its own edges are scaled.
        self_loops: whether each node gets an edge of weight 1 to itself, before the normalisation.
        dense: whether the product is one with a matrix `(nodes, nodes)`, rather than a sum over the edges; `None`: for
            small graphs, and for those where most pairs of nodes have an edge.

    Attributes:
        edge_index: `(2, edges)`, with the loops.
        weight: `(edges,)`, without the loops, before the normalisation.
        n_nodes: how many nodes there are.

    Raises:
        InputError: an argument is not usable.

    Source:
        The symmetric normalisation with loops is that of T. N. Kipf, M. Welling, "Semi-Supervised Classification with
        Graph Convolutional Networks", ICLR 2017, eq. 2.
    """

    edge_index: Tensor
    weight: Any
    _operator: Tensor

    def __init__(
        self,
        edge_index: Tensor,
        weight: Tensor | None = None,
        *,
        n_nodes: int | None = None,
        normalise: str | None = None,
        self_loops: bool = False,
        dense: bool | None = None,
    ) -> None:
        super().__init__()
        n_nodes = _checked_edges(edge_index, n_nodes)
        if normalise is not None and normalise not in _NORMALISATIONS:
            raise unknown_name("normalise", normalise, _NORMALISATIONS)
        if weight is None:
            weight = torch.ones(edge_index.shape[1], device=edge_index.device)
        _check_weight(weight, edge_index)
        self.n_edges = edge_index.shape[1]  # without loops
        if self_loops:
            loop = torch.arange(n_nodes, device=edge_index.device)
            edge_index = torch.cat([edge_index, loop.expand(2, n_nodes)], 1)
        self.n_nodes = n_nodes
        self.normalise = normalise
        self.self_loops = self_loops
        self.dense = n_nodes <= _DENSE or 2 * edge_index.shape[1] > n_nodes**2 if dense is None else dense
        self.register_buffer("edge_index", edge_index, persistent=False)
        self.learns = isinstance(weight, nn.Parameter)
        if self.learns:
            self.weight = weight
        else:
            self.register_buffer("weight", weight, persistent=False)
            self.register_buffer("_operator", self._made(weight.dtype), persistent=False)

    def __setattr__(self, name: str, value: Any) -> None:
        made = "_operator" in self.__dict__.get("_buffers", ()) and name in _PARTS
        if made and name == "weight":
            _check_weight(value, self.edge_index[:, : self.n_edges])
        super().__setattr__(name, value)
        if made and isinstance(self.weight, nn.Parameter):
            self.learns = True
            del self._operator
        elif made:
            self._operator = self._made(self.weight.dtype)

    @classmethod
    def from_adjacency(cls, adjacency: Tensor, **keywords: Any) -> Graph:
        """A graph from its adjacency matrix.

        Args:
            adjacency: `(nodes, nodes)`, dense or sparse; entry (i, j) is the weight of the edge from node i to node j,
                and zero where there is none.
            keywords: `normalise`, `self_loops`, `dense`, as the class takes.

        Raises:
            InputError: the matrix is not square.
        """
        if not isinstance(adjacency, Tensor) or adjacency.dim() != 2 or adjacency.shape[0] != adjacency.shape[1]:
            got = tuple(adjacency.shape) if isinstance(adjacency, Tensor) else type(adjacency).__name__
            raise InputError(f"adjacency must be a square matrix (nodes, nodes), got {got}")
        sparse = adjacency.to_sparse_coo().coalesce()
        return cls(sparse.indices(), sparse.values(), n_nodes=adjacency.shape[0], **keywords)

    @classmethod
    def union(cls, graphs: Sequence[Graph]) -> Graph:
        """Several graphs as one whose parts no edge connects: a batch of graphs that differ.

        The nodes of each follow those of the one before. Normalisations and loops stay as each graph has them; weights
        are not trained.

        Args:
            graphs: at least one.

        Raises:
            InputError: there is no graph, or one with weights that are trained.
        """
        graphs = list(graphs)
        if not graphs or not all(isinstance(g, Graph) for g in graphs):
            raise InputError("graphs must be a sequence of at least one pynode.nn.Graph")
        if any(g.learns for g in graphs):
            raise InputError("union takes graphs with fixed weights: make one graph of all edges to train weights")
        starts = [sum(g.n_nodes for g in graphs[:i]) for i in range(len(graphs))]
        edges = torch.cat([g.edge_index + start for g, start in zip(graphs, starts, strict=True)], 1)
        weights = torch.cat([g.edge_weight for g in graphs])
        return cls(edges, weights, n_nodes=sum(g.n_nodes for g in graphs))

    @property
    def edge_weight(self) -> Tensor:
        """The weight of each edge of `edge_index`, `(edges,)`, normalised."""
        return self._weights(self.weight.dtype)

    def _weights(self, dtype: torch.dtype) -> Tensor:
        weight = self.weight.to(dtype)
        if self.self_loops:
            weight = torch.cat([weight, weight.new_ones(self.n_nodes)])
        if self.normalise is None:
            return weight
        source, target = self.edge_index
        degree = weight.new_zeros(self.n_nodes).index_add(0, target, weight)
        power = -0.5 if self.normalise == "symmetric" else -1.0
        scale = torch.where(degree > 0, degree, 1.0) ** power
        weight = weight * scale[target]
        return weight * scale[source] if self.normalise == "symmetric" else weight

    def adjacency(self) -> Tensor:
        """The matrix A, `(nodes, nodes)`, normalised: entry (i, j) is what j contributes to i."""
        return self._matrix(self.weight.dtype)

    def _matrix(self, dtype: torch.dtype) -> Tensor:
        source, target = self.edge_index
        weight = self._weights(dtype)
        flat = weight.new_zeros(self.n_nodes**2).index_add(0, target * self.n_nodes + source, weight)
        return flat.reshape(self.n_nodes, self.n_nodes)

    def _made(self, dtype: torch.dtype) -> Tensor:
        return self._matrix(dtype) if self.dense else self._weights(dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Graph:
        # Of weights that became more precise, what is computed from them is made anew.
        before = self.weight.dtype
        super()._apply(fn, recurse)
        if not self.learns and self.weight.dtype != before:
            self._operator = self._made(self.weight.dtype)
        return self

    def forward(self, z: Tensor) -> Tensor:
        """A z, of the shape of z, `(batch, nodes, features)`."""
        if z.dim() != 3 or z.shape[1] != self.n_nodes:
            raise InputError(
                f"a graph of {self.n_nodes} nodes takes (batch, {self.n_nodes}, features), got shape {tuple(z.shape)}"
            )
        fixed = not self.learns and not self.weight.requires_grad
        exact = fixed and torch.promote_types(self._operator.dtype, z.dtype) == self._operator.dtype
        operator = self._operator.to(z.dtype) if exact else self._made(z.dtype)
        if self.dense:
            return operator @ z
        source, target = self.edge_index
        return torch.zeros_like(z).index_add(1, target, z.index_select(1, source) * operator.unsqueeze(-1))

    def extra_repr(self) -> str:
        """Sizes and normalisation."""
        return f"n_nodes={self.n_nodes}, n_edges={self.n_edges}, normalise={self.normalise!r}, dense={self.dense}"


class GraphConv(nn.Module):
    """The graph convolution z ↦ A z W + b.

    Args:
        graph: A.
        in_features: width of z.
        out_features: width of the result.
        bias: whether there is b.

    Raises:
        InputError: `graph` is none.

    Attributes:
        weight: W, `(in_features, out_features)`.
        bias: b, `(out_features,)`, or `None`.

    Source:
        T. N. Kipf, M. Welling, "Semi-Supervised Classification with Graph Convolutional Networks", ICLR 2017, eq. 2.
    """

    def __init__(self, graph: Graph, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.graph = _checked_graph(graph, "GraphConv(graph, in_features, out_features)")
        self.weight = nn.Parameter(torch.empty(in_features, out_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw W as Glorot and Bengio do, uniformly, and set b to zero."""
        bound = math.sqrt(6.0 / sum(self.weight.shape))
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, z: Tensor) -> Tensor:
        """From `(batch, nodes, in_features)` to `(batch, nodes, out_features)`."""
        # The cheaper product first.
        narrow = self.weight.shape[1] < self.weight.shape[0]
        out: Tensor = self.graph(z @ self.weight) if narrow else self.graph(z) @ self.weight
        return out if self.bias is None else out + self.bias


class GraphLayer(nn.Module):
    """A layer in the convention of PyTorch Geometric, `layer(z, edge_index, edge_weight)`, on a fixed graph.

    Args:
        layer: gets `(batch, nodes, features)`, `edge_index` and, where its `forward` has a parameter of that name,
            `edge_weight`; of PyTorch Geometric's layers those that support static graphs, `GCNConv`, `SAGEConv`,
            `GraphConv` among them, take such states.
        graph: its edges and weights are used as `graph.edge_index` and `graph.edge_weight` have them, with its loops
            and normalisation. `GCNConv` makes these itself unless it has `normalize=False`, which the julia engine
            requires: what it does to edges cannot be traced.

    Raises:
        InputError: the layer is not callable, or takes no weights where the graph has some.
    """

    def __init__(self, layer: Callable[..., Tensor], graph: Graph) -> None:
        super().__init__()
        if not callable(layer):
            raise InputError(f"layer must be an nn.Module or a callable, got {type(layer).__name__}")
        graph = _checked_graph(graph, "GraphLayer(layer, graph)")
        forward = layer.forward if isinstance(layer, nn.Module) else layer
        self.takes_weight = "edge_weight" in inspect.signature(forward).parameters
        if not self.takes_weight and (graph.learns or bool((graph.edge_weight != 1).any())):
            raise InputError(
                f"{type(layer).__name__} takes no edge_weight and would not see the weights of the graph. Take a graph "
                "without weights and with normalise=None, or another layer"
            )
        self.layer, self.graph = layer, graph

    def forward(self, z: Tensor) -> Tensor:
        """What the layer makes of z, `(batch, nodes, features)`."""
        if self.takes_weight:
            return self.layer(z, self.graph.edge_index, edge_weight=self.graph.edge_weight.to(z.dtype))
        return self.layer(z, self.graph.edge_index)


def _checked_graph(graph: Any, call: str) -> Graph:
    if not isinstance(graph, Graph):
        raise InputError(f"graph of {call} must be a pynode.nn.Graph, got {type(graph).__name__}")
    return graph


def _checked_edges(edge_index: Tensor, n_nodes: int | None) -> int:
    """How many nodes there are."""
    if not isinstance(edge_index, Tensor) or edge_index.dim() != 2 or edge_index.shape[0] != 2:
        got = tuple(edge_index.shape) if isinstance(edge_index, Tensor) else type(edge_index).__name__
        raise InputError(f"edge_index must be a tensor of shape (2, edges), got {got}")
    if edge_index.dtype != torch.int64:
        raise InputError(f"edge_index must hold node numbers as torch.int64, got {edge_index.dtype}")
    low, high = (int(edge_index.min()), int(edge_index.max())) if edge_index.numel() else (0, -1)
    n_nodes = high + 1 if n_nodes is None else n_nodes
    if n_nodes < 1 or low < 0 or high >= n_nodes:
        raise InputError(f"edge_index must hold node numbers from 0 to {n_nodes - 1}, got {low} to {high}")
    return n_nodes


def _check_weight(weight: Tensor, edge_index: Tensor) -> None:
    if not isinstance(weight, Tensor) or weight.shape != edge_index.shape[1:]:
        got = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise InputError(f"weight must hold one number for each of the {edge_index.shape[1]} edges, got {got}")
    if not weight.is_floating_point():
        raise InputError(f"weight must be of a floating-point dtype, got {weight.dtype}")
    if weight.requires_grad and not isinstance(weight, nn.Parameter):
        raise InputError("weight requires a gradient and is not an nn.Parameter: pass one, or weight.detach()")
    if not bool(torch.isfinite(weight).all()):
        raise InputError("weight must be finite, got NaN or infinity")
