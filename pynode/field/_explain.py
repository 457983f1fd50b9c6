"""What a field's trace consists of, what of it is fused, what it costs, and why it may hold for one batch size only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pynode.field._cost import bytes_of, flops_of
from pynode.field._graph import FieldGraph
from pynode.field._steps import Step, computed_once, steps
from pynode.field._trace import batch_size, trace_at
from pynode.text import table

__all__ = ["Cost", "Explanation", "StepCost", "explain"]


@dataclass(frozen=True)
class StepCost:
    """One step: a loop over operations that are fused, a call of one operation, or a copy.

    Attributes:
        ops: the names of its operations, in order; none where it is a copy.
        flops: floating-point operations; `None` where they are not known (code in Julia).
        bytes: what it reads and writes, each tensor once.
    """

    ops: tuple[str, ...]
    flops: int | None
    bytes: int


@dataclass(frozen=True)
class Cost:
    """What one computation costs, at the explanation's batch size.

    Attributes:
        steps: its steps, in order.
        ops: how many operations of each kind the graph has for it, the most frequent first.
    """

    steps: tuple[StepCost, ...]
    ops: dict[str, int]

    @property
    def flops(self) -> int:
        """Floating-point operations, of the steps that are not in `uncounted`."""
        return sum(s.flops or 0 for s in self.steps)

    @property
    def bytes(self) -> int:
        """Bytes that the steps read and write: what goes through memory if no cache keeps anything between them."""
        return sum(s.bytes for s in self.steps)

    @property
    def fused(self) -> tuple[tuple[str, ...], ...]:
        """The operations of each step that has several."""
        return tuple(s.ops for s in self.steps if len(s.ops) > 1)

    @property
    def copies(self) -> int:
        """How many steps copy a tensor: a view that has to be contiguous, or is a result."""
        return sum(not s.ops for s in self.steps)

    @property
    def uncounted(self) -> int:
        """How many steps have a number of flops that is not known."""
        return sum(s.flops is None for s in self.steps)

    def __str__(self) -> str:
        found: dict[tuple[str, ...], list[StepCost]] = {}
        for step in self.steps:
            found.setdefault(step.ops, []).append(step)
        rows = [
            (
                _shortened(ops),
                len(same),
                "?" if any(s.flops is None for s in same) else f"{sum(s.flops or 0 for s in same):,}",
                f"{sum(s.bytes for s in same):,}",
            )
            for ops, same in found.items()
        ]
        rows.append(("total", len(self.steps), f"{self.flops:,}" + " + ?" * bool(self.uncounted), f"{self.bytes:,}"))
        return table(("step", "times", "flops", "bytes"), rows)


@dataclass(frozen=True)
class Explanation:
    """What `explain` finds; as text, a table for each of its costs.

    Attributes:
        graph: the graph.
        batch: the batch size of the costs.
        dtype: the type of the numbers.
        bound_by: what binds the graph to this batch size, with the line; empty where one graph holds for any.
        once: what is computed once for each solve, since it depends on parameters, `args` and buffers alone.
        value: one evaluation of dz/dt.
        vjp: one evaluation of the products of a cotangent with the Jacobians in the state, t, `args` and the
            parameters, what it needs of the value's computation included. (The discrete adjoint keeps most of that from
            the way forward.)
    """

    graph: FieldGraph
    batch: int
    dtype: torch.dtype
    bound_by: str
    once: Cost
    value: Cost
    vjp: Cost

    def __str__(self) -> str:
        holds = f"this one only: {self.bound_by}" if self.bound_by else "any, by one graph"
        parts = [f"batch size: {holds}", f"costs at batch size {self.batch}, {str(self.dtype).removeprefix('torch.')}"]
        titles = (("once for each solve", self.once), ("dz/dt", self.value), ("vector-Jacobian products", self.vjp))
        for title, cost in titles:
            if cost.steps:
                ops = ", ".join(f"{n} {op}" for op, n in cost.ops.items())
                parts.append(f"\n{title}: {ops or 'no operation'}\n{cost}")
        return "\n".join(parts)


def explain(field: Any, z0: Tensor | Sequence[Tensor], args: Sequence[Tensor] = ()) -> Explanation:
    """The operations of a field's trace, which of them are fused, what they cost, and for which batch sizes they hold.

    The steps are those of the julia engine on a processor; nothing is solved, and no Julia is needed. Flops and bytes
    follow from shapes alone:

    - A product of matrices `(m, k) (k, n)` has `2 m n k` flops, a convolution two for each weight that meets a pixel, a
      pointwise operation one for each entry of the tensor that its step writes (functions such as `tanh` or `exp` count
      as one, though they take longer), a reduction one for each entry that it reads. Views, copies and picking by an
      index have none. Linear algebra has its leading terms.
    - A step reads each tensor that it needs, and writes its result, once: operations that are fused leave nothing in
      memory between them. Numbers (t, sizes, literals) take no bytes, nor does the workspace of a convolution.

    Args:
        field: `nn.Module` or callable `f(t, z, *args) -> dz/dt`, or `f(z)`.
        z0: a state, `(batch, *features)`, or a tuple of such.
        args: conditioning tensors.

    Raises:
        TraceError: names the operation and the source line that a graph cannot hold, and the remedy.
        FieldError: the field returns another shape, dtype or device than its state's.
    """
    found = trace_at(field, z0, args)
    states = (z0,) if isinstance(z0, Tensor) else z0
    graph, batch, size = found.graph, batch_size(states), states[0].element_size()
    inputs = range(len(graph.inputs))
    once = computed_once(graph)
    given = {*inputs, *once}
    products = [i for kind in ("z", "arg", "parameter", "t") for i in _of_kind(graph, kind)]

    def cost(outputs: Sequence[int], given: Collection[int]) -> Cost:
        done = steps(graph, outputs, given)
        ops = Counter(graph.nodes[i].op for i in _operations(graph, done))
        return Cost(tuple(_step(graph, s, batch, size) for s in done), dict(ops.most_common()))

    return Explanation(
        graph,
        batch,
        states[0].dtype,
        found.bound_by,
        cost(once, inputs),
        cost(graph.value, given),
        cost(products, given),
    )


def _of_kind(graph: FieldGraph, kind: str) -> list[int]:
    """The products with the Jacobians in the inputs of a kind."""
    pairs = zip(graph.differentiable(), graph.vjp, strict=True)
    return [node for i, node in pairs if node is not None and graph.inputs[i].kind == kind]


def _operations(graph: FieldGraph, done: Sequence[Step]) -> list[int]:
    """The nodes that steps compute, each once, in order."""
    return list(dict.fromkeys(i for s in done for i, _ in s.computed if graph.nodes[i].op not in _UNNAMED))


def _step(graph: FieldGraph, step: Step, batch: int, size: int) -> StepCost:
    ops = tuple(dict.fromkeys(i for i, _ in step.computed))
    names = tuple(graph.nodes[i].op for i in ops if graph.nodes[i].op not in _UNNAMED)
    names = names or tuple(graph.nodes[i].op for i in ops[-1:])
    return StepCost(names, flops_of(graph, step, batch), bytes_of(graph, step, batch, size))


_UNNAMED = ("full", "expand", "cast")  # numbers, and what a loop does by itself
_MOST_NAMES = 6


def _shortened(ops: Sequence[str]) -> str:
    if not ops:
        return "copy"
    shown = ops if len(ops) <= _MOST_NAMES else [*ops[: _MOST_NAMES - 1], f"… ({len(ops)} operations)"]
    return ", ".join(shown)
