"""Implicit-explicit solvers of a `Split`: order, accuracy, whose Jacobian it is, gradients, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from problems import Oscillator
from torch import Tensor, nn

import pynode
from pynode.errors import EngineUnavailable, InputError

DOUBLE = torch.float64
SPLITTING = [s for s in pynode.solvers() if s.splits]
NAMES = [s.name for s in SPLITTING]
pytestmark = pytest.mark.julia
exhaustive = pytest.mark.exhaustive


class Transport(nn.Module):
    """Diffusion and advection on a ring of n points, as matrices; the first part of the field is stiff."""

    def __init__(self, n: int = 12) -> None:
        super().__init__()
        eye, h = torch.eye(n, dtype=DOUBLE), 1 / n
        up, down = eye.roll(1, 0), eye.roll(-1, 0)
        self.diffusion, self.advection = (up + down - 2 * eye) / h**2, (up - down) / (2 * h)
        self.nu = nn.Parameter(torch.tensor(0.3, dtype=DOUBLE))
        self.c = nn.Parameter(torch.tensor(0.7, dtype=DOUBLE))
        x = torch.arange(n, dtype=DOUBLE) * 2 * math.pi / n
        self.start = torch.stack([torch.sin(x), torch.exp(torch.cos(x))])

    def split(self) -> pynode.Split:
        return pynode.Split(lambda t, z: self.nu * (z @ self.diffusion.T), lambda t, z: self.c * (z @ self.advection.T))

    def exact(self, z0: Tensor, t: Tensor) -> Tensor:
        both = self.nu * self.diffusion + self.c * self.advection
        return torch.stack([z0 @ torch.linalg.matrix_exp(both * (s - t[0])).T for s in t])


@pytest.mark.parametrize("info", SPLITTING, ids=NAMES)
def test_order_of_convergence(info: pynode.SolverInfo) -> None:
    """Of parts that do not commute, the second of which depends on time, by steps of one length."""
    a = torch.tensor([[-2.0, 1.0], [0.3, -1.5]], dtype=DOUBLE)
    b = torch.tensor([[0.0, 2.0], [-2.0, 0.4]], dtype=DOUBLE)
    c = torch.tensor([1.0, -0.5], dtype=DOUBLE)
    split = pynode.Split(lambda t, z: z @ a.T, lambda t, z: z @ b.T + torch.exp(-t) * c)
    z0 = torch.tensor([[1.0, 0.5]], dtype=DOUBLE)
    own = torch.linalg.solve(-torch.eye(2, dtype=DOUBLE) - a - b, c)  # the solution e^(-t) own, and the homogeneous one
    exact = math.exp(-2.0) * own + (z0 - own) @ torch.linalg.matrix_exp(2 * (a + b)).T
    errors = []
    for n in (20, 40):
        steps: dict[str, Any] = {
            "dt": 2 / n,
            "step_control": pynode.StepControl(dt_max=2 / n),
            "rtol": 1e3,
            "atol": 1e3,
        }
        sol = pynode.solve(split, z0, [0.0, 2.0], solver=info.name, engine="julia", **steps)
        assert abs(sol.stats.n_accepted - n) <= 1
        errors.append((sol.z[-1] - exact).abs().max().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(info.order, abs=0.35)


@pytest.mark.parametrize("solver", NAMES)
def test_advection_and_diffusion(solver: str) -> None:
    """Errors keep to the tolerances, of the states that were asked for and at each step, where they follow them."""
    problem, t = Transport(), torch.tensor([0.0, 0.02, 0.1, 0.3], dtype=DOUBLE)
    errors = []
    for rtol in (1e-5, 1e-7, 1e-9):
        for save in ("times", "steps"):
            sol = pynode.solve(
                problem.split(), problem.start, t, solver=solver, rtol=rtol, atol=rtol, save=save, engine="julia"
            )
            errors.append((sol.z - problem.exact(problem.start, sol.t)).abs().max().item())
        assert max(errors[-2:]) < 10 * rtol
    assert errors[1] > 10 * errors[3] > 100 * errors[5]


def test_a_part_that_has_no_derivative() -> None:
    """The Jacobian is that of the stiff part alone: of the other, at zero, it would not be finite."""

    def stiff(t: Tensor, z: Tensor) -> Tensor:
        x, y = z.unbind(-1)
        return torch.stack([1e3 * (torch.cos(t) - x), -y], -1)

    def rough(t: Tensor, z: Tensor) -> Tensor:
        x, y = z.unbind(-1)
        return torch.stack([-torch.sin(t).expand_as(x), y.abs().sqrt()], -1)

    z0 = torch.tensor([[1.0, 0.0]], dtype=DOUBLE)
    for solver in NAMES:
        z = pynode.solve(
            pynode.Split(stiff, rough), z0, [0.0, 1.0], solver=solver, rtol=1e-6, atol=1e-6, engine="julia"
        ).z
        assert z[-1, 0, 0].item() == pytest.approx(math.cos(1.0), abs=1e-4)
        assert z[-1, 0, 1].item() == 0
    with pytest.raises(pynode.SolveError):
        pynode.solve(
            lambda t, z: stiff(t, z) + rough(t, z),
            z0,
            [0.0, 1.0],
            solver="kencarp4",
            rtol=1e-6,
            atol=1e-6,
            engine="julia",
        )


@pytest.mark.parametrize("solver", NAMES)
def test_where_newtons_method_fails(solver: str) -> None:
    """As a power's does from afar, and in the jumps of a relaxation oscillator: it is as accurate as elsewhere."""

    def power(t: Tensor, z: Tensor) -> Tensor:
        return -1e3 * (z**5 - torch.cos(t))

    def jumps(t: Tensor, z: Tensor) -> Tensor:
        x, y = z.unbind(-1)
        return torch.stack([0 * x, 50 * ((1 - x**2) * y - x)], -1)

    cases: list[tuple[Any, Any, Any]] = [
        (power, lambda t, z: z * torch.sin(5 * t), [[3.0]]),
        (jumps, lambda t, z: torch.stack([z[:, 1], 0 * z[:, 0]], -1), [[2.0, 0.0]]),
    ]
    t = torch.tensor([0.0, 0.4, 1.0], dtype=DOUBLE)
    for stiff, other, start in cases:
        z0, split = torch.tensor(start, dtype=DOUBLE), pynode.Split(stiff, other)
        z = pynode.solve(split, z0, t, solver=solver, rtol=1e-7, atol=1e-8, dt=0.2, engine="julia").z
        right = pynode.solve(split, z0, t, solver="rodas5p", rtol=1e-10, atol=1e-12, engine="julia").z
        torch.testing.assert_close(z, right, rtol=0, atol=1e-4)


def gradients(solver: str, how: str, batching: str = "joint", rtol: float = 1e-9) -> None:
    problem = Transport()
    z0 = problem.start.clone().requires_grad_()
    t = torch.tensor([0.0, 0.05, 0.2], dtype=DOUBLE, requires_grad=True)
    weights = torch.linspace(-1, 1, 3 * z0.numel(), dtype=DOUBLE).sin().reshape(3, *z0.shape)
    wanted = [z0, problem.nu, problem.c, t]
    keywords: dict[str, Any] = {"rtol": rtol, "atol": rtol, "sensitivity": how, "batching": batching}
    z = pynode.solve(problem.split(), z0, t, solver=solver, engine="julia", **keywords).z
    found = torch.autograd.grad((z * weights).sum(), wanted)
    right = torch.autograd.grad((problem.exact(z0, t) * weights).sum(), wanted)
    for a, b in zip(found, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


def test_gradients() -> None:
    """Against those of the matrix exponential, to the times and to parameters of either part."""
    gradients("kencarp4", "gauss")


@exhaustive
@pytest.mark.parametrize("how", ["gauss", "interpolating", "quadrature", "backsolve", "forward"])
@pytest.mark.parametrize("solver", NAMES)
def test_gradients_by_each(solver: str, how: str) -> None:
    gradients(solver, how)


@exhaustive
def test_gradients_of_independent_samples() -> None:
    gradients("kencarp4", "gauss", "independent")


@exhaustive
def test_second_derivatives() -> None:
    problem, t = Transport(6), torch.tensor([0.0, 0.2], dtype=DOUBLE)
    found = []
    for solve in (
        lambda z0: (
            pynode.solve(
                problem.split(), z0, t, solver="kencarp4", rtol=1e-9, atol=1e-9, sensitivity="gauss", engine="julia"
            ).z
        ),
        lambda z0: problem.exact(z0, t),
    ):
        z0 = problem.start.clone().requires_grad_()
        (g,) = torch.autograd.grad(solve(z0)[-1].square().sum(), problem.nu, create_graph=True)
        found.append(torch.autograd.grad(g, [z0, problem.nu]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_independent_samples_are_as_in_a_batch() -> None:
    problem, t = Transport(), [0.0, 0.1, 0.3]
    keywords: dict[str, Any] = {"solver": "kencarp4", "rtol": 1e-9, "atol": 1e-9, "engine": "julia"}
    joint = pynode.solve(problem.split(), problem.start, t, **keywords)
    each = pynode.solve(problem.split(), problem.start, t, batching="independent", **keywords)
    torch.testing.assert_close(joint.z, each.z, rtol=0, atol=1e-6)
    assert each.stats.per_sample is not None


class Forced(nn.Module):
    """Two tensors, a condition, and a switch in time; each part reads all of it."""

    def forward(self, t: Tensor, z: tuple[Tensor, Tensor], a: Tensor) -> tuple[Tensor, Tensor]:
        x, y = z
        return -30 * (x - a * y), -20 * y + torch.where(t >= 0.4, 2.0, 0.0)


def test_conditions_jumps_costs_and_dense_output() -> None:
    """As `rodas5p` on the sum, with a running cost that evaluates the `Split` itself."""
    split = pynode.Split(Forced(), lambda t, z, a: (torch.cos(3 * t) * z[1], a * torch.sin(z[0])))
    z0 = torch.tensor([[1.0], [0.5]], dtype=DOUBLE), torch.tensor([[0.2], [-0.4]], dtype=DOUBLE)
    a = torch.tensor([[0.7], [1.2]], dtype=DOUBLE)
    keywords: dict[str, Any] = {
        "args": (a,),
        "running_cost": lambda t, z, a: split(t, z, a)[0].square().sum(-1),
        "event": pynode.At([0.6], lambda t, z, a: (z[0] + 1, z[1])),
        "engine": "julia",
    }
    t = torch.tensor([0.0, 0.3, 0.6, 1.0], dtype=DOUBLE)
    found = pynode.solve(split, z0, t, solver="kencarp4", rtol=1e-8, atol=1e-8, **keywords)
    right = pynode.solve(split, z0, t, solver="rodas5p", rtol=1e-10, atol=1e-10, **keywords)
    for x, y in zip((*found.z, found.running_cost), (*right.z, right.running_cost), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)
    within = pynode.solve(split, z0, [0.0, 0.3], args=(a,), solver="kencarp4", rtol=1e-9, dense=True, engine="julia")
    at = pynode.solve(split, z0, [0.0, 0.1, 0.2], args=(a,), solver="rodas5p", rtol=1e-10, atol=1e-10, engine="julia")
    torch.testing.assert_close(within(torch.tensor(0.1, dtype=DOUBLE))[0], at.z[0][1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", ["kencarp3", "kencarp4", "kencarp5"])
def test_between_the_steps_a_solution_is_as_exact_as_at_their_ends(solver: str) -> None:
    tolerance, whole = 1e-8, Oscillator()
    halves = [torch.tensor(half, dtype=DOUBLE) for half in ([1.0, 0.0], [0.0, 1.0])]
    split = pynode.Split(lambda t, z: halves[0] * whole(t, z), lambda t, z: halves[1] * whole(t, z))
    keywords: dict[str, Any] = {"rtol": tolerance, "atol": tolerance, "dense": True, "engine": "julia"}
    solution = pynode.solve(split, whole.start, [0.0, 2.0], solver=solver, **keywords)
    t = torch.linspace(0, 2, 201, dtype=DOUBLE)
    with torch.no_grad():
        error = (solution(t) - whole.exact(t)).abs().amax((1, 2))
    assert error.max() < max(tolerance, 3 * error[-1].item())


def test_a_path_and_float32() -> None:
    """Of a path through data that both parts get, against `rodas5p`."""
    times = torch.linspace(0, 1, 5, dtype=DOUBLE)
    path = pynode.control.Linear(times, torch.tensor([[0.0, 1.0, -1.0, 0.5, 0.2]], dtype=DOUBLE)[..., None])
    split = pynode.Split(lambda t, z, X: 50 * (X(t) - z), lambda t, z, X: torch.sin(z) * X(t))
    z0 = torch.tensor([[0.3]], dtype=DOUBLE)
    keywords: dict[str, Any] = {"control": path, "engine": "julia"}
    found = pynode.solve(split, z0, times, solver="kencarp5", rtol=1e-8, atol=1e-8, **keywords).z
    right = pynode.solve(split, z0, times, solver="rodas5p", rtol=1e-10, atol=1e-10, **keywords).z
    torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-6)
    problem = Transport().float()
    for name in ("diffusion", "advection", "start"):
        setattr(problem, name, getattr(problem, name).float())
    z = pynode.solve(
        problem.split(), problem.start, [0.0, 0.2], solver="kencarp4", rtol=1e-4, atol=1e-5, engine="julia"
    ).z
    exact = problem.exact(problem.start, torch.tensor([0.0, 0.2]))
    torch.testing.assert_close(z, exact, rtol=0, atol=1e-2)


def test_refused() -> None:
    split, z0 = pynode.Split(lambda z: -50 * z, lambda z: torch.sin(z)), torch.ones(1, 1)
    keywords: dict[str, Any] = {"solver": "kencarp4", "engine": "julia"}
    with pytest.raises(InputError, match="finds no events"):
        pynode.solve(split, z0, [0.0, 1.0], event=lambda t, z: z.sum() - 0.5, **keywords)
    for lowering in ("callback", "auto"):
        with pytest.raises(InputError, match="expected lowering='trace'"):
            pynode.solve(split, z0, [0.0, 1.0], lowering=lowering, **keywords)
    with pytest.raises(EngineUnavailable, match="no sensitivity 'discrete'"):
        pynode.solve(split, z0, [0.0, 1.0], sensitivity="discrete", **keywords)
