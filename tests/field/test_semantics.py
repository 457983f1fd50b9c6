"""What an operation of torch means beyond its name: flags, signs, types, and what is not a number."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from modules import Case
from reference import check
from torch import Tensor

import pynode
from pynode.errors import TraceError
from pynode.field import Field, interpret, trace
from pynode.field._convert import HANDLERS
from pynode.field._trace import trace_field

DIAGONAL = torch.diag(torch.tensor([5.0, 6.0, 7.0], dtype=torch.float64))
EYE = torch.eye(3, dtype=torch.float64)
ZEROS = torch.zeros(4, 3, dtype=torch.float64)
# Of both signs, multiples of 0.1 and of 1, zeros, and some that are none of those.
STATES = torch.tensor(
    [[0.0, 1.0, -1.0], [0.3, -0.7, 2.0], [-0.35, 1.7, -5.2], [0.63, -0.27, 12.0]], dtype=torch.float64
)


def gappy(z: Tensor) -> Tensor:
    return torch.where(z > 0.3, torch.nan, z)


def matrix(z: Tensor) -> Tensor:
    return DIAGONAL + z.unsqueeze(2) * torch.arange(1.0, 4.0, dtype=z.dtype)


FIELDS: dict[str, Callable[[Tensor], Tensor]] = {
    "any of negative numbers": lambda z: torch.any(z.clamp(max=0), 1, keepdim=True) * z,
    "all of negative numbers": lambda z: torch.all(z.clamp(max=0), 1, keepdim=True) * z,
    "any of integers": lambda z: torch.any((-z).long().clamp(max=0), 1, keepdim=True) * z,
    "round to decimals": lambda z: torch.round(z, decimals=1) + torch.round(17 * z, decimals=-1),
    "complement of integers": lambda z: z * ~(3 * z).long(),
    "logic of truth values and bool": lambda z: z * ((z > 0) & True) + (z < 1.5) * ((z > 0.3) | False) + (z * ~(z > 0)),
    "sums as truth values": lambda z: z * z.detach().sum(1, keepdim=True, dtype=torch.bool),
    "sums as integers": lambda z: z + z.detach().sum(1, keepdim=True, dtype=torch.int64),
    "cumulative sums as integers": lambda z: z + (3 * z.detach()).cumsum(1, dtype=torch.int64),
    "integers that fit": lambda z: z * (1 - (z > 0).int()) + (2 * (z > 0).to(torch.int8) - 1).abs(),
    "floor of a quotient": lambda z: (
        torch.div(z, 0.1, rounding_mode="floor") + torch.div(z, -0.3, rounding_mode="floor")
    ),
    "floor of quotients": lambda z: torch.div(z, z.flip(1) / 10, rounding_mode="floor").clamp(-20, 20).nan_to_num(3.0),
    "floor of a quotient of integers": lambda z: z * ((10 * z).long() // 3) + (10 * z).long() // -7,
    "sign of a zero quotient": lambda z: (1 / torch.div(z / 20, 7.0, rounding_mode="floor")).clamp(-3, 3),
    "floor of an infinite quotient": lambda z: torch.div(z, torch.where(z > 0.3, math.inf, 1), rounding_mode="floor"),
    "fmax": lambda z: torch.fmax(gappy(z), z * 0.5) + torch.fmin(gappy(z), torch.tensor(0.2, dtype=z.dtype)),
    "fmax of none": lambda z: torch.fmax(gappy(z), gappy(z)).nan_to_num(0.4),
    "sign of none": lambda z: gappy(z).sign() + z,
    "argmax of none": lambda z: gappy(z).argmax(1, keepdim=True) * z + gappy(z).min(1, keepdim=True)[1],
    "cummax of none": lambda z: gappy(z).cummax(1)[1] * z + gappy(z).cummin(1)[1],
    "addmm without its base": lambda z: (
        torch.addmm(gappy(z), z, EYE, beta=0) + torch.addmm(z, z, EYE, beta=0.5, alpha=3)
    ),
    "baddbmm without its base": lambda z: torch.baddbmm(gappy(matrix(z)), matrix(z), matrix(z), beta=0).sum(2) / 100,
    "pinv of the lower triangle": lambda z: torch.linalg.pinv(matrix(z / 10), hermitian=True).sum(2),
    "a number as an integer": lambda z: torch.full_like(z, 1.7, dtype=torch.int64) * z,
    "integers to negative powers": lambda z: z * torch.pow(2, (2 * z).long().clamp(max=5)) + torch.pow(0, (z).long()),
    "numbers copied into integers": lambda z: z * torch.zeros_like(z, dtype=torch.int64).copy_(3 * z.detach()),
    "transposed convolution beyond the stride": lambda z: F.conv_transpose1d(
        z.unsqueeze(1), DIAGONAL[:1, None], padding=2, dilation=2, output_padding=1
    )[:, 0, 1:],
    "sign of a truth value": lambda z: (z > 0).sign() * z,
    "hardsigmoid": lambda z: F.hardsigmoid(7 * z),
}


@pytest.mark.parametrize("name", FIELDS)
def test_as_in_torch(name: str) -> None:
    """At states of both signs, by a graph that was made at zero."""

    def f(t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(FIELDS[name](z)) + 0.37 * z

    t = torch.tensor(0.0, dtype=torch.float64)
    field = Field(f, (ZEROS,), t)
    found = trace_field(field, (ZEROS,), t, ())
    z = STATES.clone().requires_grad_()
    value = f(t, z)
    v = torch.linspace(0.5, 1.5, 12, dtype=torch.float64).reshape(4, 3)
    (product,) = torch.autograd.grad(value, z, v)
    (got,), products = interpret(found.graph, [t, STATES, *found.bound(field), v], vjp=True)
    torch.testing.assert_close(got, value.detach(), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(products[1], product, rtol=1e-9, atol=1e-10)


@pytest.mark.julia
def test_as_in_torch_by_the_kernels() -> None:
    """All of these at once."""

    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.stack([torch.tanh(f(z)) * (1 + 0.1 * k) for k, f in enumerate(FIELDS.values())]).sum(0)

    found = []
    for engine in ("julia", "torch"):
        z = STATES.clone().requires_grad_()
        last = pynode.solve(field, z, [0.0, 1.0], engine=engine, solver="euler", dt=1.0, sensitivity="discrete").z[-1]
        found.append((last.detach(), *torch.autograd.grad(last.square().sum(), z)))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("stride", "padding", "output_padding"), [(1, 0, 1), (1, 2, 2), (2, 3, 2)])
def test_a_transposed_convolution_that_reaches_beyond(stride: int, padding: int, output_padding: int) -> None:
    """Its result is larger than what a convolution would make an image of this size of."""
    how = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": 3}
    w, b = (torch.randn(*s, dtype=torch.float64).requires_grad_() for s in ((2, 3, 2), (3,)))

    def f(t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(F.conv_transpose1d(z, w, b, **how)).square().sum((1, 2), keepdim=True) * z

    check(Case(f, (2, 5)), 3)


@pytest.mark.parametrize(
    ("f", "reason"),
    [
        (lambda z: z * ((4 * z).long() & 3), r"bitwise_and \(&\) of integers.*n % 2 for n & 1"),
        (lambda z: z * torch.bitwise_or((4 * z).long(), torch.tensor(6)), r"bitwise_or \(\|\) of integers"),
        (lambda z: z * ((z > 0) ^ 1), r"bitwise_xor \(\^\) of integers"),
        (lambda z: z * (100 * z).to(torch.uint8), r"a result of type torch\.uint8.*wrap.*torch\.int64"),
        (lambda z: z * (2 * (z > 0).to(torch.uint8) - 1), r"aten\.sub\.Tensor with a result of type torch\.uint8"),
        (lambda z: z * (z > 0).sum(1, keepdim=True, dtype=torch.int8), r"aten\.sum\.dim_IntList with a result of"),
    ],
)
def test_integers_that_a_graph_does_not_have(f: Callable[[Tensor], Tensor], reason: str) -> None:
    with pytest.raises(TraceError, match=reason):
        trace(lambda t, z: f(z), ZEROS)


def test_an_argument_that_nothing_looks_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused by its name and value."""
    monkeypatch.setitem(HANDLERS, "round", HANDLERS["floor"])
    with pytest.raises(TraceError, match=r"aten\.round\.decimals with decimals=1, which pynode does not take into"):
        trace(lambda t, z: torch.round(z, decimals=1), ZEROS)
