"""Fields that are made of the user's field."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pynode.field._time import time_dtype

__all__ = ["derived_field", "made_of"]

_VALUES = (str, bool, int, float, type(None))  # that nothing can change


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


def made_of(function: Callable[..., Any]) -> tuple[nn.Module, tuple[Any, ...]] | None:
    """The module that a field is, or is made of, and all else that it is made of.

    Returns:
        The module with an empty tuple, where that is the field; with a function and values, where `derived_field` has
        made it, or `with_time`; else `None`.
    """
    if isinstance(function, nn.Module):
        return function, ()
    if type(function) is not types.MethodType or type(function.__func__) is not functools.partial:
        return None
    module, made = function.__self__, function.__func__
    first, *rest = made.args or (module,)
    if not isinstance(module, nn.Module) or first is not module or made.keywords:
        return None
    return (module, (made.func, len(made.args), *rest)) if all([isinstance(x, _VALUES) for x in rest]) else None
