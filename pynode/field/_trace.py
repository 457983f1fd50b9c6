"""From a field to its graph: records it, converts it, checks it against the module, and remembers it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pynode.errors import TraceError
from pynode.field._field import Field
from pynode.field._graph import FieldGraph
from pynode.field._interpreter import interpret

if TYPE_CHECKING:
    from pynode.field._capture import Captured

__all__ = ["Trace", "trace", "trace_field"]


@dataclass(frozen=True)
class Trace:
    """A graph together with what binds it to one field.

    Attributes:
        graph: the graph.
        buffers: names of the tensors that the field reads without a gradient, in input order.
        constants: tensors that the field reads and that cannot be found by name, in input order.
        holds: whether the graph is valid for a batch size.
    """

    graph: FieldGraph
    buffers: tuple[str, ...]
    constants: tuple[Tensor, ...]
    holds: Callable[[int], bool]

    def bound(self, field: Field) -> list[Tensor]:
        """The tensors of the inputs after `t`, the state and `args`: parameters, buffers, constants."""
        named = field.named_tensors() if self.buffers else {}
        return [*field.parameters, *(named[n] for n in self.buffers), *self.constants]


def trace(field: Any, z0: Tensor | Sequence[Tensor], args: Sequence[Tensor] = ()) -> FieldGraph:
    """The graph of a vector field: its value and its vector-Jacobian product.

    Args:
        field: `nn.Module` or callable `f(t, z, *args) -> dz/dt`.
        z0: a state, `(batch, *features)`, or a tuple of such; only shape and dtype matter.
        args: conditioning tensors.

    Returns:
        The graph; it holds for any batch size unless `graph.batch` says otherwise.

    Raises:
        TraceError: names the operation and the source line that a graph cannot hold, and the remedy.
        FieldError: the field returns another shape, dtype or device than its state's.
    """
    is_tuple = not isinstance(z0, Tensor)
    states = tuple(z0) if is_tuple else (z0,)
    t0 = torch.zeros((), dtype=states[0].dtype, device=states[0].device)
    return trace_field(Field(field, states, t0, args, is_tuple), states, t0, args).graph


def trace_field(field: Field, z0: Sequence[Tensor], t0: Tensor, args: Sequence[Tensor]) -> Trace:
    """The trace of a `Field`, from memory where the field, its shapes and its attributes are the same."""
    for i, x in enumerate(args):
        if x.dtype != t0.dtype:
            raise TraceError(
                f"args[{i}] is of dtype {x.dtype} beside a state of dtype {t0.dtype}, and a graph holds numbers of one "
                'type: convert it (for labels, pass the rows of an embedding or one-hot rows), or use engine="torch"'
            )
    batch = _batch_size(z0)
    follows = tuple(x.dim() > 0 and x.shape[0] == batch for x in (*z0, *args))
    statics = tuple(x.shape[:1] for x, f in zip((*z0, *args), follows, strict=True) if not f)
    key = (field.key, follows, statics)
    known = field.memory.traces
    if key in known and known[key].holds(batch):
        return known[key]
    if (key, batch) in known:
        return known[key, batch]
    of_args = follows[len(z0) :]
    # A conditioning tensor may have as many rows as the batch by accident: then its rows are not samples.
    choices = [(follows[: len(z0)], of_args)] if all(follows[: len(z0)]) else []
    if choices and any(of_args):
        choices.append((follows[: len(z0)], (False,) * len(args)))
    for states, rows in choices if key not in known else ():
        found = _trace(field, z0, t0, args, (*states, *rows))
        if found is not None and found.holds(batch) and _agrees(found, field, z0, t0, args):
            known[key] = found
            return found
    found = _trace(field, z0, t0, args, (False,) * len(follows))
    assert found is not None  # a static recording assumes nothing
    if not _agrees(found, field, z0, t0, args):
        raise TraceError(
            "the field's graph and the field itself give different values for the same t and z: the field "
            "depends on something that changes between calls (a counter, a random number, a cache). Make "
            'it a function of t, z and args, or use engine="torch"'
        )
    known[key, batch] = found
    return found


def _trace(
    field: Field, z0: Sequence[Tensor], t0: Tensor, args: Sequence[Tensor], batched: tuple[bool, ...]
) -> Trace | None:
    """The trace with these inputs batched; `None` if the field does not keep the batch symbolic."""
    # Here, since recording needs SymPy, which takes longer to import than all the rest.
    from pynode.field._capture import capture
    from pynode.field._conversion import Conversion, Source

    named = field.named_tensors()
    owned = field.names[: len(field.parameters) - len(field.captured)]
    leaves = dict(zip(_names_of_captured(field, len(owned)), field.captured, strict=True))
    buffers = [
        n for n, x in named.items() if n not in field.names and n not in field.reads.captured and x.dtype == t0.dtype
    ]
    sources = [
        Source("t", "0", t0),
        *(Source("z", str(i), x) for i, x in enumerate(z0)),
        *(Source("arg", str(i), x) for i, x in enumerate(args)),
        *(Source("parameter", n, named[n]) for n in owned),
        *(Source("buffer", n, named[n]) for n in buffers),
    ]
    n_z, n_args = len(z0), len(args)

    def function(xs: Sequence[Tensor]) -> Sequence[Tensor]:
        rest = xs[1 + n_z + n_args :]
        with field.reading(dict(zip([*owned, *buffers], rest, strict=True))):
            return field(xs[0], xs[1 : 1 + n_z], xs[1 + n_z : 1 + n_z + n_args])

    try:
        got = capture(
            function,
            [s.tensor for s in sources],
            [False, *batched, *[False] * (len(sources) - 1 - len(batched))],
            [s.kind != "buffer" for s in sources],
            n_z,
            field.captured,
        )
        if got.assumes_batch:
            return None
        done = Conversion(got, sources, leaves, field.reads.captured, n_z)
        return Trace(done.graph, done.buffers, tuple(done.constants), _validity(got))
    except (TraceError, NotImplementedError):
        if any(batched):
            return None  # the static recording that follows decides, and words the error
        raise


def _names_of_captured(field: Field, first: int) -> list[str]:
    names = field.names[first:]
    return [*names, *(f"captured.{i}" for i in range(len(field.captured) - len(names)))]


def _validity(got: Captured) -> Callable[[int], bool]:
    """For which batch sizes the recording's assumptions hold."""
    symbol = got.batch
    if symbol is None:
        return lambda batch: True
    conditions = [g.expr for g in got.env.guards if symbol in g.expr.free_symbols]
    answers: dict[int, bool] = {}

    def holds(batch: int) -> bool:
        if batch not in answers:
            answers[batch] = all(bool(c.subs(symbol, batch)) for c in conditions)
        return answers[batch]

    return holds


def _batch_size(z0: Sequence[Tensor]) -> int:
    return z0[0].shape[0] if z0[0].dim() else 1


def _agrees(found: Trace, field: Field, z0: Sequence[Tensor], t0: Tensor, args: Sequence[Tensor]) -> bool:
    """Whether graph and module give the same value and products here; if not, the module has state."""
    with torch.enable_grad():
        inputs = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in (t0, *z0, *args)]
        t, z, rest = inputs[0], inputs[1 : 1 + len(z0)], inputs[1 + len(z0) :]
        value = field(t, z, rest)
        # Numbers without a pattern, but not the generator's, whose state is the user's.
        cotangents = [torch.arange(1, x.numel() + 1).to(x).reshape(x.shape).mul(0.7).cos() for x in value]
        pairs = [(x, v) for x, v in zip(value, cotangents, strict=True) if x.requires_grad]
        wrt = [x for x in (*inputs, *field.parameters) if x.requires_grad]
        products: Sequence[Tensor | None] = [None] * len(wrt)
        if pairs:
            outputs, vs = zip(*pairs, strict=True)
            products = torch.autograd.grad(outputs, wrt, vs, allow_unused=True)
    with torch.no_grad():
        try:
            got, vjp = interpret(found.graph, [*inputs, *found.bound(field), *cotangents], vjp=True)
        except RuntimeError:  # a size that holds for another batch size only
            return False
    tracked = [v for v, x in zip(vjp, (*inputs, *field.parameters), strict=True) if x.requires_grad]
    return all(_close(a, b) for a, b in zip((*value, *products), (*got, *tracked), strict=True))


def _close(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two tensors are the same but for rounding; `None` is zero."""
    if a is None or b is None:
        a, b = (b, a) if a is None else (a, b)
        return a is None or not bool(a.any())
    tolerance = 1e-3 if a.dtype == torch.float32 else 1e-8
    scale = max(a.detach().abs().max().item(), 1.0) if a.numel() else 1.0
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
