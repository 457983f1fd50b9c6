"""All that the trace of a field depends on, except the values of the tensors that it reads by name."""

from __future__ import annotations

import contextlib
import functools
import itertools
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pynode.field._bindings import INTERNAL, Reads, captured_by, is_plain_object, of_a_library, slots_of
from pynode.field._parametrized import requires_grad

__all__ = ["HOOKS", "attributes_read", "contents", "fingerprint", "hooks_of_all"]

# Whose attribute, by the owner's prefix, and its name.
Attribute = tuple[str, str]

_PLAIN = (int, float, str, bool, bytes, complex, type(None), torch.dtype, torch.device, torch.Size, type)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL: list[dict[int, Any]] = [getattr(torch.nn.modules.module, f"_global{name}") for name in HOOKS]
_DEEP = 8  # containers and objects within one another that are looked into


def hooks_of_all() -> list[Any]:
    """The hooks that PyTorch runs of every module."""
    return list(itertools.chain.from_iterable(map(dict.values, _GLOBAL)))


@contextlib.contextmanager
def attributes_read(owners: Mapping[str, nn.Module]) -> Iterator[set[Attribute]]:
    """Collects the attributes of these modules, by prefix, that are read within the context."""
    prefixes = {id(owner): prefix for prefix, owner in owners.items()}
    found: set[Attribute] = set()

    def spy(module: nn.Module, name: str) -> Any:
        prefix = prefixes.get(id(module))
        if prefix is not None:
            found.add((prefix, name))
        return object.__getattribute__(module, name)

    before = nn.Module.__dict__.get("__getattribute__")
    nn.Module.__getattribute__ = spy  # type: ignore[method-assign, assignment]
    try:
        yield found
    finally:
        if before is None:
            del nn.Module.__getattribute__
        else:
            nn.Module.__getattribute__ = before  # type: ignore[method-assign]
        found -= {(prefix, name) for prefix, name in found if not _matters(owners[prefix], name)}


def _matters(owner: nn.Module, name: str) -> bool:
    """Whether the attribute of that name can be another without a part of the fingerprint being so."""
    if name == "forward":
        return True
    if name in INTERNAL or hasattr(nn.Module, name) or isinstance(owner, torch.jit.ScriptModule):
        return False
    if any(name in owner.__dict__[group] for group in ("_parameters", "_buffers", "_modules")):
        return False
    return name in owner.__dict__ or not type(owner).__module__.startswith("torch.")


def fingerprint(reads: Reads, dtype: torch.dtype, attributes: set[Attribute] | None = None) -> dict[Any, Any]:
    """What a trace depends on, by where it is found; all values can be hashed.

    Args:
        reads: what the field reads.
        dtype: the state's.
        attributes: the attributes of modules that matter; all of the instances' own when `None`.
    """
    freeze = functools.partial(_freeze, dtype=dtype, apart={id(part) for part in reads.parts.values()})
    key: dict[Any, Any] = {}
    if of_all := hooks_of_all():
        key["hooks"] = freeze(of_all, 2)
    for name, tensor in (*reads.tensors.items(), *reads.captured.items()):
        key[name] = _outline(tensor, dtype)
    for name in reads.parametrized:
        key[name] = requires_grad(reads.parametrized, name)
    for prefix, owner in reads.owners.items():
        key[prefix, ""] = type(owner)
        if isinstance(owner, torch.jit.ScriptModule):
            key[prefix, "script"] = (id(owner._c), owner.training)
            continue
        hooks = [tuple(owner.__dict__[name].values()) for name in HOOKS]
        if any(hooks):
            key[prefix, "hooks"] = freeze(hooks, 2)
        if attributes is None:
            key.update({(prefix, n): freeze(v, _DEEP) for n, v in owner.__dict__.items() if n not in INTERNAL})
    for prefix, name in attributes or ():
        if prefix in reads.owners:
            key[prefix, name] = _attribute(freeze, reads.owners[prefix], name)
    for prefix, part in reads.parts.items():
        if isinstance(part, types.FunctionType):
            key[prefix, "code"] = part.__code__
            key.update({(prefix, name): freeze(value, _DEEP) for name, value in captured_by(part)})
        elif isinstance(part, functools.partial):
            key[prefix, "partial"] = (_code(part.func), freeze([*part.args, part.keywords], _DEEP))
        elif isinstance(part, types.MethodType):
            key[prefix, "code"] = _code(part.__func__)
        else:
            own = (*getattr(part, "__dict__", {}).items(), *slots_of(part))
            key.update({(prefix, name): freeze(value, _DEEP) for name, value in own})
            call = next((vars(k)["__call__"] for k in type(part).__mro__ if "__call__" in vars(k)), None)
            key[prefix, "code"] = freeze(call, 1)
    return key


def _code(function: Callable[..., Any]) -> Any:
    """What tells the methods of an object apart, those too that are a library's and not looked through."""
    return function.__code__ if isinstance(function, types.FunctionType) else type(function)


def _attribute(freeze: Callable[[Any, int], Any], owner: nn.Module, name: str) -> Any:
    """An attribute of a module, of its own or of its class."""
    if name in owner.__dict__:
        return freeze(owner.__dict__[name], _DEEP)
    kind = type(owner)
    if kind.__module__.startswith("torch."):
        return None
    return freeze(getattr(kind, name, None), _DEEP)


def _outline(x: Tensor, dtype: torch.dtype) -> tuple[Any, ...]:
    # Indices and masks become part of a trace with their values, as do numbers of another dtype than the state's.
    values = () if x.dtype is dtype or (x.is_floating_point() and x.requires_grad) else (id(x), version(x))
    return (x.shape, x.dtype, x.device, x.requires_grad, *values)


def version(x: Tensor) -> int:
    """What changes when a tensor is written to; in inference mode nothing tells."""
    return -1 if x.is_inference() else x._version


def contents(reads: Reads, dtype: torch.dtype, attributes: set[Attribute], volatile: set[Any]) -> dict[Any, Any]:
    """As `fingerprint`, less what evaluations change, and with the tensors' versions."""
    found = {key: value for key, value in fingerprint(reads, dtype, attributes).items() if key not in volatile}
    for name, tensor in (*reads.tensors.items(), *reads.captured.items()):
        found[name] = (id(tensor), version(tensor))
    return found


def _freeze(value: Any, depth: int, dtype: torch.dtype, apart: Set[int]) -> Any:
    """A value as something that can be hashed, equal for as long as nothing within it changes.

    Objects and functions whose ids are among `apart` are looked at on their own, and nothing more than once.
    """
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        return _outline(value, dtype)
    if isinstance(value, np.ndarray):
        return (value.shape, value.dtype.str, hash(value.tobytes()))
    if isinstance(value, nn.Module) or id(value) in apart:  # looked at on its own
        return type(value)
    if not depth:
        return id(value)
    if isinstance(value, list | tuple | deque):
        return tuple(_freeze(v, depth - 1, dtype, apart) for v in value)
    if isinstance(value, dict):
        return tuple((k, _freeze(v, depth - 1, dtype, apart)) for k, v in value.items() if isinstance(k, _PLAIN))
    if isinstance(value, set | frozenset):
        return frozenset(_freeze(v, depth - 1, dtype, apart) for v in value)
    if isinstance(value, types.FunctionType):
        if of_a_library(value) and not value.__closure__:  # its globals lead everywhere, and stay what they are
            return value
        return (value.__code__, *((k, _freeze(v, depth - 1, dtype, apart)) for k, v in captured_by(value)))
    if isinstance(value, property):
        return _freeze(value.fget, depth, dtype, apart)
    if isinstance(value, types.MethodType):
        return (_freeze(value.__func__, depth - 1, dtype, apart), _freeze(value.__self__, depth - 1, dtype, apart))
    if isinstance(value, functools.partial):
        return tuple(_freeze(v, depth - 1, dtype, apart) for v in (value.func, value.args, value.keywords))
    if is_plain_object(value):
        return (
            type(value),
            _freeze({**getattr(value, "__dict__", {}), **dict(slots_of(value))}, depth - 1, dtype, apart),
        )
    return id(value)
