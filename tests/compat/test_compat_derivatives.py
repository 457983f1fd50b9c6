"""Derivatives of `pynode.compat` that torchdiffeq leaves out, or gets wrong, without a word."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

import pynode
from pynode import compat
from pynode.compat import odeint, odeint_adjoint, odeint_event

DOUBLE = torch.float64
T = torch.tensor([0.0, 0.4, 1.0], dtype=DOUBLE)
INTERFACES = [odeint, odeint_adjoint]


class Square(nn.Module):
    """y' = -a y²: y(t) = 1 / (1/y0 + a t)."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.7, dtype=DOUBLE))

    def forward(self, t: Tensor, y: Any) -> Any:
        return tuple(-self.a * x * x for x in y) if isinstance(y, tuple) else -self.a * y * y


def leaf(*values: float) -> Tensor:
    return torch.tensor(values, dtype=DOUBLE, requires_grad=True)


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("reverse", [False, True])
def test_event_function_with_a_parameter(interface: Any, reverse: bool, engine: str) -> None:
    """The time and the state at which y = c, of two values of which the other is not met."""
    field, y0, c = Square(), leaf(2.0), leaf(4.0 if reverse else 0.5)
    t0 = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
    t, y = odeint_event(
        field, y0, t0, event_fn=lambda t, y: torch.cat([y - c, t.reshape(1) - 90]), reverse_time=reverse,
        odeint_interface=interface, engine=engine,
    )  # fmt: skip
    inputs, a = [y0, t0, field.a, c], 0.7
    gap = 1 / c.item() - 0.5
    exact = [1 / (4 * a), 1.0, -gap / a**2, -1 / (a * c.item() ** 2)]
    assert t.item() == pytest.approx(0.3 + gap / a, abs=1e-6)
    assert [g.item() for g in torch.autograd.grad(t, inputs, retain_graph=True)] == pytest.approx(exact, abs=1e-4)
    of_state = [g.item() for g in torch.autograd.grad(y[-1].sum(), inputs)]
    assert of_state == pytest.approx([0.0, 0.0, 0.0, 1.0], abs=1e-4)


def test_event_of_a_complex_state_and_of_a_tuple() -> None:
    """y' = iwy turns; the event is where its real part is c = cos(wt)."""
    w, c = leaf(2.0), leaf(0.3)
    t, y = odeint_event(
        lambda t, y: (1j * w * y[0], torch.ones_like(y[1])),
        (torch.ones(1, dtype=torch.complex128), torch.zeros(1, dtype=torch.complex128)),
        T[0],
        event_fn=lambda t, y: y[0].real - c,
        engine="torch",
    )
    slope = -2 * (1 - 0.09) ** 0.5
    of_w, of_c = torch.autograd.grad(t, [w, c], retain_graph=True)
    assert [t.item(), of_w.item(), of_c.item()] == pytest.approx([0.633052, -0.633052 / 2, 1 / slope], abs=1e-5)
    assert torch.autograd.grad(y[1][-1].real.sum(), c)[0].item() == pytest.approx(1 / slope, abs=1e-5)


@pytest.mark.parametrize("interface", INTERFACES)
def test_second_derivatives_of_an_event_raise(interface: Any) -> None:
    field, y0 = Square(), leaf(2.0)
    t, y = odeint_event(field, y0, T[0], event_fn=lambda t, y: y - 0.5, odeint_interface=interface, engine="torch")
    for of in (t, y[-1].sum()):
        (first,) = torch.autograd.grad(of, y0, create_graph=True)
        with pytest.raises(pynode.EngineUnavailable, match="no further derivative"):
            torch.autograd.grad(first.sum() + 0 * y0.sum(), [y0, field.a])


def test_the_time_of_odeints_event_function_has_no_gradient() -> None:
    for interface in INTERFACES:
        t, y = interface(Square(), leaf(2.0), T[:2], event_fn=lambda t, y: y - 0.5, engine="torch")
        assert not t.requires_grad
        assert y.requires_grad


@pytest.mark.parametrize("name", ["tensor", "tuple", "complex"])
def test_second_derivatives_of_torchdiffeqs_adjoint_raise(name: str) -> None:
    """Whatever else the loss has: the gradient would count as a constant of it."""
    field = Square()
    leaves: list[Any] = [leaf(2.0), leaf(1.0, 3.0)] if name == "tuple" else [leaf(2.0)]
    if name == "complex":
        leaves = [torch.tensor([1 + 0.5j], dtype=torch.complex128, requires_grad=True)]
    y = odeint_adjoint(field, tuple(leaves) if name == "tuple" else leaves[0], T, engine="torch")
    loss = sum((x[-1].abs() ** 2).sum() for x in (y if name == "tuple" else (y,)))
    inputs = [*leaves, field.a]
    assert all(g is not None for g in torch.autograd.grad(loss, inputs, retain_graph=True))
    for g in torch.autograd.grad(loss, inputs, create_graph=True):
        for x in inputs:
            with pytest.raises(pynode.EngineUnavailable, match=r"torchdiffeq's adjoint .* no further derivative"):
                torch.autograd.grad((g.abs() ** 2).sum() + sum(x.abs().sum() for x in inputs), x, retain_graph=True)


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_second_derivatives_of_odeint_are_torchdiffeqs(method: str) -> None:
    found: list[Any] = []
    for module, more in ((compat, {"engine": "torch"}), (torchdiffeq, {})):
        field, y0 = Square(), leaf(2.0, 0.5)
        loss = module.odeint(field, y0, T, method=method, **more)[-1].square().sum()
        first = torch.autograd.grad(loss, [y0, field.a], create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), [y0, field.a]))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("y0", [torch.tensor([2.0, 0.5]), torch.tensor([[2.0], [0.5]]), torch.tensor(2.0)])
def test_transforms(interface: Any, y0: Tensor) -> None:
    """Those of torch.func, of which torchdiffeq's own functions take none."""
    y0, field = y0.double(), Square()
    n = y0.numel()

    def last(y0: Tensor) -> Tensor:
        z: Tensor = interface(field, y0, T, rtol=1e-9, engine="torch")[-1]
        return z

    exact = 1 / (1 + 0.7 * y0) ** 2
    tolerances = {"rtol": 1e-5, "atol": 1e-6}
    _, moved = torch.func.jvp(last, (y0,), (torch.ones_like(y0),))
    torch.testing.assert_close(moved.detach(), exact, **tolerances)
    torch.testing.assert_close(torch.func.grad(lambda y: last(y).sum())(y0).detach(), exact, **tolerances)
    hessian = torch.func.hessian(lambda y: last(y).sum())(y0).detach().reshape(n, n)
    torch.testing.assert_close(hessian, torch.diag((-1.4 / (1 + 0.7 * y0) ** 3).reshape(-1)), **tolerances)
    many = torch.stack([y0, 2 * y0])
    torch.testing.assert_close(torch.vmap(last)(many).detach(), many / (1 + 0.7 * many), **tolerances)


def test_forward_mode_of_an_event_raises() -> None:
    def time(y0: Tensor) -> Tensor:
        t, _ = odeint_event(Square(), y0, T[0], event_fn=lambda t, y: y - 0.5, engine="torch")
        return t  # type: ignore[no-any-return]

    with pytest.raises(pynode.EngineUnavailable, match="no forward derivatives"):
        torch.func.jvp(time, (torch.tensor([2.0], dtype=DOUBLE),), (torch.ones(1, dtype=DOUBLE),))


def test_scipys_solvers_say_that_they_have_no_gradient() -> None:
    keywords = {"method": "scipy_solver", "options": {"solver": "LSODA"}, "engine": "torch"}
    for field, y0 in ((Square(), leaf(2.0).detach()), (lambda t, y: -y, leaf(2.0))):
        with pytest.warns(UserWarning, match="use odeint_adjoint") as caught:
            assert not odeint(field, y0, T, **keywords).requires_grad
        assert caught[0].filename == __file__
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error")
            odeint(field, y0, T, **keywords)
