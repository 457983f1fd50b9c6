"""Autocast, inference mode, and fields that differentiate: the same result in every context and in every order."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode.models import NODE, ODENet
from pynode.nn import TimeConcat, TimeSequential
from pynode.problem.inputs import as_times


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return TimeSequential(TimeConcat(nn.Linear(3, 16)), nn.Tanh(), nn.Linear(16, 2))


X = torch.linspace(-1, 1, 16).reshape(8, 2)
AUTOCAST = {"device_type": "cpu", "dtype": torch.bfloat16}


@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve"])
@pytest.mark.parametrize("first", ["autocast", "plain"])
def test_autocast_whatever_ran_before(engine: str, sensitivity: str, first: str) -> None:
    field = fresh()
    keywords: dict[str, Any] = {"sensitivity": sensitivity, "engine": engine}

    def plain() -> tuple[Tensor, Tensor]:
        z = pynode.solve(field, X, [0.0, 1.0], **keywords).z[-1]
        return z.detach(), torch.autograd.grad((z**2).sum(), list(field.parameters()))[0]

    def autocast() -> tuple[Tensor, Tensor]:
        with torch.autocast(**AUTOCAST):
            z = pynode.solve(field, X, [0.0, 1.0], **keywords).z[-1]
        assert z.dtype == torch.float32
        return z.detach(), torch.autograd.grad((z**2).sum(), list(field.parameters()))[0]

    (z, g), (z_cast, g_cast) = (plain(), autocast()) if first == "plain" else (autocast(), plain())[::-1]
    torch.testing.assert_close(z, z_cast, rtol=0, atol=0.05)
    torch.testing.assert_close(g, g_cast, rtol=0.1, atol=0.05)
    again = plain()
    assert torch.equal(again[0], z)
    assert torch.equal(again[1], g)


def test_a_half_state_under_autocast_comes_back_in_its_dtype(engine: str) -> None:
    field = fresh()
    x = X.bfloat16().requires_grad_()
    with torch.autocast(**AUTOCAST):
        solution = pynode.solve(
            field, x, [0.0, 1.0], running_cost=lambda t, z: (z**2).sum(-1), engine=engine, sensitivity="discrete"
        )
    assert solution.z.dtype == torch.bfloat16
    solution.z[-1].float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
    exact = pynode.solve(field, X, [0.0, 1.0], engine=engine).z[-1]
    torch.testing.assert_close(solution.z[-1].float(), exact, rtol=0, atol=0.05)
    with pytest.raises(pynode.InputError, match="dtype"):
        pynode.solve(field, x, [0.0, 1.0], engine=engine)


def test_models_with_a_stem_under_autocast(engine: str) -> None:
    model = NODE(fresh(), input_network=nn.Linear(2, 2), output_network=nn.Linear(2, 3), engine=engine)
    with torch.autocast(**AUTOCAST):
        y = model(X)
    y.float().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    images = ODENet(1, 3, channels=4, downsamplings=1, engine=engine)
    with torch.autocast(**AUTOCAST):
        images(torch.randn(2, 1, 8, 8)).float().sum().backward()


def test_depths_beside_a_half_state_are_not_rounded_to_its_dtype() -> None:
    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.ones_like(z)

    model = NODE(field, t=(0.0, 0.3), engine="torch", solver="euler", dt=1.0)
    with torch.autocast(**AUTOCAST):
        times = model.trajectory(torch.zeros(1, 2).bfloat16(), [0.1, 0.3])
    exact = torch.tensor([0.1, 0.3]).bfloat16()
    assert torch.equal(times[:, 0, 0], exact)
    assert as_times("t", (0.0, 0.3), torch.zeros(1).bfloat16()).dtype == torch.float32


def test_the_torch_field_computes_in_the_dtype_of_autocast() -> None:
    seen: set[torch.dtype] = set()
    layer = nn.Linear(2, 2)

    def field(t: Tensor, z: Tensor) -> Tensor:
        out = layer(z)
        seen.add(out.dtype)
        return out  # type: ignore[no-any-return]

    with torch.autocast(**AUTOCAST):
        z = pynode.solve(field, X, [0.0, 1.0], engine="torch", sensitivity="backsolve").z
    assert seen == {torch.bfloat16}
    z.sum().backward()  # the backward pass is outside, and computes what the forward pass computed
    assert seen == {torch.bfloat16}


def test_inference_tensors_as_state_and_args(engine: str) -> None:
    with torch.inference_mode():
        x, a = X.clone(), torch.ones(8, 2)
    layer = nn.Linear(2, 2)
    z = pynode.solve(lambda t, z, a: layer(z) * a, x, [0.0, 1.0], args=(a,), engine=engine).z
    z.sum().backward()
    assert layer.weight.grad is not None
    with torch.inference_mode():
        again = pynode.solve(lambda t, z, a: layer(z) * a, x, [0.0, 1.0], args=(a,), engine=engine).z
    torch.testing.assert_close(again, z.detach())


class Hamiltonian(nn.Module):
    """Of the oscillator with frequency √w, as it is written first: without a thought of the context."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        energy = (z[:, 1] ** 2 / 2 + self.w * z[:, 0] ** 2 / 2).sum()
        (g,) = torch.autograd.grad(energy, z, create_graph=True)
        return torch.stack([g[:, 1], -g[:, 0]], 1)


@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve", "forward"])
@pytest.mark.parametrize("tracked", [False, True])
def test_a_field_that_differentiates_by_its_state(engine: str, sensitivity: str, tracked: bool) -> None:
    field = Hamiltonian()
    z0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64, requires_grad=tracked)
    z = pynode.solve(field, z0, [0.0, 1.0], sensitivity=sensitivity, rtol=1e-9, atol=1e-11, engine=engine).z[-1]
    z[0, 0].backward()
    root = math.sqrt(2.0)
    assert z[0, 0].item() == pytest.approx(math.cos(root), abs=1e-7)
    assert field.w.grad is not None
    assert field.w.grad.item() == pytest.approx(-math.sin(root) / (2 * root), abs=1e-6)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, contextlib.nullcontext])
def test_a_field_that_differentiates_in_any_context(engine: str, context: Any) -> None:
    with context():
        z0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        z = pynode.solve(Hamiltonian(), z0, [0.0, 1.0], rtol=1e-9, atol=1e-11, engine=engine).z[-1]
    assert z[0, 0].item() == pytest.approx(math.cos(math.sqrt(2.0)), abs=1e-7)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_field_that_differentiates_is_traced_in_any_context(context: Any) -> None:
    """The same graph as outside, also where the field's own tensors were made there."""
    z0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    with context():
        inside = pynode.field.trace(Hamiltonian(), z0)
    assert inside.to_dict() == pynode.field.trace(Hamiltonian(), z0).to_dict()


@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve", "forward"])
def test_a_field_that_depends_on_nothing(engine: str, sensitivity: str) -> None:
    z0 = torch.zeros(2, 2, requires_grad=True)
    z = pynode.solve(lambda t, z: torch.ones_like(z), z0, [0.0, 1.0], sensitivity=sensitivity, engine=engine).z[-1]
    z.sum().backward()
    torch.testing.assert_close(z, torch.ones(2, 2))
    torch.testing.assert_close(z0.grad, torch.ones(2, 2))


@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve", "forward"])
def test_a_gradient_that_is_asked_for_under_autocast_is_that_of_the_solve(engine: str, sensitivity: str) -> None:
    """The first and the second, of a solve that was made without it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
    z0 = torch.randn(3, 2, requires_grad=True)
    x = [z0, *net.parameters()]
    found = []
    for within in (False, True):
        z = pynode.solve(net, z0, [0.0, 1.0], engine=engine, sensitivity=sensitivity, rtol=1e-5, atol=1e-6).z
        with torch.autocast("cpu", torch.bfloat16, enabled=within):
            first = torch.autograd.grad(z, x, z.detach(), create_graph=True)
            found.append([*first, *torch.autograd.grad(first[1], x, first[1].detach())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
