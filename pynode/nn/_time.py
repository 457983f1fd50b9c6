"""Layers that take the time beside the state."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["TimeConcat", "TimeSequential"]


class TimeConcat(nn.Module):
    """Appends the time to the features (the channels, for images) and applies a layer.

    Args:
        layer: a layer whose input has one feature more than the state, e.g. `nn.Linear(d + 1, width)`.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Apply the layer to `z` `(batch, features, …)` with `t`, 0-d, as one more feature."""
        column = t.to(z).expand(z.shape[0], 1, *z.shape[2:])
        return self.layer(torch.cat([z, column], dim=1))


class TimeSequential(nn.Sequential):
    """A vector field f(t, z) as a chain of layers; `t` goes to the layers that take it.

    A layer takes the time if the first argument of its `forward` is named `t`, as in `TimeConcat`.

    Args:
        layers: the layers, in order; or one `OrderedDict` of them, as `nn.Sequential` takes.
    """

    def forward(self, t: Tensor, z: Tensor) -> Tensor:  # type: ignore[override]
        """Evaluate at time `t`, 0-d, and state `z` `(batch, features, …)`."""
        for layer in self:
            z = layer(t, z) if _takes_time(type(layer).forward) else layer(z)
        return z


@functools.lru_cache
def _takes_time(forward: Callable[..., Any]) -> bool:
    return list(inspect.signature(forward).parameters)[1:2] == ["t"]
