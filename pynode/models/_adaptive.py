"""Neural ODEs whose depth depends on the sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pynode.errors import InputError
from pynode.models._check import check_callables
from pynode.models._node import NODE
from pynode.nn._signature import with_time

__all__ = ["AdaptiveDepthNODE"]


class AdaptiveDepthNODE(NODE):
    """A neural ODE with a depth of its own for each sample: ŷ = h_y(z(g_ω(x))).

    All samples are solved in one batch, with depth rescaled per sample: for τ in `t` = (s₀, S) a sample of depth
    g is at s = s₀ + g (τ - s₀), so that dz/dτ = g f(s, z), and z(S) is its state at s₀ + g (S - s₀). A negative
    depth integrates backwards, and a depth of 0 leaves h_x(x). A field that takes the depth gets each sample's
    own, `(batch, 1, …)` with as many dimensions as the state; the layers of `pynode.nn` take such.

    Args:
        field: f, as `NODE` takes.
        depth_network: g_ω, from the input `(batch, …)` to depths `(batch, 1)` in units of the depth interval.
        positive: whether a softplus of what g_ω returns is the depth.
        node_keywords: as `NODE` takes. The integral of `running_cost` runs over each sample's own depths, and has
            the sign of the depth.

    Raises:
        InputError: as `NODE` raises; at a call, depths that are not finite or not `(batch, 1)`.

    Source:
        S. Massaroli et al., "Dissecting Neural ODEs", NeurIPS 2020, section 5 (adaptive-depth neural ODEs).
    """

    def __init__(
        self,
        field: Callable[..., Any],
        depth_network: Callable[[Tensor], Tensor],
        *,
        positive: bool = False,
        **node_keywords: Any,
    ) -> None:
        check_callables(field, depth_network=depth_network)
        if depth_network is None:
            raise InputError("depth_network must be an nn.Module or a callable from the input to (batch, 1), got None")
        super().__init__(field, **node_keywords)
        self.field = _Rescaled(self.field, self.t[0], True)
        if self.cost is not None:
            self.cost = _Rescaled(self.cost, self.t[0], False)
        self.depth_network = depth_network
        self.positive = positive

    def depth(self, x: Tensor) -> Tensor:
        """The depth of each sample, `(batch, 1)`, in units of the depth interval, for an input `(batch, …)`."""
        depth = self.depth_network(x)
        if not isinstance(depth, Tensor) or depth.shape != (x.shape[0], 1):
            got = tuple(depth.shape) if isinstance(depth, Tensor) else type(depth).__name__
            raise InputError(f"depth_network must return one depth per sample: expected {(x.shape[0], 1)}, got {got}")
        depth = F.softplus(depth) if self.positive else depth
        finite = torch.isfinite(depth.detach())
        if not bool(finite.all()):
            raise InputError(
                f"depth_network must return finite depths, got {depth.detach()[~finite][0].item()} for "
                f"{int((~finite).sum())} of {len(depth)} samples. Bound what it returns, e.g. with a last nn.Tanh"
            )
        return depth

    def _arguments(self, x: Tensor, z0: Tensor) -> tuple[Tensor, ...]:
        for rescaled in (self.field, self.cost):  # `t` may have changed since the model was built
            if isinstance(rescaled, _Rescaled) and rescaled.start != self.t[0]:
                rescaled.start = self.t[0]
        return (self.depth(x), *super()._arguments(x, z0))

    def extra_repr(self) -> str:
        """The arguments that are not modules."""
        return f"{super().extra_repr()}, positive={self.positive}"


class _Rescaled(nn.Module):
    """A field f(s, z, *args), or a running cost, as a function of the depth τ that all samples share."""

    def __init__(self, function: Callable[..., Any], start: float, is_field: bool) -> None:
        super().__init__()
        self.function = function
        self.start = start
        self.is_field = is_field

    def forward(self, t: Tensor, z: Tensor, depth: Tensor, *args: Tensor) -> Tensor:
        """The product g f(s₀ + g (τ - s₀), z, *args) for τ = `t`, 0-d, and g = `depth`, `(batch, 1)`."""
        g = depth.reshape(-1, *(1,) * (z.ndim - 1))
        s = self.start + g * (t - self.start)
        rate = (with_time(self.function, len(args)) if self.is_field else self.function)(s, z, *args)
        return g.reshape(-1, *(1,) * (rate.ndim - 1)) * rate if rate.ndim else rate  # 0-d is wrong: solve says so
