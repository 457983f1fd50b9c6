"""Which tensors a callable reads besides its arguments, by name.

A field may be an `nn.Module`, a bound method, a `functools.partial`, or a function whose closure, defaults or
globals hold modules and tensors, in containers and objects of any kind. All of it is looked up anew before each solve,
so that parameters, buffers and other tensors may change between solves without another trace.
"""

from __future__ import annotations

import contextlib
import dis
import enum
import functools
import itertools
import logging
import os
import sys
import types
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pynode.field._parametrized import hidden_by_hooks, hooked, sources

__all__ = [
    "INTERNAL",
    "Reads",
    "captured_by",
    "is_a_librarys",
    "is_compiled",
    "is_plain_object",
    "loaded_names",
    "of_a_library",
    "slots_of",
]

# Attributes by which `nn.Module` itself works.
INTERNAL = frozenset(nn.Module().__dict__) - {"training"}

# Packages whose objects lead everywhere and are not looked through.
_MACHINERY = sys.stdlib_module_names - {"argparse", "builtins", "collections", "functools", "threading", "types"}
_MACHINERY |= {"_pytest", "pluggy", "tqdm"}

_DEEP = 12  # containers and objects within one another that are looked into
_MANY = 20_000  # values that are looked at
_LONG = 1_000  # entries of one container that are looked at
_PLAIN = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, enum.Enum, range, slice)
_HARMLESS: tuple[type, ...] = (type, types.ModuleType, np.dtype, np.generic, np.ufunc)
_HARMLESS += (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)
_HARMLESS += (logging.Logger, logging.LoggerAdapter)
_FIXED = (weakref.ref, types.EllipsisType, Decimal, Fraction, torch.Generator)  # in which no number changes unseen


class Reads:
    """What a callable reads besides its arguments, as it is now.

    Attributes:
        owners: the modules, with all their submodules, by the prefix of their tensors' names; each once.
        parts: the functions and other callables and objects, by prefix; each once.
        tensors: parameters, buffers and tensor attributes of the modules, by dotted name; each once.
        captured: tensors in closures, globals, defaults, containers and objects, by name; each once.
        arrays: NumPy's arrays, by name; each once.
        parametrized: the owner and the attribute of each parametrized tensor, by dotted name. What it is
            computed from is in none of the above, see `_parametrized`.
        fixed: ids of the tensors in places where no copy of the callable can have another (scripted modules).
        opaque: whether there is anything that tensors may be hidden in, or a place that a copy of the callable shares
            with it.
        unseen: whether there is anything that numbers may be hidden in.
        places: classes and modules in containers and attributes.
        touched: ids of the functions, containers, objects and modules that hold tensors, directly or not.
    """

    def __init__(self, function: Any) -> None:
        self.owners: dict[str, nn.Module] = {}
        self.parts: dict[str, Any] = {}
        self.tensors: dict[str, Tensor] = {}
        self.captured: dict[str, Tensor] = {}
        self.arrays: dict[str, np.ndarray] = {}
        self.parametrized: dict[str, tuple[nn.Module, str]] = {}
        self.fixed: set[int] = set()
        self.opaque = self.unseen = False
        self.places: list[Any] = []
        self._held: dict[int, Any] = {}  # what has been seen, held so that no id is used again
        self._holders: dict[int, list[int]] = {}
        self._above: list[int] = []
        self._found: list[int] = []
        if isinstance(function, nn.Module):
            self._module("", function)
        else:
            self._part("", function, _DEEP)
        for name in self.captured.keys() & self.tensors.keys():
            self.captured[f"{name}'"] = self.captured.pop(name)
        owned = set(map(id, self.tensors.values()))
        self.captured = {name: x for name, x in self.captured.items() if id(x) not in owned}

    @classmethod
    def of_modules(cls, owners: dict[str, nn.Module], tensors: dict[str, Tensor]) -> Reads:
        """What is read by a module that is known to hold nothing but these, as its attributes or its submodules'."""
        found = object.__new__(cls)
        found.owners, found.parts, found.tensors, found.captured = owners, {}, tensors, {}
        found.arrays, found.parametrized, found.fixed, found.opaque = {}, {}, set(), False
        found.unseen, found.places = False, []
        found.touched = {*map(id, owners.values()), *map(id, tensors.values())}
        return found

    @functools.cached_property
    def touched(self) -> set[int]:
        """See the class."""
        found, waiting = set(), list(self._found)
        while waiting:
            key = waiting.pop()
            if key not in found:
                found.add(key)
                waiting.extend(self._holders.get(key, ()))
        return found

    def _enter(self, value: Any) -> bool:
        """Note who holds a value; whether it has not been looked at yet."""
        key = id(value)
        if self._above:
            self._holders.setdefault(key, []).append(self._above[-1])
        if key in self._held:
            return False
        self._held[key] = value
        if len(self._held) > _MANY:
            self.opaque = self.unseen = True
            return False
        return True

    def _tensor(self, group: dict[str, Tensor], name: str, tensor: Tensor) -> None:
        if self._enter(tensor):
            while name in group:
                name += "'"
            group[name] = tensor
            self._found.append(id(tensor))

    @contextlib.contextmanager
    def _within(self, value: Any) -> Iterator[None]:
        self._above.append(id(value))
        try:
            yield
        finally:
            self._above.pop()

    def _module(self, prefix: str, module: nn.Module) -> None:
        if not self._enter(module):
            return
        self._found.append(id(module))
        self.owners[prefix] = module
        if isinstance(module, torch.jit.ScriptModule):
            self.opaque = True
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                self.fixed.add(id(tensor))
                self._tensor(self.tensors, prefix + name, tensor)
            return
        own = module.__dict__
        if is_compiled(module):
            with self._within(module):
                self._module(f"{prefix}_orig_mod.", own["_modules"]["_orig_mod"])
            return
        self.parametrized.update({prefix + name: (module, name) for name in hooked(module)})
        hidden = hidden_by_hooks(module)
        with self._within(module):
            for group in (own["_parameters"], own["_buffers"]):
                for name, tensor in group.items():
                    if tensor is not None and name not in hidden:
                        self._tensor(self.tensors, prefix + name, tensor)
            for name, value in own.items():
                if name in INTERNAL or name in hidden:
                    continue
                if isinstance(value, Tensor):
                    self._tensor(self.tensors, prefix + name, value)
                elif not isinstance(value, _PLAIN):
                    self._value(f"{prefix}{name}", value, _DEEP)
            self._class(prefix, type(module))
            for name, child in own["_modules"].items():
                if name == "parametrizations" and isinstance(child, nn.ModuleDict):
                    self.parametrized.update({prefix + key: (module, key) for key in child})
                elif child is not None:
                    self._module(f"{prefix}{name}.", child)
            for hooks in (own["_forward_hooks"], own["_forward_pre_hooks"]):
                for key, hook in hooks.items():
                    if not _is_library(type(hook)):
                        self._value(f"{prefix}hook{key}", hook, _DEEP)

    def _class(self, prefix: str, kind: type, start: Iterable[str] = ("forward", "__call__")) -> None:
        """What is kept in a class, or read by its methods from elsewhere: a copy of an instance shares it."""
        bases = [base for base in kind.__mro__ if not _is_library(base)]
        if not bases:
            return
        before = len(self._found)
        for base in bases:
            for name, value in list(vars(base).items()):
                if isinstance(value, Tensor | nn.Module | list | tuple | dict | deque) and not name.startswith("__"):
                    self._value(f"{prefix}{name}", value, _DEEP)
        names, waiting = set(start), list(start)
        while waiting:
            name = waiting.pop()
            method = next((vars(base)[name] for base in bases if name in vars(base)), None)
            if isinstance(method, property):
                method = method.fget
            if isinstance(method, types.FunctionType):
                if any(True for _ in captured_by(method)):
                    self._part(f"{prefix}{name}().", method, _DEEP)
                further = loaded_names(method.__code__)[1] - names
                names |= further
                waiting.extend(further)
        self.opaque |= len(self._found) > before

    def _part(self, prefix: str, part: Any, depth: int) -> None:
        """A callable or an object that is no module."""
        if not self._enter(part):
            return
        while prefix in self.parts:
            prefix += "_"
        self.parts[prefix] = part
        with self._within(part):
            if isinstance(part, types.MethodType):
                self._value(f"{prefix}self", part.__self__, depth - 1)
                self._value(f"{prefix}", part.__func__, depth - 1)
                if isinstance(part.__func__, types.FunctionType) and not isinstance(part.__self__, type):
                    self._class(f"{prefix}self.", type(part.__self__), loaded_names(part.__func__.__code__)[1])
            elif isinstance(part, functools.partial):
                self._value(f"{prefix}", part.func, depth - 1)
                for key, item in [*enumerate(part.args), *part.keywords.items()]:
                    self._value(f"{prefix}{key}", item, depth - 1)
            elif isinstance(part, types.FunctionType):
                for key, item in captured_by(part):
                    # What is read as an attribute of a module or a class stays there.
                    before = len(self._found)
                    self._value(f"{prefix}{key}", item, depth - 1)
                    self.opaque |= "." in key and len(self._found) > before
            else:
                for key, item in (*getattr(part, "__dict__", {}).items(), *slots_of(part)):
                    self._value(f"{prefix}{key}", item, depth - 1)
                self._class(prefix, type(part))

    def _value(self, name: str, value: Any, depth: int) -> None:
        if isinstance(value, _PLAIN):
            return
        if isinstance(value, Tensor):
            self._tensor(self.captured, name, value)
        elif isinstance(value, nn.Module):
            self._module(f"{name}." if name else "", value)
        elif isinstance(value, types.FunctionType | types.MethodType | functools.partial):
            if isinstance(value, types.FunctionType) and of_a_library(value):
                for key, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
                    with contextlib.suppress(ValueError):  # an empty cell
                        self._value(f"{name}.{key}", cell.cell_contents, depth - 1)
                return
            if isinstance(value, types.FunctionType) and _is_installed(value.__globals__):
                self.opaque = True  # a library's own globals and caches are not looked through
                return
            self._part(f"{name}." if name else "", value, depth)
        elif isinstance(value, _HARMLESS):
            if isinstance(value, type | types.ModuleType):
                self.places.append(value)
        elif isinstance(value, np.ndarray):
            self.opaque |= value.dtype.hasobject
            self.unseen |= value.dtype.hasobject
            if not value.dtype.hasobject and self._enter(value):
                self.arrays[name] = value
        elif not depth:
            self.opaque = self.unseen = True
        elif isinstance(value, list | tuple | dict | deque | set | frozenset | types.MappingProxyType):
            if self._enter(value):
                with self._within(value):
                    self.opaque |= len(value) > _LONG
                    self.unseen |= len(value) > _LONG
                    for key, item in itertools.islice(_items(value), _LONG):
                        label = str(key) if isinstance(key, _PLAIN) else type(key).__name__
                        self._value(f"{name}.{label}", item, depth - 1)
                        self._value(f"{name}.key", key, depth - 1)  # a dictionary may be one by module
            self.opaque |= isinstance(value, types.MappingProxyType)
        elif is_plain_object(value):
            self._part(f"{name}.", value, depth)
        else:
            self.opaque = True
            self.unseen |= not isinstance(value, _FIXED)

    def leaves(self) -> list[Tensor]:
        """All leaf tensors among these that require a gradient, also those of parametrizations."""
        hidden = (p for owner, name in self.parametrized.values() for p in sources(owner, name))
        return [x for x in (*self.tensors.values(), *self.captured.values(), *hidden) if x.requires_grad and x.is_leaf]


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    return list(value.items()) if isinstance(value, dict | types.MappingProxyType) else enumerate(list(value))


def _is_library(kind: type) -> bool:
    """Whether a class is Python's, PyTorch's or NumPy's own, with no attributes of the user's."""
    return str(kind.__module__).partition(".")[0] in ("builtins", "torch", "numpy", "collections", "typing", "abc")


def is_compiled(module: nn.Module) -> bool:
    """Whether it is what `torch.compile` makes of a module."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return dynamo is not None and isinstance(module, dynamo.OptimizedModule)


def is_plain_object(value: Any) -> bool:
    """Whether it is an instance of a class in Python, of the user's or a library's, with attributes."""
    if isinstance(value, type | types.ModuleType | torch.Generator | nn.Module | BaseException):
        return False
    module = str(type(value).__module__)
    if module.partition(".")[0] in _MACHINERY:
        return False
    if module.startswith("torch."):
        return module.startswith("torch.distributions.")
    return module != "builtins" and (hasattr(value, "__dict__") or any(True for _ in slots_of(value)))


def slots_of(value: Any) -> Iterator[tuple[str, Any]]:
    """The attributes of an object that are kept in slots."""
    for kind in type(value).__mro__:
        names = kind.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in ("__dict__", "__weakref__"):
                if name.startswith("__") and not name.endswith("__"):
                    name = f"_{kind.__name__.lstrip('_')}{name}"
                with contextlib.suppress(AttributeError):  # a slot that is empty
                    yield name, getattr(value, name)


@functools.lru_cache(maxsize=4096)
def loaded_names(code: types.CodeType) -> tuple[tuple[str, ...], frozenset[str]]:
    """The globals that code reads, and all attributes, also within the functions that it defines."""
    names = {i.argval: None for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    attributes = set(code.co_names)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            further, of_inner = loaded_names(inner)
            names |= dict.fromkeys(further)
            attributes |= of_inner
    return tuple(names), frozenset(attributes)


def captured_by(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a plain function reads besides its arguments: closure, defaults, and globals, by name.

    Of a module or a class it is the attributes that the code may read.
    """
    code = function.__code__
    names, attributes = loaded_names(code)
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # an empty cell
            yield from _itself_or_attributes(name, cell.cell_contents, attributes)
    defaults = function.__defaults__ or ()
    yield from zip(code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount], defaults, strict=True)
    yield from (function.__kwdefaults__ or {}).items()
    scope = function.__globals__
    for name in names:
        # What no identifier is called is a tool's, as that by which pytest rewrites `assert`.
        if name in scope and name.isidentifier():
            yield from _itself_or_attributes(name, scope[name], attributes)


def _itself_or_attributes(name: str, value: Any, attributes: frozenset[str]) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, types.ModuleType | type):
        yield name, value
        return
    if isinstance(value, type):
        if _is_library(value):
            return
    elif is_a_librarys(vars(value)):
        return
    own = vars(value)
    for key in sorted(attributes):
        if key in own and not isinstance(own[key], types.ModuleType | type | property | classmethod | staticmethod):
            yield f"{name}.{key}", own[key]


def _root(function: types.FunctionType) -> str:
    return str(getattr(function, "__module__", "")).partition(".")[0]


def of_a_library(function: types.FunctionType) -> bool:
    """Whether a function is of Python's standard library, PyTorch, or another one that is no user's code.

    `functools.wraps` gives a wrapper the `__module__` of what it wraps, so that the globals count as well.
    """
    return _root(function) in _LIBRARIES and is_a_librarys(function.__globals__)


def is_a_librarys(scope: dict[str, Any]) -> bool:
    """Whether the globals of a module are a library's."""
    root, file = str(scope.get("__name__", "")).partition(".")[0], scope.get("__file__")
    if root not in _LIBRARIES:
        return False
    # A user's module may be called like one of Python's, as `code` or `profile`.
    return root in _PACKAGES or not file or str(file).startswith(_STANDARD)


def _is_installed(scope: dict[str, Any]) -> bool:
    """Whether globals are those of a package that is installed; a program that is run from there is the user's."""
    path = str(scope.get("__file__") or "")
    return scope.get("__name__") != "__main__" and ("site-packages" in path or "dist-packages" in path)


_PACKAGES = frozenset({"torch", "numpy", "scipy", "pynode", "torchdiffeq"})
_LIBRARIES = frozenset({*_PACKAGES, *sys.stdlib_module_names} - {"__main__"})
_STANDARD = os.path.join(os.path.dirname(os.__file__), "")
