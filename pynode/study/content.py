"""A digest of what an object is made of: the same in each process, another once a number or the code has changed."""

from __future__ import annotations

import copyreg
import dis
import functools
import hashlib
import importlib.util
import inspect
import sys
import sysconfig
import threading
import types
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pynode.errors import StudyError

__all__ = ["digest"]

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented))
_SAID = (torch.dtype, torch.layout, torch.memory_format, torch._ops.OpOverload, torch._ops.OpOverloadPacket)
_LOCKS = (type(threading.Lock()), type(threading.RLock()))  # which have no value
_OF_MODULE = frozenset(vars(nn.Module()))  # what each module has
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")  # which change numbers
_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD")
_DESCRIPTORS = (types.FunctionType, staticmethod, classmethod, property)


def digest(*objects: Any) -> str:
    """The digest of some objects, in hexadecimal.

    Tensors count with their numbers; functions with their code, what they close over, and the globals that they use,
    in other files too; classes with their attributes and bases; objects with their class and what pickle takes of
    them; modules that are passed on, or imported by a function itself, with their text. Of installed packages and of
    pynode, whose versions are known otherwise, only the names count.

    Raises:
        StudyError: there is no telling what an object is made of.
    """
    return _Digest().of(list(objects))


class _Digest:
    """Digests of objects from those of their parts, so that it does not matter which of them share a part."""

    def __init__(self, path: Iterable[Any] = ()) -> None:
        self.path = list(path)  # what is being looked at, each a part of the one before
        self.known: dict[int, str] = {}
        self.kept: list[Any] = []  # so that no id is used again

    def of(self, x: Any) -> str:
        """The digest of an object; of one that has itself as a part, how far up it is there."""
        if type(x) in _PLAIN:
            return f"{type(x).__name__} {x!r}"
        for up, above in enumerate(reversed(self.path)):
            if above is x:
                return f"up {up}"
        if id(x) not in self.known:
            self.path.append(x)
            words = repr(self._words(x))
            self.path.pop()
            self.known[id(x)] = hashlib.sha256(words.encode(errors="surrogatepass")).hexdigest()
            self.kept.append(x)
        return self.known[id(x)]

    def _all(self, kind: str, *parts: Any) -> tuple[str, ...]:
        return kind, *map(self.of, parts)

    def _words(self, x: Any) -> tuple[Any, ...]:
        """What tells an object from others: texts, numbers, and digests of its parts."""
        if isinstance(x, Tensor) and x.layout is torch.strided and not x.is_meta and not x.is_quantized:
            return self._tensor(x)
        if type(x) is np.ndarray and not x.dtype.hasobject:
            return "array", str(x.dtype), x.shape, _of_bytes(np.ascontiguousarray(x).tobytes())
        if isinstance(x, set | frozenset):  # each part by itself, since their order is any
            return _name(type(x)), *sorted(_Digest(self.path).of(part) for part in x)
        if type(x) in (list, tuple):
            return self._all(type(x).__name__, *x)
        if type(x) in (dict, types.MappingProxyType):
            return self._all("mapping", *(part for item in x.items() for part in item))
        return self._code(x) or self._object(x)

    def _tensor(self, x: Tensor) -> tuple[Any, ...]:
        numbers = x.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy()
        own = () if type(x) in (Tensor, nn.Parameter) else self._all("of a class", type(x), _sorted(vars(x)))
        return "tensor", str(x.dtype), tuple(x.shape), x.requires_grad, _of_bytes(numbers.tobytes()), *own

    def _code(self, x: Any) -> tuple[Any, ...]:
        """The words of what is code, or goes by its name; none for other objects."""
        if isinstance(x, types.FunctionType):
            return self._function(x)
        if isinstance(x, types.MethodType):
            return self._all("method", x.__func__, x.__self__)
        if isinstance(x, types.CodeType):
            return "code", x.co_code, x.co_names, x.co_varnames, x.co_freevars, *map(self.of, x.co_consts)
        if isinstance(x, staticmethod | classmethod):
            return self._all(type(x).__name__, x.__func__)
        if isinstance(x, property):
            return self._all("property", x.fget, x.fset)
        if isinstance(x, type):
            return self._class(x)
        if isinstance(x, types.ModuleType):
            return "module", x.__name__, _text(x.__name__)
        if isinstance(x, torch.jit.ScriptFunction):
            return "script", x.code
        if isinstance(x, _SAID):
            return _name(type(x)), str(x)
        if isinstance(x, _LOCKS):
            return (_name(type(x)),)
        if isinstance(x, weakref.ref):
            return self._all("weakref", x())
        if _has_name(x):
            return "name", x.__module__, x.__qualname__
        return ()

    def _function(self, f: types.FunctionType) -> tuple[Any, ...]:
        compiled = getattr(f, "_torchdynamo_orig_callable", None)
        if compiled is not None:
            return self._all("compiled", compiled)
        if _has_name(f):
            return "name", f.__module__, f.__qualname__
        words = ["function", f.__module__, f.__qualname__]
        for cell in f.__closure__ or ():
            try:
                words.append(self.of(cell.cell_contents))
            except ValueError:  # not yet filled
                words.append("empty")
        words += self._all("defaults", f.__defaults__, f.__kwdefaults__, _sorted(vars(f)))
        if _is_installed(f.__globals__.get("__name__")):  # made by a package: what was put in is in the closure
            return *words, f.__code__.co_name
        words.append(self.of(f.__code__))
        for name, value in _used(f):
            words += self._all(name, value)
        return *words, *(
            (name, _text(name, f.__globals__.get("__package__"))) for name in sorted(_imported(f.__code__))
        )

    def _class(self, cls: type) -> tuple[Any, ...]:
        words = ["class", _name(cls)]
        if not _is_installed(cls.__module__):
            words += self._all("bases", type(cls), *cls.__bases__)
            for name, value in sorted(vars(cls).items()):
                if name.startswith("__") and (name.startswith("__annot") or not isinstance(value, _DESCRIPTORS)):
                    continue  # what each class has, and how it is written
                if not isinstance(value, types.MemberDescriptorType) and not name.startswith("_abc_"):
                    words += self._all(name, value)
        return tuple(words)

    def _object(self, x: Any) -> tuple[Any, ...]:
        """The words of another object: what pickle takes of it."""
        if isinstance(x, nn.Module) and hasattr(x, "_orig_mod"):
            return self._all("compiled", x._orig_mod)
        made = self._reduced(x)
        if isinstance(made, str):  # of functools.cache, say
            return "name", _name(type(x)), made, *self._all("of", getattr(x, "__wrapped__", None))
        make, arguments, *more = made
        state, *items = (*more, None, None, None)[:3]
        words = self._all("object", make, arguments, *(list(part) for part in items if part is not None))
        if isinstance(x, nn.Module) and isinstance(state, dict):
            hooks = [list(state[name].values()) for name in _HOOKS if name in state]
            parts = (state.get(name) for name in ("training", "_parameters", "_buffers", "_modules"))
            words += self._all("module", *parts, *hooks)
            state = {name: value for name, value in state.items() if name not in _OF_MODULE}
        states = state if isinstance(state, tuple) else (state,)  # with what is in slots
        return *words, *self._all("state", *(_own(x, part) if isinstance(part, dict) else part for part in states))

    def _reduced(self, x: Any) -> Any:
        """What `x.__reduce_ex__` returns, or what would have its attributes.

        Raises:
            StudyError: it has neither.
        """
        by_type = copyreg.dispatch_table.get(type(x))
        try:
            return by_type(x) if by_type is not None else x.__reduce_ex__(4)
        except Exception as error:
            if hasattr(x, "__dict__"):
                return type(x), (), vars(x)
            user = next((p for p in reversed(self.path[:-1]) if isinstance(p, types.FunctionType | type)), None)
            where = "it" if user is None else f"{user.__module__}.{user.__qualname__}"
            raise StudyError(
                f"a study tells by its code and its numbers whether a problem has changed, and {where} has, or uses, "
                f"an object of {_name(type(x))}, of which that cannot be told ({type(error).__name__}: {error}). "
                "Make it within the function that needs it, or pass what it is made of"
            ) from error


def _of_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _sorted(attributes: dict[str, Any]) -> list[Any]:
    return [part for name in sorted(attributes, key=str) for part in (name, attributes[name])]


def _own(x: Any, attributes: dict[str, Any]) -> list[Any]:
    """Attributes in the order of their names, without what is computed when it is first asked for."""
    kinds = {name: inspect.getattr_static(type(x), name, None) for name in attributes if isinstance(name, str)}
    late = [name for name, kind in kinds.items() if isinstance(kind, functools.cached_property)]
    return _sorted({name: value for name, value in attributes.items() if name not in late})


def _used(f: types.FunctionType) -> list[tuple[str, Any]]:
    """The globals that a function uses, with their names; of modules of the user's, what is used of them."""
    found = []
    for name, *attributes in sorted(_loaded(f.__code__)):
        if name not in f.__globals__:
            continue  # Python's own
        value = f.__globals__[name]
        for attribute in attributes:
            is_own = isinstance(value, types.ModuleType) and not _is_installed(value.__name__)
            if not is_own or not hasattr(value, attribute):
                break
            name, value = f"{name}.{attribute}", getattr(value, attribute)
        found.append((name, value))
    return found


def _loaded(code: types.CodeType) -> set[tuple[str, ...]]:
    """The names of globals that a code loads, and the code within it, each with the attributes that it takes of it."""
    found = [_loaded(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    chain: tuple[str, ...] = ()
    for step in dis.get_instructions(code):
        if chain and step.opname in _ATTRIBUTE:
            chain = (*chain, step.argval)
        else:
            found.append({chain} if chain else set())
            chain = (step.argval,) if step.opname in _GLOBAL else ()
    return set().union(*found)


def _imported(code: types.CodeType) -> set[str]:
    """The names of modules that a code imports, and the code within it, with dots before those that are relative."""
    found = [_imported(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    for level, step in zip(steps, steps[2:], strict=False):  # between them is the list of names
        if step.opname == "IMPORT_NAME":
            found.append({"." * level.argval + step.argval})
    return set().union(*found)


def _text(module: str, package: str | None = None) -> str:
    """The digest of the text of a module of the user's; empty for one that is installed, or is not there."""
    if not module.startswith(".") and _is_installed(module):
        return ""
    try:
        found = importlib.util.find_spec(module, package)
    except (ImportError, ValueError):
        return ""
    if found is None or not found.has_location or found.origin is None or _is_installed(found.name):
        return ""
    return _of_bytes(Path(found.origin).read_bytes())


def _has_name(x: Any) -> bool:
    """Whether an object is an installed package's, by a name."""
    module, name = getattr(x, "__module__", None), getattr(x, "__qualname__", None)
    if isinstance(x, types.BuiltinFunctionType) and not isinstance(x.__self__, types.ModuleType | type | None):
        return False  # a method of an object
    if not isinstance(module, str) or not isinstance(name, str) or not _is_installed(module):
        return False
    found = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    # one that has travelled need not be the same; a function that another one of its name wraps is another
    return found is x or (type(found) is type(x) and not isinstance(x, types.FunctionType))


@functools.cache
def _is_installed(module: str | None) -> bool:
    """Whether a module is of Python, pynode or an installed package, rather than somebody's work in progress."""
    top = (module or "__main__").partition(".")[0]
    if top == "__main__":
        return False
    if top in sys.stdlib_module_names or top == __name__.partition(".")[0]:
        return True
    try:
        found = importlib.util.find_spec(top)
    except ValueError:  # it was made by hand
        return False
    if found is None:
        return False
    places = [Path(place) for place in ([found.origin] if found.origin else found.submodule_search_locations or ())]
    folders = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return bool(places) and all(
        {"site-packages", "dist-packages"} & set(place.parts) or any(map(place.is_relative_to, folders))
        for place in places
    )
