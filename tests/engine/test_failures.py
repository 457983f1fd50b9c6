"""The engine contract on failure: an error that names the remedy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from problems import draw, solver_cases
from torch import Tensor, nn

import pynode
from pynode import Retcode
from pynode.engine import SolverInfo

DOUBLE = torch.float64


class _Square(nn.Module):
    """z' = z², which from 1 is infinite at t = 1."""

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return z**2


def solvers_and_dtypes() -> list[Any]:
    """In single precision, for which Julia compiles a solver again, only some of its solvers by default."""
    some = ("dopri5", "rk4", "vern7", "rodas5p", "fbdf")

    def marks(case: Any, dtype: torch.dtype) -> list[Any]:
        engine, info = case.values
        rare = engine == "julia" and dtype is not DOUBLE and info.name not in some
        return [*case.marks, pytest.mark.exhaustive] if rare else list(case.marks)

    return [
        pytest.param(*case.values, dtype, marks=marks(case, dtype), id=f"{case.id}-{str(dtype)[6:]}")
        for case in solver_cases()
        for dtype in (torch.float32, DOUBLE)
    ]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("engine", "info", "dtype"), solvers_and_dtypes())
def test_blow_up_is_an_error(engine: str, info: SolverInfo, dtype: torch.dtype) -> None:
    z0 = torch.ones(2, 1, dtype=dtype)
    how: dict[str, float] = {} if info.adaptive else {"dt": 0.01}
    if info.adaptive and info.order <= 2:  # which else takes ten thousand steps until there
        how = {"rtol": 1e-2, "atol": 1e-3}
    keywords: dict[str, Any] = {"solver": info.name, "engine": engine, **how}
    with pytest.raises(pynode.SolveError, match="stopped at t=") as caught:
        pynode.solve(_Square(), z0, [0.0, 0.5, 0.9, 2.0], **keywords)
    assert isinstance(caught.value, ArithmeticError)
    sol = pynode.solve(_Square(), z0, [0.0, 0.5, 0.9, 2.0], throw=False, **keywords)
    assert sol.retcode is caught.value.retcode
    assert sol.retcode in (Retcode.NON_FINITE, Retcode.STEP_UNDERFLOW, Retcode.FAILURE, Retcode.MAX_STEPS)
    assert torch.isnan(sol.z[3]).all()
    assert sol.stats.nfe < 40_000  # as many as within max_steps, or far fewer
    tolerance = 0.1 if info.order <= 2 else 3e-2 if info.stiff else 1e-2
    torch.testing.assert_close(sol.z[:2, 0, 0], torch.tensor([1.0, 2.0], dtype=dtype), rtol=tolerance, atol=0)


def test_max_steps(engine: str) -> None:
    field, z0, _ = draw("linear")
    with pytest.raises(pynode.SolveError, match=r"max_steps was reached: raise max_steps") as caught:
        pynode.solve(field, z0, [0.0, 100.0], engine=engine, max_steps=5)
    assert caught.value.retcode is Retcode.MAX_STEPS
    with pytest.raises(pynode.SolveError, match="max_steps"):
        pynode.solve(field, z0, [0.0, 1.0], engine=engine, max_steps=9, solver="euler", dt=0.1)
    assert pynode.solve(field, z0, [0.0, 1.0], engine=engine, max_steps=10, solver="euler", dt=0.1).stats.nfe >= 10


def test_field_that_becomes_nan(engine: str) -> None:
    class Root(nn.Module):
        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return -torch.ones_like(z) + 0 * torch.sqrt(z)

    sol = pynode.solve(Root(), torch.ones(1, 1, dtype=DOUBLE), [0.0, 0.5, 2.0], engine=engine, throw=False)
    assert sol.retcode in (Retcode.NON_FINITE, Retcode.STEP_UNDERFLOW)
    assert torch.isnan(sol.z[-1]).all()
    assert sol.z[0].item() == 1
    assert torch.isnan(sol.z[1]).item() or sol.z[1].item() == pytest.approx(0.5)


def test_no_gradient_through_a_failure(engine: str) -> None:
    z0 = torch.ones(1, 1, dtype=DOUBLE, requires_grad=True)
    sol = pynode.solve(_Square(), z0, [0.0, 2.0], engine=engine, throw=False)
    with pytest.raises(pynode.SolveError, match="no gradient"):
        sol.z.sum().backward()


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_scipys_refusal_of_what_is_not_finite_is_a_solve_error() -> None:
    """The backward solve of a relaxation oscillation blows up; SciPy's linear algebra then raises."""

    class VanDerPol(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mu = torch.nn.Parameter(torch.tensor(1e3, dtype=torch.float64))

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            x, y = z.unbind(-1)
            return torch.stack([y, self.mu * (1 - x**2) * y - x], -1)

    z0 = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    sol = pynode.solve(VanDerPol(), z0, [0.0, 50.0], engine="torch", solver="radau", rtol=1e-2, atol=1e-3)
    with pytest.raises(pynode.SolveError, match=r"the backward solve stopped at t=.*infinite or NaN") as caught:
        sol.z[-1].sum().backward()
    assert "infs or NaNs" in str(caught.value.__context__)


# ---- what a solver only warns of -----------------------------------------------------------------


class _Forced(nn.Module):
    """z' = -k (z - cos t), to which an implicit method's functional iteration converges for small k dt only."""

    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(k, dtype=DOUBLE))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return -self.k * (z - torch.cos(t))

    def exact(self, t: float) -> float:
        k = self.k.item()
        return (k * k * (math.cos(t) - math.exp(-k * t)) + k * math.sin(t)) / (k * k + 1) + math.exp(-k * t)


@pytest.mark.filterwarnings("error")
def test_adams_that_does_not_converge_fails() -> None:
    z0 = torch.ones(1, 1, dtype=DOUBLE)
    keywords: dict[str, Any] = {"solver": "adams", "engine": "torch"}
    with pytest.raises(pynode.SolveError, match=r"stopped at t=0.2: .*reduce dt .*a stiff one") as caught:
        pynode.solve(_Forced(40.0), z0, [0.0, 1.0, 2.0], dt=0.1, **keywords)
    assert caught.value.retcode is Retcode.FAILURE
    # Slowly, but it does converge.
    field = _Forced(4.0)
    z = pynode.solve(field, z0, [0.0, 1.0, 2.0], dt=0.02, rtol=1e-7, atol=1e-9, **keywords).z
    assert z[-1].item() == pytest.approx(field.exact(2.0), abs=1e-6)


@pytest.mark.filterwarnings("error")
def test_adams_that_does_not_converge_backwards_fails() -> None:
    field, z0 = _Forced(40.0), torch.ones(1, 1, dtype=DOUBLE)
    how = pynode.Backsolve(rtol=1e-12, atol=1e-14)
    z = pynode.solve(field, z0, [0.0, 0.1], solver="adams", dt=0.01, sensitivity=how, engine="torch", rtol=0.1).z
    with pytest.raises(pynode.SolveError, match=r"the backward solve stopped at t=.*reduce dt") as caught:
        z[-1].sum().backward()
    assert caught.value.retcode is Retcode.FAILURE


@pytest.mark.filterwarnings("error", "ignore:At least one element of `rtol` is too small")
@pytest.mark.parametrize("solver", ["lsoda", "bdf"])
def test_scipys_solvers_that_give_up_backwards_fail(solver: str) -> None:
    field, z0 = _Forced(1.0), torch.ones(1, 1, dtype=DOUBLE)
    how = pynode.Backsolve(rtol=1e-30, atol=1e-30)
    z = pynode.solve(field, z0, [0.0, 0.5, 4.0], solver=solver, sensitivity=how, engine="torch").z
    with pytest.raises(pynode.SolveError, match="the backward solve stopped at t=") as caught:
        z[-1].sum().backward()
    assert caught.value.retcode is Retcode.FAILURE
    if solver == "lsoda":
        sol = pynode.solve(field, z0, [0.0, 4.0], solver=solver, rtol=1e-30, atol=1e-30, engine="torch", throw=False)
        assert sol.retcode is Retcode.FAILURE


# ---- what was reached ----------------------------------------------------------------------------


class _Turning(nn.Module):
    """z' = ω (z₂, -z₁), with a row of ω for each sample: z(t) = (cos ωt, -sin ωt) from (1, 0)."""

    def forward(self, t: Tensor, z: Tensor, omega: Tensor) -> Tensor:
        return omega * torch.stack([z[:, 1], -z[:, 0]], 1)


def _turned(t: Tensor, omega: Tensor) -> Tensor:
    angle = omega[:, 0] * t
    return torch.stack([torch.cos(angle), -torch.sin(angle)], 1)


START = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=DOUBLE)
OMEGA = torch.tensor([[20.0], [1.0]], dtype=DOUBLE)


@pytest.mark.parametrize("end", [10.0, -10.0])
@pytest.mark.parametrize(
    ("engine", "info"), [c for c in solver_cases() if c.values[1].adaptive and c.values[1].order > 3]
)
def test_a_failed_solve_has_the_time_and_the_state_that_it_reached(engine: str, info: SolverInfo, end: float) -> None:
    keywords: dict[str, Any] = {"engine": engine, "solver": info.name, "args": (OMEGA,), "max_steps": 40}
    keywords |= {"rtol": 1e-6, "atol": 1e-8}
    sol = pynode.solve(_Turning(), START, [0.0, end], throw=False, **keywords)
    assert sol.retcode is Retcode.MAX_STEPS
    assert 0 < sol.t_end.item() / end < 1
    assert not sol.z_end.requires_grad
    accuracy = 1e-2 if info.name.startswith("kencarp") else 1e-3  # whose error estimate is low for oscillations
    torch.testing.assert_close(sol.z_end, _turned(sol.t_end, OMEGA), rtol=0, atol=accuracy)
    assert torch.isnan(sol.z[-1]).all()
    with pytest.raises(pynode.SolveError) as caught:
        pynode.solve(_Turning(), START, [0.0, end], **keywords)
    assert torch.equal(caught.value.t_end, sol.t_end)
    assert torch.equal(caught.value.z_end, sol.z_end)


@pytest.mark.parametrize("sensitivity", ["discrete", "forward", "backsolve"])
def test_each_of_independent_samples_has_what_it_reached(engine: str, sensitivity: str) -> None:
    z0 = START.clone().requires_grad_()
    sol = pynode.solve(
        lambda t, z, omega: (_Turning()(t, z[0], omega), -z[1]),
        (z0, torch.ones(2, dtype=DOUBLE)),
        [0.0, 5.0, 10.0],
        args=(OMEGA,),
        batching="independent",
        engine=engine,
        sensitivity=sensitivity,
        solver="dopri5",
        rtol=1e-6,
        atol=1e-8,
        max_steps=100,
        throw=False,
    )
    assert sol.stats.per_sample.retcode == (Retcode.MAX_STEPS, Retcode.SUCCESS)
    assert sol.t_end.shape == (2,)
    assert 0 < sol.t_end[0] < 10
    assert sol.t_end[1] == 10
    torch.testing.assert_close(sol.z_end[0], _turned(sol.t_end, OMEGA), rtol=0, atol=1e-3)
    torch.testing.assert_close(sol.z_end[1], torch.exp(-sol.t_end), rtol=0, atol=1e-3)


def test_a_failed_solve_with_a_running_cost_has_the_state_alone(engine: str) -> None:
    sol = pynode.solve(
        _Turning(),
        START,
        [0.0, 10.0],
        args=(OMEGA,),
        running_cost=lambda t, z, omega: z.square().sum(-1),
        engine=engine,
        max_steps=40,
        throw=False,
    )
    torch.testing.assert_close(sol.z_end, _turned(sol.t_end, OMEGA), rtol=0, atol=0.1)


def test_what_a_blow_up_reached_is_finite(engine: str) -> None:
    for solver, dt in (("auto", None), ("rk4", 0.05)):
        sol = pynode.solve(
            _Square(), torch.ones(1, 1, dtype=DOUBLE), [0, 0.5, 3.0], solver=solver, dt=dt, engine=engine, throw=False
        )
        assert sol.retcode is not Retcode.SUCCESS
        assert 0.5 <= sol.t_end.item() < 1.3
        assert torch.isfinite(sol.z_end).all()
        assert sol.z_end.item() >= 1.9


@pytest.mark.parametrize("times", [[0.0, 1.0], [0.0, 0.1, 1.0], [0.0, -1.0]])
@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve"])
@pytest.mark.parametrize("solver", ["euler", "midpoint", "rk4"])
def test_equal_steps_reach_the_last_state_that_is_finite(
    engine: str, solver: str, sensitivity: str, times: list[float]
) -> None:
    def ends(t: Tensor, z: Tensor) -> Tensor:  # a step of 0.02 from 0.32 on evaluates it beyond 0.325, or the next one
        return torch.where(t.abs() < 0.325, -z, torch.full_like(z, math.nan))

    z0 = torch.ones(2, 1, dtype=DOUBLE, requires_grad=True)
    keywords: dict[str, Any] = {"solver": solver, "dt": 0.02, "sensitivity": sensitivity, "tstops": None}
    sol = pynode.solve(ends, z0, times, engine=engine, throw=False, **keywords)
    assert sol.retcode is Retcode.NON_FINITE
    reached = math.copysign(0.34 if solver == "euler" else 0.32, times[-1])
    assert sol.t_end.item() == pytest.approx(reached)
    assert sol.z_end[0].item() == pytest.approx(math.exp(-reached), rel=1e-2)
    assert torch.isfinite(sol.z[:-1]).all()
    assert torch.isnan(sol.z[-1]).all()


def test_a_solve_that_succeeds_has_reached_its_last_time_or_its_event(engine: str) -> None:
    z0 = START.clone().requires_grad_()
    keywords: dict[str, Any] = {"engine": engine, "args": (OMEGA / 20,), "rtol": 1e-8, "atol": 1e-10}
    sol = pynode.solve(_Turning(), z0, [0.0, 1.0, 2.0], **keywords)
    assert sol.t_end == 2
    assert torch.equal(sol.z_end, sol.z[-1])
    assert sol.z_end.requires_grad

    def crosses(t: Tensor, z: Tensor, omega: Tensor) -> Tensor:
        return z[0, 0] - 0.5

    sol = pynode.solve(_Turning(), z0, [0.0, 1.0, 2.0], event=crosses, **keywords)
    assert torch.equal(sol.t_end, sol.event_t)
    assert torch.equal(sol.z_end, sol.event_z)
    sol = pynode.solve(_Turning(), z0, [0.0, 1.0, 2.0], event=crosses, batching="independent", **keywords)
    torch.testing.assert_close(sol.t_end, torch.tensor([math.acos(0.5), 2.0], dtype=DOUBLE))
    torch.testing.assert_close(sol.z_end, _turned(sol.t_end, OMEGA / 20), rtol=0, atol=1e-6)
    own = torch.tensor([[0.0, 1.0, 3.0], [0.0, 2.0, math.nan]], dtype=DOUBLE)
    sol = pynode.solve(_Turning(), z0, own, **keywords)
    assert "t: (2, 3)" in repr(sol)
    torch.testing.assert_close(sol.t_end, torch.tensor([3.0, 2.0], dtype=DOUBLE))
    torch.testing.assert_close(sol.z_end, _turned(sol.t_end, OMEGA / 20), rtol=0, atol=1e-6)
