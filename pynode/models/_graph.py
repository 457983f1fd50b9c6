"""Neural ODEs on fixed graphs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pynode.errors import InputError
from pynode.models._node import NODE
from pynode.nn import Graph

__all__ = ["CGNN", "GraphODE"]


class GraphODE(NODE):
    """A graph neural ODE (GDE): the features of a fixed graph's nodes flow, ż = f(s, z, A).

    The state is `(batch, nodes, features)`: several signals on one graph, which are solved as one batch; or
    `(nodes, features)`, a single one. Graphs that differ make a batch as the parts of one graph, see
    `pynode.nn.Graph.union`.

    Args:
        field: f, an `nn.Module` or callable of states `(batch, nodes, features)`, as `NODE` takes: a
            `pynode.nn.TimeSequential` of `pynode.nn.GraphConv`, activations and linear layers, for example, or of
            PyTorch Geometric's layers within `pynode.nn.GraphLayer`.
        node_keywords: as `NODE` takes, but for `order`; the networks get `(batch, nodes, features)` too.

    Attributes:
        stats: the `Stats` of the last call; `None` before it.

    Raises:
        InputError: an argument is not usable; at a call, the input has another number of dimensions.

    Source:
        M. Poli et al., "Graph Neural Ordinary Differential Equations", 2019, eq. 3.
    """

    def __init__(self, field: Callable[..., Any], **node_keywords: Any) -> None:
        if node_keywords.get("order", 1) != 1:
            raise InputError(
                "order must be 1 for a state (batch, nodes, features), whose dimension 1 holds the nodes, got "
                f"{node_keywords['order']!r}. Put the derivatives among the features"
            )
        super().__init__(field, **node_keywords)

    def forward(self, x: Tensor) -> Tensor:
        """The output at the end of the depth interval.

        Args:
            x: `(batch, nodes, features)` or `(nodes, features)`.

        Returns:
            h_y(z(S)), `(batch, nodes, …)` or `(nodes, …)`.
        """
        out = super().forward(_batched(x))
        return out.squeeze(0) if x.dim() == 2 else out

    def trajectory(self, x: Tensor, t: Tensor) -> Tensor:
        """The output at every depth of `t`.

        Args:
            x: `(batch, nodes, features)` or `(nodes, features)`.
            t: `(time,)`, as `NODE.trajectory` takes.

        Returns:
            `(time, batch, nodes, …)` or `(time, nodes, …)`.
        """
        out = super().trajectory(_batched(x), t)
        return out.squeeze(1) if x.dim() == 2 else out


class CGNN(GraphODE):
    """A continuous graph neural network: Ḣ = (A - I) H + E, or with mixed features Ḣ = (A - I) H + H (W - I) + E.

    E = H(s₀) is what `input_network` makes of the input. A = diag(α) (I + Â) / 2 with a trained αᵢ in (0, 1) for each
    node; W = U diag(m) Uᵀ with U orthogonal and m in (0, 1), so that the eigenvalues of A and W stay below 1 and the
    features neither blow up nor become alike, however late the last depth. The equation is linear in H.

    Args:
        graph: Â, a `pynode.nn.Graph` with `normalise="symmetric"` (or `"row"`, or a union of such), whose eigenvalues
            are at most 1.
        features: width of H, as `input_network` returns it.
        mixed: whether W is there; without, the features do not interact ("independent channels").
        alpha: α of all nodes before a training, in (0, 1).
        input_network: E, from the input to `(batch, nodes, features)`; identity where `None`.
        node_keywords: as `GraphODE` takes, but for `control`.

    Attributes:
        field: what is solved, with parameters `alpha` `(nodes, 1)`, α before the sigmoid, and with W `skew`
            `(features, features)`, of which U = exp(skew - skewᵀ), and `scale` `(features,)`, m before the sigmoid.

    Raises:
        InputError: an argument is not usable.

    Source:
        L.-P. Xhonneux, M. Qu, J. Tang, "Continuous Graph Neural Networks", ICML 2020, sections 4.1 to 4.3. The paper
        keeps U near the orthogonal matrices by a step after each of the optimizer's; here it is one.
    """

    def __init__(
        self,
        graph: Graph,
        features: int,
        *,
        mixed: bool = False,
        alpha: float = 0.9,
        input_network: Callable[[Tensor], Tensor] | None = None,
        **node_keywords: Any,
    ) -> None:
        if not isinstance(graph, Graph):
            raise InputError(f"graph must be a pynode.nn.Graph, got {type(graph).__name__}")
        if isinstance(features, bool) or not isinstance(features, int) or features < 1:
            raise InputError(f"features must be a positive whole number, got {features!r}")
        if not isinstance(alpha, int | float) or not 0 < alpha < 1:
            raise InputError(f"alpha must lie between 0 and 1, got {alpha!r}")
        if "control" in node_keywords:
            raise InputError("CGNN takes no control: its field is given the encoded input, E, already")
        super().__init__(_CGNNField(graph, features, mixed, alpha), input_network=input_network, **node_keywords)

    def _arguments(self, x: Tensor, z0: Tensor) -> tuple[Tensor, ...]:
        # W is computed once a solve. With a leading 1 it has no row for each sample, whatever the batch size.
        return (z0, self.field.mixing().unsqueeze(0)) if self.field.skew is not None else (z0,)


class _CGNNField(nn.Module):
    """Ḣ of the state H `(batch, nodes, features)`, given E and, where features mix, W."""

    def __init__(self, graph: Graph, features: int, mixed: bool, alpha: float) -> None:
        super().__init__()
        self.graph = graph
        self.alpha = nn.Parameter(torch.full((graph.n_nodes, 1), math.log(alpha / (1 - alpha))))
        self.skew = nn.Parameter(torch.randn(features, features) / features) if mixed else None
        self.scale = nn.Parameter(torch.zeros(features)) if mixed else None

    def mixing(self) -> Tensor:
        """W, `(features, features)`."""
        assert self.skew is not None
        assert self.scale is not None
        u = torch.linalg.matrix_exp(self.skew - self.skew.mT)
        return u * torch.sigmoid(self.scale) @ u.mT

    def forward(self, t: Tensor, h: Tensor, e: Tensor, w: Tensor | None = None) -> Tensor:
        rate = torch.sigmoid(self.alpha) / 2 * (h + self.graph(h)) - h + e
        return rate if w is None else rate + h @ w - h


def _batched(x: Tensor) -> Tensor:
    if not isinstance(x, Tensor) or x.dim() not in (2, 3):
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"the input must be (batch, nodes, features) or (nodes, features), got {got}")
    return x.unsqueeze(0) if x.dim() == 2 else x
