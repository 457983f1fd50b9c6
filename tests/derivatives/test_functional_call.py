"""Second derivatives of solves within `torch.func.functional_call`: the module has its own tensors back by then."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import pynode


class Growth(nn.Module):
    """dz/dt = k c z, with a parameter k and a buffer c."""

    def __init__(self) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.register_buffer("c", torch.tensor(1.0, dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.k * self.c * z


@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve"])
def test_of_the_tensors_that_were_given(engine: str, sensitivity: str) -> None:
    """Twice in a row, since the second solve takes what the first has learnt; then of the module's own."""

    class Solved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.field = Growth()

        def forward(self, z0: Tensor, end: Tensor) -> Tensor:
            how = {"engine": engine, "sensitivity": sensitivity, "rtol": 1e-9, "atol": 1e-9}
            return pynode.solve(self.field, z0, torch.stack([0 * end, end]), **how).z[-1].sum()

    model, z0 = Solved(), torch.ones(1, 1, dtype=torch.float64)
    k, c = (torch.tensor(x, dtype=torch.float64) for x in (0.3, 2.0))
    end = torch.ones((), dtype=torch.float64, requires_grad=True)
    k.requires_grad_()
    for given in ({"field.k": k, "field.c": c}, {"field.k": k, "field.c": c}, {}):
        rate, factor = (given["field.k"], 2.0) if given else (model.field.k, 1.0)
        (first,) = torch.autograd.grad(torch.func.functional_call(model, given, (z0, end)), rate, create_graph=True)
        second, of_end = torch.autograd.grad(first, (rate, end))
        value = math.exp(rate.item() * factor)
        assert first.item() == pytest.approx(factor * value, rel=1e-6)
        assert second.item() == pytest.approx(factor**2 * value, rel=1e-6)
        assert of_end.item() == pytest.approx((factor + rate.item() * factor**2) * value, rel=1e-6)
