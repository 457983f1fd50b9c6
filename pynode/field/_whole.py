"""Tensors that hold their numbers themselves, as an engine that works in their memory needs them."""

from __future__ import annotations

import torch
from torch import Tensor

from pynode.errors import InputError

__all__ = ["check_whole"]


def check_whole(name: str, x: Tensor, of_field: bool = False) -> None:
    """Refuse a tensor that stands for others: a `DTensor`, of which each process has a part, or another such subclass.

    One that the call has passed is refused where it is not dense as well; fields may read sparse ones.

    Args:
        name: of the tensor.
        x: the tensor.
        of_field: whether the field reads it, rather than the call having passed it.

    Raises:
        InputError: says how to get a tensor that can be solved with.
    """
    if not of_field and (x.layout is not torch.strided or x.is_nested):
        raise InputError(f"{name} must be a dense tensor, got one of layout {x.layout}. Pass {name}.to_dense()")
    kind = type(x)
    if kind is Tensor or not hasattr(kind, "__tensor_flatten__"):
        return
    if kind.__name__ != "DTensor":
        remedy = "Pass the tensor that it stands for"
    elif of_field:
        remedy = (
            "Shard the module that calls solve, not its field or layers of it: fully_shard(model) with a model of "
            "pynode.models or one of your own gathers its parameters before its forward. Where the field alone is "
            "sharded, let it read x.full_tensor(), computed before the solve"
        )
    else:
        remedy = "Pass x.to_local(), this process's part, or x.full_tensor(), all of it"
    raise InputError(f"{name} must be a tensor that holds its numbers in this process, got a {kind.__name__}. {remedy}")
