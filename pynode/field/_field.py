"""A vector field under one calling convention, checked once against the state it is given."""

from __future__ import annotations

import contextlib
import copy
import functools
import types
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pynode.errors import FieldError
from pynode.field._arrays import Arrays
from pynode.field._bindings import Reads
from pynode.field._derived import made_of
from pynode.field._fingerprint import attributes_read, contents, fingerprint
from pynode.field._finite import check_finite
from pynode.field._higher_order import no_higher_order
from pynode.field._kept import cache_of
from pynode.field._live import Live
from pynode.field._memory import memory_of
from pynode.field._mismatch import mismatch_explained
from pynode.field._norms import check_norms
from pynode.field._outputs import check_outputs
from pynode.field._outside import unhooked
from pynode.field._pairs import as_pairs, as_read
from pynode.field._parametrized import requires_grad, values_of
from pynode.field._random import NoRandomness
from pynode.field._substitution import Substitution
from pynode.field._switches import has_switches
from pynode.field._tape import Tape
from pynode.field._time import first_time, time_dtype
from pynode.field._unseen import Ran, reads_unseen
from pynode.field._watch import Watch
from pynode.field._whole import check_whole
from pynode.field._writes import versions, written
from pynode.interrupts import import_for_fields
from pynode.torch_state import leaves_process_state
from pynode.transforms import example, is_followed, is_wrapped, moves, untransformed

__all__ = ["Field", "Latest"]


@dataclass(frozen=True, eq=False)
class _Facts:
    """What one evaluation of the field has shown, for one fingerprint."""

    names: tuple[str, ...]  # of the tensors that a solve differentiates by
    optional: frozenset[str]  # those of them whose gradient is None where they are not read
    differentiates: bool  # whether the field calls torch.autograd.grad
    runs_on: str | None  # the only engine that can run it; `None`: any
    switches: bool  # whether it compares or rounds something that it computes from the time alone
    cached: str | None  # what it keeps from one evaluation and differentiates through in the next
    unseen: bool  # whether it may read what the fingerprint does not show


class Field:
    """A vector field `dz/dt = f(t, z, *args)` that always takes and gives tuples of tensors.

    It is evaluated by a copy of the function that reads what the function reads when the `Field` is made, or first
    evaluated: see `Frozen`.

    Args:
        function: the user's callable `f(t, z, *args)`; it gets and returns a tensor, or a tuple of
            tensors where `is_tuple`.
        z0: the state tensors, each `(batch, *features)`.
        t: the times, or the first of them.
        args: the conditioning tensors.
        is_tuple: whether the user's state is a tuple.
        autocast: the dtype in which the function computes what PyTorch's autocast casts; `None` without autocast.

    Attributes:
        parameters: the tensors that require a gradient and that the function may read, leaves or not: those of its
            modules first, in `named_parameters` order; parametrized tensors, computed when the `Field` is made, in
            place of the parameters that they depend on; then what it captures otherwise. Complex ones are pairs of
            real numbers, `(…, 2)`.
        names: of the parameters.
        dtype: the state's.
        optional: the names of those whose gradient is `None`, rather than zero, where the solution does not depend on
            them.
        time_dtype: in which the function gets the time: the state's, or double where it asks for that.

    Raises:
        FieldError: the function returns another shape, dtype or device than the state's, or reads a tensor that
            requires a gradient and that cannot be found.
        InputError: it reads a tensor that does not hold its numbers itself.
        TraceError: the function draws random numbers.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        z0: Sequence[Tensor],
        t: Tensor,
        args: Sequence[Tensor] = (),
        is_tuple: bool = False,
        autocast: torch.dtype | None = None,
    ) -> None:
        if not callable(function):
            raise FieldError(f"field must be an nn.Module or a callable f(t, z, *args), got {type(function).__name__}")
        self.function = function
        self.is_tuple, self.autocast = is_tuple, autocast
        self.unwraps, self.dtype = False, z0[0].dtype
        self.time_dtype = time_dtype(function, z0[0].dtype)
        self.memory = memory_of(function)
        self._values: Mapping[str, Tensor] = {}
        self._watch: Watch | None = None  # where it has seen that all is as at the latest solve
        shapes = (autocast, torch.get_default_dtype(), *[(x.shape[1:], x.dtype, x.device) for x in (*z0, *args)])
        self.facts: _Facts
        self.parameters: tuple[Tensor, ...] = ()
        latest = self.memory.latest
        if latest is not None and latest.signature == (is_tuple, len(z0), shapes) and latest.holds(function):
            self.__dict__ |= {**latest.found, "time_dtype": self.time_dtype}
            return
        t0 = example(first_time(t).to(self.time_dtype))
        self._initialise(z0, t0, args)
        for name, x in {**self.reads.tensors, **self.reads.captured}.items():
            check_whole(f"the field's tensor {name}", x, of_field=True)
        self.parametrized = values_of(self.reads.parametrized)
        key = self._key(len(z0), shapes)
        facts = self.memory.facts.get(key)
        if facts is None:
            self.check_finite(z0, args)
            facts = self._learn(tuple(z.detach() for z in z0), t0.detach(), tuple(a.detach() for a in args))
            self.memory.facts[self._key(len(z0), shapes)] = facts
        self.facts = facts
        tensors = self.named_tensors()
        self.parameters = tuple(as_pairs(tensors[n]) for n in facts.names)
        self._values = {n: p for n, p in zip(facts.names, self.parameters, strict=True) if tensors[n].is_complex()}
        self.check_finite((), ())
        again = not (self._values or facts.unseen or any(map(is_wrapped, self.parameters)))
        self.memory.latest = Latest.of(self, len(z0), shapes) if again else None

    @property
    def names(self) -> tuple[str, ...]:
        """See the class."""
        return self.facts.names

    @property
    def optional(self) -> frozenset[str]:
        """See the class."""
        return self.facts.optional

    @functools.cached_property
    def reads(self) -> Reads:
        """What the function reads besides its arguments."""
        return (None if self._watch is None else self._watch.reads()) or Reads(self.function)

    @property
    def key(self) -> object:
        """The same object for as long as the field's trace holds."""
        return self.facts

    def latest(self) -> Latest | None:
        """What makes this field again at the next solve; `None` where it has to be looked at anew.

        So it is where something that it reads may be hidden, and under autocast.
        """
        found = self.memory.latest
        if found is None or not found.sees_all or self.autocast is not None:
            return None
        return found if found.found["parameters"] is self.parameters else None

    def _key(self, n_states: int, shapes: tuple[Any, ...]) -> tuple[Any, ...]:
        found = fingerprint(self.reads, self.dtype, self.memory.attributes)
        kept = tuple((k, v) for k, v in found.items() if k not in self.memory.volatile)
        followed = frozenset(n for n, x in self.named_tensors().items() if is_wrapped(x) or moves(x))
        return kept, followed, frozenset(self.memory.late), self.is_tuple, n_states, shapes

    @functools.cached_property
    def _tensors(self) -> dict[str, Tensor]:
        return {**self.reads.tensors, **self.parametrized, **self.reads.captured}

    @property
    def given(self) -> Mapping[str, Tensor]:
        """What the function reads instead of its own tensors, by name."""
        return self._values

    def named_tensors(self) -> dict[str, Tensor]:
        """The tensors that the function reads and that can be found by name, each once."""
        return self._tensors

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
        for name, parameter in zip(self.names if self.parameters else (), self.parameters, strict=True):
            if not is_wrapped(parameter):  # whose values are looked at when PyTorch has unwrapped it
                check_finite(f"the field's parameter {name}", parameter)

    def is_fixed(self, parameter: Tensor) -> bool:
        """Whether a copy of the function has to read this very tensor."""
        return id(parameter) in self.reads.fixed

    def replaced(self, values: Mapping[str, Tensor]) -> Field:
        """This field, reading these values, by name, instead of its own tensors; all else as it is now."""
        other = copy.copy(self)
        other.__dict__.pop("_live", None)
        other._values = {**self._values, **values}
        other.parameters = tuple(values.get(n, p) for n, p in zip(self.names, self.parameters, strict=True))
        return other

    def as_made(self) -> Field:
        """This field, reading the tensors that its function had when this was made, where it has others by now.

        `torch.func.functional_call` gives a module its own tensors back before anything is differentiated.
        """
        reads = Reads(self.function)
        now = {**reads.tensors, **reads.captured}
        made = {n: x for n, x in self.named_tensors().items() if n not in self.parametrized}
        if all(now.get(n) is x for n, x in made.items()):
            return self
        other = self.replaced({n: x for n, x in made.items() if n not in self._values})
        other.__dict__.update(reads=reads, _tensors={**self.named_tensors(), **now})
        return other

    def as_written(self) -> Field:
        """This field without autocast, and with what `torch.compile` and `torch.jit` have made run in Python."""
        other = self.replaced({})
        other.autocast, other.unwraps = None, True
        return other

    def on_leaves(self, wants: Sequence[bool] | None = None) -> Field:
        """This field with leaves of its own in the place of its parameters, so that no hook of theirs runs.

        Args:
            wants: for each parameter whether the leaf requires a gradient; all do by default.
        """
        leaves = {}
        for name, p, wanted in zip(self.names, self.parameters, wants or [True] * len(self.parameters), strict=True):
            if not self.is_fixed(p):
                own = p.clone() if p.is_inference() and not torch.is_inference_mode_enabled() else p
                leaves[name] = own.detach().requires_grad_(wanted)
        return self.replaced(leaves)

    @functools.cached_property
    def _live(self) -> Live:
        named, values = self.named_tensors(), dict(self._values)
        late = {n for n, x in named.items() if n not in self.facts.names and x.requires_grad}
        if self.facts.differentiates:  # which autograd does not by tensors that were made in inference mode
            with torch.inference_mode(False):
                values = {n: x.clone() for n, x in named.items() if x.is_inference()} | values
        return self._evaluator(as_read(values, named), late)

    def _evaluator(self, values: Mapping[str, Tensor], late: Iterable[str] = (), looks: bool = False) -> Live:
        named, computed = self.named_tensors(), self.parametrized
        return Live(
            self.function, self.reads, named, computed, values, self.memory, self.autocast, self.unwraps, late, looks
        )

    def freeze(self) -> None:
        """Take what the function reads now, for all evaluations to come."""
        _ = self._live

    def recomputing(self) -> contextlib.AbstractContextManager[Any]:
        """The context for what evaluates parts of the field once more by itself, as PyTorch's checkpoints do."""
        live = self._live
        return Substitution(live.by_id, live.names, {}, strict=False) if live.looks else contextlib.nullcontext()

    def settle(self) -> None:
        """Give the user's objects what the function has written to its own: counters, lists, caches."""
        live = self.__dict__.get("_live")
        if live is not None:
            live.frozen.write_back()

    def state(self) -> dict[Any, Any]:
        """What evaluations depend on although the copy shares it with the user, to be compared with later."""
        return contents(Reads(self._live.frozen.function), self.dtype, self.memory.attributes, self.memory.volatile)

    def arrays(self) -> Arrays | None:
        """The NumPy arrays that the function reads; `None` without any, and where a look at its places was enough."""
        reads = self.__dict__.get("reads")  # see `Watch`
        return None if reads is None or not reads.arrays else Arrays(reads.arrays)

    def check_unchanged(self, before: Mapping[Any, Any]) -> None:
        """Refuse to go on where something that the copy shares with the user is another than it was.

        Raises:
            FieldError: names what has changed.
        """
        now = self.state()
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if changed:
            what = ", ".join(dict.fromkeys("".join(k) if isinstance(k, tuple) else str(k) for k in changed))
            raise FieldError(
                f"the field has changed between the solve and its gradient, which evaluates it again: {what}. Change "
                "it after backward(), pass what changes in solve(args=(…,)), or use sensitivity='discrete'"
            )

    def check_same(self) -> None:
        """Refuse to go on where the function's attributes, or what it captures, are others than when this was made.

        Raises:
            FieldError: names what has changed.
        """
        known = next((key[0] for key, facts in self.memory.facts.items() if facts is self.facts), ())
        before = {place: value for place, value in known if isinstance(place, tuple)}
        now = fingerprint(Reads(self.function), self.dtype, self.memory.attributes)
        changed = ["".join(k) for k, value in before.items() if k in now and now[k] != value]
        if changed:
            raise FieldError(
                f"the field has changed between the solve and a second derivative, which solves again: "
                f"{', '.join(changed)}. Change it after the derivatives are taken, or pass what changes in "
                "solve(args=(…,))"
            )

    def __call__(self, t: Tensor, z: Sequence[Tensor], args: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
        """Evaluate: `t` 0-d, of any dtype, `z` and the result tuples of `(batch, *features)` tensors."""
        if t.dtype is not self.time_dtype:
            t = t.to(self.time_dtype)
        if self.facts.differentiates:
            return self._differentiable(t, z, args)
        return self._outputs(t, z, args)

    def plain(self) -> Callable[..., Any] | None:
        """The function itself, if that does for one tensor and a float64 time; `None` if it is not enough."""
        live, needed = self._live, self.is_tuple or self.facts.differentiates or self.autocast is not None
        return None if needed or live.looks or self.time_dtype != torch.float64 else live.frozen.function

    def _differentiable(self, t: Tensor, z: Sequence[Tensor], args: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Evaluate a function that differentiates by its arguments, whatever context this one is in."""
        tracked = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            t, *z = (x if tracked and x.requires_grad else _leaf(x) for x in (t, *z))
            outputs = self._outputs(t, z, [a.clone() if a.is_inference() else a for a in args])
        return outputs if tracked else tuple(o.detach() for o in outputs)

    def _outputs(self, t: Tensor, z: Sequence[Tensor], args: Sequence[Tensor]) -> tuple[Tensor, ...]:
        inputs = (t, *z, *args)
        before = versions(inputs)
        out = self._live(t, tuple(z) if self.is_tuple else z[0], *args)
        if versions(inputs) != before:
            raise written(inputs, before, self._input_names(len(z), len(args)))
        if not self.is_tuple and self.autocast is None and isinstance(out, Tensor) and out.shape == z[0].shape:
            return (out,)
        outputs = tuple(out) if self.is_tuple else (out,)
        if len(outputs) != len(z) or any(o.shape != x.shape for o, x in zip(outputs, z, strict=True)):
            check_outputs(out, z, self.is_tuple, self.autocast)  # right for one batch size or time, wrong for another
        if self.autocast is not None:
            outputs = tuple(o.to(x.dtype) for o, x in zip(outputs, z, strict=True))
        return outputs

    def _input_names(self, n_states: int, n_args: int) -> list[str]:
        return [
            "t",
            *([f"z[{i}]" for i in range(n_states)] if self.is_tuple else ["z"]),
            *(f"args[{i}]" for i in range(n_args)),
        ]

    def _initialise(self, z0: Sequence[Tensor], t0: Tensor, args: Sequence[Tensor]) -> None:
        """Let lazy modules make their parameters, which they do when they are first called."""
        if any(map(is_lazy, self.reads.tensors.values())):
            with torch.no_grad():
                self.function(t0, tuple(z0) if self.is_tuple else z0[0], *args)
            del self.reads

    def _learn(self, z0: tuple[Tensor, ...], t0: Tensor, args: tuple[Tensor, ...]) -> _Facts:
        """What one evaluation shows: what it reads, and which parts of the field matter."""
        import_for_fields()
        check_norms(self.reads.owners)
        before = fingerprint(self.reads, self.dtype)
        with untransformed(), unhooked():
            names, differentiates, jumps, cached, unseen = self._examine(z0, t0, args)
        after = fingerprint(self.reads, self.dtype)
        self.memory.volatile |= {k for k in after if isinstance(k, tuple) and after[k] != before.get(k)}
        runs_on = next(filter(None, (getattr(type(o), "runs_on", None) for o in self.reads.owners.values())), None)
        own = _own_module(self.function)
        always = self.reads.tensors.keys() | self.parametrized.keys() if own is not None else set()
        return _Facts(names, frozenset(names) - always, differentiates, runs_on, jumps, cached, unseen)

    @leaves_process_state
    def _examine(
        self, z0: tuple[Tensor, ...], t0: Tensor, args: tuple[Tensor, ...]
    ) -> tuple[tuple[str, ...], bool, bool, str | None, bool]:
        """Evaluate, check the result, and find every tensor that the gradient has to reach, by name.

        Also whether the function differentiates, whether it has switches, what it keeps for later evaluations, and
        whether it may read what is not seen.
        """
        slots = self.reads.parametrized
        trained = {path for path in slots if requires_grad(slots, path)}
        tensors = {n: x for n, x in self.named_tensors().items() if is_followed(x) or n in trained}
        with torch.inference_mode(False), torch.enable_grad():
            # A field may differentiate by its state, and may write to it.
            z0, t0 = tuple(z.clone().requires_grad_().clone() for z in z0), t0.clone()
            args = tuple(a.clone() for a in args)
            fixed = self.reads.fixed
            own = {n: x if id(x) in fixed else example(x).clone().requires_grad_() for n, x in tensors.items()}
            live = self._evaluator(own, looks=True)
            explained = mismatch_explained(z0, self.named_tensors().values())
            learning = attributes_read(live.frozen.owners)
            tape = Tape(t0, z0)
            inputs = (t0, *z0, *args)
            before = versions(inputs)
            with (
                no_higher_order(),
                learning as read,
                explained,
                NoRandomness(__file__),
                _unwarned(),
                tape,
                Ran() as ran,
            ):
                out = live(t0, tuple(z0) if self.is_tuple else z0[0], *args)

            def again(mode: Any = None) -> Any:
                live.strict, states = False, [z.detach().clone().requires_grad_().clone() for z in z0]
                t, rest = t0.clone(), [a.clone() for a in args]
                if mode is not None:
                    mode.inputs = (t, *states, *rest)
                with NoRandomness(__file__), _unwarned(), mode or contextlib.nullcontext():
                    return live(t, tuple(states) if self.is_tuple else states[0], *rest)

            if versions(inputs) != before:
                raise written(inputs, before, self._input_names(len(z0), len(args)), again)

            cached = cache_of(live.frozen.function, (*tensors.values(), *own.values()), again)
            live.frozen.write_back()
        self.memory.attributes |= read
        check_outputs(out, z0, self.is_tuple, self.autocast)
        met = live.read | self.memory.late
        module = _own_module(self.function)
        if module is not None:  # all of a module's parameters have a gradient, as autograd's do, if only zero
            met |= {n for n, x in self.reads.tensors.items() if x.is_leaf} | trained
        # Those that no copy can have others for come last, as in the graph's inputs.
        names = sorted((n for n in tensors if n in met), key=lambda n: id(tensors[n]) in fixed)
        return tuple(names), live.differentiates, has_switches(tape), cached, reads_unseen(ran, self.reads)


@contextlib.contextmanager
def _unwarned() -> Iterator[None]:
    """Without PyTorch's warning of a number that is taken out of a tensor that requires a gradient."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Converting a tensor with requires_grad=True to a scalar")
        yield


def _leaf(x: Tensor) -> Tensor:
    return (x.clone() if x.is_inference() else x.detach()).requires_grad_()


def _own_module(function: Any) -> nn.Module | None:
    """The module that a field is, or is made of by `derived_field`."""
    if isinstance(function, types.MethodType) and isinstance(function.__func__, functools.partial):
        function = function.__self__
    return function if isinstance(function, nn.Module) else None


class Latest:
    """The `Field` of a module's latest solve, or of a field made of it, to be made again while nothing has changed.

    Args:
        field: the `Field`.
        watch: sees whether anything has changed.
        signature: what tells of its arguments, the state's shapes and dtypes among them.

    Attributes:
        found: attributes of the `Field`: all but its function.
        sees_all: whether nothing that it reads may be hidden, so that it need not be looked at as it is evaluated.
    """

    def __init__(self, field: Field, watch: Watch, signature: tuple[Any, ...]) -> None:
        made = made_of(field.function)
        assert made is not None
        self.watch, self.signature, self.module, self.by = watch, signature, weakref.ref(made[0]), made[1]
        self.default_dtype, self.sees_all = torch.get_default_dtype(), watch.sees_all and not field.memory.late
        # Of sparse tensors engines make dense copies.
        self.sees_all &= all(x.layout is torch.strided for x in field.named_tensors().values())
        names = (
            "is_tuple",
            "autocast",
            "unwraps",
            "dtype",
            "time_dtype",
            "memory",
            "facts",
            "parameters",
            "parametrized",
        )
        self.found = {name: getattr(field, name) for name in (*names, "_values", "_tensors")} | {"_watch": watch}

    @staticmethod
    def of(field: Field, n_states: int, shapes: tuple[Any, ...]) -> Latest | None:
        """That of a `Field`; `None` where a look at its places is not enough."""
        watch = Watch.of(field.function, field.reads, field.dtype, field.memory.attributes)
        return None if watch is None else Latest(field, watch, (field.is_tuple, n_states, shapes))

    def holds(self, function: Any) -> bool:
        """Whether it is the field of this function."""
        made = made_of(function)
        return made is not None and made[0] is self.module() and made[1] == self.by and self.watch.unchanged()

    def again(self, function: Any, state: torch.dtype) -> Field | None:
        """The `Field` of this function for arguments like those that it was made for; `None` if it is another.

        Args:
            function: the user's callable.
            state: the dtype of the state.
        """
        found = self.found
        if found["memory"].latest is not self or torch.get_default_dtype() is not self.default_dtype:
            return None
        if not self.holds(function) or time_dtype(function, state) is not found["time_dtype"]:
            return None
        made = object.__new__(Field)
        made.__dict__ |= found
        made.function = function
        return made
