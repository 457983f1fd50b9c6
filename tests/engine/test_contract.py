"""The engine contract on behaviour: costs, failures, shapes, what autograd users rely on."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from problems import MLP, Driven, Linear, Pair, draw, gradient_cases, solver_cases
from torch import Tensor, nn

import pynode
from pynode import Retcode
from pynode.engine import SolverInfo

DOUBLE = torch.float64
FINE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}


def test_stats(engine: str) -> None:
    field, z0, _ = draw("mlp")
    sol = pynode.solve(field, z0, [0.0, 1.0], engine=engine)
    assert sol.stats.nfe > 0
    assert sol.stats.seconds > 0
    assert sol.stats.n_accepted is not None
    assert sol.stats.n_accepted > 0
    assert sol.stats.nfe_backward is None
    sol.z[-1].sum().backward()
    assert sol.stats.nfe_backward is not None
    assert sol.stats.nfe_backward > 0
    finer = pynode.solve(field, z0, [0.0, 1.0], engine=engine, **FINE)
    assert finer.stats.nfe > sol.stats.nfe


@pytest.mark.parametrize(("engine", "info"), [c for c in solver_cases() if c.values[1].name in ("euler", "rk4")])
def test_evaluations_of_fixed_steps(engine: str, info: SolverInfo) -> None:
    """From each time, steps of dt, the last cut short: 0 to 1 by 0.3 is 4 steps, 1 to 1.2 is 1."""
    field, z0, _ = draw("linear")
    sol = pynode.solve(field, z0, [0.0, 1.0, 1.2], solver=info.name, dt=0.3, engine=engine)
    assert sol.stats.n_accepted == 5
    # A solver may evaluate once more, e.g. at the end of the last step.
    assert 0 <= sol.stats.nfe - 5 * info.order <= 2


def test_fixed_steps_are_cut_to_land_on_each_time(engine: str) -> None:
    field, z0, _ = draw("linear")
    A = field.A.detach()
    z = pynode.solve(field, z0, [0.0, 0.7, 1.0], solver="euler", dt=0.5, engine=engine).z.detach()
    middle = z0 + 0.5 * z0 @ A.T
    first = middle + 0.2 * middle @ A.T
    torch.testing.assert_close(z, torch.stack([z0, first, first + 0.3 * first @ A.T]), rtol=1e-12, atol=1e-12)


def test_parameters_unused_frozen_and_shared(engine: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Linear(2, 2, bias=False, dtype=DOUBLE)
            self.again = self.shared
            self.frozen = nn.Parameter(torch.tensor(0.3, dtype=DOUBLE), requires_grad=False)
            self.unused = nn.Linear(2, 2, dtype=DOUBLE)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return self.again(torch.tanh(self.shared(z))) + self.frozen * z

    net, z0 = Net(), torch.randn(3, 2, dtype=DOUBLE)
    pynode.solve(net, z0, [0.0, 1.0], engine=engine, **FINE).z[-1].pow(2).sum().backward()
    assert net.frozen.grad is None
    for p in net.unused.parameters():
        assert p.grad is None or not p.grad.any()
    # Independent check of the shared weight's gradient: rk4 unrolled by hand.
    W = net.shared.weight.detach().clone().requires_grad_()

    def f(z: Tensor) -> Tensor:
        return torch.tanh(z @ W.T) @ W.T + 0.3 * z

    z, h = z0, 1 / 200
    for _ in range(200):
        k1 = f(z)
        k2 = f(z + h / 2 * k1)
        k3 = f(z + h / 2 * k2)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + f(z + h * k3))
    (expected,) = torch.autograd.grad(z.pow(2).sum(), W)
    torch.testing.assert_close(net.shared.weight.grad, expected, rtol=1e-6, atol=1e-7)


def test_only_args_require_a_gradient(engine: str) -> None:
    field, z0, (u,) = draw("driven")
    field.requires_grad_(False)
    u.requires_grad_()
    t = torch.tensor([0.0, 1.0], dtype=DOUBLE)
    pynode.solve(field, z0, t, args=(u,), engine=engine, **FINE).z[-1].sum().backward()
    expected = (1 - torch.exp(-field.k / 2)) / field.k * torch.ones_like(u)
    torch.testing.assert_close(u.grad, expected, rtol=1e-6, atol=1e-8)


def test_learned_last_time(engine: str) -> None:
    field, z0, _ = draw("linear")
    last = torch.tensor(0.8, dtype=DOUBLE, requires_grad=True)
    sol = pynode.solve(field, z0, [0.0, last], engine=engine, **FINE)
    sol.z[-1].sum().backward()
    torch.testing.assert_close(last.grad, (sol.z[-1].detach() @ field.A.detach().T).sum(), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("solver", ["auto", "rk4"])
@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_dense(engine: str, solver: str, direction: float) -> None:
    field, z0, _ = draw("linear")
    t = direction * torch.linspace(0, 2, 4, dtype=DOUBLE)
    dt = 0.05 if solver == "rk4" else None
    sol = pynode.solve(field, z0, t, solver=solver, dt=dt, engine=engine, dense=True, rtol=1e-7, atol=1e-9)
    times = direction * torch.tensor([0.0, 0.011, 1.9, 0.5, 1.234, 2.0], dtype=DOUBLE)
    exact = field.exact(z0, torch.cat([t[:1], times]))[1:]
    torch.testing.assert_close(sol(times), exact.detach(), rtol=0, atol=2e-6)
    torch.testing.assert_close(sol(t), sol.z.detach(), rtol=0, atol=1e-6)
    assert sol(direction * 0.5).shape == (2, 2)
    assert sol([direction * 0.5]).shape == (1, 2, 2)


def test_dense_tuple(engine: str) -> None:
    field, z0, _ = draw("pair")
    sol = pynode.solve(field, z0, [0.0, 1.0], engine=engine, dense=True)
    z, s = sol(0.5)
    assert z.shape == (2, 2)
    assert s.shape == (2,)


@pytest.mark.parametrize(("engine", "info"), [c for c in solver_cases() if c.values[1].name == "bosh3"])
def test_dense_of_a_solver_with_a_poor_interpolant(engine: str, info: SolverInfo) -> None:
    field, z0, _ = draw("linear")
    sol = pynode.solve(field, z0, [0.0, 1.0], solver=info.name, engine=engine, dense=True, rtol=1e-7, atol=1e-9)
    times = torch.linspace(0, 1, 31, dtype=DOUBLE)
    torch.testing.assert_close(sol(times), field.exact(z0, times).detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("as_tuple", [False, True])
def test_running_cost(engine: str, as_tuple: bool) -> None:
    """The integral of |z|² of z' = -a z is |z0|² (1 - exp(-2aT)) / 2a, and so are its derivatives."""

    class Decay(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.tensor(0.8, dtype=DOUBLE))

        def forward(self, t: Tensor, z: Any) -> Any:
            return tuple(-self.a * x for x in z) if as_tuple else -self.a * z

    def cost(t: Tensor, z: Any) -> Tensor:
        return sum((x**2).sum(-1) for x in z) if as_tuple else (z**2).sum(-1)

    field, z0 = Decay(), torch.randn(3, 2, dtype=DOUBLE, requires_grad=True)
    T = torch.tensor(1.3, dtype=DOUBLE, requires_grad=True)
    given = (z0[:, :1], z0[:, 1:]) if as_tuple else z0
    sol = pynode.solve(field, given, [0.0, 0.4, T], engine=engine, running_cost=cost, **FINE)
    if as_tuple:
        assert isinstance(sol.z, tuple)
        assert [x.shape for x in sol.z] == [(3, 3, 1)] * 2
    else:
        assert sol.z.shape == (3, 3, 2)
    exact = (z0**2).sum(-1) * (1 - torch.exp(-2 * field.a * T)) / (2 * field.a)
    torch.testing.assert_close(sol.running_cost, exact, rtol=1e-8, atol=1e-9)
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=DOUBLE)
    inputs = [z0, T, field.a]
    got = torch.autograd.grad((weights * sol.running_cost).sum(), inputs)
    expected = torch.autograd.grad((weights * exact).sum(), inputs)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-6, atol=1e-7)


def test_running_cost_with_parameters_and_args(engine: str) -> None:
    """A cost that is a module of its own gets gradients too; the integral runs backwards with t."""
    field, z0, (u,) = draw("driven")
    weight = nn.Linear(1, 1, bias=False, dtype=DOUBLE)
    u.requires_grad_()

    class Cost(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = weight

        def forward(self, t: Tensor, z: Tensor, u: Tensor) -> Tensor:
            return (self.weight(u) * t).squeeze(-1)

    cost = Cost()
    for span, area in (([0.0, 2.0], 2.0), ([2.0, 0.0], -2.0)):
        sol = pynode.solve(field, z0, span, args=(u,), engine=engine, running_cost=cost, **FINE)
        exact = area * weight(u).squeeze(-1)
        torch.testing.assert_close(sol.running_cost, exact, rtol=1e-8, atol=1e-9)
        got = torch.autograd.grad(sol.running_cost.sum(), [u, weight.weight])
        expected = torch.autograd.grad(exact.sum(), [u, weight.weight])
        for g, e in zip(got, expected, strict=True):
            torch.testing.assert_close(g, e, rtol=1e-6, atol=1e-8)


def test_nothing_is_evaluated_beyond_the_span(engine: str) -> None:
    class Closing(nn.Module):
        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return torch.sqrt(1 - t) * torch.ones_like(z)

    sol = pynode.solve(Closing(), torch.zeros(1, 1, dtype=DOUBLE), [0.0, 0.3, 1.0], engine=engine)
    assert sol.z[-1].item() == pytest.approx(2 / 3, abs=5e-3)


def test_batch_of_one(engine: str) -> None:
    field, z0, _ = draw("mlp")
    whole = pynode.solve(field, z0, [0.0, 1.0], engine=engine, **FINE).z
    alone = pynode.solve(field, z0[:1], [0.0, 1.0], engine=engine, **FINE).z
    assert alone.shape == (2, 1, 2)
    torch.testing.assert_close(alone, whole[:, :1], rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("problem", ["mlp", "pair"])
def test_batch_of_none(engine: str, problem: str) -> None:
    field, z0, _ = draw(problem)
    empty = tuple(z[:0] for z in z0) if isinstance(z0, tuple) else z0[:0]
    sol = pynode.solve(field, empty, [0.0, 0.5, 1.0], engine=engine, dense=True)
    z = sol.z[0] if isinstance(sol.z, tuple) else sol.z
    assert z.shape == (3, 0, 2)
    assert sol.retcode is Retcode.SUCCESS
    assert (sol(0.2)[0] if isinstance(sol.z, tuple) else sol(0.2)).shape == (0, 2)
    z.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in field.parameters())


def test_backward_twice(engine: str) -> None:
    field, z0, _ = draw("mlp")
    z0.requires_grad_()
    sol = pynode.solve(field, z0, [0.0, 1.0], engine=engine)
    loss = sol.z[-1].pow(2).sum()
    loss.backward(retain_graph=True)
    first = z0.grad.clone()
    loss.backward()
    torch.testing.assert_close(z0.grad, 2 * first, rtol=1e-9, atol=1e-12)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_vector_jacobian_products_row_by_row(engine: str) -> None:
    """Cotangents that are zero for all but one time give the rows of the Jacobian."""
    field, z0, _ = draw("linear")
    z0 = z0[:1].requires_grad_()
    t = torch.tensor([0.0, 0.5, 1.5], dtype=DOUBLE)
    sol = pynode.solve(field, z0, t, engine=engine, **FINE)
    exact = torch.linalg.matrix_exp(field.A.detach() * t[:, None, None])
    for n in range(3):
        for i in range(2):
            (row,) = torch.autograd.grad(sol.z[n, 0, i], z0, retain_graph=True)
            torch.testing.assert_close(row[0], exact[n, i], rtol=1e-6, atol=1e-7)


def test_change_in_place_between_forward_and_backward(engine: str) -> None:
    field, z0, _ = draw("linear")
    sol = pynode.solve(field, z0, [0.0, 1.0], engine=engine)
    with torch.no_grad():
        field.A.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        sol.z.sum().backward()


def test_without_gradient(engine: str) -> None:
    field, z0, _ = draw("mlp")
    with torch.no_grad():
        quiet = pynode.solve(field, z0.requires_grad_(), [0.0, 1.0], engine=engine)
    assert not quiet.z.requires_grad
    loud = pynode.solve(field, z0, [0.0, 1.0], engine=engine)
    assert loud.z.requires_grad
    torch.testing.assert_close(quiet.z, loud.z.detach(), rtol=1e-12, atol=1e-12)
    field.requires_grad_(False)
    assert not pynode.solve(field, z0.detach(), [0.0, 1.0], engine=engine).z.requires_grad


def test_inference_mode(engine: str) -> None:
    field, z0, (u,) = draw("driven")
    with torch.inference_mode():
        sol = pynode.solve(field, z0 * 1, [0.0, 1.0], args=(u * 1,), engine=engine)
    torch.testing.assert_close(
        sol.z, pynode.solve(field, z0, [0.0, 1.0], args=(u,), engine=engine).z.detach(), rtol=1e-12, atol=1e-12
    )


def test_the_input_is_left_alone(engine: str) -> None:
    field, z0, (u,) = draw("driven")
    t = torch.tensor([0.0, 0.5, 1.0], dtype=DOUBLE)
    before = [x.clone() for x in (z0, u, t, field.k)]
    sol = pynode.solve(field, z0, t, args=(u,), engine=engine)
    sol.z.detach().add_(1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, (z0, u, t, field.k), strict=True))


def test_a_copy_has_its_own_parameters(engine: str) -> None:
    field, z0, _ = draw("mlp")
    first = pynode.solve(field, z0, [0.0, 1.0], engine=engine).z
    other = copy.deepcopy(field)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.5)
    assert not torch.allclose(pynode.solve(other, z0, [0.0, 1.0], engine=engine).z, first)
    again = pynode.solve(field, z0, [0.0, 1.0], engine=engine).z
    assert torch.equal(again, first)
    other.load_state_dict(field.state_dict())
    torch.testing.assert_close(pynode.solve(other, z0, [0.0, 1.0], engine=engine).z, first, rtol=1e-12, atol=0)


def test_non_contiguous_state(engine: str) -> None:
    field, z0, _ = draw("linear")
    wide = torch.zeros(2, 4, dtype=DOUBLE)
    wide[:, ::2] = z0
    z = pynode.solve(field, wide[:, ::2], [0.0, 1.0], engine=engine).z
    assert torch.equal(z, pynode.solve(field, z0, [0.0, 1.0], engine=engine).z)
    z.mul(2).sum().backward()
    sol = pynode.solve(field, z0, [0.0, 1.0], engine=engine)
    field.zero_grad()
    # A cotangent that is not contiguous.
    torch.autograd.backward(sol.z, torch.ones(2, 2, 2, dtype=DOUBLE).transpose(0, 2))
    assert torch.isfinite(field.A.grad).all()


def test_functions_without_parameters(engine: str) -> None:
    z0 = torch.ones(2, 1, dtype=DOUBLE, requires_grad=True)
    sol = pynode.solve(lambda t, z: -z, z0, [0.0, 1.0], engine=engine, **FINE)
    sol.z[-1].sum().backward()
    torch.testing.assert_close(z0.grad, torch.full_like(z0, torch.e**-1), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("cls", [Linear, MLP, Pair, Driven])
def test_nothing_is_left_behind(engine: str, cls: type[nn.Module]) -> None:
    """Neither the solution nor the field outlives its last use, without the garbage collector's help."""
    field = cls()
    z0 = torch.ones(2, 1 if cls is Driven else 2, dtype=DOUBLE, requires_grad=True)
    given = (z0, torch.ones(2, dtype=DOUBLE)) if cls is Pair else z0
    args = (torch.ones(2, 1, dtype=DOUBLE),) if cls is Driven else ()
    gc.collect()
    gc.disable()
    try:
        sol = pynode.solve(field, given, [0.0, 1.0], args=args, engine=engine)
        z = sol.z[0] if isinstance(sol.z, tuple) else sol.z
        z.sum().backward()
        alive = weakref.ref(z)
        del sol, z
        assert alive() is None
    finally:
        gc.enable()
    gone = weakref.ref(field)
    del field
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(("engine", "info", "how"), [c for c in gradient_cases() if c.values[1].order == 5][:4])
def test_first_step_of_an_adaptive_solver(engine: str, info: SolverInfo, how: str) -> None:
    if info.stiff:
        pytest.skip("SciPy's solvers take no first step")
    field, z0, _ = draw("linear")
    sol = pynode.solve(field, z0, [0.0, 1.0], solver=info.name, sensitivity=how, dt=1e-3, engine=engine, **FINE)
    t = torch.tensor([0.0, 1.0], dtype=DOUBLE)
    torch.testing.assert_close(sol.z, field.exact(z0, t), rtol=0, atol=1e-7)


@pytest.mark.julia
def test_steps_grow_where_rounding_bounds_the_error_estimate() -> None:
    """In float32 at a tight tolerance the solvers of both engines, of one order, take about as many evaluations."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
    z0 = torch.randn(64, 2)
    nfe = {
        engine: pynode.solve(lambda t, z: net(z), z0, [0.0, 1.0], rtol=1e-6, atol=1e-6, engine=engine).stats.nfe
        for engine in ("torch", "julia")
    }
    assert nfe["julia"] <= 1.5 * nfe["torch"]
