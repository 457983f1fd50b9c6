"""What a graph is held against: the eager module and autograd."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from modules import Case
from torch import Tensor

from pynode.field import Field, interpret
from pynode.field._tangents import TangentField
from pynode.field._trace import Trace, as_numbers, trace_field


@dataclass(frozen=True)
class Sample:
    """One evaluation of a case: what goes in, the trace, and what has to come out.

    Attributes:
        inputs: `t`, the state, `args`, the parameters and what else the graph reads.
        cotangents: one for each state tensor.
        value: the field's value.
        products: the products of the cotangents with the Jacobians in `t`, the state, `args` and the parameters.
    """

    found: Trace
    inputs: Sequence[Tensor]
    cotangents: Sequence[Tensor]
    value: Sequence[Tensor]
    products: Sequence[Tensor]


def sample(case: Case, batch: int) -> Sample:
    """Trace a case and evaluate it by the module and by autograd."""
    t, z, args = case.draw(batch)
    field = Field(case.field, z, t, args, case.is_tuple)
    found = trace_field(field, z, t, args)
    t, *rest = (x.requires_grad_(x.is_floating_point()) for x in (t, *z, *args))
    z, args = tuple(rest[: len(z)]), tuple(rest[len(z) :])
    value = field(t, z, args)
    cotangents = [torch.randn_like(x) for x in value]
    wrt = [x for x in (t, *z, *args, *field.parameters) if x.requires_grad]
    total = sum((x * v).sum() for x, v in zip(value, cotangents, strict=True))
    products = iter(torch.autograd.grad(total + 0 * t, wrt, allow_unused=True, materialize_grads=True))
    # Integers have no derivative, which a graph says by none at all, and a kernel by zeros.
    every = [next(products) if x.requires_grad else zeros(x, t) for x in (t, *z, *args, *field.parameters)]
    inputs = [as_numbers(x.detach(), t.dtype) for x in (t, *z, *args, *found.bound(field))]
    return Sample(found, inputs, cotangents, [x.detach() for x in value], every)


def zeros(x: Tensor, like: Tensor) -> Tensor:
    return torch.zeros(x.shape, dtype=like.dtype)


def error(got: Sequence[Tensor | None], expected: Sequence[Tensor]) -> float:
    """The largest difference, relative to the largest entry of each tensor that exceeds one; `None` is zero.

    What is not a number is infinitely far off.
    """
    assert len(got) == len(expected)
    worst = 0.0
    for a, b in zip(got, expected, strict=True):
        assert a is None or a.shape == b.shape
        difference = (b if a is None else a - b).abs()
        if b.numel():
            found = (difference.max() / b.abs().max().clamp(min=1)).item()
            worst = max(worst, math.inf if math.isnan(found) else found)
    return worst


def check(case: Case, batch: int) -> Trace:
    """Assert that the reference interpreter gives what the module and autograd give; return the trace."""
    s = sample(case, batch)
    value, products = interpret(s.found.graph, [*s.inputs, *s.cotangents], vjp=True)
    assert error(value, s.value) <= case.tolerance
    assert error(products, s.products) <= case.tolerance
    return s.found


def check_tangent(case: Case, batch: int, n: int = 1) -> Trace:
    """Assert that the graph of a field's derivatives in `n` directions of the state gives those of forward-mode AD."""
    t, z, args = case.draw(batch)
    base = Field(case.field, z, t, args, case.is_tuple)
    directions = [[torch.randn_like(x) for x in z] for _ in range(n)]
    field = TangentField(base, len(z), n, [None] * len(args), [None] * len(base.parameters))
    state = (*z, *(torch.stack(ds, 1) for ds in zip(*directions, strict=True)))
    found = trace_field(field, state, t, args)
    inputs = [as_numbers(x.detach(), t.dtype) for x in (t, *state, *args, *found.bound(field))]
    value, _ = interpret(found.graph, inputs)

    def f(*z: Tensor) -> tuple[Tensor, ...]:
        out = case.field(t, z if case.is_tuple else z[0], *args)
        return tuple(out) if case.is_tuple else (out,)

    try:
        moved = [torch.func.jvp(f, z, tuple(d))[1] for d in directions]
    except (NotImplementedError, RuntimeError):  # of an operation, or a field, that has no such derivative
        moved = [torch.autograd.functional.jvp(f, z, tuple(d))[1] for d in directions]
    tangents = [torch.stack(ds, 1) for ds in zip(*moved, strict=True)]
    assert error(value, [x.detach() for x in (*f(*z), *tangents)]) <= 100 * case.tolerance
    return found
