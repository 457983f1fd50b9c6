"""Which tensors a callable reads besides its arguments, and a fingerprint of all else that it reads.

A field may be an `nn.Module`, a bound method, a `functools.partial`, or a function whose closure,
defaults or globals hold modules. What is read under a name is looked up again before each solve, so that
parameters, buffers and plain tensor attributes may change between solves without another trace.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["fingerprint", "modules_of", "named_tensors", "replaced"]

_PLAIN = (int, float, str, bool, bytes, complex, type(None), torch.dtype, torch.device, torch.Size)


def _captured(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """The objects that a plain function reads: closure, defaults, and globals by name."""
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # an empty cell
            yield name, cell.cell_contents
    defaults = function.__defaults__ or ()
    yield from zip(code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount], defaults, strict=True)
    yield from (function.__kwdefaults__ or {}).items()
    scope = function.__globals__
    for name in code.co_names:
        if name in scope and not isinstance(scope[name], types.ModuleType | type):
            yield name, scope[name]


def _parts(function: Any) -> list[tuple[str, Any]]:
    """The modules and functions that make up a callable, each with a unique prefix."""
    if isinstance(function, nn.Module):
        return [("", function)]
    found: dict[int, tuple[str, Any]] = {}

    def visit(prefix: str, value: Any) -> None:
        if id(value) in found or not isinstance(
            value, nn.Module | types.FunctionType | types.MethodType | functools.partial
        ):
            return
        name = prefix
        while any(name == other for other, _ in found.values()):
            name += "_"
        found[id(value)] = (name, value)
        if isinstance(value, types.MethodType):
            visit(f"{prefix}self.", value.__self__)
            visit(f"{prefix}", value.__func__)
        elif isinstance(value, functools.partial):
            visit(f"{prefix}", value.func)
            for key, item in [*enumerate(value.args), *value.keywords.items()]:
                visit(f"{prefix}{key}.", item)
        elif isinstance(value, types.FunctionType) and not value.__module__.startswith("torch."):
            for key, item in _captured(value):
                visit(f"{prefix}{key}.", item)

    visit("", function)
    if not isinstance(function, types.FunctionType | types.MethodType | functools.partial):
        for key, item in vars(function).items() if hasattr(function, "__dict__") else ():
            visit(f"{key}.", item)
    return list(found.values())


def modules_of(function: Any) -> list[tuple[str, nn.Module]]:
    """The modules that a callable reads, each with the prefix of its tensors' names."""
    return [(prefix, part) for prefix, part in _parts(function) if isinstance(part, nn.Module)]


def _tensor_attributes(module: nn.Module) -> Iterator[tuple[nn.Module, str, str, Tensor]]:
    """Parameters, buffers and plain tensor attributes: (owner, attribute, dotted name, tensor)."""
    for path, owner in module.named_modules():
        dot = f"{path}." if path else ""
        for group in (owner._parameters, owner._buffers, owner.__dict__):
            for key, value in group.items():
                if isinstance(value, Tensor):
                    yield owner, key, dot + key, value


def named_tensors(function: Any) -> dict[str, Tensor]:
    """The tensors that a callable reads by name, each once, as they are now."""
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for prefix, module in modules_of(function):
        for _, _, name, tensor in _tensor_attributes(module):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                tensors[prefix + name] = tensor
    return tensors


@contextlib.contextmanager
def replaced(function: Any, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the context the callable reads `values` instead of its own tensors of these names."""
    by_id = {id(tensor): values[name] for name, tensor in named_tensors(function).items() if name in values}
    undo: list[tuple[dict[str, Any], str, Tensor]] = []
    try:
        for _, module in modules_of(function):
            for owner, key, _, tensor in list(_tensor_attributes(module)):
                if id(tensor) in by_id:
                    groups: tuple[dict[str, Any], ...] = (owner._parameters, owner._buffers, owner.__dict__)
                    for group in groups:
                        if group.get(key) is tensor:
                            group[key] = by_id[id(tensor)]
                            undo.append((group, key, tensor))
        yield
    finally:
        for group, key, tensor in reversed(undo):
            group[key] = tensor


def _outline(x: Tensor) -> tuple[Any, ...]:
    # Indices and masks become part of a trace with their values.
    values = () if x.is_floating_point() else (id(x), x._version)
    return (x.shape, x.dtype, x.device, x.requires_grad, *values)


def _freeze(value: Any) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        return _outline(value)
    if isinstance(value, tuple | list):
        return tuple(map(_freeze, value))
    return id(value)


def _function_state(function: Callable[..., Any]) -> tuple[Any, ...]:
    if not isinstance(function, types.FunctionType):
        return (id(function),)
    # A tensor that a function captures is a constant of its trace: another tensor is another trace.
    return (
        id(function.__code__),
        *((k, id(v) if isinstance(v, Tensor) else _freeze(v)) for k, v in _captured(function)),
    )


def fingerprint(function: Any, skip: frozenset[tuple[int, str]] = frozenset()) -> dict[Any, Any]:
    """All that a trace of the callable depends on, except the values of the tensors it reads by name.

    Args:
        function: the callable.
        skip: attributes `(id(owner), name)` to leave out, e.g. a counter that each evaluation raises.
    """
    key: dict[Any, Any] = {}
    for prefix, part in _parts(function):
        if not isinstance(part, nn.Module):
            key[prefix] = _function_state(part) if isinstance(part, types.FunctionType) else None
            continue
        for owner in part.modules():
            kind, own = type(owner), id(owner)
            key[own] = kind if kind.__module__.startswith("torch.") else (kind, _function_state(kind.forward))
            for group in (owner._parameters, owner._buffers):
                for name, tensor in group.items():
                    if tensor is not None:
                        key[own, name] = _outline(tensor)
            for name, value in owner.__dict__.items():
                if name[0] != "_" and (own, name) not in skip:
                    key[own, name] = _freeze(value)
    return key
