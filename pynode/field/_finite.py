"""Refuses tensors that are not finite."""

from __future__ import annotations

import cmath

import torch
from torch import Tensor

from pynode.errors import InputError
from pynode.transforms import is_mapped

__all__ = ["check_finite"]


def check_finite(name: str, x: Tensor) -> None:
    """Refuse a tensor that is not finite, by the name given.

    Raises:
        InputError: says how many entries are not.
    """
    # One reduction and one synchronisation where all is well. The sum of finite numbers may overflow.
    if is_mapped(x):  # whose values are looked at where PyTorch has unwrapped it
        return
    if cmath.isfinite(x.sum().item()):
        return
    finite = torch.isfinite(x)
    if not bool(finite.all()):
        bad = x.detach()[~finite]
        raise InputError(
            f"{name} must be finite, got {len(bad)} of {x.numel()} entries infinite or NaN, the first of them "
            f"{bad[0].item()}. Look at what computed it"
        )
