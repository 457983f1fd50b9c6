"""A digest of what an object is made of: the same in each process, another once a number or the code has changed."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import pickle
import sysconfig
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["digest"]

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_SHARED_AT_WILL = (tuple, frozenset, types.CodeType)  # one object or two equal ones, as Python pleases
_NAMED = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType, torch.dtype, torch.device)
_OF_MODULE = frozenset(vars(nn.Module()))  # what each module has, hooks and the like


def digest(*objects: Any) -> str:
    """The digest of some objects, in hexadecimal.

    Tensors count with their numbers; functions with their code, what they close over, and what they use of their own
    file; objects with their class and attributes. Of installed packages only the names count, whose version is known
    otherwise.
    """
    found = _Digest()
    for x in objects:
        found.add(x)
    return found.hash.hexdigest()


class _Digest:
    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self.seen: dict[int, int] = {}
        self.kept: list[Any] = []  # so that no id is used again

    def add(self, x: Any) -> None:
        if isinstance(x, _PLAIN):
            return self._note(type(x).__name__, repr(x))
        if not isinstance(x, _SHARED_AT_WILL):
            if id(x) in self.seen:
                return self._note("again", self.seen[id(x)])
            self.seen[id(x)] = len(self.seen)
            self.kept.append(x)
        if isinstance(x, Tensor):
            self._note("tensor", x.dtype, tuple(x.shape), x.requires_grad)
            return self.hash.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        if isinstance(x, np.ndarray) and x.dtype != object:
            self._note("array", x.dtype, x.shape)
            return self.hash.update(np.ascontiguousarray(x).tobytes())
        if isinstance(x, Mapping):
            return self._all("mapping", [part for item in x.items() for part in item])
        if isinstance(x, list | tuple):
            return self._all(type(x).__name__, x)
        if isinstance(x, set | frozenset):
            return self._note("set", *sorted(digest(part) for part in x))
        return self._add_code(x)

    def _add_code(self, x: Any) -> None:
        if isinstance(x, types.FunctionType):
            return self._add_function(x)
        if isinstance(x, types.MethodType):
            return self._all("method", (x.__func__, x.__self__))
        if isinstance(x, functools.partial):
            return self._all("partial", (x.func, x.args, x.keywords))
        if isinstance(x, types.CodeType):
            self._note("code", x.co_code, x.co_names, x.co_varnames, x.co_freevars)
            return self._all("constants", x.co_consts)
        if isinstance(x, staticmethod | classmethod):
            return self._all(type(x).__name__, (x.__func__,))
        if isinstance(x, property):
            return self._all("property", (x.fget, x.fset))
        if isinstance(x, type):
            return self._add_class(x)
        if isinstance(x, types.ModuleType):
            return self._note("module", x.__name__)
        if isinstance(x, _NAMED):
            return self._note("name", getattr(x, "__module__", ""), getattr(x, "__qualname__", str(x)))
        return self._add_object(x)

    def _note(self, *words: Any) -> None:
        self.hash.update(repr(words).encode())

    def _all(self, kind: str, parts: Any) -> None:
        self._note(kind, len(parts))
        for part in parts:
            self.add(part)

    def _add_function(self, f: types.FunctionType) -> None:
        self._note("function", f.__module__, f.__qualname__)
        if _is_installed(f.__module__):
            return
        self.add(f.__code__)
        self._all("defaults", (f.__defaults__, f.__kwdefaults__))
        for cell in f.__closure__ or ():
            try:
                self.add(cell.cell_contents)
            except ValueError:  # not yet filled
                self._note("empty")
        for name in sorted(_names(f.__code__)):
            used = f.__globals__.get(name)
            own = getattr(used, "__module__", None) == f.__module__
            if isinstance(used, (*_PLAIN, Tensor, np.ndarray, list, tuple, dict)) or own:
                self._note("global", name)
                self.add(used)

    def _add_class(self, cls: type) -> None:
        self._note("class", cls.__module__, cls.__qualname__)
        if not _is_installed(cls.__module__):
            for base in cls.__bases__:
                self.add(base)
            for name, value in sorted(vars(cls).items()):
                if isinstance(value, (types.FunctionType, staticmethod, classmethod, property, *_PLAIN)) and (
                    not name.startswith("__") or isinstance(value, types.FunctionType)
                ):
                    self._note(name)
                    self.add(value)

    def _add_object(self, x: Any) -> None:
        self.add(type(x))
        parts: tuple[Any, ...]
        if isinstance(x, nn.Module):
            own = {name: value for name, value in vars(x).items() if name not in _OF_MODULE}
            parts = (x.training, x._parameters, x._buffers, x._modules, sorted(own.items()))
        elif dataclasses.is_dataclass(x):
            parts = tuple((f.name, getattr(x, f.name)) for f in dataclasses.fields(x))
        elif hasattr(x, "__dict__"):
            parts = tuple(sorted(vars(x).items()))
        else:
            try:
                parts = (pickle.dumps(x),)
            except Exception:  # what cannot be pickled has nothing but its class
                parts = ()
        self._all("object", parts)


def _names(code: types.CodeType) -> set[str]:
    """The names of globals and attributes that a code uses, and those within it."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
    return names


@functools.cache
def _is_installed(module: str) -> bool:
    """Whether a module is of Python or of an installed package, rather than somebody's work in progress."""
    if module in ("builtins", "__main__"):
        return module == "builtins"
    try:
        file = importlib.import_module(module.partition(".")[0]).__file__
    except Exception:  # no module of that name can be imported: it is somebody's
        return False
    folders = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return file is None or any(Path(file).is_relative_to(folder) for folder in folders)
