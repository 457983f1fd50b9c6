"""A vector field under one calling convention, checked once against the state it is given."""

from __future__ import annotations

import contextlib
import functools
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pynode.errors import FieldError
from pynode.field._bindings import Reads
from pynode.field._fingerprint import attributes_read, fingerprint
from pynode.field._finite import check_finite
from pynode.field._parametrized import given, requires_grad, values_of
from pynode.field._random import NoRandomness
from pynode.field._watch import Watch

__all__ = ["Field"]


@dataclass(frozen=True, eq=False)
class _Facts:
    """What one evaluation of the field has shown, for one fingerprint."""

    names: tuple[str, ...]  # of the parameters of modules
    captured: tuple[str, ...]  # names of other leaves that require a gradient
    nameless: tuple[Tensor, ...]  # leaves that require a gradient and cannot be found by name
    runs_on: str | None  # the only engine that can run it; `None`: any


class Field:
    """A vector field `dz/dt = f(t, z, *args)` that always takes and gives tuples of tensors.

    Args:
        function: the user's callable `f(t, z, *args)`; it gets and returns a tensor, or a tuple of
            tensors where `is_tuple`.
        z0: the state tensors, each `(batch, *features)`.
        t0: the first time, 0-d.
        args: the conditioning tensors.
        is_tuple: whether the user's state is a tuple.

    Attributes:
        parameters: the tensors that require a gradient and that the function may read: the parameters of its
            modules, in `named_parameters` order; parametrized tensors, computed when the `Field` is made, in
            place of the parameters that they depend on; then leaves that the function captures otherwise.
        names: of the parameters, as far as they have one.
        captured: those of the parameters that belong to no module.

    Raises:
        FieldError: the function returns another shape, dtype or device than the state's, or captures a
            non-leaf tensor that requires a gradient (which has to be passed in `args`).
        TraceError: the function draws random numbers.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        z0: Sequence[Tensor],
        t0: Tensor,
        args: Sequence[Tensor] = (),
        is_tuple: bool = False,
    ) -> None:
        if not callable(function):
            raise FieldError(f"field must be an nn.Module or a callable f(t, z, *args), got {type(function).__name__}")
        self.function = function
        self.is_tuple = is_tuple
        self.memory = _memory_of(function)
        shapes = tuple((x.shape[1:], x.dtype, x.device) for x in (*z0, *args))
        self.facts: _Facts
        self.names: tuple[str, ...] = ()
        self.captured: tuple[Tensor, ...] = ()
        self.parameters: tuple[Tensor, ...] = ()
        latest = self.memory.latest
        if latest is not None and latest.holds(function, is_tuple, len(z0), shapes):
            self.parametrized, self.facts = {}, latest.facts
            self.names, self.parameters = latest.names, latest.parameters
            return
        self.parametrized = values_of(self.reads.parametrized)
        key = self._key(len(z0), shapes)
        facts = self.memory.facts.get(key)
        if facts is None:
            self.check_finite(z0, args)
            before = fingerprint(self.reads)
            with attributes_read(self.reads) as read:
                facts = self._examine(tuple(z.detach() for z in z0), t0.detach(), tuple(a.detach() for a in args))
            after = fingerprint(self.reads)
            self.memory.attributes |= read
            self.memory.volatile |= {k for k in after if isinstance(k, tuple) and after[k] != before.get(k)}
            self.memory.facts[self._key(len(z0), shapes)] = facts
        tensors = self.named_tensors()
        self.facts = facts
        self.names = (*facts.names, *facts.captured)
        self.captured = (*(tensors[n] for n in facts.captured), *facts.nameless)
        self.parameters = (*(tensors[n] for n in facts.names), *self.captured)
        self.check_finite((), ())
        self.memory.latest = _Latest.of(self, len(z0), shapes)

    @functools.cached_property
    def reads(self) -> Reads:
        """What the function reads besides its arguments."""
        return Reads(self.function)

    @property
    def key(self) -> object:
        """The same object for as long as the field's trace holds."""
        return self.facts

    def _key(self, n_states: int, shapes: tuple[Any, ...]) -> tuple[Any, ...]:
        found = fingerprint(self.reads, self.memory.attributes)
        kept = tuple((k, v) for k, v in found.items() if k not in self.memory.volatile)
        return kept, self.is_tuple, n_states, shapes

    def named_tensors(self) -> dict[str, Tensor]:
        """The tensors that the function reads and that can be found by name, each once."""
        return {**self.reads.tensors, **self.parametrized, **self.reads.captured}

    def check_finite(self, z0: Sequence[Tensor], args: Sequence[Tensor]) -> None:
        """Refuse a state, conditioning tensors or parameters that are not finite.

        Raises:
            InputError: names the tensor.
        """
        for i, z in enumerate(z0):
            check_finite(f"z0[{i}]" if self.is_tuple else "z0", z)
        for i, a in enumerate(args):
            if a.dtype.is_floating_point:
                check_finite(f"args[{i}]", a)
        for i, parameter in enumerate(self.parameters):
            name = self.names[i] if i < len(self.names) else f"{i}, which it captures without a name,"
            check_finite(f"the field's parameter {name}", parameter)

    def __call__(self, t: Tensor, z: Sequence[Tensor], args: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
        """Evaluate: `t` 0-d, `z` and the result tuples of `(batch, *features)` tensors."""
        with given(self.reads.parametrized, self.parametrized):
            out = self.function(t, tuple(z) if self.is_tuple else z[0], *args)
        return tuple(out) if self.is_tuple else (out,)

    @contextlib.contextmanager
    def reading(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Within the context the function reads these values instead of its own tensors of the same names."""
        own = self.parametrized
        self.parametrized = {name: values.get(name, x) for name, x in own.items()}
        try:
            with self.reads.replaced(values):
                yield
        finally:
            self.parametrized = own

    def _examine(self, z0: tuple[Tensor, ...], t0: Tensor, args: tuple[Tensor, ...]) -> _Facts:
        """Evaluate, check the result, and find every leaf that the gradient has to reach."""
        slots = self.reads.parametrized
        named = {n: p for n, p in self.reads.tensors.items() if p.requires_grad and p.is_leaf}
        leaves = self._leaves(z0, t0, args)
        for tensor in named.values():
            leaves.pop(id(tensor), None)
        captured = tuple(n for n, x in self.reads.captured.items() if leaves.pop(id(x), None) is not None)
        if leaves:  # those that the field makes itself, to differentiate on its way, are others each time
            again = self._leaves(z0, t0, args)
            leaves = {key: x for key, x in leaves.items() if key in again}
        trained = (path for path in slots if requires_grad(slots, path))
        runs_on = next(filter(None, (getattr(type(o), "runs_on", None) for o in self.reads.owners.values())), None)
        return _Facts((*named, *trained), captured, tuple(leaves.values()), runs_on)

    def _leaves(self, z0: tuple[Tensor, ...], t0: Tensor, args: tuple[Tensor, ...]) -> dict[int, Tensor]:
        """The leaves that one evaluation's result, which is checked, depends on, by identity."""
        slots = self.reads.parametrized
        with torch.inference_mode(False), torch.enable_grad():
            z0, t0, args = tuple(z.clone() for z in z0), t0.clone(), tuple(a.clone() for a in args)
            computed = values_of(slots)
            before = torch.zeros((), requires_grad=True).clone().grad_fn._sequence_nr()  # type: ignore[union-attr]
            with given(slots, computed), NoRandomness(__file__):
                out = self.function(t0, tuple(z0) if self.is_tuple else z0[0], *args)
        stack = [o.grad_fn for o in self._check(out, z0) if o.grad_fn is not None]
        leaves: dict[int, Tensor] = {}
        seen = {x.grad_fn for x in computed.values()}
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if hasattr(node, "variable"):
                leaves[id(node.variable)] = node.variable
                continue
            if node._sequence_nr() <= before:
                raise FieldError(_NOT_A_LEAF)
            stack.extend(parent for parent, _ in node.next_functions if parent is not None)
        return leaves

    def _check(self, out: Any, z0: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The field's result as a tuple, or a `FieldError` that names what was expected and what came."""
        if self.is_tuple:
            if not isinstance(out, tuple | list) or len(out) != len(z0):
                came = f"{len(out)} of them" if isinstance(out, tuple | list) else type(out).__name__
                raise FieldError(f"the field must return a tuple of {len(z0)} tensors, as its state is, got {came}")
            outputs = tuple(out)
        else:
            outputs = (out,)
        for i, (o, z) in enumerate(zip(outputs, z0, strict=True)):
            which = f"component {i} of dz/dt" if self.is_tuple else "dz/dt"
            if not isinstance(o, Tensor):
                raise FieldError(f"the field must return a tensor for {which}, got {type(o).__name__}")
            for what in ("shape", "dtype", "device"):
                expected, got = getattr(z, what), getattr(o, what)
                if expected != got:
                    if what == "shape":
                        expected, got = tuple(expected), tuple(got)
                    raise FieldError(
                        f"the field must return {which} with the {what} of the state: expected {expected}, "
                        f"got {got}. {_REMEDY[what]}"
                    )
        return outputs


_NOT_A_LEAF = (
    "the field captures a tensor that was computed from something that requires a gradient; the gradient "
    "could not flow through the solve. Pass that tensor to solve(args=(…,)) and take it as f(t, z, *args)"
)
_REMEDY = {
    "shape": "Check the last layer's width, and that the field keeps the batch dimension first",
    "dtype": "Convert the field with field.to(z0.dtype), or z0 to the field's dtype",
    "device": "Move the field and z0 to the same device",
}


@dataclass(frozen=True)
class _Latest:
    """The `Field` of a module's latest solve, to be taken again while nothing has changed."""

    watch: Watch
    function: weakref.ref[Any]
    signature: tuple[Any, ...]
    facts: _Facts
    names: tuple[str, ...]
    parameters: tuple[Tensor, ...]

    @staticmethod
    def of(field: Field, n_states: int, shapes: tuple[Any, ...]) -> _Latest | None:
        watch = None if field.captured else Watch.of(field.function, field.reads, field.memory.attributes)
        if watch is None:
            return None
        signature = (field.is_tuple, n_states, shapes)
        function = weakref.ref(field.function)
        return _Latest(watch, function, signature, field.facts, field.names, field.parameters)

    def holds(self, function: Any, is_tuple: bool, n_states: int, shapes: tuple[Any, ...]) -> bool:
        same = self.function() is function and self.signature == (is_tuple, n_states, shapes)
        return same and self.watch.unchanged()


class _Memory:
    """What is known of one callable, for as long as it lives."""

    def __init__(self) -> None:
        self.facts = _Recent()
        self.traces = _Recent()
        self.latest: _Latest | None = None
        self.attributes: set[tuple[str, str]] = set()  # that evaluating the field reads
        self.volatile: set[Any] = set()  # parts of the fingerprint that evaluating the field changes, e.g. a counter


class _Recent(dict[Any, Any]):
    """A dictionary of the latest entries."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if len(self) >= _KEPT:
            del self[next(iter(self))]
        super().__setitem__(key, value)


_KEPT = 64
_MEMORIES: weakref.WeakKeyDictionary[Any, _Memory] = weakref.WeakKeyDictionary()


def _memory_of(function: Any) -> _Memory:
    # Methods, partials and functions are often made anew for each call: what they are made of lives on.
    while isinstance(function, types.MethodType | functools.partial):
        function = function.__self__ if isinstance(function, types.MethodType) else function.func
    if isinstance(function, types.FunctionType):
        function = function.__code__
    try:
        found = _MEMORIES.get(function)
        if found is None:
            found = _MEMORIES[function] = _Memory()
        return found
    except TypeError:  # not weakly referenceable
        return _Memory()
