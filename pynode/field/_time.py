"""In which dtype a field gets the time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pynode.errors import FieldError

__all__ = ["first_time", "reads_time", "time_as_asked", "time_dtype"]


def first_time(t: Tensor) -> Tensor:
    """The first of times, 0-d: of `(time,)`, of `(batch, time)`, or of a single one; zero where there are none."""
    return t.flatten()[0] if t.numel() else t.new_zeros(())


def time_dtype(function: Callable[..., Any], state: torch.dtype) -> torch.dtype:
    """The dtype in which a callable gets the time: the state's, unless its attribute `time_dtype` asks for double.

    Raises:
        FieldError: it asks for another.
    """
    asked = None if _lacks_time_dtype(function) else getattr(function, "time_dtype", None)
    while asked is None and isinstance(function, functools.partial):
        function = function.func
        asked = getattr(function, "time_dtype", None)
    if asked is None:
        return state
    if asked is not torch.float64:
        raise FieldError(
            "the attribute time_dtype of a field must be torch.float64 (t in double) or None (t in the state's dtype), "
            f"got {asked!r}"
        )
    return torch.float64


def _lacks_time_dtype(function: Callable[..., Any]) -> bool:
    """Whether it is a module that is seen to be without, which `nn.Module` takes longer to find out."""
    kind: Any = type(function)
    if not isinstance(function, nn.Module) or kind.__getattr__ is not nn.Module.__getattr__:
        return False
    return "time_dtype" not in function.__dict__ and not hasattr(kind, "time_dtype")


def time_as_asked(function: Callable[..., Any], t: Tensor, state: torch.dtype) -> Tensor:
    """The time in the dtype that a callable asks for, beside a state of this dtype."""
    return t.to(time_dtype(function, state))


def reads_time(run: Callable[[Tensor], object], t: Tensor) -> bool:
    """Whether a computation uses the value of the time that it is given."""
    watch = _Watch(t)
    with watch, torch.no_grad():
        run(t)
    return watch.seen


# Copies of a time, which are the time.
_COPIES = {torch.ops.aten.detach, torch.ops.aten.alias, torch.ops.aten.clone, torch.ops.aten._to_copy}


class _Watch(TorchDispatchMode):
    """Notes whether an operation within the context computes with a tensor."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.watched, self.seen = [x], False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(x is y for x in tree_leaves((args, kwargs)) for y in self.watched):
            if getattr(func, "overloadpacket", None) in _COPIES:
                self.watched.append(out)
            else:
                self.seen = True
        return out
