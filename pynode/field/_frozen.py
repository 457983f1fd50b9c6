"""A copy of a field that reads what the field reads now, with other tensors in the place of some.

A solve evaluates the copy: what the user changes later does not reach it, gradients with respect to the copy's tensors
run no hook of the user's, and the user's own objects are touched by no thread. Functions, modules, containers and
objects are copied as far as they hold tensors; all else is shared.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from pynode.errors import FieldError
from pynode.field._bindings import INTERNAL, Reads, is_compiled, slots_of
from pynode.field._kept import for_the_user
from pynode.field._parametrized import is_computing
from pynode.field._scripted import Scripted
from pynode.weak import WeakMap

__all__ = ["Frozen", "original"]

_COMPILED = "_torchdynamo_orig_callable"  # of a compiled function the function
_GROUPS = ("_parameters", "_buffers")


# Of each copy of a module the module.
_ORIGINALS: WeakMap[nn.Module, weakref.ref[nn.Module]] = WeakMap()


def original(module: nn.Module) -> nn.Module:
    """The user's module of which this is a copy, or the module itself."""
    found = _ORIGINALS.get(module)
    return (found() or module) if found is not None else module


class Frozen:
    """A copy of a callable.

    Args:
        function: the callable.
        reads: what it reads.
        values: the tensors that the copy has in the place of others, by the id of these.
        computed: parametrized tensors, by dotted name: the copy has them as they are here.
        unwraps: whether what `torch.compile` has compiled is copied as it was before, and modules of `torch.jit` are
            evaluated in Python.

    Attributes:
        function: the copy.
        owners: the copies of `reads.owners`, by prefix.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        reads: Reads,
        values: Mapping[int, Tensor],
        computed: Mapping[str, Tensor],
        unwraps: bool = False,
    ) -> None:
        self.reads, self.values, self.unwraps = reads, values, unwraps
        self.given: dict[int, dict[str, Tensor]] = {}  # parametrized tensors, by their module
        for path, (owner, name) in reads.parametrized.items():
            self.given.setdefault(id(owner), {})[name] = computed[path]
        self.copies: dict[int, Any] = {}
        self.originals: dict[int, Any] = {id(copy): original for original, copy in self._replaced()}
        # What the field may write to: the original, its copy, and what the copy held at first.
        self.written: list[tuple[Any, Any, Any]] = []
        self.function = self._copy(function)
        self.owners = {prefix: self._copy(owner) for prefix, owner in reads.owners.items()}

    def _replaced(self) -> list[tuple[Tensor, Tensor]]:
        reads = self.reads
        found = (*reads.tensors.values(), *reads.captured.values())
        return [(x, self.values[id(x)]) for x in found if id(x) in self.values]

    def _copy(self, value: Any) -> Any:
        key = id(value)
        if self.unwraps and isinstance(value, types.FunctionType) and hasattr(value, _COMPILED):
            return self._copy(getattr(value, _COMPILED))
        if isinstance(value, Tensor):
            return self.values.get(key, value)
        if key not in self.reads.touched:
            return value
        if key not in self.copies:
            made = self._make(value)
            self.copies.setdefault(key, made)
            self.originals[id(made)] = value
        return self.copies[key]

    def _make(self, value: Any) -> Any:
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return types.MethodType(self._copy(value.__func__), self._copy(value.__self__))
        if isinstance(value, functools.partial):
            keywords = {k: self._copy(v) for k, v in value.keywords.items()}
            made = functools.partial(self._copy(value.func), *map(self._copy, value.args), **keywords)
            made.__dict__.update({k: self._copy(v) for k, v in value.__dict__.items()})
            return made
        if isinstance(value, dict):
            return self._container(value, type(value).__new__(type(value)) if type(value) is not dict else {})
        if isinstance(value, list):
            return self._container(value, type(value).__new__(type(value)) if type(value) is not list else [])
        if isinstance(value, deque):
            return self._container(value, deque(maxlen=value.maxlen))
        if isinstance(value, set):
            return self._container(value, set())
        if isinstance(value, tuple):
            parts = tuple(map(self._copy, value))
            return type(value)._make(parts) if hasattr(value, "_make") else parts
        if isinstance(value, frozenset):
            return frozenset(map(self._copy, value))
        if isinstance(value, types.MappingProxyType):
            return types.MappingProxyType({k: self._copy(v) for k, v in value.items()})
        return self._object(value)

    def _container(self, value: Any, made: Any) -> Any:
        self.copies[id(value)] = made  # before what it holds, which may hold it
        if hasattr(value, "__dict__"):
            made.__dict__.update(value.__dict__)
        if isinstance(value, dict):
            if hasattr(value, "default_factory"):
                made.default_factory = value.default_factory
            dict.update(made, {self._copy(k): self._copy(v) for k, v in value.items()})
            self.written.append((value, made, dict(made)))
        else:
            (made.update if isinstance(value, set) else made.extend)([self._copy(v) for v in value])
            self.written.append((value, made, list(made)))
        return made

    def _object(self, value: Any) -> Any:
        try:
            made = object.__new__(type(value))
        except TypeError:  # of a class that is made otherwise: shared
            self.reads.opaque = True
            return value
        self.copies[id(value)] = made
        for name, item in slots_of(value):
            object.__setattr__(made, name, self._copy(item))
        if hasattr(value, "__dict__"):
            made.__dict__.update({k: self._copy(v) for k, v in value.__dict__.items()})
            self.written.append((value.__dict__, made.__dict__, dict(made.__dict__)))
        return made

    def _module(self, module: nn.Module) -> nn.Module:
        if isinstance(module, torch.jit.ScriptModule):
            for x in module.parameters():
                if x._backward_hooks:
                    raise FieldError(
                        f"a parameter of shape {tuple(x.shape)} of a scripted module has a hook, which would run "
                        "inside of the solve too: remove the hook, or solve with the module from before torch.jit"
                    )
            return Scripted(module) if self.unwraps else module
        if is_compiled(module):
            inner = self._copy(module._orig_mod)
            return inner if self.unwraps else type(module)(inner, module.dynamo_ctx)
        given = self.given.get(id(module))
        kind: type[nn.Module] = type(module)
        if given:
            kind = nn.utils.parametrize.type_before_parametrizations(module)
        made = object.__new__(kind)
        self.copies[id(module)] = made
        _ORIGINALS.setdefault(made, weakref.ref(module))
        own, new = module.__dict__, made.__dict__
        new.update(own)
        for group in _GROUPS:
            new[group] = {k: None if x is None else self._copy(x) for k, x in own[group].items()}
        new["_modules"] = {
            k: child if child is None or (given and k == "parametrizations") else self._copy(child)
            for k, child in own["_modules"].items()
        }
        for hooks in ("_forward_hooks", "_forward_pre_hooks"):
            if own[hooks]:
                kept = ((k, self._copy(hook)) for k, hook in own[hooks].items() if not (given and is_computing(hook)))
                new[hooks] = type(own[hooks])(kept)
        for name, item in own.items():
            if name not in INTERNAL:
                new[name] = self._copy(item)
        # The attributes of the class that hold tensors are read from the instance.
        for base in type(module).__mro__ if self.reads.opaque else ():
            for name, item in vars(base).items():
                if id(item) in self.values and name not in new:
                    new[name] = self._copy(item)
        new.update(given or {})
        self.written.append((own, new, dict(new)))
        for group in (*_GROUPS, "_modules"):
            self.written.append((own[group], new[group], dict(new[group])))
        return made

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        closure = function.__closure__
        made = types.FunctionType(
            function.__code__,
            self._globals(function.__globals__),
            function.__name__,
            None,
            None if closure is None else tuple(map(self._cell, closure)),
        )
        self.copies[id(function)] = made
        if function.__defaults__ is not None:
            made.__defaults__ = tuple(map(self._copy, function.__defaults__))
        if function.__kwdefaults__ is not None:
            made.__kwdefaults__ = {k: self._copy(v) for k, v in function.__kwdefaults__.items()}
        made.__dict__.update(function.__dict__)
        return made

    def _cell(self, cell: types.CellType) -> types.CellType:
        if id(cell) not in self.copies:
            try:
                held = cell.cell_contents
            except ValueError:  # empty
                return cell
            if not isinstance(held, Tensor) and id(held) not in self.reads.touched:
                return cell
            made = self.copies[id(cell)] = types.CellType()
            made.cell_contents = self._copy(held)
            self.written.append((cell, made, made.cell_contents))
        return self.copies[id(cell)]

    def _globals(self, scope: dict[str, Any]) -> dict[str, Any]:
        if id(scope) not in self.copies:
            touched = self.reads.touched
            held = {k: v for k, v in scope.items() if id(v) in touched}
            if not held:
                return scope
            made = self.copies[id(scope)] = dict(scope)
            made.update({k: self._copy(v) for k, v in held.items()})
            self.written.append((scope, made, dict(made)))
        return self.copies[id(scope)]

    def write_back(self) -> None:
        """Give the user's objects what the field has written to their copies: counters, lists, caches."""
        for i, (original, copy, before) in enumerate(self.written):
            if isinstance(copy, types.CellType):
                after: Any = copy.cell_contents
                if after is not before:
                    original.cell_contents = self._back(after)
            elif isinstance(copy, dict):
                if _is_same(copy, before):
                    continue
                after = dict(copy)
                for key, item in after.items():
                    if (key not in before or before[key] is not item) and key not in INTERNAL:
                        original[self._back(key)] = self._back(item)
                for key in before.keys() - after.keys():
                    original.pop(self._back(key), None)
            else:
                after = list(copy)
                if len(after) != len(before) or any(a is not b for a, b in zip(after, before, strict=True)):
                    original.clear()
                    (original.update if isinstance(original, set) else original.extend)(map(self._back, after))
            self.written[i] = (original, copy, after)

    def rewritten(self) -> set[int]:
        """Ids of the tensors that were in a place where the field has put something else."""
        found: set[int] = set()
        for _, copy, before in self.written:
            if isinstance(copy, dict):
                gone = [item for key, item in before.items() if key not in copy or copy[key] is not item]
                found.update(id(self.originals.get(id(x), x)) for x in gone if isinstance(x, Tensor))
        return found

    def _back(self, value: Any) -> Any:
        """A value as the user's objects may hold it."""
        if id(value) in self.originals:
            return self.originals[id(value)]
        if isinstance(value, Tensor) and value.requires_grad:
            return for_the_user(value)
        if type(value) is weakref.ref and id(value()) in self.originals:
            return weakref.ref(self.originals[id(value())])
        if type(value) in (list, tuple):  # as recurrent layers list their weights
            parts = [self._back(x) if isinstance(x, Tensor | weakref.ref) else x for x in value]
            return value if all(a is b for a, b in zip(parts, value, strict=True)) else type(value)(parts)
        return value


def _is_same(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    """Whether two dictionaries have the same objects under the same keys, in the same order."""
    if len(one) != len(other):
        return False
    return all(map(is_, dict.keys(one), other)) and all(map(is_, dict.values(one), other.values()))
