"""Sees at little cost that a field is as it was at its last solve.

A fingerprint looks at all that a trace depends on, which takes as long as a small solve. For a plain module, one
whose attributes are tensors, modules and immutable values, it is enough that the same objects are in the same places.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable
from itertools import chain
from operator import is_, itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from pynode.field._bindings import INTERNAL, Reads, captured_by, of_a_library
from pynode.field._derived import made_of
from pynode.field._fingerprint import HOOKS, hooks_of_all

__all__ = ["Watch"]

_IMMUTABLE = (int, float, str, bool, bytes, complex, type(None), Tensor)
_HELD = ("_parameters", "_buffers", "_modules", *HOOKS)


def _names(owner: nn.Module) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    """Picks what can matter out of a module's dictionary, `_HELD` and more, so that there are several."""
    return itemgetter(*_HELD, *(name for name in owner.__dict__ if name not in INTERNAL))


def _is_fixed(part: Any) -> bool:
    """Whether it is a function whose globals nobody changes, as those of pynode's layers."""
    return isinstance(part, types.FunctionType) and of_a_library(part)


class Watch:
    """What a module and its submodules held when this was made.

    Args:
        reads: what the module reads.
        attributes: the attributes of modules that its trace depends on, as (owner's prefix, name).
        derived: whether it is not the module that is solved, but a field that is made of it.
    """

    def __init__(self, reads: Reads, attributes: set[tuple[str, str]], derived: bool) -> None:
        # Not the modules' dictionaries, which may come to hold what holds the modules, as a solution does.
        owners = reads.owners.values()
        self.owners = [(weakref.ref(o), type(o), _names(o), len(o.__dict__)) for o in owners]
        self.held = [x for o, (*_, names, _) in zip(owners, self.owners, strict=True) for x in names(o.__dict__)]
        self.places = [o.__dict__[name] for o in owners for name in _HELD]  # held above
        self.lengths = list(map(len, self.places))
        self.filled = list(filter(None, self.places))
        self.keys = list(chain.from_iterable(self.filled))
        self.contents = list(chain.from_iterable(map(dict.values, self.filled)))
        self.tensors = [(x, x.shape, x.dtype, x.device, x.requires_grad) for x in reads.tensors.values()]
        self.prefixes, self.named = list(reads.owners), reads.tensors
        self.sees_all, self.derived = not (reads.opaque or reads.arrays), derived
        self.methods = [
            (kind, name, getattr(kind, name, None), _code(getattr(kind, name, None)))
            for prefix, name in attributes
            if prefix in reads.owners  # not what a field made of this one has been seen to read
            for kind in (type(reads.owners[prefix]),)
        ]

    @staticmethod
    def of(function: Any, reads: Reads, dtype: torch.dtype, attributes: set[tuple[str, str]]) -> Watch | None:
        """A watch, or `None` where a look at the places would not be enough."""
        if made_of(function) is None or reads.captured or reads.parametrized:
            return None
        derived = not isinstance(function, nn.Module)
        known = (function, function.__func__) if derived else ()
        if not all([any(part is x for x in known) or _is_fixed(part) for part in reads.parts.values()]):
            return None
        if any(isinstance(owner, torch.jit.ScriptModule) for owner in reads.owners.values()):
            return None
        if hooks_of_all():
            return None
        for owner in reads.owners.values():
            own = owner.__dict__.items()
            if not all(isinstance(value, _IMMUTABLE) for name, value in own if name not in INTERNAL):
                return None
        # Of another dtype their values matter; and a graph may lead to what holds the module.
        if not all((x.dtype is dtype or x.requires_grad) and x.grad_fn is None for x in reads.tensors.values()):
            return None
        watch = Watch(reads, attributes, derived)
        for _, _, method, _ in watch.methods:
            if (
                isinstance(method, types.FunctionType)
                and not _is_fixed(method)
                and any(True for _ in captured_by(method))
            ):
                return None
        return watch

    def reads(self) -> Reads | None:
        """What the field reads, where all is where it was; `None` where only another look can tell."""
        owners = {p: o for p, (ref, *_) in zip(self.prefixes, self.owners, strict=True) if (o := ref()) is not None}
        whole = self.sees_all and not self.derived and len(owners) == len(self.prefixes)
        return Reads.of_modules(owners, self.named) if whole else None

    def unchanged(self) -> bool:
        """Whether all is where it was."""
        held: list[Any] = []
        for ref, kind, names, length in self.owners:
            owner = ref()
            if type(owner) is not kind or len(owner.__dict__) != length:
                return False
            try:
                held += names(owner.__dict__)
            except KeyError:
                return False
        if not all(map(is_, held, self.held)) or list(map(len, self.places)) != self.lengths:
            return False
        if not all(map(is_, chain.from_iterable(self.filled), self.keys)):
            return False
        if not all(map(is_, chain.from_iterable(map(dict.values, self.filled)), self.contents)):
            return False
        for x, shape, dtype, device, requires_grad in self.tensors:
            if x.requires_grad is not requires_grad or x.shape != shape or x.dtype is not dtype or x.device != device:
                return False
        for kind, name, method, code in self.methods:
            now = getattr(kind, name, None)
            if now is not method or _code(now) is not code:
                return False
        return not hooks_of_all()


def _code(method: Any) -> Any:
    """What may become another while a method, or a property, stays the same object."""
    return getattr(method.fget if isinstance(method, property) else method, "__code__", None)
