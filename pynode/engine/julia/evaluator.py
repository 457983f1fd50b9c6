"""Python's functions that Julia calls in the course of a solve, and the memory in which the numbers cross.

Julia calls them by the C interface of Python (`julia/src/solve/callback.jl`), without arguments: what they read and
write lies in tensors over memory that both know. What a function raises ends the solve, and comes out of it as itself.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pynode.field import Field
from pynode.field._tangents import products

__all__ = ["Evaluated", "Evaluator", "Graph"]

# An evaluation that autograd has followed: results that depend on what is differentiated by, and their cotangents.
Graph = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
# What is differentiated by, and where the products belong.
Inputs = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]

_run_backward: Any = torch.autograd.Variable._execution_engine.run_backward


class Evaluated(Protocol):
    """What is evaluated, see `PythonField`."""

    field: Field
    plain: Callable[..., Any] | None
    args: tuple[Tensor, ...]
    graphs: dict[int, Graph]
    opened: Graph | None
    of_all: Inputs
    of_state: Inputs
    of_theta: Inputs
    wants_time: bool
    evaluated: bool
    again: bool

    def check_unchanged(self) -> None:
        """Refuse an evaluation after the solve where the field is another."""


class Evaluator:
    """The field of one solve at a time, evaluated and differentiated where Julia says.

    Args:
        z0: tensors like those of the state.
        theta: tensors like those that a gradient may be wanted for, besides the state.

    Attributes:
        field: the field of the call that is under way, `None` between calls.
        call: the number of a graph, and whether autograd's derivatives are all that the field has.
    """

    def __init__(self, z0: Sequence[Tensor], theta: Sequence[Tensor]) -> None:
        self.field: Evaluated | None = None
        self.call = array("q", [0, 0])
        dtype, n, m = z0[0].dtype, sum(z.numel() for z in z0), sum(x.numel() for x in theta)
        with torch.inference_mode(False):
            self.time = torch.zeros((), dtype=torch.float64, device="cpu")
            self.flat = [torch.zeros(size, dtype=dtype, device="cpu") for size in (n, n, n, n, m, 1)]
            u, v, du, dz, dtheta, dt = self.flat
            self.v, self.du, self.dz = (_parts(x, z0) for x in (v, du, dz))
            self.dtheta, self.dt = _parts(dtheta, theta), dt[0]
            # Autograd meets the memory in these alone, whose values it never keeps: a field gets copies of them.
            self.z = [x.detach().requires_grad_() for x in _parts(u, z0)]
            self.t = self.time.detach().requires_grad_()

    def functions(self) -> tuple[Callable[[], None], ...]:
        """What Julia calls, in the order of its `PythonFunction`."""
        products = self.product, self.state_product, self.theta_product
        return (
            *(self.value, self.record, *products, self.replay),
            *(self.open, self.row, self.tangent, self.slope, self.drop),
        )

    def _begun(self) -> Evaluated:
        """The field, which is to be evaluated."""
        field = self.field
        assert field is not None
        if field.again:
            field.check_unchanged()
        return field

    def _give(self, out: Sequence[Tensor]) -> None:
        if len(out) == 1:
            self.du[0].copy_(out[0])
            return
        for x, o in zip(self.du, out, strict=True):
            x.copy_(o)

    def value(self) -> None:
        """The value at `u`, to `du`."""
        field = self._begun()
        field.evaluated = True
        self._give(self._out(field, self.time))

    def _out(self, field: Evaluated, time: Tensor) -> Sequence[Tensor]:
        """What the field returns, of copies of its arguments, which it may keep or change."""
        if field.plain is not None:
            z = self.z[0]
            out = field.plain(time.clone(), z.clone(), *field.args)
            if isinstance(out, Tensor) and out.shape == z.shape:
                return (out,)
        return field.field(time.clone(), [x.clone() for x in self.z], field.args)  # which tells what is wrong

    def followed(self, field: Evaluated, time: bool) -> Sequence[Tensor]:
        """The value at `u`, which autograd has followed; from the time too if so asked."""
        # Gradients are off while Julia runs (see `PythonField`); a context manager would take a microsecond.
        torch._C._set_grad_enabled(True)
        try:
            return self._out(field, self.t if time else self.time)
        finally:
            torch._C._set_grad_enabled(False)

    def _graph(self, out: Sequence[Tensor]) -> Graph:
        if len(out) == 1 and out[0].requires_grad:
            return (out[0],), (self.v[0],)
        pairs = [(o, v) for o, v in zip(out, self.v, strict=True) if o.requires_grad]
        return tuple(o for o, _ in pairs), tuple(v for _, v in pairs)

    def record(self) -> None:
        """The value at `u`, to `du`; its graph is kept under the number of `call`."""
        field = self.field
        assert field is not None
        out = self.followed(field, field.wants_time)
        field.graphs[self.call[0]] = self._graph(out)
        self._give(out)

    def _pull(self, graph: Graph, of: Inputs, keep: bool) -> None:
        """The products of the cotangent `v` with the Jacobians in some inputs, to where these products belong."""
        outputs, cotangents = graph
        inputs, places = of
        if not inputs:
            return
        found: tuple[Tensor | None, ...] = (None,) * len(inputs)
        if outputs:
            # `torch.autograd.grad` without its checks, which take as long as the products of a small field. The last
            # two arguments are `allow_unreachable` and `accumulate_grad`.
            found = _run_backward(outputs, cotangents, keep, False, inputs, True, False)
            try:
                torch._foreach_copy_(places, found)  # type: ignore[arg-type]
                return
            except TypeError:  # some of them are none
                pass
        for place, g in zip(places, found, strict=True):
            if g is None:
                place.zero_()
            else:
                place.copy_(g)

    def _pull_again(self, field: Evaluated, graph: Graph, of: Inputs) -> None:
        """The same of a graph that is kept."""
        if field.plain is not None:  # and so nothing is looked at while parts of it are evaluated again
            self._pull(graph, of, keep=True)
            return
        with field.field.recomputing():
            self._pull(graph, of, keep=True)

    def product(self) -> None:
        """All products at `u`."""
        field = self._begun()
        self._pull(self._graph(self.followed(field, field.wants_time)), field.of_all, keep=False)

    def state_product(self) -> None:
        """Those of the state at `u`."""
        field = self._begun()
        self._pull(self._graph(self.followed(field, False)), field.of_state, keep=False)

    def theta_product(self) -> None:
        """Those of all else at `u`."""
        field = self._begun()
        self._pull(self._graph(self.followed(field, False)), field.of_theta, keep=False)

    def replay(self) -> None:
        """All products from a graph that is kept."""
        field = self.field
        assert field is not None
        self._pull_again(field, field.graphs[self.call[0]], field.of_all)

    def open(self) -> None:
        """Evaluate at `u`, for `row`."""
        field = self._begun()
        field.opened = self._graph(self.followed(field, False))

    def row(self) -> None:
        """The product of the state where `open` has evaluated."""
        field = self.field
        assert field is not None
        assert field.opened is not None
        self._pull_again(field, field.opened, field.of_state)

    def tangent(self) -> None:
        """The derivative at `u` in the direction `v`, to `du`."""
        self._move(self.z, self.v)

    def slope(self) -> None:
        """The derivative at `u` in the time, to `du`."""
        self._move([self.t], [torch.ones_like(self.time)])

    def _move(self, inputs: Sequence[Tensor], directions: Sequence[Tensor]) -> None:
        out = self.followed(self._begun(), inputs[0] is self.t)
        with torch.enable_grad():
            self._give([x.detach() for x in products(out, inputs, directions, create=False)])

    def drop(self) -> None:
        """Let go of a graph that was kept."""
        if self.field is not None:
            self.field.graphs.pop(self.call[0], None)


def _parts(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """A vector as tensors of the shapes of others, one after the other."""
    parts = flat.split([x.numel() for x in like])
    return [p.reshape(x.shape) for p, x in zip(parts, like, strict=True)]
