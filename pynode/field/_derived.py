"""Fields that are made of the user's field."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

__all__ = ["derived_field"]


def derived_field(function: Callable[..., Any], field: Callable[..., Any], *bound: Any) -> Callable[..., Any]:
    """The field `(t, z, *args) -> function(field, *bound, owner, t, z, *args)`.

    It is a method of its owner: the user's field, or the object whose method that is. What `Field` learns of
    it therefore outlives the call for which it is made, but not the user's field.
    """
    owner = field.__self__ if isinstance(field, types.MethodType) else field
    return types.MethodType(functools.partial(function, field, *bound), owner)
