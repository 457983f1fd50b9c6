"""What the transforms of `torch.func` and dual numbers wrap tensors in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._C import _functorch
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad

__all__ = [
    "differentiated",
    "every_number",
    "example",
    "is_active",
    "is_followed",
    "is_mapped",
    "is_wrapped",
    "levels",
    "moves",
    "numbers",
    "untransformed",
]


def is_active() -> bool:
    """Whether a transform is under way, or dual numbers are: else no tensor is wrapped, and none moves."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


_is_dead: Any = _functorch.is_dead_tensor_wrapper  # type: ignore[attr-defined]


def is_wrapped(x: Tensor) -> bool:
    """Whether it is a transform's, so that its values may be those of several tensors, or be hidden."""
    return _functorch.is_functorch_wrapped_tensor(x) and not _is_dead(x)


def _layers(x: Tensor) -> Iterator[Tensor]:
    while _functorch.is_functorch_wrapped_tensor(x):
        if not _is_dead(x):
            yield x
        x = _functorch.get_unwrapped(x)
    yield x


def is_mapped(x: Tensor) -> bool:
    """Whether it stands for several tensors, over which `torch.vmap` maps."""
    return is_wrapped(x) and any(map(_functorch.is_batchedtensor, _layers(x)))


def levels(x: Tensor) -> frozenset[int]:
    """The nesting levels of the transforms that differentiate it, or may do so."""
    if not _functorch.is_functorch_wrapped_tensor(x):
        return frozenset()
    forward = {i.level() for i in _functorch.get_interpreter_stack() or () if i.key() == TransformType.Jvp}
    found = set()
    for y in _layers(x):
        level = _functorch.maybe_get_level(y) if _functorch.is_gradtrackingtensor(y) else 0
        if (level in forward and (y is not x or _tangent(x) is not None)) or (
            level > 0 and level not in forward and y.requires_grad
        ):  # further in there is no telling
            found.add(level)
    return frozenset(found)


def moves(x: Tensor) -> bool:
    """Whether it is a dual number."""
    return torch._C._is_fwd_grad_enabled() and forward_ad._current_level >= 0 and _tangent(x) is not None


def _tangent(x: Tensor) -> Tensor | None:
    if x.layout != torch.strided:  # has none, and PyTorch cannot say so
        return None
    tangent: Tensor | None = forward_ad.unpack_dual(x).tangent
    return tangent


def differentiated(x: Tensor) -> bool:
    """Whether a derivative in it may be asked for."""
    if not (x.is_floating_point() or x.is_complex()):
        return False
    if (x.requires_grad and torch.is_grad_enabled()) or moves(x):
        return True
    return is_wrapped(x) and (bool(levels(x)) or any(y.requires_grad for y in _layers(x)))


def is_followed(x: Tensor) -> bool:
    """Whether PyTorch has to see what becomes of it: a gradient may be asked for, it moves, or a transform has it."""
    return x.requires_grad or is_wrapped(x) or moves(x)


def example(x: Tensor) -> Tensor:
    """The tensor without any transform: its values, or the first of those that are mapped over."""
    while _functorch.is_functorch_wrapped_tensor(x):
        dim = _functorch.maybe_get_bdim(x) if _functorch.is_batchedtensor(x) else -1
        x = _functorch.get_unwrapped(x)
        if dim >= 0:
            x = x.select(dim, 0)
    return x.detach()


def numbers(x: Tensor) -> np.ndarray:
    """The values of a tensor, see `example`."""
    if not is_active():
        return x.detach().cpu().numpy()
    plain = example(x)
    with untransformed():
        return plain.detach().cpu().numpy()


def every_number(x: Tensor) -> np.ndarray:
    """The values of all tensors that it stands for, `(mapped over, *shape)`."""
    shape, layers, mapped = x.shape, list(_layers(x)), 0
    plain = layers[-1].detach()
    with untransformed():
        for layer in reversed(layers):
            dim = _functorch.maybe_get_bdim(layer) if _functorch.is_batchedtensor(layer) else -1
            if dim >= 0:
                plain = plain.movedim(mapped + dim, mapped)
                mapped += 1
        return plain.cpu().numpy().reshape(-1, *shape)


@contextlib.contextmanager
def untransformed() -> Iterator[None]:
    """Within the context no transform is under way; wrapped tensors are of no use there."""
    with temporarily_clear_interpreter_stack():
        yield
