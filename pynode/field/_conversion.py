"""From an fx graph of ATen operations to a `FieldGraph`."""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor, fx

from pynode.errors import TraceError
from pynode.field._builder import Builder
from pynode.field._capture import BATCH_HINT, Captured, data_dependent, user_line
from pynode.field._convert import HANDLERS, Call, Ref, Unsupported, target_name
from pynode.field._convert._hints import hint
from pynode.field._distribute import distribute
from pynode.field._graph import Dim, FieldGraph, Input, Node, Number
from pynode.field._simplify import simplify

__all__ = ["Conversion", "Source"]


class _DataDependent(Exception):
    """A size or a number that depends on values."""


@dataclass(frozen=True)
class Source:
    """One input of the recording: the kind and the name that it has in the graph (see `Input`), and an example."""

    kind: str
    name: str
    tensor: Tensor


class Conversion:
    """One pass over an fx graph.

    Args:
        got: the recording.
        sources: what its placeholders before the cotangents stand for.
        leaves: tensors that it holds as attributes and gives products for, by name.
        captured: further such tensors that can be found by name.
        n_states: how many tensors the state has.

    Attributes:
        graph: the result.
        buffers: names of the graph's inputs of kind `"buffer"`, in order.
        constants: the tensors of its inputs of kind `"constant"`, in order.
    """

    def __init__(
        self,
        got: Captured,
        sources: Sequence[Source],
        leaves: Mapping[str, Tensor],
        captured: Mapping[str, Tensor],
        n_states: int,
    ) -> None:
        self.got = got
        self.b = Builder()
        self.values: dict[fx.Node, Any] = {}
        self.concrete: dict[fx.Node, Any] = {}  # what does not depend on any input
        self.ranges: dict[fx.Node, tuple[float, float]] = {}  # of integers that narrow types hold
        self.inputs: list[Input] = []
        self.constants: list[Tensor] = []
        self.float_dtype = next(s.tensor.dtype for s in sources if s.kind == "z")
        nodes = list(got.graph.graph.nodes)
        self._add_inputs(nodes, sources, leaves, captured)
        for node in nodes:
            if node.op == "call_function":
                self._call(node)
        output = next(n for n in nodes if n.op == "output").args[0]
        results = [None if n is None else self._index(n) for n in output]
        value = tuple(r for r in results[:n_states] if r is not None)
        batch = None
        if got.batch is None:
            z = next(s.tensor for s in sources if s.kind == "z")
            batch = z.shape[0] if z.dim() else 1
        graph = FieldGraph(tuple(self.inputs), tuple(self.b.nodes), value, tuple(results[n_states:]), batch)
        self.graph = _compact(distribute(_compact(simplify(_compact(graph), self.float_dtype))))
        self.buffers = tuple(i.name for i in self.inputs if i.kind == "buffer")

    def _add_inputs(
        self,
        nodes: Sequence[fx.Node],
        sources: Sequence[Source],
        leaves: Mapping[str, Tensor],
        captured: Mapping[str, Tensor],
    ) -> None:
        """The graph's inputs, in the order of their kinds; buffers and constants only if they are used."""
        placeholders = [n for n in nodes if n.op == "placeholder"]
        given = list(zip(sources, placeholders, strict=False))
        attributes: dict[int, list[fx.Node]] = {}
        tensors: dict[int, Tensor] = {}
        for node in nodes:
            if node.op == "get_attr":
                tensor = self._attribute(node)
                attributes.setdefault(id(tensor), []).append(node)
                tensors[id(tensor)] = tensor
        for source, node in given:
            if source.kind != "buffer":
                self._input(source.kind, source.name, self._shape(node.meta["val"].shape), [node])
        for name, leaf in leaves.items():
            self._input("parameter", name, tuple(leaf.shape), attributes.pop(id(leaf), []))
        for source, node in given:
            if source.kind == "buffer" and node.users:
                self._input(source.kind, source.name, tuple(source.tensor.shape), [node])
        names = {id(tensor): name for name, tensor in captured.items()}
        floats = {key: found for key, found in attributes.items() if tensors[key].dtype == self.float_dtype}
        for key, found in floats.items():
            if key in names:
                self._input("buffer", names[key], tuple(tensors[key].shape), found)
        for key, found in floats.items():
            if key not in names:
                self._input("constant", str(len(self.constants)), tuple(tensors[key].shape), found)
                self.constants.append(tensors[key])
        for key, found in attributes.items():
            if key not in floats:
                self.concrete.update((node, tensors[key]) for node in found)
        for i, node in enumerate(placeholders[len(sources) :]):
            self._input("cotangent", str(i), self._shape(node.meta["val"].shape), [node])
        for source, node in given:  # inputs are numbers
            if source.tensor.dtype == torch.bool:
                number = self.values[node]
                self.values[node] = self.b.pointwise("ne", [number, Number(0)], self.b.shape(number), "bool")

    def _input(self, kind: str, name: str, shape: tuple[Dim, ...], nodes: Sequence[fx.Node]) -> None:
        """One input of the graph, for all nodes that stand for it."""
        self.inputs.append(Input(kind, name, shape))
        index = self.b.add("input", [], shape, "float", index=len(self.inputs) - 1)
        self.values.update((node, index) for node in nodes)

    def _attribute(self, node: fx.Node) -> Any:
        value: Any = self.got.graph
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return value

    def _tensor(self, node: fx.Node) -> Tensor:
        """The tensor of a node, or one like it."""
        value = self._attribute(node) if node.op == "get_attr" else node.meta["val"]
        assert isinstance(value, Tensor)
        return value

    # ---- sizes ------------------------------------------------------------------------------------

    def _dim(self, size: Any) -> Dim:
        """A size as an int or `(a, b)` for `a * batch + b`."""
        if isinstance(size, int):
            # Some of torch's derivatives put the number that stands for the batch size in place of the symbol.
            return (size // BATCH_HINT, 0) if self.got.batch is not None and size and size % BATCH_HINT == 0 else size
        expr = sympy.expand(self.got.env.simplify(size.node.expr))
        if expr.is_number:
            return int(expr)
        batch = self.got.batch
        if expr == batch:
            return (1, 0)
        if expr.free_symbols != {batch}:
            raise _DataDependent
        if not expr.is_polynomial(batch):  # a remainder by it, say, which has no value at 0
            raise Unsupported("a size that is not linear in the batch size")
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
        # In torch 2.6 an attribute's node has no meta.
        tensors = [n for n in node.all_input_nodes if n.op == "get_attr" or isinstance(n.meta.get("val"), _TENSORS)]
        if all(n in self.concrete for n in tensors) and self._evaluate(node):
            return
        name = target_name(node.target)
        several: Sequence[Any] = value if isinstance(value, tuple | list) else [value]
        first = next((x for x in several if x is not None), None)
        if first is None:
            return  # a check of values: what it would find leads to NaN
        try:
            if name == "_to_copy" and first.dtype in _INTS and tensors[0].meta["val"].is_floating_point():
                name = "trunc"
            handler = HANDLERS.get(name)
            if handler is None:
                raise Unsupported(f"the operation {node.target}, which pynode has no counterpart for")
            args = [self._argument(a) for a in node.args]
            kwargs = {k: self._argument(a) for k, a in _keywords(node).items()}
            if name in _BY_TRANSPOSED:
                kwargs["transposed"] = self._tensor(tensors[0]).is_contiguous()
            kind = self._kind(first.dtype, exact=name in _EXACT)
            if first.dtype in _NARROW:
                self._note_range(node, name, first.dtype)
            if name in _SUMS and node.kwargs.get("dtype") is not None:
                args[0] = self._converted(args[0], self._tensor(tensors[0]).dtype, first.dtype)
            call = Call(self.b, name, args, kwargs, self._shape(first.shape), kind, first.dtype in _INTS)
            found = handler(call)
            if call.unread:
                given = ", ".join(f"{k}={v!r}" for k, v in call.unread.items())
                raise Unsupported(f"the operation {node.target} with {given}, which pynode does not take into account")
            if first.dtype == torch.bool and isinstance(found, int):
                found = self.b.truth(found)
            self.values[node] = found
        except _DataDependent:
            raise TraceError(data_dependent(user_line(node))) from None
        except (Unsupported, NotImplementedError) as error:
            remedy = "pynode.field.supported_ops() lists what the julia engine can run; write the field with those"
            if name not in HANDLERS and not self._varies(node):
                remedy = (
                    "It depends on parameters alone: make it a parametrization (torch.nn.utils.parametrize), which "
                    "pynode computes once for each solve"
                )
            reason = f"the field uses {error}{user_line(node)}"
            raise TraceError(f'{reason}. {hint(name)}{remedy}, or use engine="torch"', reason) from None

    def _converted(self, i: int, old: torch.dtype, new: torch.dtype) -> int:
        """A node of numbers of one type as numbers of another, before a sum of that type."""
        if new == torch.bool:
            return self.b.truth(i)
        i = self.b.cast(i)
        return self.b.pointwise("trunc", [i], self.b.shape(i)) if new in _INTS and old.is_floating_point else i

    def _range(self, x: Any) -> tuple[float, float]:
        """The bounds that a number, or the entries of a tensor, are known to keep."""
        if not isinstance(x, fx.Node):
            return x, x
        if x in self.concrete:
            known = self.concrete[x]
            return (known.min().item(), known.max().item()) if known.numel() else (0, 0)
        value = x.meta.get("val")
        dtype = value.dtype if isinstance(value, Tensor) else None
        if dtype == torch.bool:
            return 0, 1
        if dtype not in _INTS:
            return -math.inf, math.inf
        return self.ranges.get(x, (torch.iinfo(dtype).min, torch.iinfo(dtype).max))

    def _note_range(self, node: fx.Node, name: str, dtype: torch.dtype) -> None:
        """Take note of the bounds of integers of a narrow type, which would wrap beyond those of the type."""
        arithmetic = _OF_NUMBERS.get(name) if not _keywords(node) else None
        if arithmetic is not None:  # of ends of the ranges it has its own ends
            ends = [arithmetic(*xs) for xs in itertools.product(*map(self._range, node.args))]
            ends += [0] if name == "abs" else []
        else:
            ends = [end for n in node.all_input_nodes for end in self._range(n)]
        fits = all(torch.iinfo(dtype).min <= end <= torch.iinfo(dtype).max for end in ends)
        if fits and ends:
            self.ranges[node] = min(ends), max(ends)
        if name in _TYPE_KEPT or (fits and (arithmetic is not None or name in ("_to_copy", "trunc"))):
            return
        raise Unsupported(
            f"{node.target} with a result of type {dtype}, whose numbers wrap where those of a graph do not: use "
            "torch.int64 (x.long()), or the state's type"
        )

    def _varies(self, node: fx.Node) -> bool:
        """Whether a node depends on the time, the state, conditioning tensors or cotangents."""
        stack, seen = [node], set()
        while stack:
            n = stack.pop()
            if n in seen:
                continue
            seen.add(n)
            if n.op == "placeholder" and self.inputs[self.values[n]].kind in ("t", "z", "arg", "cotangent"):
                return True
            stack.extend(n.all_input_nodes)
        return False

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
            if a.op != "get_attr" and not isinstance(value, Tensor | tuple | list):
                return self._argument(value)
            several = self.values.get(a)
            if isinstance(several, list):
                return [None if x is None else Ref(x) for x in several]
            return Ref(self._index(a))
        if isinstance(a, torch.SymInt):
            return self._dim(a)
        return Ref(self._scalar(a.node.expr)) if isinstance(a, torch.SymFloat) else a

    def _scalar(self, expr: sympy.Expr) -> int:
        """The 0-d node of a number that is computed from the batch size."""
        expr = self.got.env.simplify(expr)
        if expr.is_number:
            return self.b.full(float(expr), ())
        if expr == self.got.batch:
            return self.b.add("full", [Number((1, 0))], ())
        if expr.free_symbols != {self.got.batch}:
            raise _DataDependent
        op = _ARITHMETIC.get(type(expr).__name__)
        if op is None:
            raise Unsupported(f"a number that is computed from the batch size ({expr})")
        first, *rest = map(self._scalar, expr.args)
        for other in rest:
            first = self.b.pointwise(op, [first, other], ())
        return self.b.pointwise(op, [first], ()) if op == "sqrt" else first

    def _index(self, node: fx.Node) -> int:
        """The node of the graph for an fx node; a concrete tensor becomes a constant."""
        if node in self.values:
            return int(self.values[node])
        tensor = self.concrete[node]
        kind = "int" if tensor.dtype in _INTS else self._kind(tensor.dtype, exact=True)
        self.values[node] = self.b.const(tensor.detach().reshape(-1).tolist(), tuple(tensor.shape), kind)
        return int(self.values[node])

    def _kind(self, dtype: torch.dtype, exact: bool = False) -> str:
        if dtype == torch.bool:
            return "bool"
        if exact and dtype == torch.float32 and self.float_dtype == torch.float64:
            return "float"
        # Integers that are computed (counts, positions) are exact as numbers of the state's type.
        if dtype not in _INTS and dtype != self.float_dtype:
            raise Unsupported(
                f"numbers of type {dtype} beside a state of type {self.float_dtype}: convert them to the state's type"
            )
        return "float"


# Sympy's names and torch's own for arithmetic on symbolic sizes.
_ARITHMETIC = {"Add": "add", "Mul": "mul", "Pow": "pow", "IntTrueDiv": "div", "FloatTrueDiv": "div", "FloatPow": "pow"}
_ARITHMETIC |= {"PowByNatural": "pow", "ToFloat": "", "OpaqueUnaryFn_sqrt": "sqrt"}
_TENSORS = (Tensor, list, tuple)
_INTS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_NARROW = _INTS[1:]
_OF_NUMBERS: dict[str, Callable[..., Any]] = {"add": operator.add, "sub": operator.sub, "mul": operator.mul}
_OF_NUMBERS |= {"neg": operator.neg, "abs": abs, "rsub": lambda a, b: b - a}
# What picks numbers, or counts positions, leaves the type that they have.
_TYPE_KEPT = {"getitem", "view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "permute", "t", "transpose"}
_TYPE_KEPT |= {"expand", "clone", "alias", "detach", "lift_fresh_copy", "select", "slice", "unbind", "split", "cat"}
_TYPE_KEPT |= {"stack", "flip", "index", "_unsafe_index", "index_select", "gather", "where", "maximum", "minimum"}
_TYPE_KEPT |= {"amax", "amin", "sort", "zeros", "zeros_like", "new_zeros", "ones", "ones_like", "new_ones"}
_TYPE_KEPT |= {"searchsorted", "bucketize", "diagonal"}
# Of a matrix that lies in memory row by row, torch takes the factors of the transposed one.
_BY_TRANSPOSED = ("_linalg_det", "_linalg_slogdet")
# What is picked, rather than computed, is the same in a wider type.
_EXACT = {"scalar_tensor", "where", "full", "view", "unsqueeze", "squeeze", "permute", "expand", "clone", "select"}
# Arguments that say how a result lies in memory, of which type it is, which the result says too, or that what leads to
# NaN is an error.
_IGNORED = ("dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking", "check_errors")
# What converts its operand first where it is given a type.
_SUMS = ("sum", "prod", "cumsum", "cumprod", "mean", "linalg_vector_norm")


def _keywords(node: fx.Node) -> dict[str, Any]:
    """The arguments by name that bear on the values of a result, and are not what they are by default."""
    schema = getattr(node.target, "_schema", None)
    defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()} if schema else {}
    return {k: v for k, v in node.kwargs.items() if k not in _IGNORED and not (k in defaults and v == defaults[k])}


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
