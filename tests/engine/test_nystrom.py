"""Runge-Kutta-Nyström solvers: order, tolerances, exact gradients, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode.errors import EngineUnavailable, FieldError, InputError

DOUBLE = torch.float64
NYSTROM = [s for s in pynode.solvers() if s.second_order]
NAMES = [s.name for s in NYSTROM]
ADAPTIVE = [s.name for s in NYSTROM if s.adaptive]
julia = pytest.mark.julia


def step_of(solver: str, dt: float) -> dict[str, Any]:
    """How a solver is to step: by tolerances, or by `dt`."""
    return {"rtol": 1e-6, "atol": 1e-6} if solver in ADAPTIVE else {"dt": dt}


class Driven(nn.Module):
    """q'' = -w² q + cos t, of which the exact solution is a sum of two cosines."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.3, 0.6], dtype=DOUBLE))

    def forward(self, t: Tensor, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        q, v = z
        return v, torch.cos(t) - self.w**2 * q

    def exact(self, q: Tensor, v: Tensor, t: float) -> Tensor:
        w = self.w
        own = 1 / (w**2 - 1)
        return (q - own) * torch.cos(w * t) + v / w * torch.sin(w * t) + own * math.cos(t)


class Damped(nn.Module):
    """q'' = -w² q - 2 c q'; q(t) = e^(-ct) (q0 cos st + (v0 + c q0) / s sin st) with s² = w² - c²."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.tensor(0.3, dtype=DOUBLE))

    def forward(self, t: Tensor, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        q, v = z
        return v, -4 * q - 2 * self.c * v

    def exact(self, q: Tensor, v: Tensor, t: float) -> Tensor:
        s = torch.sqrt(4 - self.c**2)
        return torch.exp(-self.c * t) * (q * torch.cos(s * t) + (v + self.c * q) / s * torch.sin(s * t))


class Pendula(nn.Module):
    """A nonlinear field that depends on time, and on the velocity if `friction` is not zero."""

    def __init__(self, friction: float) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.tensor([[0.5, -0.4], [0.2, 0.8]], dtype=DOUBLE))
        self.friction = friction

    def forward(self, t: Tensor, z: tuple[Tensor, Tensor], u: Tensor) -> tuple[Tensor, Tensor]:
        q, v = z
        force = -torch.sin(q @ self.W) + u * torch.cos(t)
        return v, force - self.friction * torch.tanh(v) if self.friction else force


def reads_velocity(solver: str) -> bool:
    return not next(s for s in NYSTROM if s.name == solver).velocity_free


def pair(batch: int = 1) -> tuple[Tensor, Tensor]:
    q, v = torch.tensor([[0.3, -0.2], [1.0, 0.4]], dtype=DOUBLE), torch.tensor([[0.5, 0.1], [-0.3, 0.2]], dtype=DOUBLE)
    return q[:batch], v[:batch]


@julia
def test_order_of_convergence_of_fixed_steps() -> None:
    for field in (Driven(), Damped()):
        q, v = pair()
        errors = []
        for n in (40, 80):
            z = pynode.solve(field, (q, v), [0.0, 4.0], solver="nystrom4", dt=4 / n, engine="julia").z
            errors.append((z[0][-1] - field.exact(q, v, 4.0)).abs().max().item())
        assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.35)


@julia
@pytest.mark.parametrize("solver", ADAPTIVE)
def test_errors_follow_the_tolerances(solver: str) -> None:
    """And fall with them."""
    fields: list[Any] = [Driven(), Damped()] if reads_velocity(solver) else [Driven()]
    for field in fields:
        q, v = pair()
        errors, counts = [], []
        for rtol in (1e-5, 1e-8, 1e-11):
            solution = pynode.solve(
                field, (q, v), [0.0, 4.0, 10.0], solver=solver, rtol=rtol, atol=rtol, engine="julia"
            )
            errors.append((solution.z[0][-1] - field.exact(q, v, 10.0)).abs().max().item())
            counts.append(solution.stats.n_accepted)
            assert errors[-1] < 30 * rtol
        assert counts[0] < counts[1] < counts[2]


def kepler(t: Tensor, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    q, v = z
    return v, -q / q.square().sum(-1, keepdim=True) ** 1.5


def orbit(t: Tensor, e: float) -> tuple[Tensor, Tensor]:
    """Positions and velocities at times `(time,)` of the ellipse of eccentricity e with semi-axis 1, `(time, 1, 2)`."""
    E = t.clone()
    for _ in range(60):  # Newton's method for Kepler's equation
        E = E - (E - e * E.sin() - t) / (1 - e * E.cos())
    rate, b = 1 / (1 - e * E.cos()), math.sqrt(1 - e**2)
    q, v = torch.stack([E.cos() - e, b * E.sin()], -1), torch.stack([-E.sin() * rate, b * E.cos() * rate], -1)
    return q[:, None], v[:, None]


@julia
@pytest.mark.parametrize("solver", NAMES)
def test_an_orbit(solver: str) -> None:
    """Of eccentricity 0.5, over three periods, forwards and backwards, against the solution of Kepler's equation."""
    t = torch.linspace(0, 6 * math.pi, 7, dtype=DOUBLE)
    q, v = orbit(t, 0.5)
    steps: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10} if solver in ADAPTIVE else {"dt": 2e-3}
    for times in (t, t.flip(0)):
        exact = (q, v) if times is t else (q.flip(0), v.flip(0))
        z = pynode.solve(kepler, (exact[0][0], exact[1][0]), times, solver=solver, engine="julia", **steps).z
        for found, right in zip(z, exact, strict=True):
            torch.testing.assert_close(found, right, rtol=0, atol=1e-7)


@julia
def test_what_the_form_of_the_field_is_worth() -> None:
    """A Nyström method for forces that do not read the velocity needs fewer evaluations for a smaller error."""
    t = torch.tensor([0.0, 6 * math.pi], dtype=DOUBLE)
    q, v = orbit(t, 0.5)
    found = {}
    for solver, rtol in (("dprkn6", 1e-8), ("dopri5", 1e-10)):
        sol = pynode.solve(kepler, (q[0], v[0]), t, solver=solver, rtol=rtol, atol=rtol, engine="julia")
        found[solver] = (sol.z[0][-1] - q[-1]).abs().max().item(), sol.stats.nfe
    assert found["dprkn6"][0] < 0.1 * found["dopri5"][0]
    assert found["dprkn6"][1] < 0.8 * found["dopri5"][1]


@julia
@pytest.mark.parametrize("solver", NAMES)
@pytest.mark.parametrize("batching", ["joint", "independent"])
def test_gradients(solver: str, batching: str) -> None:
    """By differences, of all inputs, the times too; steps are held, so that they have to be equal."""
    field = Pendula(0.2 if reads_velocity(solver) else 0.0)
    inputs = (*pair(2), torch.tensor([0.1, 0.45, 1.2], dtype=DOUBLE), torch.tensor([[0.4, -0.3]] * 2, dtype=DOUBLE))
    steps = {"rtol": 1e2, "atol": 1e2, "dt": 0.23} if solver in ADAPTIVE else {"dt": 0.23}
    if solver in ADAPTIVE:
        steps["step_control"] = pynode.StepControl(dt_max=0.23)

    def call(q: Tensor, v: Tensor, t: Tensor, u: Tensor, W: Tensor) -> tuple[Tensor, ...]:
        def f(t: Tensor, z: tuple[Tensor, Tensor], u: Tensor) -> Any:
            return torch.func.functional_call(field, {"W": W}, (t, z, u))

        z: tuple[Tensor, ...] = pynode.solve(
            f, (q, v), t, args=(u,), solver=solver, batching=batching, engine="julia", **steps
        ).z
        return z

    x = tuple(y.requires_grad_() for y in (*inputs, field.W.detach().clone()))
    assert torch.autograd.gradcheck(call, x, eps=1e-6, atol=1e-8, rtol=1e-6)


@julia
@pytest.mark.parametrize("solver", NAMES)
def test_gradients_with_little_memory(solver: str) -> None:
    """The steps are made again, from checkpoints, and the gradient is the same number for number."""
    field, u = Pendula(0.0), torch.tensor([[0.4, -0.3]], dtype=DOUBLE)
    found = []
    for how in ("discrete", pynode.Discrete(memory="1KiB")):
        z0 = tuple(x.requires_grad_() for x in pair())
        z = pynode.solve(
            field,
            z0,
            [0.0, 3.0, 7.0],
            args=(u,),
            solver=solver,
            sensitivity=how,
            engine="julia",
            **step_of(solver, 0.05),
        ).z
        found.append(torch.autograd.grad(z[0].sin().sum() + z[1].square().sum(), [*z0, field.W]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)


@julia
@pytest.mark.parametrize("solver", ADAPTIVE)
def test_choice_of_steps(solver: str) -> None:
    """Bounds, tolerances of each component, norms, the first step, backwards in time, and float32."""
    field, z0 = Driven(), pair(2)
    keywords: dict[str, Any] = {"solver": solver, "engine": "julia", "rtol": 1e-7, "atol": 1e-7}
    plain = pynode.solve(field, z0, [0.0, 5.0], **keywords)
    led = pynode.solve(field, z0, [0.0, 5.0], step_control=pynode.StepControl(dt_max=0.01), **keywords)
    assert led.stats.n_accepted >= 500 > plain.stats.n_accepted
    torch.testing.assert_close(led.z[0], plain.z[0], rtol=1e-5, atol=1e-5)
    strict = tuple(torch.full_like(x, 1e-11) for x in z0)
    tight = pynode.solve(field, z0, [0.0, 5.0], **{**keywords, "rtol": strict, "atol": strict})
    assert tight.stats.n_accepted > 2 * plain.stats.n_accepted
    norms = [
        pynode.solve(field, z0, [0.0, 5.0], step_control=pynode.StepControl(norm=norm), **keywords).stats.n_accepted
        for norm in ("rms", "sample_max", "max")
    ]
    assert norms[0] <= norms[1] <= norms[2]
    assert norms[0] < norms[2]
    steps = pynode.solve(field, z0, [0.0, 5.0], dt=0.125, save="steps", **keywords)
    assert steps.t[1] == 0.125
    assert len(steps.t) == steps.stats.n_accepted + 1
    back = pynode.solve(field, tuple(x[-1] for x in plain.z), [5.0, 0.0], **keywords)
    torch.testing.assert_close(back.z[0][-1], z0[0], rtol=1e-5, atol=1e-5)
    single = pynode.solve(
        Driven().float(), tuple(x.float() for x in z0), [0.0, 5.0], **{**keywords, "rtol": 1e-5, "atol": 1e-5}
    )
    torch.testing.assert_close(single.z[0].double(), plain.z[0], rtol=2e-4, atol=2e-4)
    with pytest.raises(EngineUnavailable, match="controller of its own"):
        pynode.solve(field, z0, [0.0, 5.0], step_control=pynode.StepControl(controller="pid"), **keywords)
    failed = pynode.solve(field, z0, [0.0, 5.0], max_steps=3, throw=False, **keywords)
    assert failed.retcode is pynode.Retcode.MAX_STEPS


@julia
@pytest.mark.parametrize("solver", ADAPTIVE)
def test_a_collision_ends_the_solve(solver: str) -> None:
    """Two bodies that fall into one another, whose acceleration is infinite there."""
    z0 = torch.tensor([[1.0]], dtype=DOUBLE), torch.tensor([[0.0]], dtype=DOUBLE)
    with pytest.raises(pynode.SolveError) as raised:
        pynode.solve(lambda t, z: (z[1], -1 / z[0].square()), z0, [0.0, 3.0], solver=solver, rtol=1e-8, engine="julia")
    assert float(raised.value.t_end) == pytest.approx(math.pi / 2 / math.sqrt(2), abs=1e-3)


@julia
def test_fields_of_another_form_are_refused() -> None:
    z0, t = pair(), [0.0, 1.0]

    def other(t: Tensor, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return 2 * z[1], -z[0]

    for solver in NAMES:
        with pytest.raises(FieldError, match=rf"Nyström solver '{solver}' needs dq/dt = v"):
            pynode.solve(other, z0, t, solver=solver, engine="julia", **step_of(solver, 0.1))
    with pytest.raises(FieldError, match=r"'dprkn6' .* but dv/dt reads v"):
        pynode.solve(Damped(), z0, t, solver="dprkn6", engine="julia")
    for lowering in ("callback", "auto"):
        field = Driven() if lowering == "callback" else Untraceable()
        with pytest.raises(FieldError, match=r"Nyström solver 'nystrom4'.*lowering='trace'"):
            pynode.solve(field, z0, t, solver="nystrom4", dt=0.1, lowering=lowering, engine="julia")


class Untraceable(nn.Module):
    def forward(self, t: Tensor, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return z[1], -z[0] if z[0].sum() > 0 else -2 * z[0]


@julia
@pytest.mark.parametrize("solver", NAMES)
def test_what_is_refused(solver: str) -> None:
    field, z0, t = Driven(), pair(), [0.0, 1.0]
    keywords: dict[str, Any] = {"solver": solver, "engine": "julia", **step_of(solver, 0.1)}
    with pytest.raises(InputError, match=r"pair \(q, v\)"):
        pynode.solve(lambda t, z: z, z0[0], t, **keywords)
    with pytest.raises(InputError, match="no running_cost"):
        pynode.solve(field, z0, t, running_cost=lambda t, z: z[0].sum(-1), **keywords)
    with pytest.raises(InputError, match="finds no events"):
        pynode.solve(field, z0, t, event=lambda t, z: z[0].sum(), **keywords)
    with pytest.raises(InputError, match="no interpolant"):
        pynode.solve(field, z0, t, dense=True, **keywords)
    with pytest.raises(InputError, match="takes no mass matrix"):
        pynode.solve(field, z0, t, mass=torch.ones(4), **keywords)
    for how in ("backsolve", "interpolating", "quadrature", "gauss", "forward"):
        with pytest.raises(EngineUnavailable, match=f"no sensitivity '{how}'"):
            pynode.solve(field, z0, t, sensitivity=how, **keywords)
    q = z0[0].clone().requires_grad_()
    z = pynode.solve(field, (q, z0[1]), t, **keywords).z
    (gradient,) = torch.autograd.grad(z[0][-1].square().sum(), q, create_graph=True)
    with pytest.raises(EngineUnavailable, match="no forward and no second derivatives"):
        torch.autograd.grad(gradient.sum(), q)


@julia
@pytest.mark.parametrize("solver", NAMES)
def test_jumps(solver: str) -> None:
    """A dose of velocity, with its gradient: the solve starts afresh there."""
    kick = torch.tensor([[0.5, -1.0]], dtype=DOUBLE, requires_grad=True)
    z0, field = pair(), Driven()
    at = pynode.At([2.0], lambda t, z: (z[0], z[1] + kick))
    steps = {"rtol": 1e-10, "atol": 1e-10} if solver in ADAPTIVE else {"dt": 0.005}
    z = pynode.solve(field, z0, [0.0, 5.0], solver=solver, event=at, engine="julia", **steps).z
    unkicked = field.exact(*z0, 5.0)
    expected = unkicked + kick / field.w * torch.sin(field.w * 3.0)
    torch.testing.assert_close(z[0][-1], expected.detach(), rtol=1e-8, atol=1e-8)
    (found,) = torch.autograd.grad(z[0][-1].sum(), kick)
    torch.testing.assert_close(found, (torch.sin(field.w * 3.0) / field.w).detach()[None], rtol=1e-8, atol=1e-8)


def test_the_torch_engine_has_none() -> None:
    for solver in NAMES:
        with pytest.raises(EngineUnavailable, match='it is on engine="julia"'):
            pynode.solve(Driven(), pair(), [0.0, 1.0], solver=solver, dt=0.1, engine="torch")
