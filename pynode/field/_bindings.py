"""Which tensors a callable reads besides its arguments, by name.

A field may be an `nn.Module`, a bound method, a `functools.partial`, or a function whose closure, defaults or
globals hold modules and tensors. All of it is looked up anew before each solve, so that parameters, buffers and
other tensors may change between solves without another trace.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["INTERNAL", "Reads", "captured_by"]

# Attributes by which `nn.Module` itself works.
INTERNAL = frozenset(nn.Module().__dict__) - {"training"}

_DEEP = 3  # containers and objects within one another that are looked into


class Reads:
    """What a callable reads besides its arguments, as it is now.

    Attributes:
        owners: the modules, with all their submodules, by the prefix of their tensors' names; each once.
        parts: the functions and other callables, by prefix; each once.
        tensors: parameters, buffers and tensor attributes of the modules, by dotted name; each once.
        captured: tensors in closures, globals, defaults and containers, by name; each once.
        parametrized: the owner and the attribute of each parametrized tensor, by dotted name. What it is
            computed from is in none of the above, see `_parametrized`.
    """

    def __init__(self, function: Any) -> None:
        self.owners: dict[str, nn.Module] = {}
        self.parts: dict[str, Any] = {}
        self.tensors: dict[str, Tensor] = {}
        self.captured: dict[str, Tensor] = {}
        self.parametrized: dict[str, tuple[nn.Module, str]] = {}
        self._seen: set[int] = set()
        if isinstance(function, nn.Module):
            self._module("", function)
        else:
            self._part("", function)
        for name in self.captured.keys() & self.tensors.keys():
            del self.captured[name]
        owned = set(map(id, self.tensors.values()))
        self.captured = {name: x for name, x in self.captured.items() if id(x) not in owned}

    def _module(self, prefix: str, module: nn.Module) -> None:
        self._seen.add(id(module))
        self.owners[prefix] = module
        own = module.__dict__
        for group in (own["_parameters"], own["_buffers"]):
            for name, tensor in group.items():
                if tensor is not None and id(tensor) not in self._seen:
                    self._seen.add(id(tensor))
                    self.tensors[prefix + name] = tensor
        for name, value in own.items():
            if name in INTERNAL:
                continue
            if isinstance(value, Tensor):
                if id(value) not in self._seen:
                    self._seen.add(id(value))
                    self.tensors[prefix + name] = value
            elif isinstance(value, list | tuple | dict):
                self._value(f"{prefix}{name}", value, _DEEP)
        for name, child in own["_modules"].items():
            if name == "parametrizations" and isinstance(child, nn.ModuleDict):
                self.parametrized.update({prefix + key: (module, key) for key in child})
            elif child is not None and id(child) not in self._seen:
                self._module(f"{prefix}{name}.", child)

    def _part(self, prefix: str, part: Any) -> None:
        """A callable that is no module."""
        self._seen.add(id(part))
        while prefix in self.parts:
            prefix += "_"
        self.parts[prefix] = part
        if isinstance(part, types.MethodType):
            self._value(f"{prefix}self", part.__self__, _DEEP)
            self._value(f"{prefix}", part.__func__, _DEEP)
        elif isinstance(part, functools.partial):
            self._value(f"{prefix}", part.func, _DEEP)
            for key, item in [*enumerate(part.args), *part.keywords.items()]:
                self._value(f"{prefix}{key}", item, _DEEP)
        elif isinstance(part, types.FunctionType):
            for key, item in captured_by(part):
                self._value(f"{prefix}{key}", item, _DEEP)
        else:
            for key, item in getattr(part, "__dict__", {}).items():
                self._value(f"{prefix}{key}", item, _DEEP)

    def _value(self, name: str, value: Any, depth: int) -> None:
        if isinstance(value, str | int | float) or id(value) in self._seen:
            return
        if isinstance(value, Tensor):
            self._seen.add(id(value))
            self.captured[name] = value
        elif isinstance(value, nn.Module):
            self._module(f"{name}." if name else "", value)
        elif isinstance(value, types.FunctionType | types.MethodType | functools.partial):
            if not str(getattr(value, "__module__", "")).startswith("torch."):
                self._part(f"{name}." if name else "", value)
        elif isinstance(value, list | tuple | dict) and depth:
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                self._value(f"{name}.{key}", item, depth - 1)
        elif is_plain_object(value) and depth:
            self._part(f"{name}.", value)

    def leaves(self) -> list[Tensor]:
        """All leaf tensors among these that require a gradient, also those of parametrizations."""
        hidden = (
            p
            for owner, name in self.parametrized.values()
            for p in owner.parametrizations[name].parameters()  # type: ignore[index, union-attr]
        )
        return [x for x in (*self.tensors.values(), *self.captured.values(), *hidden) if x.requires_grad and x.is_leaf]

    @contextlib.contextmanager
    def replaced(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Within the context the modules hold these values instead of their own tensors of the same names."""
        by_id = {id(tensor): values[name] for name, tensor in self.tensors.items() if name in values}
        undo: list[tuple[dict[str, Any], str, Tensor]] = []
        try:
            for owner in self.owners.values():
                own = owner.__dict__
                groups: tuple[dict[str, Any], ...] = (own["_parameters"], own["_buffers"], own)
                for group in groups:
                    for key, tensor in list(group.items()):
                        if isinstance(tensor, Tensor) and id(tensor) in by_id:
                            group[key] = by_id[id(tensor)]
                            undo.append((group, key, tensor))
            yield
        finally:
            for group, key, tensor in reversed(undo):
                group[key] = tensor


def is_plain_object(value: Any) -> bool:
    """Whether it is an instance of a class in Python, of the user's or a library's, with attributes."""
    if isinstance(value, type | types.ModuleType | torch.Generator | nn.Module) or not hasattr(value, "__dict__"):
        return False
    return not str(type(value).__module__).startswith(("torch.", "builtins"))


@functools.lru_cache(maxsize=4096)
def _global_names(code: types.CodeType) -> tuple[str, ...]:
    """The globals that code reads, also within the functions that it defines."""
    names = {i.argval: None for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            names |= dict.fromkeys(_global_names(inner))
    return tuple(names)


def captured_by(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a plain function reads besides its arguments: closure, defaults, and globals, by name."""
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # an empty cell
            yield name, cell.cell_contents
    defaults = function.__defaults__ or ()
    yield from zip(code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount], defaults, strict=True)
    yield from (function.__kwdefaults__ or {}).items()
    scope = function.__globals__
    for name in _global_names(code):
        if name in scope and not isinstance(scope[name], types.ModuleType | type):
            yield name, scope[name]
