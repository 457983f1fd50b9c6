"""What all layers share whose parameters depend on depth."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["DepthVariant"]


class DepthVariant(nn.Module):
    """A layer with parameters θ(t) that depend on depth; the base class of such layers."""

    def parameters_at(self, t: Tensor) -> dict[str, Tensor]:
        """θ(t) at one depth `t`, 0-d, by name."""
        raise NotImplementedError
