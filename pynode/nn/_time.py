"""Layers that take the time beside the state."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["TimeConcat", "TimeSequential", "takes_time"]


class TimeConcat(nn.Module):
    """Appends the time to the features (the channels, for images) and applies a layer.

    Args:
        layer: a layer whose input has one feature more than the state, e.g. `nn.Linear(d + 1, width)`.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Apply the layer to `z` `(batch, features, …)` with the time as one more feature.

        `t` is 0-d, or `(batch, 1, …)` for samples at times of their own.
        """
        column = t.to(z).expand(z.shape[0], 1, *z.shape[2:])
        return self.layer(torch.cat([z, column], dim=1))


class TimeSequential(nn.Sequential):
    """A vector field f(t, z, *args) as a chain of layers; time and control go to the layers that take them.

    A layer takes the time if the first argument of its `forward` is named `t`, as in `TimeConcat`, and also
    `args` if arguments follow that of the state, as in `DataControl`.

    Args:
        layers: the layers, in order; or one `OrderedDict` of them, as `nn.Sequential` takes.
    """

    def forward(self, t: Tensor, z: Tensor, *args: Tensor) -> Tensor:  # type: ignore[override]
        """Evaluate at time `t`, 0-d, and state `z` `(batch, features, …)`, with what conditions the field."""
        for layer in self:
            if not takes_time(layer):
                z = layer(z)
            elif args and _takes_args(type(layer).forward):
                z = layer(t, z, *args)
            else:
                z = layer(t, z)
        return z


def takes_time(layer: nn.Module) -> bool:
    """Whether the first argument of the layer's `forward` is named `t`."""
    return _names(type(layer).forward)[1:2] == ("t",)


def _takes_args(forward: Callable[..., Any]) -> bool:
    return len(_names(forward)) > 3


@functools.lru_cache
def _names(forward: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)
