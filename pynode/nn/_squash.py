"""Layers that the time scales and shifts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pynode.errors import InputError

__all__ = ["ConcatSquash"]


class ConcatSquash(nn.Module):
    """A layer whose output the time, and what conditions the field, gates and shifts.

    y = layer(z) ⊙ σ(W_g c + b_g) + W_s c, with c = [t, args].

    Args:
        layer: an `nn.Linear` or a convolution.
        context: how many features the conditioning tensors have together.
        shift: whether there is a W_s; without it the layer is only gated.

    Raises:
        InputError: the layer has neither `out_features` nor `out_channels`.

    Source:
        W. Grathwohl et al., "FFJORD", ICLR 2019, and its published code.
    """

    def __init__(self, layer: nn.Module, context: int = 0, *, shift: bool = True) -> None:
        super().__init__()
        width = getattr(layer, "out_features", None) or getattr(layer, "out_channels", None)
        if not isinstance(width, int):
            raise InputError(
                "layer of ConcatSquash must say its width in out_features or out_channels, as nn.Linear and nn.Conv2d "
                f"do, got {type(layer).__name__}"
            )
        self.layer = layer
        self.gate = nn.Linear(1 + context, width)
        self.shift = nn.Linear(1 + context, width, bias=False) if shift else None

    def forward(self, t: Tensor, z: Tensor, *args: Tensor) -> Tensor:
        """Apply to `z` at `t`, 0-d or `(batch,)`, with `args`, each `(batch, features)`.

        `z` is `(batch, …, features)` for a linear layer, `(batch, features, …)` for a convolution.
        """
        c = t.to(z).reshape(-1, 1)
        if args:
            c = torch.cat([c.expand(z.shape[0], 1), *args], dim=1)
        y = self.layer(z)
        shape = [-1, *(1 for _ in y.shape[1:])]
        shape[-1 if hasattr(self.layer, "out_features") else 1] = self.gate.out_features
        y = y * torch.sigmoid(self.gate(c)).reshape(shape)
        return y if self.shift is None else y + self.shift(c).reshape(shape)
