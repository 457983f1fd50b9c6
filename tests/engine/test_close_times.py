"""Times that are one rounding apart: values and gradients are those of the limit in which they are one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pynode

DOUBLE = torch.float64
CASES = [("torch", "discrete"), ("torch", "backsolve"), ("torch", "forward")]
CASES += [("julia", how) for how in ("discrete", "backsolve", "interpolating", "gauss", "quadrature", "forward")]


def _marks(engine: str, how: str) -> list[pytest.MarkDecorator]:
    if engine != "julia":
        return []
    return [pytest.mark.julia, *([pytest.mark.exhaustive] if how in ("interpolating", "quadrature") else [])]


CASES = [pytest.param(*c, marks=_marks(*c)) for c in CASES]  # type: ignore[misc]


class Decay(nn.Module):
    """z' = -k z."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(0.7, dtype=dtype))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return -self.k * z


def after(t: float, dtype: torch.dtype, roundings: int = 1) -> float:
    x = torch.tensor(t, dtype=dtype)
    for _ in range(roundings):
        x = torch.nextafter(x, x + 1)
    return x.item()


def times(kind: str, dtype: torch.dtype) -> list[float]:
    a = torch.tensor(2 / 3, dtype=dtype).item()
    return {
        "last two": [0.0, a, after(a, dtype)],
        "last three": [0.0, a, after(a, dtype), after(a, dtype, 2)],
        "first two": [a, after(a, dtype), 1.5],
        "inner": [0.0, 0.25, a, after(a, dtype), after(a, dtype, 3), after(a, dtype, 20), 1.0],
        "zero": [0.0, 5e-324 if dtype is DOUBLE else 1e-45, 1.0],
        "a span": [a, after(a, dtype)],
        "a span of several": [a, after(a, dtype), after(a, dtype, 2), after(a, dtype, 7)],
    }[kind]


@pytest.mark.parametrize(
    ("kind", "dtype", "backwards"),
    [
        ("last two", DOUBLE, False),
        ("last three", DOUBLE, True),
        ("first two", DOUBLE, True),
        ("inner", DOUBLE, False),
        ("inner", torch.float32, True),
        ("zero", DOUBLE, False),
        ("a span", DOUBLE, False),
        ("a span of several", torch.float32, False),
    ],
)
@pytest.mark.parametrize(("engine", "how"), CASES)
def test_values_and_gradients(engine: str, how: str, backwards: bool, dtype: torch.dtype, kind: str) -> None:
    """A loss of every time counts every time; the times' own gradients are the field's values there."""
    field, sign = Decay(dtype), -1.0 if backwards else 1.0
    t = (sign * torch.tensor(times(kind, dtype), dtype=dtype)).requires_grad_(how != "forward")
    z0 = torch.full((1, 1), 1.5, dtype=dtype, requires_grad=True)
    weights = torch.arange(1, len(t) + 1, dtype=dtype)
    keywords: dict[str, Any] = {"solver": "dopri5", "rtol": 1e-6, "atol": 1e-7}
    z = pynode.solve(field, z0, t, engine=engine, sensitivity=how, **keywords).z[:, 0, 0]
    found = torch.autograd.grad((weights * z).sum(), [z0, field.k, *([t] if t.requires_grad else [])])
    k, z1, s = field.k.detach().double().requires_grad_(), z0.detach().double().requires_grad_(), t.detach().double()
    s.requires_grad_(t.requires_grad)
    exact = z1[0, 0] * torch.exp(-k * (s - s[0]))
    expected = torch.autograd.grad((weights * exact).sum(), [z1, k, *([s] if s.requires_grad else [])])
    tolerance = 1e-3 if dtype is torch.float32 else 1e-5
    close: dict[str, Any] = {"rtol": tolerance, "atol": tolerance, "check_dtype": False}
    torch.testing.assert_close(z, exact, **close)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, **close)


@pytest.mark.parametrize("solver", ["dopri5", "dopri8", "bosh3", "rk4"])
@pytest.mark.parametrize("kind", ["a span", "first two", "inner", "last three"])
def test_solvers(engine: str, solver: str, kind: str) -> None:
    t = times(kind, DOUBLE)
    z0 = torch.ones(1, 1, dtype=DOUBLE)
    dt = {"dt": 0.01} if solver == "rk4" else {}
    z = pynode.solve(lambda t, z: -z, z0, t, engine=engine, solver=solver, rtol=1e-6, atol=1e-8, **dt).z[:, 0, 0]
    torch.testing.assert_close(z, torch.tensor([math.exp(t[0] - s) for s in t], dtype=DOUBLE), rtol=1e-5, atol=0)


@pytest.mark.julia
@pytest.mark.parametrize(
    "solver",
    [
        *("rodas5p", "fbdf"),
        *(
            pytest.param(s, marks=pytest.mark.exhaustive)
            for s in ("rosenbrock23", "kencarp4", "trbdf2", "qndf", "auto_stiff", "fbdf_krylov")
        ),
    ],
)
@pytest.mark.parametrize("kind", ["a span", "first two", "inner", "last three"])
def test_stiff_solvers(solver: str, kind: str) -> None:
    t = times(kind, DOUBLE)
    z0 = torch.ones(1, 1, dtype=DOUBLE, requires_grad=True)
    z = pynode.solve(lambda t, z: -z, z0, t, engine="julia", solver=solver, rtol=1e-7, atol=1e-9).z[:, 0, 0]
    exact = torch.tensor([math.exp(t[0] - s) for s in t], dtype=DOUBLE)
    torch.testing.assert_close(z, exact, rtol=1e-4, atol=0)
    z.sum().backward()
    assert z0.grad is not None
    assert z0.grad.item() == pytest.approx(exact.sum().item(), rel=1e-4)


@pytest.mark.parametrize("with_cost", [False, True])
def test_a_span_of_one_rounding_from_zero(engine: str, with_cost: bool) -> None:
    """What starts from zero, a running cost too, changes by more than any part of it, and yet by next to nothing."""
    z0 = torch.zeros(1, 1, dtype=DOUBLE)
    cost = {"running_cost": lambda t, z: z.square().sum(-1) + 1} if with_cost else {}
    solution = pynode.solve(lambda t, z: 1 - 2 * z, z0, times("a span", DOUBLE), engine=engine, **cost)
    assert solution.z[-1].item() == pytest.approx(0, abs=1e-12)
    assert not with_cost or solution.running_cost.item() == pytest.approx(0, abs=1e-12)
