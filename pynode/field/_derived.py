"""Fields that are made of the user's field."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch

from pynode.field._time import time_dtype

__all__ = ["derived_field"]


def derived_field(function: Callable[..., Any], field: Callable[..., Any], *bound: Any) -> Callable[..., Any]:
    """The field `(t, z, *args) -> function(field, *bound, owner, t, z, *args)`.

    It is a method of its owner: the user's field, or the object whose method that is. What `Field` learns of
    it therefore outlives the call for which it is made, but not the user's field. It asks for the time in double where
    the field or another callable that it is bound to does.
    """
    owner = field.__self__ if isinstance(field, types.MethodType) else field
    made = functools.partial(function, field, *bound)
    made.__name__ = getattr(function, "__name__", type(function).__name__)  # type: ignore[attr-defined] # TorchDynamo asks
    if any(callable(x) and time_dtype(x, torch.float32) is torch.float64 for x in (field, *bound)):
        made.time_dtype = torch.float64  # type: ignore[attr-defined]
    return types.MethodType(made, owner)
