from __future__ import annotations

import pytest
import torch
from modules import CASES, Case

from pynode.field import Field, interpret
from pynode.field._trace import trace_field


def products(field, t, z, args, cotangents, wrt):
    pass


def scaled_error(got, expected):
    return float((got - expected).abs().max() / expected.abs().max().clamp(min=1)) if expected.numel() else 0.0


def compare(case: Case, batch: int):
    t, z, args = case.draw(batch)
    field = Field(case.field, z, t, args, case.is_tuple)
    found = trace_field(field, z, t, args)
    t, *rest = [x.requires_grad_() for x in (t, *z, *args)]
    z, args = tuple(rest[: len(z)]), tuple(rest[len(z) :])
    value = field(t, z, args)
    cot = [torch.randn_like(x) for x in value]
    wrt = [t, *z, *args, *field.parameters]
    pairs = [(o, v) for o, v in zip(value, cot) if o.requires_grad]
    expected = (
        torch.autograd.grad(
            [o for o, _ in pairs], wrt, [v for _, v in pairs], allow_unused=True, materialize_grads=True
        )
        if pairs
        else [torch.zeros_like(x) for x in wrt]
    )
    with torch.no_grad():
        got, vjp = interpret(found.graph, [t, *z, *args, *found.bound(field), *cot], vjp=True)
    for i, (a, b) in enumerate(zip(got, value)):
        assert a.shape == b.shape
        assert scaled_error(a, b) < case.tolerance, f"value {i}"
    for i, (a, b) in enumerate(zip(vjp, expected, strict=True)):
        a = torch.zeros_like(b) if a is None else a
        assert a.shape == b.shape
        assert scaled_error(a, b) < case.tolerance, f"product {i}"
    return found


@pytest.mark.parametrize("name", CASES)
def test_graph(name: str):
    torch.manual_seed(0)
    case = CASES[name]()
    first = compare(case, case.batches[0])
    assert first.graph.batch is None
    for b in case.batches[1:]:
        assert compare(case, b) is first
