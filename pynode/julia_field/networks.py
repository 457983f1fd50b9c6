"""The torch modules that a Julia function calls, traced for the inputs that it gives them."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

import torch
from torch import Tensor, nn

from pynode.engine.julia import function as julia_function
from pynode.errors import FieldError
from pynode.field._field import Field
from pynode.field._frozen import original
from pynode.field._trace import trace_field
from pynode.weak import WeakMap

__all__ = ["Network", "find", "learn"]


@dataclass(frozen=True)
class Network:
    """A traced module.

    Attributes:
        kernel: its number in Julia; 0 where it is not known what it will be given.
        names: its tensors that the kernel reads, by dotted name, in order.
        constants: further tensors that it reads.
    """

    kernel: int = 0
    names: tuple[str, ...] = ()
    constants: tuple[Tensor, ...] = ()

    def theta(self, module: Any, like: Tensor) -> Tensor:
        """What the kernel reads, as one vector."""
        tensors = [functools.reduce(getattr, name.split("."), module) for name in self.names]
        parts = [x.reshape(-1) for x in (*tensors, *self.constants)]
        return torch.cat(parts) if parts else like.new_zeros(0)


class _AsField(nn.Module):
    """A module as a field of two states, its input and its result: the trace of fields does for it as it is."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(state[0]), self.module(state[0])


@dataclass
class _Known:
    """What is known of one network of one field."""

    as_field: _AsField
    shape: tuple[int, ...] | None = None
    traced: dict[torch.dtype, Network] = dataclass_field(default_factory=dict)


_KNOWN: WeakMap[nn.Module, dict[int, _Known]] = WeakMap()
_KERNELS: dict[tuple[str, torch.dtype], int] = {}


def find(owner: nn.Module, index: int, module: nn.Module, dtype: torch.dtype, recording: bool) -> Network:
    """The traced network of a field; while a trace is being recorded, as it was when it was last evaluated."""
    owner, module = original(owner), original(module)
    of_owner = _KNOWN.setdefault(owner, {})
    known = of_owner.get(index)
    if known is None or known.as_field.module is not module:
        known = of_owner[index] = _Known(_AsField(module))
    if known.shape is None:
        return Network()
    if not recording:
        known.traced[dtype] = _trace(known.as_field, known.shape, dtype)
    return known.traced[dtype]


def learn(owner: nn.Module, index: int, shape: tuple[int, ...]) -> None:
    """Take note of the shape, without the batch, of what a network is given."""
    _KNOWN.setdefault(original(owner), {})[index].shape = shape


def _trace(as_field: _AsField, shape: tuple[int, ...], dtype: torch.dtype) -> Network:
    x = torch.linspace(-1, 1, 2 * math.prod(shape), dtype=dtype, device="cpu").reshape(2, *shape)
    with torch.no_grad():
        y = as_field.module(x)
    if not isinstance(y, Tensor) or y.shape[:1] != x.shape[:1] or y.dtype != dtype:
        got = f"shape {tuple(y.shape)}, {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
        raise FieldError(
            f"a network of a JuliaField must map (batch, *features) to (batch, *features) in {dtype}: for an input of "
            f"shape {tuple(x.shape)} it returned {got}"
        )
    t, states = x.new_zeros(()), (x, y)
    field = Field(as_field, states, t, (), True)
    trace = trace_field(field, states, t, ())
    if trace.graph.batch is not None or any(name in field.reads.captured for name in field.names):
        raise FieldError(
            "a network of a JuliaField must work for any batch size, and hold what it is trained by as parameters of "
            "the module"
        )
    key = (trace.graph.key, dtype)
    if key not in _KERNELS:
        with julia_function.reporting() as julia:
            text = json.dumps(trace.graph.to_dict())
            _KERNELS[key] = julia.register(trace.graph.key, str(dtype).removeprefix("torch."), text)
    names = [name.removeprefix("module.") for name in (*field.names, *trace.buffers)]
    return Network(_KERNELS[key], tuple(names), trace.constants)
