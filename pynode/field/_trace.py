"""From a field to its graph: records it, converts it, checks it against the module, and remembers it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from pynode.errors import TraceError
from pynode.field._bindings import named_tensors, replaced
from pynode.field._builder import Builder
from pynode.field._capture import Captured, capture, user_line
from pynode.field._convert import HANDLERS, Call, Ref, Unsupported, target_name
from pynode.field._field import Field
from pynode.field._graph import Dim, FieldGraph, Input, Node
from pynode.field._interpreter import interpret

_log = logging.getLogger("pynode")

__all__ = ["Trace", "trace", "trace_field"]


@dataclass(frozen=True)
class Trace:
    """A graph together with what binds it to one field.

    Attributes:
        graph: the graph.
        buffers: names of the tensors that the field reads without a gradient, in input order.
        constants: tensors that the field captures without a name, in input order.
        holds: whether the graph is valid for a batch size.
    """

    graph: FieldGraph
    buffers: tuple[str, ...]
    constants: tuple[Tensor, ...]
    holds: Callable[[int], bool]

    def bound(self, field: Field) -> list[Tensor]:
        """The tensors of the inputs after `t`, the state and `args`: parameters, buffers, constants."""
        named = named_tensors(field.function) if self.buffers else {}
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
    batch = _rows(z0)
    follows = tuple(x.dim() > 0 and x.shape[0] == batch for x in (*z0, *args))
    statics = tuple(x.shape[:1] for x, f in zip((*z0, *args), follows, strict=True) if not f)
    key = (field.key, follows, statics)
    known = field.memory.traces
    if key in known and known[key].holds(batch):
        return known[key]  # type: ignore[no-any-return]
    if (key, batch) in known:
        return known[key, batch]  # type: ignore[no-any-return]
    of_args = follows[len(z0) :]
    # A conditioning tensor may have as many rows as the batch by accident: then its rows are not samples.
    choices = [(follows[: len(z0)], of_args)] if all(follows[: len(z0)]) else []
    if choices and any(of_args):
        choices.append((follows[: len(z0)], (False,) * len(args)))
    for states, rows in choices if key not in known else ():
        found = _trace(field, z0, t0, args, (*states, *rows))
        if found is not None and found.holds(batch):
            _verify(found, field, z0, t0, args)
            known[key] = found
            return found
    found = _trace(field, z0, t0, args, (False,) * len(follows))
    assert found is not None  # a static recording assumes nothing
    _verify(found, field, z0, t0, args)
    known[key, batch] = found
    return found


def _trace(
    field: Field, z0: Sequence[Tensor], t0: Tensor, args: Sequence[Tensor], batched: tuple[bool, ...]
) -> Trace | None:
    """The trace with these inputs batched; `None` if the field does not keep the batch symbolic."""
    named = named_tensors(field.function)
    buffers = [n for n, x in named.items() if n not in field.names and x.dtype == z0[0].dtype]
    kinds = [
        ("t", "0", t0, False),
        *(("z", str(i), x, b) for i, (x, b) in enumerate(zip(z0, batched, strict=False))),
        *(("arg", str(i), x, b) for i, (x, b) in enumerate(zip(args, batched[len(z0) :], strict=True))),
        *(("parameter", n, named[n], False) for n in field.names),
        *(("buffer", n, named[n], False) for n in buffers),
    ]
    n_z, n_args, n_named = len(z0), len(args), len(field.names)
    wanted = [k != "buffer" for k, *_ in kinds]

    def function(xs: Sequence[Tensor]) -> Sequence[Tensor]:
        rest = xs[1 + n_z + n_args :]
        with replaced(field.function, dict(zip([*field.names, *buffers], rest, strict=True))):
            return field(xs[0], xs[1 : 1 + n_z], xs[1 + n_z : 1 + n_z + n_args])

    captured_leaves = field.parameters[n_named:]
    try:
        got = capture(function, [x for _, _, x, _ in kinds], [b for *_, b in kinds], wanted, n_z, captured_leaves)
        if got.assumes_batch:
            return None
        return _Conversion(got, kinds, captured_leaves, n_z).run()
    except (TraceError, NotImplementedError):
        if any(batched):
            if __import__("os").environ.get("DBG"):
                import traceback

                traceback.print_exc()
            return None  # the static recording that follows decides, and words the error
        raise


class _Conversion:
    """One pass over an fx graph that adds its nodes to a `Builder`."""

    def __init__(
        self,
        got: Captured,
        kinds: Sequence[tuple[str, str, Tensor, bool]],
        leaves: Sequence[Tensor],
        n_states: int,
    ) -> None:
        self.got, self.kinds, self.leaves, self.n_states = got, kinds, leaves, n_states
        self.b = Builder()
        self.values: dict[fx.Node, Any] = {}
        self.concrete: dict[fx.Node, Any] = {}  # what does not depend on any input
        self.inputs: list[Input] = []
        self.constants: list[Tensor] = []
        self.float_dtype = kinds[1][2].dtype

    def run(self) -> Trace:
        nodes = list(self.got.graph.graph.nodes)
        placeholders = [n for n in nodes if n.op == "placeholder"]
        output = next(n for n in nodes if n.op == "output").args[0]
        used = {id(self._attribute(n)): n for n in nodes if n.op == "get_attr"}
        given, cotangents = placeholders[: len(self.kinds)], placeholders[len(self.kinds) :]
        named = [(kind, name, node) for (kind, name, *_), node in zip(self.kinds, given, strict=True)]
        buffers = [(kind, name, node) for kind, name, node in named if kind == "buffer" and node.users]
        for kind, name, node in named:
            if kind != "buffer":
                self._input(kind, name, node)
        for i, leaf in enumerate(self.leaves):
            self._input("parameter", f"captured.{i}", used.get(id(leaf)), leaf)
        for kind, name, node in buffers:
            self._input(kind, name, node)
        known = {id(leaf) for leaf in self.leaves}
        for key, node in used.items():
            tensor = self._attribute(node)
            if key not in known and tensor.dtype == self.float_dtype:
                self._input("constant", str(len(self.constants)), node, tensor)
                self.constants.append(tensor)
        for i, node in enumerate(cotangents):
            self._input("cotangent", str(i), node)
        for node in nodes:
            if node.op == "get_attr" and node not in self.values:
                known_twin = used[id(self._attribute(node))]
                if known_twin in self.values:
                    self.values[node] = self.values[known_twin]
                else:
                    self.concrete[node] = self._attribute(node)
            elif node.op == "call_function":
                self._call(node)
        results = [None if n is None else self._index(n) for n in output]
        graph = _compact(
            FieldGraph(
                tuple(self.inputs),
                tuple(self.b.nodes),
                tuple(r for r in results[: self.n_states] if r is not None),
                tuple(results[self.n_states :]),
                None if self.got.batch is not None else _rows([self.kinds[1][2]]),
            )
        )
        return Trace(graph, tuple(name for _, name, _ in buffers), tuple(self.constants), self._validity())

    def _validity(self) -> Callable[[int], bool]:
        symbol, env = self.got.batch, self.got.env
        if symbol is None:
            return lambda batch: True
        conditions = [g.expr for g in env.guards if symbol in g.expr.free_symbols]
        answers: dict[int, bool] = {}

        def holds(batch: int) -> bool:
            if batch not in answers:
                answers[batch] = all(bool(c.subs(symbol, batch)) for c in conditions)
            return answers[batch]

        return holds

    def _attribute(self, node: fx.Node) -> Any:
        value: Any = self.got.graph
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return value

    def _input(self, kind: str, name: str, node: fx.Node | None, tensor: Tensor | None = None) -> None:
        shape = self._shape(node.meta["val"].shape) if node is not None and tensor is None else ()
        if tensor is not None:
            shape = tuple(tensor.shape)
        self.inputs.append(Input(kind, name, shape))
        index = self.b.add("input", [], shape, "float", index=len(self.inputs) - 1)
        if node is not None:
            self.values[node] = index

    # ---- sizes ------------------------------------------------------------------------------------

    def _dim(self, size: Any) -> Dim:
        """A size as an int or `(a, b)` for `a * batch + b`."""
        if isinstance(size, int):
            return size
        expr = sympy.expand(self.got.env.simplify(size.node.expr))
        if expr.is_number:
            return int(expr)
        batch = self.got.batch
        slope = expr.coeff(batch, 1)
        offset = expr.subs(batch, 0)
        if not (slope.is_Integer and offset.is_Integer and sympy.expand(slope * batch + offset - expr) == 0):
            raise Unsupported("a size that is not linear in the batch size")
        return (int(slope), int(offset))

    def _shape(self, shape: Any) -> tuple[Dim, ...]:
        return tuple(map(self._dim, shape))

    # ---- operations -------------------------------------------------------------------------------

    def _call(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt | int | float | torch.SymFloat | torch.SymBool | bool):
            return  # arithmetic on sizes: read from `meta` where it is used
        tensors = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor | list | tuple)]
        if all(n in self.concrete for n in tensors) and self._evaluate(node):
            return
        name = target_name(node.target)
        try:
            handler = HANDLERS.get(name)
            if handler is None:
                raise Unsupported(f"the operation {node.target}, which pynode has no counterpart for")
            if name == "_to_copy" and value.dtype in _INTS and node.args[0].meta["val"].is_floating_point():
                raise Unsupported("a conversion to whole numbers, whose derivative is zero")
            first: Any = value[0] if isinstance(value, tuple | list) else value
            args = [self._argument(a) for a in node.args]
            kwargs = {k: self._argument(a) for k, a in node.kwargs.items() if k not in _IGNORED}
            self.values[node] = handler(
                Call(self.b, name, args, kwargs, self._shape(first.shape), self._kind(first.dtype))
            )
        except Unsupported as error:
            raise TraceError(
                f"the field uses {error}{user_line(node)}. pynode.field.supported_ops() lists what the julia engine "
                'can run; write the field with those, or use engine="torch"'
            ) from None

    def _evaluate(self, node: fx.Node) -> bool:
        """Compute a node that depends on no input; not possible when its size depends on the batch."""

        def static(x: Any) -> Any:
            if isinstance(x, fx.Node):
                if x in self.concrete:
                    return self.concrete[x]
                x = x.meta["val"]
            if isinstance(x, torch.SymInt | torch.SymFloat | torch.SymBool):
                size = self._dim(x)
                if not isinstance(size, int):
                    raise LookupError
                return size
            return x

        try:
            args = fx.node.map_aggregate(node.args, static)
            kwargs = fx.node.map_aggregate(node.kwargs, static)
        except (LookupError, Unsupported):
            return False
        self.concrete[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return True

    def _argument(self, a: Any) -> Any:
        if isinstance(a, list | tuple):
            return [self._argument(x) for x in a]
        if isinstance(a, fx.Node):
            value = a.meta.get("val")
            if isinstance(value, torch.SymInt | int) and not isinstance(value, bool):
                return self._dim(value)
            if isinstance(value, torch.SymFloat | float):
                raise Unsupported("a number that is computed from the batch size")
            several = self.values.get(a)
            return list(map(Ref, several)) if isinstance(several, list) else Ref(self._index(a))
        return self._dim(a) if isinstance(a, torch.SymInt) else a

    def _index(self, node: fx.Node) -> int:
        """The node of the graph for an fx node; a concrete tensor becomes a constant."""
        if node in self.values:
            return int(self.values[node])
        tensor = self.concrete[node]
        kind = "int" if tensor.dtype in _INTS else self._kind(tensor.dtype)
        self.values[node] = self.b.const(tensor.detach().reshape(-1).tolist(), tuple(tensor.shape), kind)
        return int(self.values[node])

    def _kind(self, dtype: torch.dtype) -> str:
        if dtype == torch.bool:
            return "bool"
        # Integers that are computed (counts, positions) are exact as numbers of the state's type.
        if dtype not in _INTS and dtype != self.float_dtype:
            raise Unsupported(
                f"numbers of type {dtype} beside a state of type {self.float_dtype}: convert them to the state's type"
            )
        return "float"


_INTS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_IGNORED = ("dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking")


def _rows(z0: Sequence[Tensor]) -> int:
    return z0[0].shape[0] if z0[0].dim() else 1


def _compact(graph: FieldGraph) -> FieldGraph:
    """The graph without the nodes that no output needs; inputs stay."""
    keep = sorted({*range(len(graph.inputs)), *graph.live((*graph.value, *graph.vjp))})
    place = {old: new for new, old in enumerate(keep)}

    def moved(node: Node) -> Node:
        inputs = tuple(place[i] if isinstance(i, int) else i for i in node.inputs)
        return dataclasses.replace(node, inputs=inputs)

    return dataclasses.replace(
        graph,
        nodes=tuple(moved(graph.nodes[i]) for i in keep),
        value=tuple(place[i] for i in graph.value),
        vjp=tuple(None if i is None else place[i] for i in graph.vjp),
    )


def _verify(found: Trace, field: Field, z0: Sequence[Tensor], t0: Tensor, args: Sequence[Tensor]) -> None:
    """Hold the graph against the module, once: what differs is state or randomness that the graph lacks."""
    with torch.no_grad():
        expected = field(t0, z0, args)
        got, _ = interpret(found.graph, [t0, *z0, *args, *found.bound(field)])
    tolerance = 1e-3 if t0.dtype == torch.float32 else 1e-8
    for e, g in zip(expected, got, strict=True):
        scale = max(float(e.detach().abs().max()), 1.0) if e.numel() else 1.0
        if not torch.allclose(e, g, rtol=tolerance, atol=tolerance * scale, equal_nan=True):
            raise TraceError(
                "the field's graph and the field itself give different values for the same t and z: the field "
                "depends on something that changes between calls (a counter, a random number, a cache). Make "
                'it a function of t, z and args, or use engine="torch"'
            )
