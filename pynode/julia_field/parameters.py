"""The parameters of a Julia function as torch parameters, with the structure that Julia has them in.

A structure is `None` (no parameters), `{"shape": [...]}` for a tensor, or `{"group": [[name, structure], ...]}`. Julia
gets one vector, its `ComponentArray` lays it out: the tensors in order, each with its first index running fastest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pynode.errors import InputError

__all__ = ["Group", "flatten", "from_vector", "module_of", "numbers", "of_python", "reversed_shape", "size"]

Structure = Any
Values = Any  # a tensor, or a dictionary of values


class Group(nn.Module):
    """Named parameters: one `nn.Parameter` or `Group` by each name."""

    def __init__(self, values: Mapping[str, Values]) -> None:
        super().__init__()
        for name, value in values.items():
            setattr(self, name, module_of(value))


def module_of(values: Values) -> nn.Parameter | Group:
    """A tensor as a parameter (a parameter as it is), a dictionary as a `Group`."""
    if isinstance(values, Mapping):
        return Group(values)
    return values if isinstance(values, nn.Parameter) else nn.Parameter(values.detach().clone())


def of_python(params: Any, dtype: torch.dtype, name: str = "params") -> tuple[Structure, Values]:
    """The structure and the tensors of what the user gave in Python.

    Raises:
        InputError: it is neither numbers nor tensors nor dictionaries of such, or a name cannot be used.
    """
    if isinstance(params, Mapping):
        for key in params:
            if not isinstance(key, str) or not key.isidentifier() or hasattr(nn.Module, key):
                raise InputError(f"the name {key!r} in {name} cannot be that of a parameter of an nn.Module: rename it")
        parts = {key: of_python(value, dtype, f"{name}[{key!r}]") for key, value in params.items()}
        structure = {"group": [[key, inner] for key, (inner, _) in parts.items()]}
        return structure, {key: values for key, (_, values) in parts.items()}
    try:
        tensor = params if isinstance(params, Tensor) else torch.as_tensor(params, dtype=dtype)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(
            f"{name} must be a number, a tensor, an array, a dict of such, or a Julia object, got "
            f"{type(params).__name__}"
        ) from None
    if not tensor.is_floating_point():
        raise InputError(f"{name} must be of a floating-point type, got {tensor.dtype}. Convert it with .float()")
    return {"shape": list(tensor.shape)}, tensor


def size(structure: Structure) -> int:
    """How many numbers there are."""
    if structure is None:
        return 0
    if "shape" in structure:
        return math.prod(structure["shape"])
    return sum(size(inner) for _, inner in structure["group"])


def numbers(count: int, write: Callable[[int, int], Any], dtype: torch.dtype) -> Tensor:
    """The vector that Julia writes with `write(address, count)`."""
    vector = torch.empty(count, dtype=torch.float64, device="cpu")
    write(vector.data_ptr(), count)
    return vector.to(dtype)


def reversed_shape(vector: Tensor, shape: Sequence[int]) -> Tensor:
    """A Julia array of this shape over the same memory, its dimensions in reverse."""
    return vector.reshape(tuple(reversed(shape)))


def _reversed(x: Tensor) -> Tensor:
    return x.permute(tuple(reversed(range(x.dim()))))


def from_vector(structure: Structure, vector: Tensor) -> Values:
    """The tensors of a structure, cut from Julia's vector; indices are in Julia's order."""
    if "shape" in structure:
        shape = structure["shape"]
        return _reversed(reversed_shape(vector, shape)).contiguous()
    values, at = {}, 0
    for name, inner in structure["group"]:
        values[name] = from_vector(inner, vector[at : at + size(inner)])
        at += size(inner)
    return values


def flatten(structure: Structure, values: Any) -> Tensor:
    """The reverse of `from_vector`, for a tensor, or for a dictionary or `Group` of them; differentiable."""
    if "shape" in structure:
        return _reversed(values).reshape(-1)
    get = values.__getitem__ if isinstance(values, Mapping) else lambda name: getattr(values, name)
    parts = [flatten(inner, get(name)) for name, inner in structure["group"] if size(inner)]
    return torch.cat(parts) if parts else torch.zeros(0, device="cpu")
