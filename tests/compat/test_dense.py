"""`odeint_dense`: forwards it is torchdiffeq's; what torchdiffeq gets wrong is mended or refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

import pynode
from pynode.compat import odeint_dense

DOUBLE = torch.float64
Y0 = torch.tensor([[0.3, -0.7], [1.1, 0.2]], dtype=DOUBLE)


def number(x: float) -> Tensor:
    return torch.tensor(x, dtype=DOUBLE)


class Decay(nn.Module):
    """y' = -r t y: y(t) = y0 exp(r (t0² - t²) / 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(number(0.7))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.rate * t * y


def test_forwards_it_is_torchdiffeqs() -> None:
    field = Decay()
    expected = torchdiffeq.odeint_dense(field, Y0, number(0.0), number(2.0))
    found = odeint_dense(field, Y0, number(0.0), number(2.0))
    for t in torch.linspace(0, 2, 9, dtype=DOUBLE):
        assert torch.equal(found(t), expected(t))


@pytest.mark.parametrize(("t0", "t1"), [(0.5, 2.0), (2.0, 0.5), (1.0, -2.0), (-0.5, -2.0)])
def test_solution_and_gradients(t0: float, t1: float) -> None:
    field, y0 = Decay(), Y0.clone().requires_grad_()
    z = odeint_dense(field, y0, number(t0), number(t1))
    for s in (t0, 0.9 * t0 + 0.1 * t1, 0.4 * t0 + 0.6 * t1, t1):
        t = number(s).requires_grad_()
        growth = math.exp(0.35 * (t0**2 - s**2))
        torch.testing.assert_close(z(t), growth * Y0, rtol=1e-6, atol=1e-8)
        g_rate, g_y0, g_t = torch.autograd.grad(z(t).sum(), [field.rate, y0, t], retain_graph=True)
        total = growth * Y0.sum().item()
        assert g_rate.item() == pytest.approx(0.5 * (t0**2 - s**2) * total, abs=1e-5)
        assert g_t.item() == pytest.approx(-0.7 * s * total, abs=1e-4)
        torch.testing.assert_close(g_y0, torch.full_like(Y0, growth), rtol=1e-6, atol=0)


def test_backwards_with_a_jump_and_callbacks() -> None:
    """y' = 1 before t = 1, 5 after it, from t = 2 backwards."""

    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.times: list[float] = []

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return torch.ones_like(y) if t < 1 else torch.full_like(y, 5.0)

        def callback_accept_step(self, t: Tensor, y: Tensor, dt: Tensor) -> None:
            self.times.append(t.item())

    field = Steps()
    z = odeint_dense(
        field, torch.zeros(1, dtype=DOUBLE), number(2.0), number(0.0), options={"jump_t": number(1.0)[None]}
    )
    for t, expected in ((1.5, -2.5), (1.0, -5.0), (0.25, -5.75)):
        assert z(number(t)).item() == pytest.approx(expected, abs=1e-9)
    assert field.times[0] == 2.0
    assert 1.0 in field.times
    assert field.times == sorted(field.times, reverse=True)


@pytest.mark.parametrize(
    ("keywords", "t", "message"),
    [
        ({}, -0.1, "spans the times from 0 to 2, got -0.1"),
        ({}, 50.0, "spans the times from 0 to 2, got 50"),
        ({"t0": 2.0, "t1": 0.0}, 2.1, "spans the times"),
        ({}, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], r"takes one time, 0-d, got shape \(6,\)"),
        ({"method": "rk4"}, 0.1, "the steps of 'dopri5' only, got method='rk4'"),
    ],
)
def test_what_torchdiffeq_gets_wrong_is_refused(keywords: dict[str, Any], t: Any, message: str) -> None:
    times = {name: number(keywords.pop(name, default)) for name, default in (("t0", 0.0), ("t1", 2.0))}
    with pytest.raises(pynode.InputError, match=message):
        odeint_dense(Decay(), Y0, **times, **keywords)(torch.tensor(t, dtype=DOUBLE))


def test_a_gradient_of_the_first_time_is_refused() -> None:
    with pytest.raises(pynode.InputError, match=r"no gradient with respect to t0.*t0\.detach\(\)"):
        odeint_dense(Decay(), Y0, number(0.0).requires_grad_(), number(1.0))
