"""Second and forward derivatives by every sensitivity and kind of solver, against a closed form: dz/dt = a cos(t) z."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pynode

A, T = 0.4, 1.0
TIGHT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}


class Growth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([[A]], dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.a * z * torch.cos(t)


def on(engine: str, how: str, solver: str, **keywords: Any) -> Any:
    marks = [pytest.mark.julia] if engine == "julia" else []
    return pytest.param(engine, {"sensitivity": how, "solver": solver, **keywords}, marks=marks)


def rarely(case: Any) -> Any:
    """Half a minute of compilation for a pair whose solver and sensitivity others have too."""
    return pytest.param(*case.values, marks=[*case.marks, pytest.mark.exhaustive])


CASES = [
    *[on("torch", how, "dopri5") for how in ("discrete", "backsolve", "forward")],
    rarely(on("torch", "backsolve", "radau")),
    on("torch", "forward", "lsoda"),
    *[
        on("julia", how, "tsit5")
        for how in ("discrete", "backsolve", "gauss", "interpolating", "quadrature", "forward")
    ],
    *[on("julia", how, "tsit5", batching="independent") for how in ("backsolve", "forward")],
    *[on("julia", how, "rodas5p") for how in ("gauss", "forward")],
    *[rarely(on("julia", "gauss", solver)) for solver in ("kencarp4", "qndf", "fbdf")],
    *[rarely(on("julia", how, "rodas5p")) for how in ("backsolve", "interpolating", "quadrature")],
]


@pytest.mark.parametrize(("engine", "keywords"), CASES, ids=lambda x: x if isinstance(x, str) else "-".join(x.values()))
def test_growth(engine: str, keywords: dict[str, Any]) -> None:
    """z(T) = z0 exp(a sin T): its second derivatives in a, z0 and T, and its derivative along z0."""
    field = Growth()
    z0 = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, T], dtype=torch.float64, requires_grad=True)

    def last(z0: Tensor, t: Tensor) -> Tensor:
        return pynode.solve(field, z0, t, engine=engine, **keywords, **TIGHT).z[-1]

    of_a, of_z, of_t = torch.autograd.grad(last(z0, t).sum(), (field.a, z0, t), create_graph=True)
    aa, az, at = torch.autograd.grad(of_a.sum(), (field.a, z0, t), retain_graph=True)
    (za,) = torch.autograd.grad(of_z[0].sum(), field.a, retain_graph=True)
    ta, tt = torch.autograd.grad(of_t[1], (field.a, t))
    s, c, e = math.sin(T), math.cos(T), math.exp(A * math.sin(T))
    found = [of_a.item(), *of_z.flatten().tolist(), of_t[1].item(), aa.item(), *az.flatten().tolist(), at[1].item()]
    found += [za.item(), ta.item(), tt[1].item()]
    mixed = 2 * c * e * (1 + A * s)
    expected = [2 * s * e, e, e, 2 * A * c * e, 2 * s * s * e, s * e, s * e, mixed]
    expected += [s * e, mixed, 2 * A * e * (A * c * c - s)]
    assert found == pytest.approx(expected, rel=2e-5)
    plain = (z0.detach(), t.detach())
    _, moved = torch.func.jvp(last, plain, (torch.ones_like(z0), torch.zeros(2, dtype=torch.float64)))
    assert moved.flatten().tolist() == pytest.approx([e, e], rel=1e-6)
