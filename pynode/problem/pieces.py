"""The sides of a piece of a span, between two times at which the field may jump.

Within a piece the field gets no time beyond it, nor the very time of a stop: at a stop it is evaluated on the side of
the piece, where `t >= stop` still is what it is in all of the piece.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.field._derived import derived_field
from pynode.field._piece import within

__all__ = ["on_side", "sides"]


def sides(stops: np.ndarray, low: np.ndarray, high: np.ndarray, like: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest times that a field gets on pieces that lie between stops.

    Args:
        stops: in increasing order.
        low: for each piece the least time in it.
        high: the greatest.
        like: a tensor of the dtype and on the device of the time that the field gets.
    """
    most = torch.finfo(like.dtype).max
    whole = np.concatenate([[-np.inf], stops, [np.inf]])
    below = whole[np.searchsorted(whole, low, side="right") - 1]
    above = whole[np.searchsorted(whole, high, side="left")]
    a, b = (torch.from_numpy(x).to(like).clamp(-most, most) for x in (below, above))
    up, down = like.new_tensor(np.inf), like.new_tensor(-np.inf)
    return torch.where(a > -most, torch.nextafter(a, up), a), torch.where(b < most, torch.nextafter(b, down), b)


def on_side(function: Callable[..., Any]) -> Callable[..., Any]:
    """The event function that takes the ends of a piece as its last two conditioning tensors; see `PieceField`."""
    return derived_field(_on_side, function)


def _on_side(function: Callable[..., Any], owner: object, t: Tensor, z: Any, *args: Tensor) -> Any:
    *own, low, high = args
    return function(within(t, low.reshape(()), high.reshape(())), z, *own)
