"""torchdiffeq's options `jump_t` and `step_t` on either engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pynode import compat

DOUBLE = torch.float64
START, END, LAST = 5.0, 5.02, 10.0


class Infusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(0.1, dtype=DOUBLE))
        self.rate = nn.Parameter(torch.tensor(50.0, dtype=DOUBLE))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.k * y + self.rate * ((t >= START) & (t < END))

    def exact(self) -> Tensor:
        return self.rate / self.k * (torch.exp(-self.k * (LAST - END)) - torch.exp(-self.k * (LAST - START)))


@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
@pytest.mark.parametrize(
    "options",
    [
        {"jump_t": torch.tensor([END, START], dtype=DOUBLE)},
        {"jump_t": torch.tensor([START, END], dtype=DOUBLE), "step_t": torch.tensor([7.0, 20.0], dtype=DOUBLE)},
    ],
)
def test_jumps(engine: str, name: str, options: dict[str, Any]) -> None:
    field, t = Infusion(), torch.tensor([0.0, LAST], dtype=DOUBLE)
    y0 = torch.zeros(1, dtype=DOUBLE)
    y = getattr(compat, name)(field, y0, t, options=options, engine=engine)
    want = field.exact()
    torch.testing.assert_close(y[-1, 0], want, rtol=1e-5, atol=1e-7)
    got = torch.autograd.grad(y[-1, 0], list(field.parameters()))
    right = torch.autograd.grad(want, list(field.parameters()))
    torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-6)


def test_nothing_is_searched(engine: str) -> None:
    y = compat.odeint(
        Infusion(), torch.zeros(1, dtype=DOUBLE), torch.tensor([0.0, LAST], dtype=DOUBLE), rtol=1e-3, engine=engine
    )
    assert y[-1].item() == 0.0  # torchdiffeq's number
