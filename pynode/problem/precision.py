"""Autocast: the solve is in full precision, what the field computes inside is the user's choice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["as_solved", "autocast_dtype", "in_full_precision", "without_autocast"]

_HALF = (torch.float16, torch.bfloat16)


def autocast_dtype(state: Any) -> torch.dtype | None:
    """The dtype of autocast on the device of a state; `None` where autocast is off."""
    if not torch._C._is_any_autocast_enabled():
        return None
    first = state[0] if isinstance(state, tuple) and state else state
    if not isinstance(first, Tensor) or not torch.is_autocast_enabled(first.device.type):
        return None
    return torch.get_autocast_dtype(first.device.type)


@contextlib.contextmanager
def without_autocast(state: Any) -> Iterator[None]:
    """The context in which the solver works."""
    first = state[0] if isinstance(state, tuple) else state
    with torch.autocast(first.device.type, enabled=False):
        yield


def as_solved(state: Any) -> contextlib.AbstractContextManager[None]:
    """The context in which a solver works on, whatever the one is in which its derivatives are asked for."""
    return contextlib.nullcontext() if autocast_dtype(state) is None else without_autocast(state)


def in_full_precision(x: Any) -> Any:
    """A tensor, or each of several: float32 in the place of float16 and bfloat16."""
    if isinstance(x, tuple | list):
        return type(x)(map(in_full_precision, x))
    return x.float() if isinstance(x, Tensor) and x.dtype in _HALF else x
