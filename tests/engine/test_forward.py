"""Forward sensitivities: exact derivatives, samples that mix, what they may take, what they are refused for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode import InputError

DOUBLE = torch.float64
FINE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}


class LotkaVolterra(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([1.5, 1.0, 3.0, 1.0], dtype=DOUBLE))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        a, b, c, d = self.p
        x, y = z.unbind(-1)
        return torch.stack([a * x - b * x * y, d * x * y - c * y], -1)


def gradients(how: Any, field: Any, inputs: list[Tensor], engine: str, **options: Any) -> tuple[Tensor, ...]:
    z0, *args = options.pop("state")
    sol = pynode.solve(field, z0, [0.0, 0.4, 1.0], args=args, sensitivity=how, engine=engine, **{**FINE, **options})
    weight = torch.arange(1.0, sol.z.numel() + 1, dtype=DOUBLE).sin().reshape(sol.z.shape)
    loss = (weight * sol.z).sum() + (0 if sol.running_cost is None else sol.running_cost.square().sum())
    return torch.autograd.grad(loss, inputs)


def agree(field: Any, inputs: list[Tensor], engine: str, **options: Any) -> None:
    """The gradients are those of the discrete adjoint."""
    found, expected = (gradients(how, field, inputs, engine, **options) for how in ("forward", "discrete"))
    for g, e in zip(found, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-6, atol=1e-7)


def test_lotka_volterra(engine: str) -> None:
    field, z0 = LotkaVolterra(), torch.tensor([[1.0, 1.0], [2.0, 0.5]], dtype=DOUBLE, requires_grad=True)
    agree(field, [z0, field.p], engine, state=(z0,))


def test_gradient_without_evaluations(engine: str) -> None:
    field, z0 = LotkaVolterra(), torch.tensor([[1.0, 1.0]], dtype=DOUBLE)
    sol = pynode.solve(field, z0, [0.0, 1.0], sensitivity="forward", engine=engine)
    sol.z.sum().backward()
    assert sol.stats.nfe_backward == 0


def test_a_field_that_changes_before_its_gradient(engine: str) -> None:
    """The gradient to the times evaluated the field as it was then."""

    class Decay(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(0.7, dtype=DOUBLE))
            self.scale: Tensor
            self.register_buffer("scale", torch.ones((), dtype=DOUBLE))
            self.factors = [1.0]

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return -self.rate * self.scale * self.factors[0] * z

    def to_buffer(field: Decay) -> None:
        field.scale.mul_(3)

    def to_list(field: Decay) -> None:
        field.factors[0] = 3.0

    def to_parameter(field: Decay) -> None:
        field.rate.data.mul_(3)

    for change in (to_buffer, to_list, to_parameter):
        field, t = Decay(), torch.tensor([0.0, 1.0], dtype=DOUBLE, requires_grad=True)
        z0 = torch.ones(1, 1, dtype=DOUBLE)
        sol = pynode.solve(field, z0, t, sensitivity="forward", engine=engine, rtol=1e-9, atol=1e-11)
        change(field)
        (found,) = torch.autograd.grad(sol.z[-1].sum(), t)
        slope = -0.7 * math.exp(-0.7)
        torch.testing.assert_close(found, torch.tensor([-slope, slope], dtype=DOUBLE), rtol=1e-7, atol=0)


class Gated(nn.Module):
    """A mean over the batch, by a weight that is zero at first."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=DOUBLE))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return -z + self.weight * torch.sin(z).mean(0, keepdim=True)


def test_samples_whose_mixing_has_no_derivative_at_first(engine: str) -> None:
    """The square of a mean that is zero, a weight of zero: samples were taken for such as depend on no other."""
    z0 = torch.tensor([[1.0], [-1.0]], dtype=DOUBLE, requires_grad=True)
    agree(lambda t, z: t - z + z.mean(0, keepdim=True) ** 2, [z0], engine, state=(z0,))
    field = Gated()
    for weight in (0.0, 1.0):
        field.weight.data.fill_(weight)
        agree(field, [z0, field.weight], engine, state=(z0,))


def test_samples_that_mix(engine: str) -> None:
    """By a mean over the batch; by a conditioning matrix that has, by chance, as many rows as there are samples."""
    w = nn.Parameter(torch.tensor(0.7, dtype=DOUBLE))
    z0 = torch.randn(3, 2, dtype=DOUBLE, requires_grad=True)
    agree(lambda t, z: torch.sin(w * z.mean(0, keepdim=True)) - z, [z0, w], engine, state=(z0,))
    u = torch.randn(2, 2, dtype=DOUBLE, requires_grad=True)
    z0 = z0[:2].detach().requires_grad_()
    agree(lambda t, z, u: torch.tanh(w * z @ u), [z0, u, w], engine, state=(z0, u))


def test_conditioning_tensors(engine: str) -> None:
    """One with a row for each sample, one that all share, and labels that have no gradient."""
    w = nn.Parameter(torch.tensor(0.7, dtype=DOUBLE))
    z0, u = (torch.randn(3, 2, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    v, fixed = torch.randn(2, dtype=DOUBLE, requires_grad=True), torch.randn(3, 1, dtype=DOUBLE)

    def field(t: Tensor, z: Tensor, u: Tensor, v: Tensor, fixed: Tensor) -> Tensor:
        return torch.cos(w * t + u * z) * v - fixed * z

    agree(field, [z0, u, v, w], engine, state=(z0, u, v, fixed))


def test_only_what_is_wanted(engine: str) -> None:
    field, z0 = LotkaVolterra(), torch.tensor([[1.0, 1.0]], dtype=DOUBLE)
    agree(field, [field.p], engine, state=(z0,))
    z0.requires_grad_()
    field.requires_grad_(False)
    agree(field, [z0], engine, state=(z0,))


def test_parametrized_weight(engine: str) -> None:
    net = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2, dtype=DOUBLE))
    z0 = torch.randn(3, 2, dtype=DOUBLE)
    agree(lambda t, z: torch.tanh(net(z)), list(net.parameters()), engine, state=(z0,))


def test_running_cost(engine: str) -> None:
    field, z0 = LotkaVolterra(), torch.tensor([[1.0, 1.0], [2.0, 0.5]], dtype=DOUBLE, requires_grad=True)
    agree(field, [z0, field.p], engine, state=(z0,), running_cost=lambda t, z: (z**2).sum(-1))


def test_independent_samples(engine: str) -> None:
    field, z0 = LotkaVolterra(), torch.tensor([[1.0, 1.0], [2.0, 0.5]], dtype=DOUBLE, requires_grad=True)
    agree(field, [z0, field.p], engine, state=(z0,), batching="independent")


def test_dense_and_event(engine: str) -> None:
    field, z0 = LotkaVolterra(), torch.tensor([[1.0, 1.0]], dtype=DOUBLE)
    sol = pynode.solve(
        field, z0, [0.0, 5.0], event=lambda t, z: z[0, 1] - 2, sensitivity="forward", dense=True, engine=engine, **FINE
    )
    assert sol.event_t is not None
    assert sol(0.5).shape == (1, 2)
    (found,) = torch.autograd.grad(sol.event_t, field.p)
    again = pynode.solve(field, z0, [0.0, 5.0], event=lambda t, z: z[0, 1] - 2, engine=engine, **FINE)
    (expected,) = torch.autograd.grad(again.event_t, field.p)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_state_is_as_accurate_as_without_tangents(engine: str) -> None:
    """Also where the tangents, 42 of them, have next to no error."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    z0 = torch.randn(4, 2, dtype=DOUBLE)

    def field(t: Tensor, z: Tensor) -> Tensor:
        return 4 * torch.sin(9 * t) * z + 1e-3 * net(z)

    exact, alone, beside = (
        pynode.solve(field, z0, [0.0, 3.0], sensitivity=how, engine=engine, **options).z[-1].detach()
        for how, options in (("discrete", FINE), ("discrete", {}), ("forward", {}))
    )
    assert (beside - exact).abs().max() <= 1.5 * (alone - exact).abs().max()


@pytest.mark.julia
def test_gradient_of_a_stiff_field() -> None:
    """Van der Pol with μ = 1e3: the derivatives are solved for with the state's accuracy."""

    class VanDerPol(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mu = nn.Parameter(torch.tensor(1e3, dtype=DOUBLE))

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            x, y = z.unbind(-1)
            return torch.stack([y, self.mu * (1 - x**2) * y - x], -1)

    field, z0 = VanDerPol(), torch.tensor([[2.0, 0.0]], dtype=DOUBLE)
    sol = pynode.solve(
        field, z0, [0.0, 3000.0], solver="rodas5p", sensitivity="forward", engine="julia", rtol=1e-9, atol=1e-11
    )
    sol.z[-1].sum().backward()
    assert field.mu.grad is not None
    assert field.mu.grad.item() == pytest.approx(-0.0035417, rel=1e-3)  # by central differences at 1e-11


@pytest.mark.julia
def test_a_new_batch_size_needs_no_other_kernel() -> None:
    from pynode.engine.julia import runtime as julia_runtime

    field = LotkaVolterra()
    counts = []
    for batch in (1, 3, 7):
        z0 = torch.rand(batch, 2, dtype=DOUBLE) + 0.5
        pynode.solve(field, z0, [0.0, 1.0], sensitivity="forward", engine="julia").z.sum().backward()
        counts.append(julia_runtime.module().kernel_count())
    assert counts[0] == counts[1] == counts[2]


def test_too_many_tangents_are_refused(engine: str) -> None:
    net, z0 = nn.Linear(100, 100), torch.zeros(8, 100)
    with pytest.raises(InputError, match=r"carries 10100 derivatives of each of the state's 800 .* 'discrete'"):
        pynode.solve(lambda t, z: net(z), z0, [0.0, 1.0], sensitivity="forward", engine=engine)
    field, z0 = LotkaVolterra(), torch.ones(1, 2, dtype=DOUBLE)
    for memory, ok in (("1kB", False), ("64KiB", True)):
        how = pynode.Forward(memory=memory)
        if ok:
            pynode.solve(field, z0, [0.0, 1.0], sensitivity=how, engine=engine)
        else:
            with pytest.raises(InputError, match=r"raise pynode\.Forward"):
                pynode.solve(field, z0, [0.0, 1.0], sensitivity=how, engine=engine)


def test_samples_that_mix_count_each() -> None:
    z0 = torch.ones(40, 2, requires_grad=True)
    with pytest.raises(InputError, match=r"carries 80 derivatives .* depend on one another"):
        pynode.solve(
            lambda t, z: z.mean(0, keepdim=True) - z,
            z0,
            [0.0, 1.0],
            sensitivity=pynode.Forward(memory="10kB"),
            engine="torch",
        )


def test_memory_option() -> None:
    with pytest.raises(InputError, match=r"Forward\(memory=…\) must be a positive number of bytes"):
        pynode.Forward(memory="much")


@pytest.mark.julia
def test_a_julia_field_is_refused() -> None:
    field = pynode.JuliaField("(u, p, t) -> -p .* u", torch.ones(2, dtype=DOUBLE))
    with pytest.raises(pynode.EngineUnavailable, match="JuliaField, whose products have no derivative"):
        pynode.solve(field, torch.ones(1, 2, dtype=DOUBLE), [0.0, 1.0], sensitivity="forward")
