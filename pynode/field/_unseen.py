"""Whether a field may read what no look at it finds: its graph is then compared with it at each solve.

What a field reads is found from what its modules, functions, closures and globals hold (`Reads`). The code that it
calls may read more: a number of a class in a property, one in a module within a module, what `getattr` or `eval` find
by a name in a text. So the code that runs in one evaluation is looked at, and a doubt counts.
"""

from __future__ import annotations

import dis
import enum
import gc
import sys
import types
from collections.abc import Iterator, Set
from queue import SimpleQueue
from typing import Any

from pynode.field._bindings import Reads, is_a_librarys, loaded_names

__all__ = ["Ran", "reads_unseen"]

# Built-in functions that lead anywhere; and those that lead from a class or a module to what it holds.
_ANYWHERE = {"globals", "eval", "exec", "compile", "open", "__import__"}
_WITHIN = {"getattr", "vars", "dir"}
# Attributes that lead anywhere.
_LEADING = {"__dict__", "__globals__", "environ", "environb", "getenv", "import_module"}
_IMPORTS = {"IMPORT_NAME", "IMPORT_FROM"}

_Place = types.ModuleType | type
_METHODS: tuple[type, ...] = (types.FunctionType, types.BuiltinFunctionType, property, classmethod, staticmethod)
_METHODS += (types.MemberDescriptorType, types.GetSetDescriptorType, types.WrapperDescriptorType)
_NEST = 4  # classes and modules within one another that are looked into


class Ran:
    """A context in which it is noted which code runs that is not Python's, PyTorch's, NumPy's or pynode's own.

    Attributes:
        code: each with its globals, and the classes and modules in its closure and among its arguments.
        all: whether none was missed, as it is where a profiler runs.
    """

    def __init__(self) -> None:
        self.code: dict[int, tuple[types.CodeType, dict[str, Any], list[Any], list[Any]]] = {}
        self.all = True

    def __enter__(self) -> Ran:
        self._around = sys.getprofile()
        self._within = isinstance(getattr(self._around, "__self__", None), SimpleQueue)  # another field's evaluation
        self.all = self._around is None or self._within
        self._collects = gc.isenabled()
        gc.disable()  # what the collector calls is none of the field's
        if self.all:
            self._frames: SimpleQueue[types.FrameType] = SimpleQueue()
            # Of its three arguments it puts the first, the frame. It is no Python code, in which a signal's handler
            # could raise, within torch's own.
            sys.setprofile(self._frames.put)  # type: ignore[arg-type]
        return self

    def __exit__(self, *_: object) -> None:
        if self._collects:
            gc.enable()
        if not self.all:
            return
        sys.setprofile(self._around)
        while not self._frames.empty():  # this call's own is among them, which no name here may hold
            self._note(self._frames.get())

    def _note(self, frame: types.FrameType) -> None:
        if self._within:
            self._around(frame)  # type: ignore[misc, call-arg]
        code, scope = frame.f_code, frame.f_globals
        if is_a_librarys(scope):
            return
        *_, closure, given = self.code.setdefault(id(code), (code, scope, [], []))
        found, n = frame.f_locals, code.co_argcount + code.co_kwonlyargcount
        for names, places in ((code.co_freevars, closure), (code.co_varnames[:n], given)):
            places += [x for name in names if isinstance(x := found.get(name), _Place) and x not in places]


def reads_unseen(ran: Ran, reads: Reads) -> bool:
    """Whether a field may read what its fingerprint does not show.

    Args:
        ran: the code that has run in an evaluation.
        reads: what the field is known to read.
    """
    if reads.unseen or not ran.all:
        return True
    parts = [part.__code__ for part in reads.parts.values() if isinstance(part, types.FunctionType)]
    looked_at, seen = {id(code) for code in parts}, {id(code) for part in parts for code in _defined_in(part)}
    names = {name for code, *_ in ran.code.values() for name in code.co_names}
    by_class = "__class__" in names or any("type" in loaded_names(code)[0] for code, *_ in ran.code.values())
    for x in (*reads.parts.values(), *(reads.owners.values() if by_class else ())):
        if not isinstance(x, _METHODS) and _holds(type(x), names - getattr(x, "__dict__", {}).keys()):
            return True
    # Attributes of functions, which nobody looks at; those of tensors a trace refuses.
    if any(isinstance(x, types.FunctionType) and names & x.__dict__.keys() for x in reads.parts.values()):
        return True
    places = {id(place): (place, set[str]()) for place in reads.places}  # with what is known of each
    for key, (code, scope, closure, given) in ran.code.items():
        loaded, attributes = loaded_names(code)
        values = [scope[name] for name in loaded if name in scope and name.isidentifier()]
        if _leads_anywhere(code, scope) or (key not in seen and _reads_more(code, values)):
            return True
        for place in (*values, *closure, *given):
            if isinstance(place, _Place):
                known = places.setdefault(id(place), (place, set()))[1]
                # What a function reads of a class or a module that its globals or its closure hold is looked at.
                if key in looked_at and not any(place is x for x in given):
                    known |= attributes
    return any(_holds(place, names, known) for place, known in places.values())


def _defined_in(code: types.CodeType) -> Iterator[types.CodeType]:
    """Code of a function, and of those that it defines."""
    waiting = [code]
    while waiting:
        found = waiting.pop()
        yield found
        waiting += [x for x in found.co_consts if isinstance(x, types.CodeType)]


def _leads_anywhere(code: types.CodeType, scope: dict[str, Any]) -> bool:
    """Whether code may read what no name in it tells of."""
    loaded, attributes = loaded_names(code)
    built_in = {name for name in loaded if name not in scope}
    if built_in & _ANYWHERE or attributes & _LEADING or (scope.get("sys") is sys and "modules" in attributes):
        return True
    if any(instruction.opname in _IMPORTS for instruction in dis.get_instructions(code)):
        return True
    return bool(built_in & _WITHIN) and any(
        isinstance(scope[name], _Place) and not _is_others(scope[name]) for name in loaded if name in scope
    )


def _reads_more(code: types.CodeType, values: list[Any]) -> bool:
    """Whether code that nobody has looked at has a closure, or reads globals that are no library's."""
    if set(code.co_freevars) - {"__class__"}:
        return True
    return any(
        not isinstance(x, _Place | types.BuiltinFunctionType | enum.Enum) and not _is_others_function(x) for x in values
    )


def _is_others_function(x: Any) -> bool:
    return isinstance(x, types.FunctionType) and is_a_librarys(x.__globals__)


def _is_others(place: Any) -> bool:
    """Whether a class or a module is none of the user's."""
    if getattr(place, "__module__", "") == "builtins":
        return True
    module = place if isinstance(place, types.ModuleType) else sys.modules.get(place.__module__)
    return module is not None and is_a_librarys(vars(module))


def _holds(place: Any, names: Set[str], known: Set[str] = frozenset(), depth: int = _NEST) -> bool:
    """Whether a class or a module of the user's has something by one of these names that is no method.

    Args:
        place: the class, with those that it is derived from, or the module; and classes and modules within it.
        names: the names.
        known: names of what it holds itself that do not count.
        depth: how far to look within it.
    """
    if _is_others(place):
        return False
    left = {name for name in names if not name.startswith("__")}
    for kind in place.__mro__ if isinstance(place, type) else (place,):
        if kind is not place and _is_others(kind):
            continue
        own = vars(kind)
        for name in left & own.keys():
            x = own[name]
            if isinstance(x, _Place):
                if not _is_others(x) and (not depth or _holds(x, names, depth=depth - 1)):
                    return True
            elif name not in known and not isinstance(x, (*_METHODS, enum.Enum)):
                return True
        left, known = left - own.keys(), frozenset()
    return False
