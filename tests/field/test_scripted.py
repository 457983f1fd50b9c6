"""Fields of `torch.jit.script` and `torch.jit.trace`, and modules that hold one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode.field import trace
from pynode.field._interpreter import interpret

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated:DeprecationWarning")
DOUBLE = torch.float64


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8, dtype=DOUBLE), nn.Linear(8, 2, dtype=DOUBLE)
        self.register_buffer("scale", torch.tensor([0.5, 2.0], dtype=DOUBLE))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        with_time = torch.cat([z, t.expand(z.shape[0], 1)], 1)
        return self.second(torch.tanh(self.first(with_time))) * self.scale + 0.1 * z


class Shaped(Plain):
    """Sizes, lists and a branch that its mode decides."""

    def forward(self, t: Tensor, z: Tensor, factor: float = 1.5) -> Tensor:
        a, b = torch.unbind(z, dim=1)
        pairs = torch.stack([a * b, a - b], dim=-1).reshape(z.size(0), 2)
        y = torch.softmax(pairs, dim=-1).view(-1, 2)
        y = y * 2.0 if self.training else y / 2.0
        return y * factor + torch.sin(t) * self.scale


class Looped(Plain):
    """A loop, whose end its numbers decide, and a list."""

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        y = z
        found: list[Tensor] = []
        for i in range(3):
            y = torch.sin(y) * (i + 1)
            found.append(y)
            if i == 1:
                break
        return found[0] + found[1] * self.second(torch.cat([found[1]] * 4, 1))


class Halved(Plain):
    """What no graph can hold."""

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        y = z
        while y.sum() > 1.0:
            y = y / 2
        return y


class Named(Plain):
    """A dictionary."""

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        found = {"a": z, "b": -z}
        return found["a"] + 2 * found["b"]


def made(kind: str, module: nn.Module) -> Any:
    if kind == "script":
        return torch.jit.script(module)
    return torch.jit.trace(module, (torch.tensor(0.0, dtype=DOUBLE), torch.randn(4, 2, dtype=DOUBLE)))


class Holder(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.sin(self.inner(t, z=2 * z))


# What `torch.jit.trace` makes takes its arguments by position only, as a holder does not give them.
@pytest.mark.parametrize(("kind", "held"), [("script", False), ("script", True), ("trace", False)])
@pytest.mark.parametrize("field", [Plain, Shaped, Looped])
def test_the_graph_is_that_of_the_module(kind: str, field: type[nn.Module], held: bool) -> None:
    """Values and products for another batch size than the recording's."""
    plain = field().eval()
    scripted = made(kind, plain)
    if held:
        plain, scripted = Holder(plain), Holder(scripted)
    graph = trace(scripted, torch.zeros(4, 2, dtype=DOUBLE))
    t = torch.tensor(0.3, dtype=DOUBLE).requires_grad_()
    z, v = torch.randn(7, 2, dtype=DOUBLE).requires_grad_(), torch.randn(7, 2, dtype=DOUBLE)
    named = {**dict(scripted.named_parameters()), **dict(scripted.named_buffers())}
    bound = [named[x.name] for x in graph.inputs if x.kind in ("parameter", "buffer")]
    value, products = interpret(graph, [t, z, *bound, v], vjp=True)
    expected = plain(t, z)
    torch.testing.assert_close(value[0], expected)
    wanted = dict(plain.named_parameters())
    names = [x.name for x in graph.inputs if x.kind == "parameter"]
    exact = torch.autograd.grad(expected, [t, z, *(wanted[n] for n in names)], v, allow_unused=True)
    for got, g in zip(products, exact, strict=True):
        found, correct = (torch.zeros(1, dtype=DOUBLE) if x is None else x for x in (got, g))
        torch.testing.assert_close(
            found.expand(torch.broadcast_shapes(found.shape, correct.shape)), correct + 0 * found
        )


@pytest.mark.parametrize("kind", ["script", "trace"])
@pytest.mark.parametrize("how", ["discrete", "backsolve"])
def test_solutions_and_gradients(kind: str, how: str, engine: str) -> None:
    plain, z0 = Plain(), torch.randn(5, 2, dtype=DOUBLE)
    scripted = made(kind, plain)
    results = []
    for field in (plain, scripted, scripted):
        z = pynode.solve(field, z0, [0.0, 1.0], rtol=1e-7, atol=1e-9, sensitivity=how, engine=engine).z[-1]
        results.append([z, *torch.autograd.grad(z.square().sum(), list(field.parameters()))])
    for found in results[1:]:
        for got, expected in zip(found, results[0], strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["script", "trace"])
def test_another_parameter_is_seen(kind: str) -> None:
    scripted, z0 = made(kind, Plain()), torch.ones(1, 2, dtype=DOUBLE)
    first = pynode.solve(scripted, z0, [0.0, 1.0], engine="torch").z[-1]
    scripted.second.weight = nn.Parameter(torch.zeros(2, 8, dtype=DOUBLE))
    second = pynode.solve(scripted, z0, [0.0, 1.0], engine="torch").z[-1]
    assert not torch.allclose(first, second)
    (gradient,) = torch.autograd.grad(second.sum(), scripted.second.weight)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (Halved, "control flow .* depends on the values"),
        (Named, r"prim::DictConstruct.* the module from before torch\.jit"),
    ],
)
def test_what_a_graph_cannot_hold_is_refused(field: type[nn.Module], message: str) -> None:
    scripted, z0 = torch.jit.script(field()), torch.ones(2, 2, dtype=DOUBLE)
    with pytest.raises(pynode.TraceError, match=message):
        trace(scripted, z0)
    assert pynode.solve(scripted, z0, [0.0, 0.1], engine="torch").z.isfinite().all()
