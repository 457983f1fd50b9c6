"""Mass matrices: differential-algebraic equations against exact solutions and against the equations they come from."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode.engine.choose import get_engine
from pynode.errors import EngineUnavailable, FieldError, InputError

DOUBLE = torch.float64
ABLE = [s.name for s in pynode.solvers() if s.mass]
SENSITIVITIES = ("auto", "discrete", "backsolve", "interpolating", "quadrature", "gauss", "forward")
julia = pytest.mark.julia
solvers = pytest.mark.parametrize("solver", ABLE)

# M z' = f with M = left diag(1, 1, 0) right: neither the algebraic equations nor the algebraic unknowns stand alone.
LEFT = torch.tensor([[1.0, 0.3, -0.2], [0.5, 1.0, 0.4], [-0.3, 0.2, 1.0]], dtype=DOUBLE)
RIGHT = torch.tensor([[1.0, -0.4, 0.1], [0.2, 1.0, 0.5], [0.6, -0.1, 1.0]], dtype=DOUBLE)
HALF = torch.tensor([1.0, 1.0, 0.0], dtype=DOUBLE)
TURNED = LEFT @ torch.diag(HALF) @ RIGHT


class Turned(nn.Module):
    """x' = -k x + y, y' = w - y + cos t, 0 = w + k x y + u - 0.2 sin t in w, in other coordinates and combined."""

    def __init__(self, turned: bool = True) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(0.7, dtype=DOUBLE))
        self.left, self.right = (LEFT, RIGHT) if turned else (torch.eye(3, dtype=DOUBLE),) * 2

    def forward(self, t: Tensor, z: Tensor, u: Tensor) -> Tensor:
        x, y, w = (z @ self.right.T).unbind(-1)
        rates = [-self.k * x + y, w - y + torch.cos(t), w + self.k * x * y + u[:, 0] - 0.2 * torch.sin(t)]
        return torch.stack(rates, -1) @ self.left.T

    def reduced(self, t: Tensor, xy: Tensor, u: Tensor) -> Tensor:
        """Of x and y alone."""
        x, y = xy.unbind(-1)
        w = -self.k * x * y - u[:, 0] + 0.2 * torch.sin(t)
        return torch.stack([-self.k * x + y, w - y + torch.cos(t)], -1)

    def rest(self, t: Tensor, xy: Tensor, u: Tensor) -> Tensor:
        """The state (x, y, w) in the equation's coordinates; `t` `(time,)`, `xy` `(time, batch, 2)`."""
        x, y = xy.unbind(-1)
        w = -self.k * x * y - u[:, 0] + 0.2 * torch.sin(t)[:, None]
        return torch.stack([x, y, w], -1) @ torch.linalg.inv(self.right).T


def turned_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """x and y at the start, the times, what conditions the field."""
    xy = torch.tensor([[0.8, -0.3], [0.2, 0.9]], dtype=DOUBLE)
    return xy, torch.tensor([0.3, 0.9, 2.0], dtype=DOUBLE), torch.tensor([[0.5], [-0.4]], dtype=DOUBLE)


def weigh(z: Tensor) -> Tensor:
    """A number of all states, each with weights of its own."""
    return (z * torch.cos(torch.arange(z.numel(), dtype=z.dtype)).reshape(z.shape)).sum()


@julia
@pytest.mark.slow
@solvers
@pytest.mark.parametrize("batching", ["joint", "independent"])
def test_solutions_and_gradients_of_the_reduced_equation(solver: str, batching: str) -> None:
    """Of a matrix that is not diagonal, with gradients to the state, times, args and parameters."""
    field, (xy, t, u) = Turned(), turned_inputs()
    leaves = [x.requires_grad_() for x in (xy, t, u)]
    values, gradients = [], []
    for reduced in (True, False):
        if reduced:
            z = pynode.solve(field.reduced, xy, t, args=(u,), solver="vern9", rtol=1e-11, atol=1e-11, engine="julia").z
            z = field.rest(t, z, u)
        else:
            start = field.rest(t[:1], xy[None], u)[0]
            z = pynode.solve(
                field, start, t, args=(u,), solver=solver, rtol=1e-9, atol=1e-9, mass=TURNED, batching=batching
            ).z
        values.append(z)
        gradients.append(torch.autograd.grad(weigh(z), [*leaves, field.k]))
    bound = {"rodas5p": 1e-7, "fbdf": 2e-6}[solver]
    torch.testing.assert_close(values[1], values[0], rtol=bound, atol=bound)
    for found, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=10 * bound, atol=10 * bound)


@julia
@pytest.mark.slow
def test_gradients_by_differences() -> None:
    """From a state that is made consistent: of the first state too, and of a start that is far from consistent."""
    field = Turned()
    xy, t, u = turned_inputs()
    z0 = field.rest(t[:1], xy[None], u)[0].detach() + 0.3 * torch.linalg.inv(RIGHT)[:, 2]

    def call(z0: Tensor, t: Tensor, u: Tensor, k: Tensor) -> Tensor:
        def f(t: Tensor, z: Tensor, u: Tensor) -> Any:
            return torch.func.functional_call(field, {"k": k}, (t, z, u))

        mass = pynode.MassMatrix(TURNED, initial="consistent")
        keywords: dict[str, Any] = {"solver": "rodas5p", "rtol": 1e-11, "atol": 1e-11, "engine": "julia"}
        return pynode.solve(f, z0, t, args=(u,), mass=mass, **keywords).z

    inputs = tuple(x.detach().requires_grad_() for x in (z0, t, u, field.k))
    assert torch.autograd.gradcheck(call, inputs, eps=3e-4, atol=1e-6, rtol=1e-5)


class Robertson(nn.Module):
    """Robertson's reactions: as three differential equations, or the last one as the conservation of mass."""

    def __init__(self, algebraic: bool) -> None:
        super().__init__()
        self.algebraic = algebraic
        self.k = nn.Parameter(torch.tensor([0.04, 3e7, 1e4], dtype=DOUBLE))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        a, b, c = z.unbind(-1)
        first, second, third = self.k[0] * a, self.k[1] * b * b, self.k[2] * b * c
        last = a + b + c - 1 if self.algebraic else second
        return torch.stack([third - first, first - third - second, last], -1)


@julia
@pytest.mark.slow
@solvers
def test_robertson_by_its_conservation_law(solver: str) -> None:
    z0, t = torch.tensor([[1.0, 0.0, 0.0]], dtype=DOUBLE), torch.tensor([0.0, 0.4, 40.0, 4e3], dtype=DOUBLE)
    found = []
    for algebraic in (False, True):
        field = Robertson(algebraic)
        own = {"mass": HALF, "solver": solver} if algebraic else {"solver": "rodas5p"}
        z = pynode.solve(field, z0, t, rtol=1e-9, atol=1e-13, engine="julia", **own).z
        (gradient,) = torch.autograd.grad(z[-1, 0, 0] + z[2, 0, 2], field.k)
        found.append((z.detach(), gradient * field.k.detach()))
        if algebraic:
            assert (z.sum(-1) - 1).abs().max() < (1e-13 if solver == "rodas5p" else 1e-9)
    (z, gradient), (expected, of_ode) = found[1], found[0]
    torch.testing.assert_close(z, expected, rtol=3e-6, atol=1e-9)
    torch.testing.assert_close(gradient, of_ode, rtol=3e-4, atol=1e-7)


def pendulum(t: Tensor, z: Tensor, g: Tensor) -> Tensor:
    """Position, velocity and the tension over mass and length, by the constraint on the acceleration."""
    x, y, u, v, tension = z.unbind(-1)
    constraint = u * u + v * v - g * y - tension * (x * x + y * y)
    return torch.stack([u, v, -tension * x, -tension * y - g, constraint], -1)


@julia
@pytest.mark.slow
def test_pendulum_against_its_angle() -> None:
    """Index 1; gradients to gravity and to the angle at the start, which the tension at the start depends on."""
    t = torch.linspace(0, 2, 5, dtype=DOUBLE)
    found = []
    for by_angle in (True, False):
        g, angle = (torch.tensor(x, dtype=DOUBLE, requires_grad=True) for x in (9.81, 1.1))
        if by_angle:
            start = torch.stack([angle, torch.zeros_like(angle)])[None]
            z = pynode.solve(
                lambda t, z, g: torch.stack([z[:, 1], -g * torch.sin(z[:, 0])], -1),
                start, t, args=(g,), solver="vern9", rtol=1e-11, atol=1e-11, engine="julia",
            ).z  # fmt: skip
            θ, ω = z[..., 0], z[..., 1]
            tension = ω**2 + g * torch.cos(θ)
            z = torch.stack([torch.sin(θ), -torch.cos(θ), ω * torch.cos(θ), ω * torch.sin(θ), tension], -1)
        else:
            zero = torch.zeros_like(g)
            start = torch.stack([torch.sin(angle), -torch.cos(angle), zero, zero, zero])[None]
            mass = pynode.MassMatrix(torch.tensor([1.0, 1, 1, 1, 0]), initial="consistent")
            z = pynode.solve(pendulum, start, t, args=(g,), solver="rodas5p", rtol=1e-10, atol=1e-10, mass=mass).z
        found.append((z.detach(), *torch.autograd.grad(weigh(z), [g, angle])))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-7)


@julia
@pytest.mark.slow
@solvers
def test_a_regular_matrix(solver: str) -> None:
    """As the field divided by it; backwards in time, in float32 too, and of a state of two tensors."""
    matrix = LEFT @ LEFT.T
    W = torch.tensor([[-0.5, 1.0, 0.2], [-1.0, -0.4, 0.3], [0.1, -0.6, -0.8]], dtype=DOUBLE)
    z0, t = torch.tensor([[0.5, -0.2, 0.8]], dtype=DOUBLE, requires_grad=True), [1.5, 0.0]
    exact = z0 @ torch.linalg.matrix_exp(-1.5 * torch.linalg.solve(matrix, W)).T
    expected = torch.autograd.grad(weigh(exact), z0)[0]
    for dtype, bound in ((DOUBLE, 1e-5), (torch.float32, 2e-3)):
        own, w = z0.detach().to(dtype).requires_grad_(), W.to(dtype)

        def field(t: Tensor, z: tuple[Tensor, Tensor], w: Tensor = w) -> tuple[Tensor, Tensor]:
            rates = torch.cat([z[0][:, None], z[1]], 1) @ w.T
            return rates[:, 0], rates[:, 1:]

        rtol = 1e-8 if dtype == DOUBLE else 1e-5
        a, b = pynode.solve(
            field, (own[:, 0], own[:, 1:]), t, solver=solver, mass=matrix, rtol=rtol, atol=rtol, engine="julia"
        ).z
        z = torch.cat([a[-1][:, None], b[-1]], 1)
        torch.testing.assert_close(z, exact.to(dtype), rtol=bound, atol=bound)
        torch.testing.assert_close(torch.autograd.grad(weigh(z), own)[0], expected.to(dtype), rtol=bound, atol=bound)


@julia
@pytest.mark.slow
def test_what_else_a_solve_has() -> None:
    """A running cost, an interpolant, all steps, a function of the state, a prepared solve, step control."""
    field, (xy, t, u) = Turned(), turned_inputs()
    start = field.rest(t[:1], xy[None], u)[0].detach()
    keywords: dict[str, Any] = {"solver": "rodas5p", "rtol": 1e-9, "atol": 1e-9, "mass": TURNED, "engine": "julia"}
    cost = pynode.solve(field, start, t, args=(u,), running_cost=lambda t, z, u: z.square().sum(-1), **keywords)
    reduced = pynode.solve(
        field.reduced, xy, t, args=(u,), solver="vern9", rtol=1e-11, atol=1e-11, engine="julia",
        running_cost=lambda t, xy, u: field.rest(t[None], xy[None], u)[0].square().sum(-1),
    )  # fmt: skip
    gradients = [torch.autograd.grad(s.running_cost.sum(), field.k)[0] for s in (cost, reduced)]
    torch.testing.assert_close(cost.running_cost, reduced.running_cost, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-7)

    plain = pynode.solve(field, start, t, args=(u,), **keywords).z.detach()
    dense = pynode.solve(field, start, t[[0, 2]], args=(u,), dense=True, **keywords)
    torch.testing.assert_close(dense(t[1]).detach(), plain[1], rtol=1e-6, atol=1e-7)
    steps = pynode.solve(field, start, t[[0, 2]], args=(u,), save="steps", **keywords)
    assert len(steps.t) > 5
    torch.testing.assert_close(steps.z[-1].detach(), plain[-1], rtol=1e-7, atol=1e-8)
    saved = pynode.solve(field, start, t, args=(u,), save=lambda t, z: z[:, 0], **keywords)
    torch.testing.assert_close(saved.z.detach(), plain[..., 0], rtol=0, atol=0)
    prepared = pynode.prepare(field, like=(start, t), **keywords)
    torch.testing.assert_close(prepared(start, (u,)).z.detach(), plain, rtol=0, atol=0)
    control = pynode.StepControl(dt_max=0.01, norm="max")
    led = pynode.solve(field, start, t, args=(u,), step_control=control, **keywords)
    assert led.stats.n_accepted >= 170
    torch.testing.assert_close(led.z.detach(), plain, rtol=1e-6, atol=1e-7)


@julia
@pytest.mark.slow
def test_states_that_are_not_consistent() -> None:
    field, (xy, t, u) = Turned(turned=False), turned_inputs()
    start = field.rest(t[:1], xy[None], u)[0].detach()
    off = start + torch.tensor([0.0, 0.0, 0.25], dtype=DOUBLE)
    keywords: dict[str, Any] = {"args": (u,), "solver": "rodas5p", "rtol": 1e-6, "atol": 1e-8, "engine": "julia"}
    with pytest.raises(InputError, match=r"residual in sample 0 is up to 0.25, and number 2 .* 0.25 from") as raised:
        pynode.solve(field, off, t, mass=HALF, **keywords)
    assert "initial='consistent'" in str(raised.value)
    made = pynode.solve(field, off, t, mass=pynode.MassMatrix(HALF, initial="consistent"), **keywords).z
    torch.testing.assert_close(made[0], start, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(made, pynode.solve(field, start, t, mass=HALF, **keywords).z, rtol=1e-9, atol=1e-9)
    pynode.solve(field, start + 1e-9, t, mass=HALF, **keywords)  # within the tolerances
    with pytest.raises(InputError, match="does not converge"):
        pynode.solve(
            lambda t, z, u: torch.stack([z[:, 0], z[:, 1], z[:, 2] ** 2 + 1], -1),
            start, t, mass=pynode.MassMatrix(HALF, initial="consistent"), **keywords,
        )  # fmt: skip


@julia
def test_equations_of_higher_index() -> None:
    """The pendulum with the constraint on its position, and a variable that no equation determines."""

    def by_position(t: Tensor, z: Tensor) -> Tensor:
        x, y, u, v, tension = z.unbind(-1)
        return torch.stack([u, v, -tension * x, -tension * y - 9.81, x * x + y * y - 1], -1)

    z0 = torch.tensor([[0.0, -1.0, 0.0, 0.0, 9.81]], dtype=DOUBLE)
    mass = torch.tensor([1.0, 1, 1, 1, 0])
    for initial in ("given", "consistent"):
        with pytest.raises(InputError, match=r"index 1 at z0.*index reduction"):
            pynode.solve(by_position, z0, [0.0, 1.0], solver="rodas5p", mass=pynode.MassMatrix(mass, initial))


@julia
@pytest.mark.slow
def test_further_derivatives_are_refused() -> None:
    field, (xy, t, u) = Turned(), turned_inputs()
    start = field.rest(t[:1], xy[None], u)[0].detach().requires_grad_()
    for initial in ("given", "consistent"):
        mass = pynode.MassMatrix(TURNED, initial)

        def call(z0: Tensor, mass: pynode.MassMatrix = mass) -> Tensor:
            return weigh(pynode.solve(field, z0, t, args=(u,), solver="rodas5p", mass=mass, engine="julia").z)

        (gradient,) = torch.autograd.grad(call(start), start, create_graph=True)
        with pytest.raises(EngineUnavailable, match=r"mass matrix|MassMatrix"):
            torch.autograd.grad(gradient.square().sum(), start)
        with pytest.raises(EngineUnavailable, match=r"mass matrix|MassMatrix"):
            torch.func.jvp(call, (start.detach(),), (torch.ones_like(start),))


@julia
def test_mixed_samples_are_refused() -> None:
    def mixes(t: Tensor, z: Tensor) -> Tensor:
        return torch.stack([-z[:, 0] + z[:, 0].mean(), z[:, 0] - z[:, 1]], -1)

    z0 = torch.tensor([[1.0, 1.0], [0.5, 0.5]], dtype=DOUBLE)
    with pytest.raises(FieldError, match=r"mixes samples.*The mass matrix is that of each sample"):
        pynode.solve(mixes, z0, [0.0, 1.0], solver="rodas5p", mass=torch.tensor([1.0, 0.0]))


@julia
def test_jumps_are_refused() -> None:
    def jumps(t: Tensor, z: Tensor) -> Tensor:
        return torch.stack([-z[:, 0] + (t >= 0.5), z[:, 0] - z[:, 1]], -1)

    z0, mass = torch.tensor([[1.0, 1.0]], dtype=DOUBLE), torch.tensor([1.0, 0.0])
    with pytest.raises(InputError, match="mass matrix has no stops"):
        pynode.solve(jumps, z0, [0.0, 1.0], solver="rodas5p", mass=mass)
    with pytest.raises(InputError, match="mass matrix has no stops"):
        pynode.solve(lambda t, z: z - z, z0, [0.0, 1.0], solver="rodas5p", mass=torch.ones(2), tstops=[0.3])


def decays(t: Tensor, z: Tensor) -> Tensor:
    return torch.stack([-z[:, 0], z[:, 0] - z[:, 1]], -1)


EVENTS = (None, lambda t, z: z[0, 0] - 0.5, pynode.At([0.5], lambda t, z: z))


@pytest.mark.parametrize("engine", ["torch", pytest.param("julia", marks=julia)])
def test_all_combinations_are_solved_or_refused(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not supported is refused before the engine gets the problem; what is, reaches it with the matrix."""
    reached: list[Any] = []

    class Reached(Exception):
        pass

    def solve(problem: Any) -> Any:
        reached.append(problem)
        raise Reached

    monkeypatch.setattr(get_engine(engine), "solve", solve)
    z0 = torch.ones(2, 2, dtype=DOUBLE)
    names = [s.name for s in pynode.solvers() if engine in s.engines]
    others = [("independent", None, "trace"), ("joint", None, "callback"), ("joint", None, "auto")]
    others += [("joint", event, "trace") for event in EVENTS]
    for solver, how, (batching, event, lowering) in itertools.product(["auto", *names], SENSITIVITIES, others):
        able = solver in ABLE and how in ("auto", "gauss") and event is None and lowering == "trace"
        dt = (
            None
            if solver == "auto" or pynode.solvers()[[s.name for s in pynode.solvers()].index(solver)].adaptive
            else 0.1
        )
        keywords: dict[str, Any] = {"solver": solver, "sensitivity": how, "batching": batching, "dt": dt}
        before = len(reached)
        with pytest.raises(Reached if able else (InputError, EngineUnavailable)) as raised:
            pynode.solve(
                decays,
                z0,
                [0.0, 1.0],
                mass=torch.tensor([1.0, 0.0]),
                event=event,
                lowering=lowering,
                engine=engine,
                **keywords,
            )
        assert len(reached) == before + able
        if able:
            assert reached[-1].mass is not None
        else:
            assert "mass" in str(raised.value) or f"has no sensitivity {how!r}" in str(raised.value)


@pytest.mark.parametrize(
    ("mass", "message"),
    [
        ([1.0, 0.0], "mass must be a tensor or a pynode.MassMatrix, got list"),
        (torch.ones(3), r"shape \(2, 2\), or the diagonal \(2,\).*got shape \(3,\)"),
        (torch.ones(2, 3), r"got shape \(2, 3\)"),
        (torch.ones(2, dtype=torch.int64), "torch.int64"),
        (torch.tensor([1.0, float("nan")]), "mass must be finite"),
        (torch.zeros(2, 2), "mass is zero"),
        (torch.ones(2, requires_grad=True), "mass must be constant"),
    ],
)
@julia
def test_matrices_that_are_none(mass: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pynode.solve(decays, torch.ones(1, 2), [0.0, 1.0], solver="rodas5p", mass=mass, engine="julia")


def test_mass_matrix_names() -> None:
    with pytest.raises(InputError, match="initial"):
        pynode.MassMatrix(torch.ones(2), initial="consistant")
    with pytest.raises(InputError, match="must be a tensor, got list"):
        pynode.MassMatrix([1.0, 0.0])  # type: ignore[arg-type]


@pytest.mark.julia
@pytest.mark.parametrize("solver", ["rodas5p", "fbdf"])
@pytest.mark.parametrize("span", [2.0**-8, 2.0**-2])
def test_the_gradient_far_from_zero(solver: str, span: float) -> None:
    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.stack([-0.3 / span * z[:, 0], z[:, 1] - 2 * z[:, 0]], 1)

    z0 = torch.tensor([[1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    t = 1.7e9 + torch.tensor([0.0, span], dtype=torch.float64)
    mass = torch.tensor([1.0, 0.0])
    sol = pynode.solve(field, z0, t, engine="julia", solver=solver, mass=mass, rtol=1e-6, atol=1e-8)
    (grad,) = torch.autograd.grad(sol.z[-1].sum(), z0)
    torch.testing.assert_close(
        grad, torch.tensor([[3 * math.exp(-0.3), 0.0]], dtype=torch.float64), rtol=1e-4, atol=1e-5
    )
