"""From a field to its graph: records it, converts it, checks it against the module, and remembers it."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pynode.errors import FieldError, InputError, TraceError
from pynode.field._bound import BoundToBatch, Validity
from pynode.field._elsewhere import moved
from pynode.field._field import Field
from pynode.field._graph import FieldGraph
from pynode.field._interpreter import values_of
from pynode.field._outside import unhooked
from pynode.field._pairs import as_pairs
from pynode.field._substitution import LateRead
from pynode.field._time import first_time
from pynode.interrupts import deferred, import_for_traces
from pynode.nn._signature import with_time
from pynode.torch_state import leaves_thread_state

if TYPE_CHECKING:
    from pynode.field._capture import Captured
    from pynode.field._conversion import Conversion, Source

__all__ = ["Trace", "as_numbers", "batch_size", "trace", "trace_at", "trace_field"]


@dataclass(frozen=True)
class Trace:
    """A graph together with what binds it to one field.

    Attributes:
        graph: the graph.
        buffers: names of the tensors that the field reads without a gradient, in input order.
        constants: tensors that the field reads and that cannot be found by name, in input order.
        holds: whether the graph is valid for a batch size.
        bound_by: what keeps the graph from holding for any; empty where nothing does.
    """

    graph: FieldGraph
    buffers: tuple[str, ...]
    constants: tuple[Tensor, ...]
    holds: Validity
    bound_by: str = ""

    def bound(self, field: Field) -> list[Tensor]:
        """The tensors of the inputs after `t`, the state and `args`: parameters, buffers, constants."""
        named = {**field.named_tensors(), **field.given} if self.buffers else {}
        return [*field.parameters, *(_dense(named[n]) for n in self.buffers), *map(_dense, self.constants)]


def _dense(x: Tensor) -> Tensor:
    """A tensor with all its entries: a graph's matrices are dense."""
    if x.layout == torch.strided:
        return x
    if x.numel() > _MOST_ENTRIES:
        raise TraceError(
            f"the field reads a sparse tensor of shape {tuple(x.shape)}, too large for a graph, where it is dense: add "
            "along its edges, torch.zeros_like(y).index_add(0, rows, values[:, None] * x[columns]), or use "
            'engine="torch"'
        )
    return x.to_dense()


_MOST_ENTRIES = 2**26


def trace(field: Any, z0: Tensor | Sequence[Tensor], args: Sequence[Tensor] = ()) -> FieldGraph:
    """The graph of a vector field: its value and its vector-Jacobian product.

    Args:
        field: `nn.Module` or callable `f(t, z, *args) -> dz/dt`, or `f(z)`.
        z0: a state, `(batch, *features)`, or a tuple of such; only shape and dtype matter.
        args: conditioning tensors.

    Returns:
        The graph; it holds for any batch size unless `graph.batch` says otherwise.

    Raises:
        TraceError: names the operation and the source line that a graph cannot hold, and the remedy.
        FieldError: the field returns another shape, dtype or device than its state's.
    """
    return trace_at(field, z0, args).graph


@leaves_thread_state
def trace_at(function: Any, z0: Tensor | Sequence[Tensor], args: Sequence[Tensor]) -> Trace:
    """The trace of what `trace` takes."""
    is_tuple = not isinstance(z0, Tensor)
    states = tuple(z0) if is_tuple else (z0,)
    t0 = torch.zeros((), dtype=states[0].dtype, device=states[0].device)
    field = Field(with_time(function, len(args)), states, t0, args, is_tuple)
    return trace_field(field, states, t0, args)


def trace_field(field: Field, z0: Sequence[Tensor], t: Tensor, args: Sequence[Tensor]) -> Trace:
    """The trace of a `Field`, from memory where the field, its shapes and its attributes are the same.

    Args:
        field: the field.
        z0: the state tensors.
        t: the times, or the first of them.
        args: the conditioning tensors.

    Raises:
        TraceError: the field, or what it is used with, does not fit a graph.
    """
    dtype = z0[0].dtype
    if field.time_dtype != dtype:
        raise TraceError(
            f"the field asks for the time in {field.time_dtype} beside a state of dtype {dtype}, and a graph holds "
            f"numbers of one type: make the state and the field {field.time_dtype}, solve over times from which a "
            'reference is subtracted, or use engine="torch"'
        )
    for i, x in enumerate(args):
        if x.dtype != dtype and (x.is_floating_point() or x.is_complex()):
            raise TraceError(
                f"args[{i}] is of dtype {x.dtype} beside a state of dtype {dtype}, and a graph holds numbers of one "
                'type: convert it, or use engine="torch"'
            )
    batch = batch_size(z0)
    follows = tuple([x.dim() > 0 and x.shape[0] == batch for x in (*z0, *args)])
    statics = tuple([x.shape[:1] for x, f in zip((*z0, *args), follows, strict=True) if not f])
    key = (field.key, follows, statics, tuple([x.dtype for x in args]))
    known = field.memory.traces
    if field.facts.unseen:
        _forget_others(known, (key, (key, batch)), field, z0, first_time(t).to(dtype), args)
    found = known.get(key)
    # torch takes a batch size that is a symbol for two or more: whether that is as good for one, `_first_trace` looks.
    if found is not None and found.holds(batch) and batch > 1:
        return found
    if isinstance(known.get((key, batch)), TraceError):
        raise TraceError(*known[key, batch].args)
    if (key, batch) in known:
        return known[key, batch]
    # Autograd could not differentiate by tensors of inference mode; and anomaly mode looks for NaN in gradients, which
    # have no values while they are recorded.
    anomaly = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
    try:
        torch.set_anomaly_enabled(False)
        with torch.inference_mode(False), unhooked():
            return _first_trace(field, z0, first_time(t).to(dtype), args, key, follows)
    finally:
        torch.set_anomaly_enabled(*anomaly)  # not a context manager, whose exit a signal could cut in two


def _forget_others(
    known: dict[Any, Any], keys: Sequence[Any], field: Field, z0: Sequence[Tensor], t0: Tensor, args: Sequence[Tensor]
) -> None:
    """Forget those of the traces under these keys that are not the field's any more."""
    agrees: dict[int, bool] = {}
    for key in keys:
        found = known.get(key)
        if isinstance(found, TraceError):
            del known[key]
        elif found is not None and found.holds(batch_size(z0)):
            with torch.inference_mode(False), unhooked():
                if id(found) not in agrees:
                    agrees[id(found)] = _agrees(found, field.as_written(), z0, t0, args, beside=True)
                if not agrees[id(found)]:
                    del known[key]


def as_numbers(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor as a graph reads it: integers and truth values are numbers of the state's type.

    Raises:
        InputError: they are greater than that type can count.
    """
    if x.is_floating_point():
        return x
    most = 2**24 if dtype == torch.float32 else 2**53
    if x.dtype != torch.bool and x.numel() and max(int(x.max()), -int(x.min())) > most:
        raise InputError(
            f"args has integers beyond {most}, which numbers of the state's type, {dtype}, cannot count: pass smaller "
            "ones, or convert them to the state's type where they need not be exact"
        )
    return x.to(dtype)


def _first_trace(
    field: Field, z0: Sequence[Tensor], t0: Tensor, args: Sequence[Tensor], key: Any, follows: Sequence[bool]
) -> Trace:
    """The trace of a field that has none for this `key`, or none for this batch size; `follows`: what has the batch."""
    known, batch = field.memory.traces, batch_size(z0)
    field = field.as_written()
    of_args = follows[len(z0) :]
    # A conditioning tensor may have as many rows as the batch by accident: then its rows are not samples.
    choices = [(follows[: len(z0)], of_args)] if all(follows[: len(z0)]) else []
    if choices and any(of_args):
        choices.append((follows[: len(z0)], (False,) * len(args)))
    bound_by: list[str] = []
    differs = f"a graph for any batch size gives other numbers than the field at batch size {batch}"
    if not choices:
        firsts = " and ".join("none" if not x.dim() else str(x.shape[0]) for x in z0)
        bound_by.append(f"the first dimension of the state's tensors is no batch: {firsts}")
    elif key in known:
        if known[key].holds(batch) and _is_right(known[key], field, z0, t0, args):
            known[key, batch] = known[key]
            return known[key, batch]
        bound_by.append(differs if known[key].holds(batch) else _looked_at(known[key].holds, batch))
    for states, rows in choices if key not in known else ():
        try:
            found = _trace(field, z0, t0, args, (*states, *rows))
        except BoundToBatch as bound:
            bound_by.append(str(bound))
            continue
        if found.holds(batch) and _is_right(found, field, z0, t0, args):
            if rows == of_args:
                known[key] = found
            if rows != of_args or batch < 2:  # at another batch, tensors of this key have other rows
                known[key, batch] = found
            return found
        bound_by.append(differs if found.holds(batch) else _looked_at(found.holds, batch))
    try:
        found = _trace(field, z0, t0, args, (False,) * len(follows))
    except TraceError as error:
        known[key, batch] = TraceError(*error.args)  # without its traceback, which holds what it has met
        raise
    if not _is_right(found, field, z0, t0, args):
        raise TraceError(
            "the field's graph and the field itself give different values for the same t and z: "
            + _why(field, z0, t0, args, found)
        )
    # The first choice is the one that a field is meant for.
    found = known[key, batch] = replace(found, bound_by=bound_by[0])
    return found


_RECORDING = threading.RLock()  # each puts back what it has changed of `nn.Module`, for all threads


def _looked_at(holds: Validity, batch: int) -> str:
    return f"what is computed depends on the batch size{holds.broken(batch)[0]}"


def _why(field: Field, z0: Sequence[Tensor], t0: Tensor, args: Sequence[Tensor], found: Trace) -> str:
    """What a graph for one batch size may differ from the field by."""
    from pynode.field._difference import first_difference

    got, done, sources = _converted(field, z0, t0, args, (False,) * (len(z0) + len(args)))
    tolerance = 1e-3 if z0[0].dtype == torch.float32 else 1e-8
    for place in ((t0, *z0, *args), *_elsewhere((t0, *z0, *args), len(z0))):
        rest = [*(s.tensor for s in sources[len(place) :]), *_cotangents(place[1 : 1 + len(z0)])]
        inputs = [as_numbers(x, z0[0].dtype) for x in place]
        try:
            with torch.no_grad():
                of_graph = [*inputs, *found.bound(field), *rest[len(sources) - len(place) :]]
                at_fault = first_difference(got, done, ([*place, *rest], of_graph), tolerance)
        except Exception:  # the field is not defined there
            continue
        if at_fault:
            return (
                f"pynode has made another function of {at_fault}. Write that with other operations, or use "
                'engine="torch"; and please report it'
            )
    return (
        "the field depends on something that changes between calls (a counter, a random number, a cache), or pynode "
        "has made another function of one of its operations. Make the field a function of t, z and args, or use "
        'engine="torch". Where second derivatives are asked for (Forward, hvp), an operation may have none at zero, as '
        "logcumsumexp in PyTorch: use an adjoint, or logsumexp"
    )


def _trace(field: Field, z0: Sequence[Tensor], t0: Tensor, args: Sequence[Tensor], batched: tuple[bool, ...]) -> Trace:
    """The trace with these inputs batched.

    Raises:
        BoundToBatch: the field does not keep the batch symbolic.
    """
    got, done, _ = _converted(field, z0, t0, args, batched)
    return Trace(done.graph, done.buffers, tuple(done.constants), got.validity)


def _converted(
    field: Field, z0: Sequence[Tensor], t0: Tensor, args: Sequence[Tensor], batched: tuple[bool, ...]
) -> tuple[Captured, Conversion, list[Source]]:
    """A recording with these inputs batched, its conversion, and what its inputs stand for.

    Raises:
        BoundToBatch: the field does not keep the batch symbolic.
    """
    import_for_traces()
    # Here, since recording needs SymPy, which takes longer to import than all the rest.
    from pynode.field._capture import capture
    from pynode.field._conversion import Conversion, Source

    named, state_dtype = field.named_tensors(), z0[0].dtype
    # The tensors that no copy of the field can have others for are constants of the recording.
    leaves = {n: x for n, x in named.items() if n in field.names and field.is_fixed(x)}
    owned = [n for n in field.names if n not in leaves]
    fixed = {n: x for n, x in named.items() if n not in field.names and field.is_fixed(x)}
    buffers = [n for n, x in named.items() if n not in field.names and n not in fixed and x.dtype == state_dtype]
    sources = [
        Source("t", "0", t0),
        *(Source("z", str(i), x) for i, x in enumerate(z0)),
        *(Source("arg", str(i), x) for i, x in enumerate(args)),
        *(Source("parameter", n, as_pairs(named[n])) for n in owned),
        *(Source("buffer", n, named[n]) for n in buffers),
    ]
    n_z, n_args = len(z0), len(args)

    def function(xs: Sequence[Tensor]) -> Sequence[Tensor]:
        rest = xs[1 + n_z + n_args :]
        live = field.replaced(dict(zip([*owned, *buffers], rest, strict=True)))
        return live(xs[0], xs[1 : 1 + n_z], xs[1 + n_z : 1 + n_z + n_args])

    try:
        # Signals wait: torch ends the process where an exception comes as it enters or leaves its own modes.
        with _RECORDING, deferred():
            got = capture(
                function,
                [s.tensor for s in sources],
                [False, *batched, *[False] * (len(sources) - 1 - len(batched))],
                [s.kind != "buffer" for s in sources],
                n_z,
                list(leaves.values()),
                __file__,
            )
        if got.assumes_batch:
            raise BoundToBatch("the recording takes the batch size for a number")
        return got, Conversion(got, sources, leaves, fixed, n_z), sources
    except LateRead:
        raise
    except (TraceError, FieldError) as error:
        if any(batched):  # the static recording that follows decides, and words the error
            raise BoundToBatch(_readable(getattr(error, "reason", "") or str(error))) from None
        raise


def _readable(text: str) -> str:
    """A text with torch's symbol of the batch size replaced by a word, but for quoted code and in paths."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"(?<![/\\])\bs\d+\b", "batch", part) for part in parts[::2]]
    return "`".join(parts)


def batch_size(z0: Sequence[Tensor]) -> int:
    """The first dimension of a state; 1 where it has none."""
    return z0[0].shape[0] if z0[0].dim() else 1


# Where graph and module are compared: at the start, and, as long as something there is not finite, beside it. Signs of
# the shifts of t and of all else.
_PLACES = ((0.0, 0.0), (0.1, 0.1), (0.1, -0.1), (-0.1, 0.1), (-0.1, -0.1))


def _agrees(
    found: Trace, field: Field, z0: Sequence[Tensor], t0: Tensor, args: Sequence[Tensor], beside: bool = False
) -> bool:
    """Whether graph and module give the same value and products; if not, the module has state.

    `beside`: not at the start, where something may vanish, unless the module cannot be evaluated elsewhere.

    A number that is not finite says nothing about a graph, so that the comparison moves on from a state at which the
    field has no derivative. Numbers that are finite nowhere have to be the same infinity, or not a number, in both.
    """
    field = field.on_leaves()
    same_kind = True
    for of_t, of_rest in _PLACES[1:] + _PLACES[:1] if beside else _PLACES:
        place = [_shifted(x, of_rest if i else of_t) for i, x in enumerate((t0, *z0, *args))]
        try:
            pairs = _compared(found, field, place, len(z0))
        except Exception:
            if beside and (of_t, of_rest) != _PLACES[0]:
                continue
            raise
        if pairs is None:
            return False
        n = len(z0)
        if beside:  # products that vanish, but for rounding, are beside others that do not
            least = [0.0] * n + [0.1 * max(map(_largest, [a for a, _ in pairs[n:]]), default=0.0)] * (len(pairs) - n)
            tolerance = 1e-5 if z0[0].dtype == torch.float32 else 1e-11
        else:
            least, tolerance = [1.0] * len(pairs), 1e-3 if z0[0].dtype == torch.float32 else 1e-8
        if not all(_close(a, b, tolerance, x) for (a, b), x in zip(pairs, least, strict=True)):
            return False
        if _all_finite(pairs):
            return True
        same_kind = same_kind and all(torch.equal(_kind(a), _kind(b)) for a, b in pairs)
    return same_kind


def _shifted(x: Tensor, by: float) -> Tensor:
    """A copy of a tensor, a little away from it where `by` is not zero."""
    if not by or not x.is_floating_point():
        return x.detach().clone()
    pattern = torch.arange(x.numel(), device="cpu").to(x).reshape(x.shape).mul(0.7).cos().mul(0.3).add(1.0)
    return x.detach() + by * pattern * (1 + x.detach().abs())


# Where they are compared too: how far away for `t`, the state and `args`, both up and down where that is more than 1.
_ELSEWHERE = ((0.4, 1.5, 0.0), (-1.7, 4.0, 2.0), (0.1, 0.2, 0.2))
# Operations with computed indices.
_COMPUTED = ("gather", "scatter", "scatter_add")


def _is_right(found: Trace, field: Field, z0: Sequence[Tensor], t0: Tensor, args: Sequence[Tensor]) -> bool:
    """Whether graph and module agree at the start, where a wrong conversion may do so by chance, and elsewhere.

    Elsewhere a difference counts where all results are finite, the graph meets nothing that is not a number, and the
    module gives the same, but for rounding, at states so near that rounding could lead there.
    """
    return _agrees(found, field, z0, t0, args) and not _differs_elsewhere(found, field, z0, t0, args)


def _differs_elsewhere(found: Trace, field: Field, z0: Sequence[Tensor], t0: Tensor, args: Sequence[Tensor]) -> bool:
    """Whether they do not agree at one of the states elsewhere, and for parameters off theirs, see `_is_right`."""
    if z0[0].device.type != "cpu" and any(n.op in _COMPUTED for n in found.graph.nodes):
        return False  # an index out of bounds is no exception on a GPU, but the end of all work there
    field = moved(field).on_leaves()
    tolerance, little = (1e-3, 1e-5) if z0[0].dtype == torch.float32 else (1e-8, 1e-12)
    for place in _elsewhere((t0, *z0, *args), len(z0)):
        try:
            got = _of_graph(found, field, place, len(z0), of_numbers=True)
            if got is None:
                continue
            value = _of_field(field, place, len(z0))
            pairs = _beside(value, got)
            if not _all_finite(pairs) or _all_close(pairs, tolerance):
                continue
            near = [_of_field(field, [_scaled(x, 1 + d) for x in place], len(z0)) for d in (-little, little)]
        except Exception:  # the field is not defined there
            continue
        if all(_all_close(_beside(value, x), tolerance) for x in near):
            return True
    return False


def _elsewhere(start: Sequence[Tensor], n_z: int) -> Iterator[list[Tensor]]:
    """Other times and states."""
    for of_t, of_z, of_args in _ELSEWHERE:
        by = (of_t, *[of_z] * n_z, *[of_args] * (len(start) - 1 - n_z))
        yield [_moved(x, far, k) for k, (x, far) in enumerate(zip(start, by, strict=True))]


def _moved(x: Tensor, far: float, k: int) -> Tensor:
    """A copy of the tensor, `far` times its size away from it, in directions without a pattern."""
    if not far or not x.is_floating_point():
        return x.detach().clone()
    waves = torch.arange(1, x.numel() + 1, device="cpu").to(x).reshape(x.shape).mul(2.3).add(k).sin()
    return x.detach() + far * (waves if abs(far) > 1 else waves.abs()) * (1 + x.detach().abs())


def _scaled(x: Tensor, by: float) -> Tensor:
    return x * by if x.is_floating_point() else x


def _cotangents(z: Sequence[Tensor]) -> list[Tensor]:
    """Numbers without a pattern, but not the generator's, whose state is the user's."""
    return [torch.arange(1, x.numel() + 1, device="cpu").to(x).reshape(x.shape).mul(0.7).cos() for x in z]


def _of_field(field: Field, place: Sequence[Tensor], n_z: int, times: int = 1) -> list[Tensor | None]:
    """The module's value, and its products for what requires a gradient, at `(t, *z, *args)`, evaluated so often."""
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_(x.is_floating_point()) for x in place]
        for _ in range(times):
            value = field(inputs[0], inputs[1 : 1 + n_z], inputs[1 + n_z :])
        tracked = [(x, v) for x, v in zip(value, _cotangents(value), strict=True) if x.requires_grad]
        wrt = [x for x in (*inputs, *field.parameters) if x.requires_grad]
        products: Sequence[Tensor | None] = [None] * len(wrt)
        if tracked:
            outputs, vs = zip(*tracked, strict=True)
            products = torch.autograd.grad(outputs, wrt, vs, allow_unused=True)
    return [*(x.detach() for x in value), *products]


def _of_graph(
    found: Trace, field: Field, place: Sequence[Tensor], n_z: int, of_numbers: bool = False
) -> list[Tensor | None] | None:
    """As `_of_field`, by the graph; `None` if it cannot run, or, `of_numbers`, meets what is not a number."""
    z = [x.detach() for x in place[1 : 1 + n_z]]
    with torch.no_grad():
        try:
            numbers = [as_numbers(x.detach(), z[0].dtype) for x in place]
            values = values_of(found.graph, [*numbers, *found.bound(field), *_cotangents(z)], vjp=True)
        except RuntimeError:  # a size that holds for another batch size only
            return None
    if of_numbers and any(bool(x.isnan().any()) for x in values.values()):
        return None
    wanted = [*(x.is_floating_point() for x in place), *(x.requires_grad for x in field.parameters)]
    products = [i for i, w in zip(found.graph.vjp, wanted, strict=True) if w]
    return [None if i is None else values[i] for i in (*found.graph.value, *products)]


def _compared(found: Trace, field: Field, place: Sequence[Tensor], n_z: int) -> list[tuple[Tensor, Tensor]] | None:
    """The module's value and products at `(t, *z, *args)`, each beside the graph's; `None` if the graph cannot run."""
    # The second evaluation, which a count of them makes another than the graph's.
    wanted, got = _of_field(field, place, n_z, 2), _of_graph(found, field, place, n_z)
    return None if got is None else _beside(wanted, got)


def _beside(wanted: Sequence[Tensor | None], got: Sequence[Tensor | None]) -> list[tuple[Tensor, Tensor]]:
    pairs = zip(wanted, got, strict=True)
    return [(_or_zero(a, b), _or_zero(b, a)) for a, b in pairs if a is not None or b is not None]


def _or_zero(a: Tensor | None, b: Tensor | None) -> Tensor:
    """`a`, where `None` stands for zero of `b`'s shape."""
    if a is not None:
        return a
    assert b is not None
    return torch.zeros_like(b)


def _close(a: Tensor, b: Tensor, tolerance: float, least: float) -> bool:
    """Whether `b` is `a` but for rounding, wherever `a` is finite, beside the largest number in it or `least`."""
    if a.shape != b.shape:
        return False
    finite = a.isfinite()
    return torch.allclose(a[finite], b[finite], rtol=tolerance, atol=tolerance * max(_largest(a), least))


def _all_close(pairs: Sequence[tuple[Tensor, Tensor]], tolerance: float) -> bool:
    return all(_close(a, b, tolerance, 1.0) for a, b in pairs)


def _all_finite(pairs: Sequence[tuple[Tensor, Tensor]]) -> bool:
    return all(bool(x.isfinite().all()) for pair in pairs for x in pair)


def _largest(a: Tensor) -> float:
    """The largest finite number, by magnitude."""
    a = a[a.isfinite()]
    return a.abs().max().item() if a.numel() else 0.0


def _kind(x: Tensor) -> Tensor:
    """Of each number: 0 where it is finite, else which infinity it is, or that it is none."""
    return (
        x.new_zeros(x.shape).masked_fill(x.isposinf(), 1.0).masked_fill(x.isneginf(), -1.0).masked_fill(x.isnan(), 2.0)
    )
