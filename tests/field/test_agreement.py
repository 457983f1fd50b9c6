"""A new graph is compared with the field at several states, and at a batch size of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pynode
from pynode.errors import TraceError
from pynode.field import Field, interpret, trace
from pynode.field._convert import HANDLERS, Call
from pynode.field._graph import Number
from pynode.field._trace import trace_field

T = torch.tensor(0.0, dtype=torch.float64)
ZEROS = torch.zeros(5, 4, dtype=torch.float64)
TABLE = torch.linspace(-1, 1, 5, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("op", ["exp", "sin", "logical_and"])
def test_a_wrong_conversion_that_is_right_at_the_start(
    op: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its value and its derivative."""

    def field(t: Tensor, z: Tensor) -> Tensor:
        chosen = z * torch.logical_and(z < 0.5, z > -0.5)
        return chosen if op == "logical_and" else getattr(torch, op)(z) + chosen

    def wrong(c: Call) -> int:
        inputs = [c.operand(x) for x in c.args]
        if op == "exp":
            return c.b.pointwise("add", [*inputs, Number(1.0)], c.shape)
        return c.b.pointwise("logical_or", inputs, c.shape, "bool") if op == "logical_and" else c.args[0]

    z0 = ZEROS.to(dtype)
    trace(field, z0)
    monkeypatch.setitem(HANDLERS, op, wrong)
    with pytest.raises(TraceError, match=rf"different values.* another function of aten\.{op}\.default at .*: `"):
        trace(lambda t, z: field(t, z), z0)


def test_a_wrong_conversion_that_a_weight_of_zero_hides(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return -z + (self.weight * self.weight).sum() * torch.sin(z)

    trace(Gated(), ZEROS + 1)
    monkeypatch.setitem(HANDLERS, "sin", lambda c: c.args[0])
    with pytest.raises(TraceError, match="different values"):
        trace(Gated(), ZEROS + 1)


@pytest.mark.parametrize("jump", [torch.floor, torch.sign])
def test_jumps_that_rounding_decides(jump: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph may be on their other side."""
    right = HANDLERS["sin"]
    monkeypatch.setitem(HANDLERS, "sin", lambda c: c.b.pointwise("mul", [right(c), Number(1 + 4e-16)], c.shape))
    one = torch.ones((), dtype=torch.float64)

    def field(t: Tensor, z: Tensor) -> Tensor:
        return z + t.detach() * jump(torch.sin(z) ** 2 + torch.cos(z) ** 2 - one)

    graph = trace(field, ZEROS)
    z = torch.linspace(-2, 2, 20, dtype=torch.float64).reshape(5, 4)
    (got,), _ = interpret(graph, [T + 1, z, one])
    assert not torch.equal(got, field(T + 1, z))


@pytest.mark.parametrize(
    ("f", "z0"),
    [
        (lambda z: torch.log(z) * z.sqrt(), 0.5),
        (lambda z: TABLE[(4 * z).long()] * z, 0.5),
        (lambda z: TABLE.gather(0, (4 * z).long().reshape(-1)).reshape(z.shape), 0.9),
        (lambda z: z @ torch.linalg.cholesky(torch.diag_embed(z).sum(0)), 0.5),
        (lambda z: torch.where(z > 0, z.log(), z), 0.5),
        (lambda z: (1e9 * z).sin(), 0.5),
        (lambda z: torch.exp(500 * z) + torch.asin(z), 0.5),
        (lambda z: torch.linalg.inv(z[:, :, None] * z[:, None] + 1e-13 * torch.eye(4, dtype=z.dtype)).sum(2), 0.0),
    ],
)
def test_fields_that_are_not_defined_everywhere(f: Callable[[Tensor], Tensor], z0: float) -> None:
    trace(lambda t, z: f(z), torch.full_like(ZEROS, z0))


def test_what_a_field_counts_and_keeps() -> None:
    """Nothing of the comparisons is in the user's objects, but the one evaluation that finds what a field reads."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls, self.latest = 0, ZEROS

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            self.calls += 1
            self.latest = z.detach()
            return torch.sin(z)

    net = Net()
    trace(net, ZEROS + 0.5)
    assert net.calls == 1
    assert torch.equal(net.latest, ZEROS + 0.5)


OF_ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "squeeze": lambda z: z - z.squeeze().mean(0),
    "squeeze of the batch": lambda z: torch.softmax(z.squeeze(0), 0).reshape(z.shape) * z,
    "size": lambda z: 2 * z if z.shape[0] == 1 else 3 * z,
    "sizes": lambda z: z.sin() if z.numel() > 4 else z.cos(),
    "length": lambda z: z * len(z.squeeze()),
}


@pytest.mark.parametrize("batches", [(3, 1, 2, 1), (1, 3, 1, 2), (2, 1, 5)])
@pytest.mark.parametrize("start", [0.0, 0.3])
@pytest.mark.parametrize("name", OF_ONE)
def test_a_batch_of_one(name: str, start: float, batches: Sequence[int]) -> None:
    """Results do not depend on the sizes before, whatever one sample has in common with others at the start."""

    def f(t: Tensor, z: Tensor) -> Tensor:
        return OF_ONE[name](z)

    for k, batch in enumerate(batches):
        z0 = torch.full((batch, 4), start, dtype=torch.float64)
        field = Field(f, (z0,), T)
        found = trace_field(field, (z0,), T, ())
        z = torch.linspace(-1, 2, 4 * batch, dtype=torch.float64).reshape(batch, 4) + k
        (got,), _ = interpret(found.graph, [T, z, *found.bound(field)])
        torch.testing.assert_close(got, f(T, z))


def test_a_batch_of_one_needs_no_graph_of_its_own(recordings: list[int]) -> None:
    net = nn.Linear(4, 4, dtype=torch.float64)

    def f(t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(net(z))

    for batch in (3, 1, 2, 1):
        assert trace(f, ZEROS[:batch]).batch is None
    assert len(recordings) == 1


def test_a_batch_of_one_that_torch_refuses() -> None:
    def f(t: Tensor, z: Tensor) -> Tensor:
        return F.batch_norm(z, None, None, training=True)

    trace(f, ZEROS + TABLE[:4])
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        trace(f, ZEROS[:1])


@pytest.mark.julia
@pytest.mark.parametrize("batches", [(3, 1), (1, 3)])
def test_solves_of_one_sample_and_of_several(batches: Sequence[int]) -> None:
    def f(t: Tensor, z: Tensor) -> Tensor:
        return z - z.squeeze().mean(0)

    for batch in batches:
        z = torch.linspace(-1, 2, 4 * batch, dtype=torch.float64).reshape(batch, 4)
        found, expected = (
            pynode.solve(f, z, [0.0, 1.0], solver="rk4", dt=0.25, engine=engine).z[-1] for engine in ("julia", "torch")
        )
        torch.testing.assert_close(found, expected)
