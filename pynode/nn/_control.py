"""Layers that take the model's input beside the state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pynode.errors import InputError
from pynode.nn._time import takes_time

__all__ = ["DataControl"]


class DataControl(nn.Module):
    """Appends the control x to the features (the channels, for images) and applies a layer.

    A field that contains it is one of f(t, z, x), for a model with `control=True`.

    Args:
        layer: a layer whose input has as many features more than the state as x has, e.g.
            `nn.Linear(d + d_x, width)` or `TimeConcat(nn.Linear(d + d_x + 1, width))`.

    Source:
        S. Massaroli et al., "Dissecting Neural ODEs", NeurIPS 2020, section 4 (data-controlled neural ODEs).
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, t: Tensor, z: Tensor, x: Tensor) -> Tensor:
        """Apply the layer to `z` `(batch, features, …)` with `x` `(batch, control features, …)` appended."""
        if x.shape[:1] != z.shape[:1] or x.shape[2:] != z.shape[2:] or x.ndim != z.ndim:
            raise InputError(
                f"DataControl appends the control along dimension 1, so it must agree with the state elsewhere: "
                f"expected shape {(len(z), '…', *z.shape[2:])} for a state of shape {tuple(z.shape)}, got "
                f"{tuple(x.shape)}"
            )
        both = torch.cat([z, x], dim=1)
        return self.layer(t, both) if takes_time(self.layer) else self.layer(both)
