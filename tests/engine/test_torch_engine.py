"""The torch engine: gradients at many reported times."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
import torchdiffeq
from problems import MLP
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import pynode
from pynode.engine.torch import stacked

DOUBLE = torch.float64


class Work(TorchDispatchMode):
    """How many numbers the operations within the context write."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.numbers += sum(x.numel() for x in (out if isinstance(out, tuple | list) else [out]) if x is not None)
        return out


CASES = [("dopri5", None), ("euler", 1.0), pytest.param("rk4", 1.0, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("solver", "dt"), CASES)
def test_work_of_the_backward_pass_grows_with_the_number_of_times(solver: str, dt: float | None) -> None:
    field, z0 = MLP(), torch.randn(100, 2, dtype=DOUBLE)
    work = []
    for count in (300, 1200):
        t = torch.linspace(0, 1, count, dtype=DOUBLE)
        sol = pynode.solve(field, z0, t, solver=solver, dt=dt, sensitivity="discrete", engine="torch")
        loss = sol.z.square().sum()
        with Work() as counted:
            loss.backward()
        work.append(counted.numbers)
    assert work[1] < 5 * work[0]


@pytest.mark.parametrize(("solver", "dt"), CASES)
@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_gradients_are_those_of_torchdiffeq(solver: str, dt: float | None, direction: float) -> None:
    """But for the choice of the first step, which torchdiffeq differentiates as well; here it is given."""
    field, z0 = MLP(), torch.randn(5, 2, dtype=DOUBLE, requires_grad=True)
    t = (direction * torch.linspace(0, 1, 200, dtype=DOUBLE) ** 2).requires_grad_()
    options: dict[str, Any] = {"step_t": t[-1:]} if solver == "dopri5" else {}
    if solver == "dopri5":
        lengths: list[float] = []
        with torch.no_grad():
            field.callback_step = lambda t, z, dt: lengths.append(dt.item())  # type: ignore[assignment]
            torchdiffeq.odeint(field, z0, t, method=solver, rtol=1e-6, atol=1e-8, options=options)
        del field.callback_step
        options["first_step"] = lengths[0]
    exact = torchdiffeq.odeint(field, z0, t, method=solver, rtol=1e-6, atol=1e-8, options=options)
    how: dict[str, Any] = {"solver": solver, "dt": dt, "sensitivity": "discrete", "engine": "torch"}
    z = pynode.solve(field, z0, t, rtol=1e-6, atol=1e-8, **how).z
    torch.testing.assert_close(z, exact, rtol=1e-12, atol=1e-12)
    weight = torch.randn(*z.shape, dtype=DOUBLE)
    inputs: list[Tensor] = [z0, t, *field.parameters()]
    expected = torch.autograd.grad((weight * exact).sum(), inputs)
    for g, e in zip(torch.autograd.grad((weight * z).sum(), inputs), expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("change", ["other numbers", "another signature", "not there"])
def test_another_torchdiffeq(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is taken from torchdiffeq's inside may change: its public function is called then."""
    inside = importlib.import_module("torchdiffeq._impl.odeint")
    assert all(cls.__module__.startswith("torchdiffeq.") for cls in inside.SOLVERS.values())  # its table is not ours
    field, z0, t = MLP(), torch.ones(2, 2, dtype=DOUBLE), torch.linspace(0, 1, 20, dtype=DOUBLE)
    expected = torchdiffeq.odeint(field, z0, t, rtol=1e-3, atol=1e-6, options={"step_t": t[-1:]})
    if change == "other numbers":
        advance = inside.SOLVERS["dopri5"]._advance
        before = inside.SOLVERS["dopri5"]._before_integrate
        monkeypatch.setattr(
            inside.SOLVERS["dopri5"], "integrate", lambda solver, t: before(solver, t) or 2 * advance(solver, t[-1])
        )
    elif change == "another signature":
        monkeypatch.setattr(inside, "_check_inputs", lambda func, y0: None)
    else:
        monkeypatch.delattr(inside, "_flat_to_shape")
    stacked._inside.cache_clear()
    try:
        assert stacked._inside() is None
        monkeypatch.undo()
        z = pynode.solve(field, z0, t, solver="dopri5", engine="torch").z
        assert torch.equal(z, expected)
        assert z.requires_grad
    finally:
        stacked._inside.cache_clear()


@pytest.mark.parametrize("others", [0, 1, 2])
@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve", "forward"])
def test_a_complex_parameter_beside_real_ones(engine: str, sensitivity: str, others: int) -> None:
    """Its gradient is part of torchdiffeq's flat state, and begins at an odd place after an odd number of others."""
    a = torch.tensor(0.3 + 0.8j, dtype=torch.complex128, requires_grad=True)
    r = torch.full((others,), 0.2, dtype=DOUBLE, requires_grad=True)
    z0, t = torch.ones(1, 1, dtype=DOUBLE, requires_grad=True), torch.tensor([0.0, 0.5, 1.0], dtype=DOUBLE)
    inputs = [z0, a, r] if others else [z0, a]

    def rate() -> Tensor:
        return (a * (1 + r.sum())).real

    sol = pynode.solve(lambda t, z: rate() * z, z0, t, sensitivity=sensitivity, rtol=1e-9, atol=1e-11, engine=engine)
    found = torch.autograd.grad(sol.z.square().sum(), inputs)
    expected = torch.autograd.grad((torch.exp(rate() * t[:, None, None]) * z0).square().sum(), inputs)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)
