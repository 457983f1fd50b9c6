"""Events on every engine: times and states against exact ones, and their derivatives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode import EngineUnavailable, InputError, Retcode, SolveError
from pynode.engine.protocol import Crossing
from pynode.engine.torch.engine import TorchEngine

DOUBLE = torch.float64
FINE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}
SOLVERS = [("auto", None), ("rk4", 0.05)]


class Ball(nn.Module):
    """A ball in free fall: height and velocity, `(1, 2)`."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.tensor(9.81, dtype=DOUBLE))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.stack([z[:, 1], (-self.g).expand(z.shape[0])], 1)


class Oscillator(nn.Module):
    """z(t) = (sin ωt, cos ωt) from z(0) = (0, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.omega = nn.Parameter(torch.tensor(1.3, dtype=DOUBLE))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.omega * torch.stack([z[:, 1], -z[:, 0]], 1)


def ground(t: Tensor, z: Tensor, *args: Tensor) -> Tensor:
    return z[0, 0]


@pytest.fixture
def start() -> Tensor:
    return torch.tensor([[2.0, 3.0]], dtype=DOUBLE, requires_grad=True)


@pytest.mark.parametrize("direction", [1.0, -1.0])
@pytest.mark.parametrize(("solver", "dt"), SOLVERS)
def test_ball(engine: str, solver: str, dt: float | None, direction: float, start: Tensor) -> None:
    """The ball meets the ground where h + v s - g s²/2 = 0, forwards and backwards; so do the derivatives of that."""
    field = Ball()
    t0 = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    later = torch.tensor([0.2, 0.4, 3.0, 10.0], dtype=DOUBLE)
    t = torch.cat([t0[None], 0.5 + direction * later])
    sol = pynode.solve(field, start, t, event=ground, solver=solver, dt=dt, engine=engine, **FINE)
    h, v = start[0]
    exact_t = t0 + (v + direction * torch.sqrt(v**2 + 2 * field.g * h)) / field.g
    exact_v = v - field.g * (exact_t - t0)
    assert sol.event_index == 0
    assert sol.retcode is Retcode.SUCCESS
    assert sol.event_t.shape == ()
    assert sol.event_z.shape == (1, 2)
    for got, expected in ((sol.event_t, exact_t), (sol.event_z[0, 1], exact_v)):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
        inputs = [start, field.g, t0]
        a = torch.autograd.grad(got, inputs, retain_graph=True)
        b = torch.autograd.grad(expected, inputs, retain_graph=True)
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(sol.event_z[0, 0].detach(), torch.zeros((), dtype=DOUBLE), rtol=0, atol=1e-12)
    reached = direction * (t - exact_t).detach() <= 0
    assert 2 <= int(reached.sum()) < 5
    torch.testing.assert_close(sol.t, t.detach(), rtol=0, atol=0)
    s = (t - t0).detach()
    torch.testing.assert_close(sol.z[reached][:, 0, 0], (h + v * s - field.g * s**2 / 2)[reached], rtol=1e-8, atol=1e-8)
    assert bool(sol.z[~reached].isnan().all())


def test_derivatives_of_what_the_event_function_reads(engine: str, start: Tensor) -> None:
    """The time at which the ball passes a height that is computed, one that is a parameter, and one in args."""

    class Height(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.level = nn.Parameter(torch.tensor(1.0, dtype=DOUBLE))

        def forward(self, t: Tensor, z: Tensor, extra: Tensor) -> Tensor:
            return z[0, 0] - self.level - extra.sum() * t

    class Argued(Ball):
        def forward(self, t: Tensor, z: Tensor, extra: Tensor) -> Tensor:
            return super().forward(t, z)

    field, event = Argued(), Height()
    extra = torch.tensor([0.1, 0.2], dtype=DOUBLE, requires_grad=True)
    sol = pynode.solve(field, start, [0.0, 10.0], args=(extra,), event=event, engine=engine, **FINE)
    h, v = start[0]
    b, c = v - extra.sum(), h - event.level
    exact = (b + torch.sqrt(b**2 + 2 * field.g * c)) / field.g
    inputs = [start, field.g, event.level, extra]
    torch.testing.assert_close(sol.event_t, exact, rtol=1e-10, atol=1e-10)
    got, expected = torch.autograd.grad(sol.event_t, inputs), torch.autograd.grad(exact, inputs)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve"])
def test_gradcheck(engine: str, sensitivity: str) -> None:
    """Event time, event state and a state before it, together, of a nonlinear field."""
    W = torch.tensor([[0.5, -1.4], [1.2, 0.1]], dtype=DOUBLE, requires_grad=True)
    z0 = torch.tensor([[0.3, -0.5], [0.1, 0.4]], dtype=DOUBLE, requires_grad=True)

    def field(t: Tensor, z: Tensor, W: Tensor) -> Tensor:
        return torch.tanh(z @ W) + torch.cos(t)

    def outputs(z0: Tensor, W: Tensor) -> tuple[Tensor, ...]:
        sol = pynode.solve(
            field, z0, [0.0, 0.3, 4.0], args=(W,), event=lambda t, z, W: (z**2).sum() - 2.0, engine=engine,
            sensitivity=sensitivity, rtol=1e-11, atol=1e-12,
        )  # fmt: skip
        return sol.event_t, sol.event_z, sol.z[:2]

    assert torch.autograd.gradcheck(outputs, (z0, W), eps=1e-5, atol=1e-6, rtol=1e-5, fast_mode=True)


def test_several_events(engine: str) -> None:
    """The earliest of several ends the solve and is the one that is named."""
    field, z0 = Oscillator(), torch.tensor([[0.0, 1.0]], dtype=DOUBLE)
    levels = torch.tensor([0.9, 0.5, 2.0], dtype=DOUBLE)
    sol = pynode.solve(field, z0, [0.0, 9.0], event=lambda t, z: z[0, 0] - levels, engine=engine, **FINE)
    assert sol.event_index == 1
    assert sol.event_t.item() == pytest.approx(math.asin(0.5) / 1.3, abs=1e-9)
    swapped = pynode.solve(field, z0, [0.0, 9.0], event=lambda t, z: z[0, 0] - levels.flip(0), engine=engine, **FINE)
    assert swapped.event_index == 1
    first = pynode.solve(field, z0, [0.0, 9.0], event=lambda t, z: torch.stack([z[0, 1], t - 0.1]), engine=engine)
    assert first.event_index == 1
    assert first.event_t.item() == pytest.approx(0.1, abs=1e-12)


def test_two_events_in_one_step(engine: str) -> None:
    """Both lie in one long step of a fixed-step solver: the earlier one counts."""
    field, z0 = Oscillator(), torch.tensor([[0.0, 1.0]], dtype=DOUBLE)
    levels = torch.tensor([0.6, 0.58, 0.62], dtype=DOUBLE)
    sol = pynode.solve(field, z0, [0.0, 2.0], event=lambda t, z: z[0, 0] - levels, engine=engine, solver="rk4", dt=0.25)
    assert sol.event_index == 1
    assert sol.event_t.item() == pytest.approx(math.asin(0.58) / 1.3, abs=1e-4)


@pytest.mark.parametrize("tracked", [True, False])
def test_never_met(engine: str, tracked: bool, start: Tensor) -> None:
    field = Ball()
    with torch.set_grad_enabled(tracked):
        sol = pynode.solve(field, start, [0.0, 0.2, 0.4], event=lambda t, z: z[0, 0] + 100, engine=engine)
        plain = pynode.solve(field, start, [0.0, 0.2, 0.4], engine=engine)
    assert sol.event_t is sol.event_z is sol.event_index is None
    assert sol.retcode is Retcode.SUCCESS
    assert torch.equal(sol.z, plain.z)
    assert sol.z.requires_grad is tracked


def test_without_gradient(engine: str, start: Tensor) -> None:
    with torch.no_grad():
        sol = pynode.solve(Ball(), start, [0.0, 10.0], event=ground, engine=engine, **FINE)
    assert not sol.event_t.requires_grad
    assert not sol.event_z.requires_grad
    with torch.inference_mode():
        again = pynode.solve(Ball(), start, [0.0, 10.0], event=ground, engine=engine, **FINE)
    assert again.event_t.item() == sol.event_t.item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bouncing(engine: str, dtype: torch.dtype) -> None:
    """Each bounce starts on the ground, which counts from when it has been left: no nudge is needed."""
    field = Ball().to(dtype)
    z = torch.tensor([[1.0, 0.0]], dtype=dtype, requires_grad=True)
    first, t, times = z, torch.zeros((), dtype=dtype), []
    for _ in range(4):
        sol = pynode.solve(field, z, torch.stack([t, t.detach() + 10]), event=ground, engine=engine)
        t, z = sol.event_t, sol.event_z * torch.tensor([1.0, -0.8], dtype=dtype)
        times.append(t)
    fall = torch.sqrt(2 * first[0, 0] / field.g)
    exact = torch.stack([fall * (1 + 2 * sum(0.8**k for k in range(1, n + 1))) for n in range(4)])
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(torch.stack(times), exact, **close)
    got = torch.autograd.grad(times[-1], [first, field.g])
    expected = torch.autograd.grad(exact[-1], [first, field.g])
    torch.testing.assert_close(got[0][0, 0], expected[0][0, 0], **close)
    torch.testing.assert_close(got[1], expected[1], **close)


def test_zero_with_no_slope_at_the_start(engine: str) -> None:
    """z = t² from (0, 0) neither crosses zero nor meets its own level at the start; it then passes 1."""

    def field(t: Tensor, z: Tensor) -> Tensor:
        return 2 * t * torch.ones_like(z)

    z0 = torch.zeros(1, 1, dtype=DOUBLE)
    sol = pynode.solve(field, z0, [0.0, 2.0], event=lambda t, z: z[0, 0] * (1 - z[0, 0]), engine=engine, **FINE)
    assert sol.event_t.item() == pytest.approx(1.0, abs=1e-9)


def test_event_at_a_reported_time(engine: str) -> None:
    """A time that is the event's is reported with the state at the event."""
    z0 = torch.ones(2, 1, dtype=DOUBLE)
    sol = pynode.solve(lambda t, z: -z, z0, [0.0, 0.5, 1.0], event=lambda t, z: t - 0.5, engine=engine, **FINE)
    assert sol.event_t.item() == 0.5
    torch.testing.assert_close(sol.z[1], sol.event_z, rtol=0, atol=0)
    assert bool(sol.z[2].isnan().all())
    last = pynode.solve(lambda t, z: -z, z0, [0.0, 0.5, 1.0], event=lambda t, z: t - 1.0, engine=engine, **FINE)
    assert last.event_t.item() == 1.0
    torch.testing.assert_close(last.z[:, 0, 0], torch.exp(-last.t), rtol=1e-8, atol=1e-9)


def test_batch_tuple_and_running_cost(engine: str) -> None:
    """The event sees the joint state as the field does, without the cost; the cost's integral ends at the event."""
    a = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    x, y = torch.tensor([[2.0], [3.0], [1.5]], dtype=DOUBLE), torch.zeros(3, 2, dtype=DOUBLE)

    def field(t: Tensor, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return -a * z[0], torch.ones_like(z[1])

    def event(t: Tensor, z: tuple[Tensor, Tensor]) -> Tensor:
        return z[0].amin() - 1.0

    def cost(t: Tensor, z: tuple[Tensor, Tensor]) -> Tensor:
        return z[0].squeeze(-1)

    sol = pynode.solve(field, (x, y), [0.0, 0.2, 5.0], event=event, running_cost=cost, engine=engine, **FINE)
    exact = torch.log(torch.tensor(1.5, dtype=DOUBLE)) / a
    torch.testing.assert_close(sol.event_t, exact, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sol.event_z[0], x / 1.5, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(sol.event_z[1], exact.expand(3, 2), rtol=1e-8, atol=1e-9)
    integral = (x[:, 0] - x[:, 0] / 1.5) / a
    torch.testing.assert_close(sol.running_cost, integral, rtol=1e-8, atol=1e-9)
    (got,) = torch.autograd.grad(sol.running_cost.sum() + sol.event_t, a)
    (expected,) = torch.autograd.grad(integral.sum() + exact, a)
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-8)
    assert [z.shape for z in sol.z] == [(3, 3, 1), (3, 3, 2)]


def test_dense(engine: str, start: Tensor) -> None:
    sol = pynode.solve(Ball(), start, [0.0, 10.0], event=ground, engine=engine, dense=True, **FINE)
    s = sol.event_t.detach() * torch.linspace(0, 1, 5, dtype=DOUBLE)
    torch.testing.assert_close(sol(s)[:, 0, 0], (2 + 3 * s - 9.81 * s**2 / 2), rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="times within"):
        sol(sol.event_t.detach() + 0.01)


def test_no_evaluation_beyond_the_span(engine: str) -> None:
    """The search keeps within the span: the field exists up to t = 1 only."""
    z0 = torch.zeros(1, 1, dtype=DOUBLE)
    sol = pynode.solve(
        lambda t, z: torch.sqrt(1 - t) + 0 * z, z0, [0.0, 1.0], event=lambda t, z: z[0, 0] - 1, engine=engine
    )
    assert sol.event_t is None
    assert sol.z[-1].item() == pytest.approx(2 / 3, abs=5e-3)


def test_a_jump_has_no_derivative(engine: str, start: Tensor) -> None:
    sol = pynode.solve(Ball(), start, [0.0, 3.0], event=lambda t, z: torch.sign(z[0, 0]), engine=engine, **FINE)
    assert sol.event_t.item() == pytest.approx((3 + math.sqrt(9 + 4 * 9.81)) / 9.81, abs=1e-7)
    sol.z[0].sum().backward()
    with pytest.raises(InputError, match=r"has no derivative.*crosses zero with a slope"):
        sol.event_t.backward()


def test_failure_before_the_event(engine: str) -> None:
    z0 = torch.ones(1, 1, dtype=DOUBLE)
    with pytest.raises(SolveError):
        pynode.solve(lambda t, z: z**2, z0, [0.0, 2.0], event=lambda t, z: z[0, 0] + 1, engine=engine)
    sol = pynode.solve(lambda t, z: z**2, z0, [0.0, 2.0], event=lambda t, z: z[0, 0] + 1, engine=engine, throw=False)
    assert sol.retcode is not Retcode.SUCCESS
    assert sol.event_t is None
    early = pynode.solve(lambda t, z: z**2, z0, [0.0, 2.0], event=lambda t, z: z[0, 0] - 2, engine=engine, **FINE)
    assert early.event_t.item() == pytest.approx(0.5, abs=1e-9)


def test_values_that_become_nan(engine: str) -> None:
    """Whether such a value changes its sign is not known; an event that is met before is found."""
    z0 = torch.tensor([[1.0]], dtype=torch.float64)

    def solve(level: float) -> pynode.Solution:
        def event(t: Tensor, z: Tensor) -> Tensor:
            return torch.log(z[0, 0]) - level

        return pynode.solve(
            lambda t, z: -torch.ones_like(z), z0, [0.0, 2.0], event=event, engine=engine, solver="rk4", dt=0.1
        )

    assert float(solve(-0.5).event_t) == pytest.approx(1 - math.exp(-0.5), rel=1e-6)
    with pytest.raises(pynode.InputError, match="got NaN at t=1"):
        solve(1.0)


def test_an_assertion_of_the_event_function_is_the_users() -> None:
    def event(t: Tensor, z: Tensor) -> Tensor:
        assert t < 0.5, "mine"
        return z[0, 0] - 2

    with pytest.raises(AssertionError, match="mine"):
        pynode.solve(lambda t, z: -z, torch.ones(1, 1), [0.0, 1.0], event=event, engine="torch")


def test_a_search_that_fails_where_the_solve_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not taken for one that meets no event."""
    monkeypatch.setattr(TorchEngine, "find_event", lambda self, problem, search: Crossing(None, -1, 7, failed=True))
    with pytest.raises(pynode.SolveError, match="the search for the event"):
        pynode.solve(lambda t, z: -z, torch.ones(1, 1), [0.0, 1.0], event=lambda t, z: z[0, 0] - 0.5, engine="torch")


def test_empty_batch(engine: str) -> None:
    sol = pynode.solve(lambda t, z: -z, torch.zeros(0, 2), [0.0, 1.0], event=lambda t, z: z.amin(), engine=engine)
    assert sol.event_t is None
    assert sol.z.shape == (2, 0, 2)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (3.0, "event must be a callable"),
        (lambda t, z: z, r"shape \(\) or \(n_events,\), got torch.float64, shape \(1, 2\).*amin"),
        (lambda t, z: z[0, 0] > 1, "floating-point numbers that change sign.*got torch.bool"),
        (lambda t, z: 1.0, "got float"),
        (lambda t, z: z[0, 0] * math.nan, r"finite numbers, got \[nan\]"),
    ],
)
def test_refusals(engine: str, event: Any, message: str, start: Tensor) -> None:
    with pytest.raises(InputError, match=message):
        pynode.solve(Ball(), start, [0.0, 1.0], event=event, engine=engine)


def test_scipy_solvers_have_none(start: Tensor) -> None:
    with pytest.raises(EngineUnavailable, match="takes no event"):
        pynode.solve(Ball(), start, [0.0, 1.0], event=ground, engine="torch", solver="lsoda")


@pytest.mark.julia
@pytest.mark.parametrize("solver", ["vern7", "rosenbrock23", "euler"])
def test_julia_solvers(solver: str, start: Tensor) -> None:
    """Solvers with interpolants of other kinds: lazy ones, implicit ones, Hermite's."""
    field, dt = Ball(), 1e-3 if solver == "euler" else None
    sol = pynode.solve(
        field, start, [0.0, 10.0], event=ground, engine="julia", solver=solver, dt=dt, rtol=1e-6, atol=1e-8
    )
    exact = (3 + math.sqrt(9 + 4 * 9.81)) / 9.81
    assert sol.event_t.item() == pytest.approx(exact, abs=1e-3 if solver == "euler" else 1e-5)
    assert abs(sol.event_z[0, 0].item()) < 1e-9


@pytest.mark.julia
def test_what_julia_cannot_trace_is_said_of_the_event(start: Tensor) -> None:
    with pytest.raises(pynode.TraceError, match=r"event: .*depends on the values"):
        pynode.solve(Ball(), start, [0.0, 1.0], event=lambda t, z: z[0, 0] if z[0, 0] > 0 else t, engine="julia")


def test_an_event_function_that_differentiates(engine: str) -> None:
    """The time at which the slope of z² in z is 1, by derivatives taken in three ways."""

    def square(z: Tensor) -> Tensor:
        return (z**2).sum()

    def by_grad(t: Tensor, z: Tensor) -> Tensor:
        return torch.autograd.grad(square(z), z, create_graph=True)[0][0, 0] - 1

    def by_grad_of_its_own(t: Tensor, z: Tensor) -> Tensor:
        with torch.enable_grad():
            z = z if z.requires_grad else z.detach().requires_grad_()
            return torch.autograd.grad(square(z), z, create_graph=True)[0][0, 0] - 1

    def by_func(t: Tensor, z: Tensor) -> Tensor:
        return torch.func.grad(square)(z)[0, 0] - 1

    for event in (by_grad, by_grad_of_its_own, by_func):
        if engine == "julia" and event is by_func:
            continue
        for batching in ("joint", "independent"):
            z0 = torch.tensor([[1.0], [0.9]], dtype=torch.float64, requires_grad=True)
            keywords: dict[str, Any] = {"engine": engine, "batching": batching, "rtol": 1e-9, "atol": 1e-11}
            sol = pynode.solve(lambda t, z: -z, z0, [0.0, 2.0], event=event, **keywords)
            expected = torch.log(2 * z0) if batching == "independent" else torch.log(2 * z0[0])
            torch.testing.assert_close(sol.event_t.reshape(-1), expected.reshape(-1), rtol=1e-7, atol=1e-7)
            (g,) = torch.autograd.grad(sol.event_t.sum(), z0)
            torch.testing.assert_close(g, torch.autograd.grad(expected.sum(), z0)[0], rtol=1e-6, atol=1e-6)
            with torch.no_grad():
                again = pynode.solve(lambda t, z: -z, z0, [0.0, 2.0], event=event, **keywords)
            torch.testing.assert_close(again.event_t, sol.event_t.detach())


@pytest.mark.parametrize("batching", ["joint", "independent"])
def test_where_numpy_raises_at_whatever_rounds(engine: str, batching: str) -> None:
    def lands(t: Tensor, z: Tensor) -> Tensor:
        return z[:, 0] - 0.5 if batching == "independent" else z[0, 0] - 0.5

    def switched(t: Tensor, z: Tensor) -> Tensor:
        return torch.where(t < 0.25, -z, -2 * z)

    z0 = torch.ones(1, 1, dtype=torch.float64)
    with np.errstate(all="raise"):
        sol = pynode.solve(
            switched, z0, [0.0, 2.0], event=lands, batching=batching, engine=engine, rtol=1e-9, atol=1e-9
        )
    assert sol.event_t.item() == pytest.approx(0.25 + (math.log(2) - 0.25) / 2, rel=1e-6)


def test_a_step_whose_end_a_sum_does_not_reach(engine: str) -> None:
    """The step in which a body falls to the ground is solved again, and ends where it did."""
    g = torch.Generator().manual_seed(1)
    for height, factor in torch.rand(60, 2, generator=g, dtype=torch.float64).tolist():
        h = 0.5 + 2 * height
        falls = math.sqrt(2 * h / 9.81)
        z0, t = torch.tensor([[h, 0.0]], dtype=torch.float64), [0.0, falls * (1 + factor / 2)]
        sol = pynode.solve(
            lambda t, z: torch.stack([z[:, 1], torch.full_like(z[:, 1], -9.81)], 1),
            z0, t, event=lambda t, z: z[0, 0], engine=engine,
        )  # fmt: skip
        assert sol.event_t.item() == pytest.approx(falls, rel=1e-9)
