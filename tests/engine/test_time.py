"""The engine contract on time: float64 times beside a float32 state are integrated in double."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from problems import gradient_cases, solver_cases
from torch import Tensor, nn

import pynode
from pynode.engine import SolverInfo
from pynode.errors import FieldError, InputError, TraceError
from pynode.field._time import time_dtype

DOUBLE, SINGLE = torch.float64, torch.float32
START = 1.7e9 + 37.25  # seconds since 1970; float32 tells times 128 apart there
SINCE = torch.tensor([0.0, 20.5, 40.0, 90.25], dtype=DOUBLE)
SCALE = 50.0


class Decay(nn.Module):
    """dz/dt = -k z / 50: z(t) = z0 exp(-k (t - t0) / 50)."""

    def __init__(self, dtype: torch.dtype = SINGLE) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(1.3, dtype=dtype))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return -self.k * z / SCALE


class Swing(Decay):
    """dz/dt = k cos((t - START) / 20) z / 20: z(t) = z0 exp(k (sin((t - START) / 20) - sin((t0 - START) / 20)))."""

    time_dtype = DOUBLE

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        assert t.dtype == DOUBLE
        return self.k * torch.cos((t - START) / 20) * z / 20

    @staticmethod
    def exponent(t: Tensor) -> Tensor:
        return torch.sin((t - START) / 20) - torch.sin((t[0] - START) / 20)


class Blind(Swing):
    """The same, of a t in the state's dtype."""

    time_dtype = None

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        assert t.dtype == z.dtype
        return self.k * torch.cos((t - START) / 20) * z / 20


def accuracy(info: SolverInfo) -> tuple[dict[str, Any], float]:
    """How to run a solver, and the error that it may have."""
    if not info.adaptive:
        return {"dt": 0.5 if info.order < 3 else 2.0}, 2e-2 if info.order == 1 else 5e-4
    return {"rtol": 1e-5, "atol": 1e-6, "max_steps": 100_000}, 2e-3 if info.order <= 2 else 5e-4


def differentiated(field: Decay, t: Tensor, engine: str, **how: Any) -> tuple[pynode.Solution, Tensor, list[Tensor]]:
    """A solution, the loss Σ_i w_i z(t_i), and its gradients in z0, k and t."""
    z0 = torch.full((1, 1), 0.8, dtype=field.k.dtype, requires_grad=True)
    t = t.clone().requires_grad_()
    sol = pynode.solve(field, z0, t, engine=engine, **how)
    loss = (sol.z[:, 0, 0] * torch.arange(1.0, len(t) + 1).to(sol.z)).sum()
    return sol, loss, list(torch.autograd.grad(loss, [z0, field.k, t]))


def exact(exponent: Any, k: Tensor, t: Tensor) -> tuple[Tensor, list[Tensor]]:
    """z and the same gradients of z(t) = z0 exp(k e(t)), in double."""
    z0 = torch.full((1, 1), 0.8, dtype=DOUBLE, requires_grad=True)
    k, t = k.detach().double().requires_grad_(), t.clone().requires_grad_()
    z = z0[0] * torch.exp(k * exponent(t))
    return z.detach(), list(torch.autograd.grad((z * torch.arange(1.0, len(t) + 1)).sum(), [z0, k, t]))


def assert_right(found: Any, right: Any, error: float) -> None:
    sol, _, gradients = found
    z, expected = right
    assert sol.z.dtype == SINGLE
    assert [g.dtype for g in gradients] == [SINGLE, SINGLE, DOUBLE]
    torch.testing.assert_close(sol.z[:, 0, 0].double(), z, rtol=error, atol=error)
    for got, g in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got.double(), g, rtol=error, atol=error * float(g.abs().max()))


def each_solver() -> list[Any]:
    """Every solver in both directions; of Julia's stiff ones, which compile for long, one unless asked for."""

    def marks(case: Any, direction: float) -> list[Any]:
        engine, info = case.values
        apart = info.stiff or info.opaque  # compiled by itself, for many seconds
        rare = engine == "julia" and apart and (info.name, direction) != ("rodas5p", 1.0)
        return [*case.marks, pytest.mark.exhaustive] if rare else list(case.marks)

    return [
        pytest.param(*case.values, direction, marks=marks(case, direction), id=f"{case.id}-{direction:g}")
        for case in solver_cases()
        for direction in (1.0, -1.0)
    ]


@pytest.mark.parametrize(("engine", "info", "direction"), each_solver())
def test_times_since_1970_beside_a_float32_state(engine: str, info: SolverInfo, direction: float) -> None:
    """Values and gradients of every solver, forwards and backwards in time."""
    keywords, error = accuracy(info)
    t = START + direction * SINCE
    field = Decay()
    found = differentiated(field, t, engine, solver=info.name, **keywords)
    assert torch.equal(found[0].t, t)
    assert_right(found, exact(lambda s: -(s - s[0]) / SCALE, field.k, t), error)


@pytest.mark.parametrize(
    ("engine", "info", "direction"), [c for c in each_solver() if c.values[1].adaptive and not c.values[1].second_order]
)
def test_rounding_far_from_zero(engine: str, info: SolverInfo, direction: float) -> None:
    """Of steps that are some thousand roundings of their times long: it would be a thousand times the tolerances."""
    generator = torch.Generator().manual_seed(0)
    rotate = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=DOUBLE)  # of second order too
    z0 = torch.tensor([[1.0, 0.0]], dtype=DOUBLE)
    low = info.order < 4
    # The errors that adaptive_heun goes by are those of Euler's rule: it takes ten thousand steps at 1e-6.
    rtol = 1e-4 if info.name == "adaptive_heun" else 1e-6 if low else 1e-7
    how: dict[str, Any] = {"rtol": rtol, "atol": 0.1 * rtol, "max_steps": 100_000}
    for k in range(12):
        start, span, angle = torch.rand(3, generator=generator, dtype=DOUBLE).tolist()
        start, span, angle = 7e8 + round(1e9 * start), direction * 10 ** (2 * span - 3), 10 ** (2 * angle - 1)
        t = torch.tensor([start, start + span / 3, start + span], dtype=DOUBLE)
        since = t - t[0]
        rate = angle / since[-1]
        dense = {"dense": True} if k % 2 and not (info.stiff and engine == "torch") else {}
        more = {**how, **dense, "args": (rate,), "solver": info.name}
        sol = pynode.solve(lambda t, z, rate: rate * z @ rotate.T, z0, t, engine=engine, **more)
        right = torch.stack([torch.cos(rate * since), -torch.sin(rate * since)], 1)
        torch.testing.assert_close(sol.z[:, 0], right, rtol=0, atol=5e-3 if low else 2e-5)


@pytest.mark.parametrize(("engine", "info", "how"), [c for c in gradient_cases() if c.values[1].name == "dopri5"])
def test_every_sensitivity(engine: str, info: SolverInfo, how: str) -> None:
    t, field = START + SINCE, Decay()
    found = differentiated(field, t, engine, solver="dopri5", sensitivity=how, rtol=1e-6, atol=1e-7)
    assert_right(found, exact(lambda s: -(s - s[0]) / SCALE, field.k, t), 1e-3)


@pytest.mark.parametrize("info", [c.values[1] for c in solver_cases() if c.values[0] == "torch"], ids=lambda i: i.name)
def test_a_field_that_asks_for_the_time_in_double(info: SolverInfo) -> None:
    keywords, error = accuracy(info)
    t, field = START + SINCE, Swing()
    found = differentiated(field, t, "torch", solver=info.name, **keywords)
    assert_right(found, exact(Swing.exponent, field.k, t), error)


def test_a_graph_has_one_dtype() -> None:
    with pytest.raises(TraceError, match=r"asks for the time in torch.float64 beside a state of dtype torch.float32"):
        pynode.field.trace(Swing(), torch.ones(1, 1))


@pytest.mark.julia
def test_a_field_that_asks_for_the_time_in_double_on_julia() -> None:
    with pytest.raises(TraceError, match=r"asks for the time in torch\.float64"):
        pynode.solve(Swing(), torch.ones(1, 1), START + SINCE, engine="julia")
    t, field = START + SINCE, Swing(DOUBLE)
    sol, _, gradients = differentiated(field, t, "julia", rtol=1e-8, atol=1e-10)
    z, expected = exact(Swing.exponent, field.k, t)
    torch.testing.assert_close(sol.z[:, 0, 0], z, rtol=1e-6, atol=1e-6)
    for got, g in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, g, rtol=1e-5, atol=1e-5)


class Property(Decay):
    @property
    def time_dtype(self) -> torch.dtype:
        return DOUBLE


class Wrapper(nn.Module):
    """Passes on what its module has."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name == "inner" else getattr(self.inner, name)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        out: Tensor = self.inner(t, z)
        return out


def test_where_time_dtype_is_found() -> None:
    field = Decay()
    assert time_dtype(field, SINGLE) == SINGLE
    field.time_dtype = DOUBLE
    found = [Swing(), Property(), Wrapper(Swing()), field, functools.partial(field)]
    assert all(time_dtype(f, SINGLE) == DOUBLE for f in found)
    assert time_dtype(Blind(), SINGLE) == time_dtype(Wrapper(Decay()), SINGLE) == SINGLE


def test_another_time_dtype_is_refused() -> None:
    field = Decay()
    field.time_dtype = SINGLE
    with pytest.raises(FieldError, match=r"time_dtype of a field must be torch.float64 .* got torch.float32"):
        pynode.solve(field, torch.ones(1, 1), [0.0, 1.0], engine="torch")


COARSE = r"computes with t, which it gets in the state's dtype, and around t=1\.7e\+09 torch\.float32 tells times apart"


def test_a_field_of_times_that_its_dtype_does_not_resolve(engine: str) -> None:
    z0, t = torch.ones(1, 1), START + SINCE
    with pytest.raises(InputError, match=f"the field {COARSE} by 2e\\+02 only, where the steps were"):
        pynode.solve(Blind(), z0, t, engine=engine)
    with pytest.raises(InputError, match=COARSE):  # given as float32, too
        pynode.solve(Blind(), z0, 1.7e9 + 128 * torch.arange(5.0), engine=engine)
    # From a reference on, and in double, it is right.
    shifted = lambda t, z: torch.cos(t / 20) * z / 20  # noqa: E731
    z = pynode.solve(shifted, z0, t - START, engine=engine, rtol=1e-5, atol=1e-7).z
    torch.testing.assert_close(z[:, 0, 0].double(), Swing.exponent(t).exp(), rtol=1e-4, atol=1e-4)
    field = Blind(DOUBLE)
    z = pynode.solve(field, z0.double(), t, engine=engine, rtol=1e-7, atol=1e-9).z
    torch.testing.assert_close(z[:, 0, 0], (field.k * Swing.exponent(t)).exp(), rtol=1e-5, atol=1e-5)


def test_a_running_cost_and_an_event_of_such_times(engine: str) -> None:
    z0, t, field = torch.ones(2, 1), START + SINCE, Decay()
    with pytest.raises(InputError, match=f"the field {COARSE}"):
        pynode.solve(field, z0, t, running_cost=lambda t, z: (t - START) * z[:, 0], engine=engine)
    with pytest.raises(InputError, match=f"the event function {COARSE}"):
        pynode.solve(field, z0, t, event=lambda t, z: t - (START + 45), engine=engine)


def test_a_running_cost_and_an_event_that_ask_for_double() -> None:
    z0, t, field = torch.ones(2, 1), START + SINCE, Decay()

    def cost(t: Tensor, z: Tensor) -> Tensor:
        assert t.dtype == DOUBLE
        return (t - START) * z[:, 0]

    def event(t: Tensor, z: Tensor) -> Tensor:
        return t - (START + 45)

    cost.time_dtype = event.time_dtype = DOUBLE  # type: ignore[attr-defined]
    sol = pynode.solve(field, z0, t, running_cost=cost, event=event, engine="torch", rtol=1e-6, atol=1e-6)
    assert sol.event_t is not None
    assert sol.event_t.item() == pytest.approx(START + 45, abs=1e-6)
    rate = field.k.item() / SCALE
    right = (1 - math.exp(-45 * rate) * (1 + 45 * rate)) / rate**2
    torch.testing.assert_close(sol.running_cost, torch.full((2,), right), rtol=1e-3, atol=0)


@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_event(engine: str, direction: float) -> None:
    """Half of z0 is left after 50 ln 2 / k, twice of it was there as long before."""
    field = Decay()
    t = (START + direction * SINCE).requires_grad_()
    z0 = torch.full((1, 1), 0.8, requires_grad=True)
    level = 0.4 if direction > 0 else 1.6
    sol = pynode.solve(
        field, z0, t, event=lambda t, z: z[0, 0] - level, engine=engine, rtol=1e-6, atol=1e-7, dense=True
    )
    assert sol.event_t is not None
    assert sol.event_t.dtype == DOUBLE
    away = SCALE * math.log(2) / field.k.item()
    assert sol.event_t.item() == pytest.approx(START + direction * away, abs=1e-2)
    torch.testing.assert_close(sol.event_z, torch.full((1, 1), level), rtol=1e-5, atol=0)
    reached = int((away >= SINCE).sum())
    assert torch.equal(sol.t, t.detach())
    assert bool(sol.z[:reached].isfinite().all() and sol.z[reached:].isnan().all())
    got = torch.autograd.grad(sol.event_t, [z0, field.k, t])
    k = field.k.item()
    expected = [SCALE / k / 0.8, -direction * away / k, 1.0]
    assert [g.sum().item() for g in got] == pytest.approx(expected, rel=1e-3)
    assert got[2].dtype == DOUBLE
    middle = START + direction * away / 2
    torch.testing.assert_close(
        sol(middle).double(), torch.full((1, 1), 0.8 * (level / 0.8) ** 0.5, dtype=DOUBLE), rtol=1e-4, atol=0
    )


def test_each_sample_at_its_own_times(engine: str) -> None:
    field, nan = Decay(), math.nan
    t = START + torch.tensor([[0.0, 20.5, 90.25], [1e5, 1e5 - 33.5, nan], [7.0, 8.0, 8.5]], dtype=DOUBLE)
    t.requires_grad_()
    z0 = torch.full((3, 1), 0.8, requires_grad=True)
    sol = pynode.solve(field, z0, t, engine=engine, rtol=1e-6, atol=1e-7)
    asked = ~t.detach().isnan()
    right = 0.8 * torch.exp(-field.k * (t - t[:, :1]).masked_fill(~asked, 0) / SCALE)
    assert bool(sol.z[:, :, 0].T[~asked].isnan().all())
    torch.testing.assert_close(sol.z[:, :, 0].T.double()[asked], right[asked].detach(), rtol=1e-4, atol=0)
    assert torch.equal(sol.t.nan_to_num(), t.detach().nan_to_num())
    inputs = [z0, field.k, t]
    got = torch.autograd.grad(sol.z[:, :, 0].T[asked].sum(), inputs)
    expected = torch.autograd.grad(right[asked].sum(), [field.k, t])
    assert got[2].dtype == DOUBLE
    torch.testing.assert_close(got[1], expected[0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(got[2][asked], expected[1][asked], rtol=1e-3, atol=1e-5)
    with pytest.raises(InputError, match=f"the field {COARSE}"):
        pynode.solve(Blind(), z0, t, engine=engine)


def test_dense(engine: str) -> None:
    field = Decay()
    t = START + SINCE
    sol = pynode.solve(field, torch.full((1, 1), 0.8), t, engine=engine, rtol=1e-6, atol=1e-7, dense=True)
    at = [START, START + 0.5, START + 61.125, START + 90.25]
    right = 0.8 * torch.exp(-field.k.double() * (torch.tensor(at, dtype=DOUBLE) - START) / SCALE)
    torch.testing.assert_close(sol(at)[:, 0, 0].double(), right, rtol=1e-4, atol=0)
    torch.testing.assert_close(sol(torch.tensor(at, dtype=DOUBLE))[:, 0, 0].double(), right, rtol=1e-4, atol=0)
    with pytest.raises(InputError, match="takes times within"):
        sol(START + 91)


def test_running_cost(engine: str) -> None:
    field, t = Decay(), START + SINCE
    z0 = torch.full((2, 1), 0.8, requires_grad=True)
    sol = pynode.solve(field, z0, t, running_cost=lambda t, z: z[:, 0], engine=engine, rtol=1e-6, atol=1e-6)
    rate = field.k.item() / SCALE
    right = (1 - math.exp(-90.25 * rate)) / rate
    torch.testing.assert_close(sol.running_cost, torch.full((2,), 0.8 * right), rtol=1e-4, atol=0)
    (got,) = torch.autograd.grad(sol.running_cost.sum(), z0)
    torch.testing.assert_close(got, torch.full((2, 1), right), rtol=1e-4, atol=0)


def test_float32_times_beside_a_float64_state(engine: str) -> None:
    """They are what they are, in double; the reported times and their gradient are float32."""
    field, z0 = Decay(DOUBLE), torch.full((1, 1), 0.8, dtype=DOUBLE)
    t = torch.tensor([0.1, 10.7, 33.3], requires_grad=True)
    wide = t.detach().double().requires_grad_()
    sol, other = (
        pynode.solve(field, z0, s, engine=engine, rtol=1e-9, atol=1e-11, dense=True, event=lambda t, z: z[0, 0] - 0.5)
        for s in (t, wide)
    )
    assert sol.t.dtype == SINGLE
    assert sol.event_t is not None
    assert sol.event_t.dtype == DOUBLE
    assert torch.equal(sol.event_t, other.event_t)
    torch.testing.assert_close(sol.z, other.z, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(sol(0.1), other.z[0], rtol=0, atol=1e-12)  # float32's 0.1 lies a little later
    (narrow,), (right,) = (torch.autograd.grad(s.z[1].sum(), x) for s, x in ((sol, t), (other, wide)))
    assert torch.equal(narrow, right.float())


@pytest.mark.parametrize("solver", ["euler", "dopri5"])
def test_a_step_that_float32_would_lose(engine: str, solver: str) -> None:
    """Times are double inside whatever their dtype: 1e6 and a half is a float32, 1e6 and a hundredth is not."""
    t = 1e6 + torch.tensor([0.0, 0.5, 1.0])
    how: dict[str, Any] = {"solver": solver, "dt": 0.01, "rtol": 1e-6, "engine": engine}
    sol = pynode.solve(lambda t, z: -z, torch.ones(1, 1), t, **how)
    right = 0.99 ** torch.tensor([0.0, 50.0, 100.0]) if solver == "euler" else torch.exp(-(t - t[0]))
    torch.testing.assert_close(sol.z[:, 0, 0], right, rtol=1e-4, atol=0)


@pytest.mark.parametrize("solver", ["rk4", "dopri5"])
def test_a_span_that_float32_does_not_tell_from_none(engine: str, solver: str) -> None:
    t = torch.tensor([1.0, 1.0 + 1e-10, 1.0 + 1e-9], dtype=DOUBLE, requires_grad=True)
    sol = pynode.solve(lambda t, z: -1e8 * z, torch.ones(1, 1), t, solver=solver, dt=1e-10, engine=engine)
    right = torch.exp(-1e8 * (t - t[0]))
    torch.testing.assert_close(sol.z[:, 0, 0].double(), right.detach(), rtol=1e-4, atol=0)
    got, expected = (torch.autograd.grad(x, t)[0] for x in (sol.z[1:, 0, 0].sum(), right.sum()))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=0)


def test_a_recording() -> None:
    """`torch.jit.trace` of fixed steps: the same times, the same refusal."""

    class Model(nn.Module):
        def __init__(self, field: nn.Module) -> None:
            super().__init__()
            self.field = field

        def forward(self, z0: Tensor) -> Tensor:
            return pynode.solve(self.field, z0, START + SINCE, solver="rk4", dt=5.0, engine="torch").z

    for field, exponent in ((Swing(), Swing.exponent), (Decay(), lambda t: -(t - t[0]) / SCALE)):
        recorded = torch.jit.trace(Model(field), torch.ones(1, 1))
        right = 0.8 * torch.exp(field.k.detach() * exponent(START + SINCE))
        torch.testing.assert_close(recorded(torch.full((1, 1), 0.8))[:, 0, 0].double(), right, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=f"the field {COARSE}"):
        torch.jit.trace(Model(Blind()), torch.ones(1, 1))


OFF = torch.tensor([0.0, 3.0, 7.0, 16.0], dtype=DOUBLE) * 2**-12


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
@pytest.mark.parametrize("origin", [2e5, 1.7e9])
def test_steps_far_from_zero_are_told_by_the_users_times(engine: str, dtype: torch.dtype, origin: float) -> None:
    t, z0 = origin + 50 + OFF, torch.ones(1, 1, dtype=dtype)
    sol = pynode.solve(lambda t, z: -300 * z, z0, t, engine=engine, solver="rk4", dt=2**-12, save="steps")
    assert (sol.t - t[0]).tolist() == [k * 2**-12 for k in range(17)]


def test_errors_far_from_zero_tell_the_users_times(engine: str) -> None:
    z0 = torch.ones(1, 1, dtype=DOUBLE, requires_grad=True)
    with pytest.raises(InputError, match="got NaN at t=1000"):
        pynode.solve(lambda t, z: -300 * z, z0, 1000 + OFF, engine=engine, event=lambda t, z: torch.log(z[0, 0] - 0.5))
    sol = pynode.solve(lambda t, z: -1000 * z, z0, 1000 + 16 * OFF, engine=engine, sensitivity="backsolve")
    with pytest.raises(pynode.SolveError, match=r"the backward solve stopped at t=1000(\.0\d)?:"):
        sol.z[-1].sum().backward()


@pytest.mark.parametrize("roundings", [2, 8, 64])
def test_a_field_of_times_that_double_does_not_resolve(engine: str, roundings: int) -> None:
    """Rounding of the times is a part of the field's value: nothing that a solver does makes it right."""
    length = roundings * math.ulp(1.7e9)
    t = torch.tensor([1.7e9, 1.7e9 + length], dtype=DOUBLE)
    z0 = torch.zeros(1, 1, dtype=DOUBLE)

    def field(t: Tensor, z: Tensor) -> Tensor:
        return 2 * (t - 1.7e9) / length**2 + 0 * z

    with pytest.raises((InputError, pynode.SolveError), match=r"float64 tells times apart|count the times from t\[0\]"):
        pynode.solve(field, z0, t, engine=engine)
    with pytest.raises(InputError, match=r"around t=1\.7e\+09 torch\.float64 tells times apart"):
        pynode.solve(field, z0, t, engine=engine, solver="midpoint", dt=length / 2)
    still = pynode.solve(lambda t, z: 1e-9 * torch.sin(t) + 0 * z, z0, t, engine=engine)
    assert still.z.abs().max() < 1e-6


def test_steps_that_rounding_swallows(engine: str) -> None:
    def fast(t: Tensor, z: Tensor) -> Tensor:
        return 1e8 * torch.stack([z[:, 1], -z[:, 0]], 1)

    z0 = torch.tensor([[1.0, 0.5]], dtype=DOUBLE)
    sol = pynode.solve(fast, z0, 1.7e9 + 256 * OFF, engine=engine, rtol=1e-6, max_steps=1000, throw=False)
    assert sol.retcode is (pynode.Retcode.MAX_STEPS if engine == "torch" else pynode.Retcode.STEP_UNDERFLOW)


@pytest.mark.julia
@pytest.mark.parametrize("dt", [1e-9, 1e-3, None])
def test_the_first_step_of_vcabm(dt: float | None) -> None:
    t, z0 = torch.tensor([0.0, 2**-8], dtype=DOUBLE), torch.zeros(1, 1, dtype=DOUBLE)
    more = {} if dt is None else {"dt": dt}
    sol = pynode.solve(lambda t, z: 0 * z + 1, z0, t, engine="julia", solver="vcabm", rtol=1e-6, atol=1e-7, **more)
    assert sol.z[-1].item() == pytest.approx(2**-8, rel=1e-12)


@pytest.mark.parametrize("solver", ["bosh3", "dopri8", "dopri5"])
def test_a_backward_solve_of_decreasing_times(engine: str, solver: str) -> None:
    """It is the mirror of one of increasing times, and no evaluation is beyond the span."""
    rate, z0 = (
        torch.tensor(0.7, dtype=torch.float64, requires_grad=True),
        torch.tensor([[1.0, 2.0]], dtype=torch.float64, requires_grad=True),
    )

    def gradients(sign: float) -> tuple[Tensor, ...]:
        t = (sign * torch.tensor([0.0, 0.37, 1.1, 2.0], dtype=torch.float64)).requires_grad_()
        sol = pynode.solve(
            lambda t, z: sign * rate * z * (2 - sign * t) ** 1.5,  # NaN beyond
            z0, t, solver=solver, sensitivity="backsolve", rtol=1e-8, atol=1e-10, engine=engine,
        )  # fmt: skip
        weight = torch.arange(1.0, sol.z.numel() + 1, dtype=torch.float64).sin().reshape(sol.z.shape)
        found = torch.autograd.grad((weight * sol.z).sum(), [rate, z0, t])
        return *found[:2], sign * found[2]

    torch.testing.assert_close(gradients(-1.0), gradients(1.0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_backward_solve_that_fails_tells_the_users_time(engine: str, sign: float) -> None:
    k = torch.ones(1, dtype=torch.float64, requires_grad=True)
    t = sign * torch.tensor([0.0, 2.0], dtype=torch.float64)

    class Rough(torch.autograd.Function):
        """The identity, whose derivative is rough at early times."""

        @staticmethod
        def forward(ctx: Any, z: Tensor, t: Tensor) -> Tensor:
            ctx.save_for_backward(t)
            return z.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Any:
            (t,) = ctx.saved_tensors
            return g * (1 + 1e3 * torch.sin(1e6 * t) * (sign * t < 1)), None

    def field(t: Tensor, z: Tensor) -> Tensor:
        return -sign * k * Rough.apply(z, t)

    options = {"lowering": "callback"} if engine == "julia" else {}
    sol = pynode.solve(
        field,
        torch.ones(1, 1, dtype=torch.float64),
        t,
        sensitivity="backsolve",
        max_steps=200,
        engine=engine,
        **options,
    )
    with pytest.raises(pynode.SolveError, match="backward solve stopped at t=") as caught:
        sol.z[-1].sum().backward()
    reached = float(str(caught.value).split("t=")[1].split(":")[0])
    assert 0.9 < sign * reached < 1.1
