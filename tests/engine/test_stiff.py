"""Stiff fields on the julia engine: Van der Pol, Robertson, a network; blocks of the Jacobian; switching."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from problems import Attracted, Oscillator
from torch import Tensor, nn

import pynode
from pynode.engine.choose import get_engine
from pynode.engine.julia import runtime as julia_runtime
from pynode.nn import TimeConcat

pytestmark = pytest.mark.julia
KRYLOV = ["kencarp4_krylov", "fbdf_krylov"]
STIFF = ["rosenbrock23", "rodas5p", "trbdf2", "kencarp4", "fbdf", "qndf", "auto_stiff"]


class VanDerPol(nn.Module):
    def __init__(self, mu: float = 1e3) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.tensor(mu, dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        x, y = z.unbind(-1)
        return torch.stack([y, self.mu * (1 - x**2) * y - x], -1)


class Robertson(nn.Module):
    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        a, b, c = z.unbind(-1)
        first, second, third = -0.04 * a + 1e4 * b * c, 3e7 * b**2, 0 * a
        return torch.stack([first, -first - second, second + third], -1)


Z0 = torch.tensor([[2.0, 0.0]], dtype=torch.float64)


@pytest.mark.parametrize("solver", [*STIFF, "kencarp3", "kencarp5", "vcabm"])
def test_reported_times_are_as_exact_as_the_last_one(solver: str) -> None:
    field, t, tolerance = Oscillator(1.0), torch.linspace(0, 2, 41, dtype=torch.float64), 1e-6
    with torch.no_grad():
        z = pynode.solve(field, field.start, t, solver=solver, rtol=tolerance, atol=tolerance, engine="julia").z
        error = (z - field.exact(t)).abs().amax((1, 2))
    assert error.max() < max(tolerance, 5 * error[-1].item())


VERY_STIFF = ["rodas5p", "trbdf2", "kencarp3", "kencarp4", "kencarp5", "fbdf", "qndf", "auto_stiff", *KRYLOV]


@pytest.mark.parametrize("solver", VERY_STIFF)
def test_between_the_steps_of_a_very_stiff_field(solver: str) -> None:
    """There slopes mislead: at reported times, in a dense solution, and in the search for events."""
    field, t, tolerance = Attracted(), torch.linspace(0, 6, 121, dtype=torch.float64), 1e-6
    z0 = torch.ones(1, 1, dtype=torch.float64)
    keywords: dict[str, Any] = {"solver": solver, "rtol": tolerance, "atol": tolerance, "engine": "julia"}
    with torch.no_grad():
        z = pynode.solve(field, z0, t, **keywords).z
        assert (z[:, 0, 0] - t.cos()).abs().max() < 5 * tolerance
        between = pynode.solve(field, z0, [0.0, 6.0], dense=True, **keywords)(t)
        assert (between[:, 0, 0] - t.cos()).abs().max() < 5 * tolerance
        found = pynode.solve(field, z0, [0.0, 6.0], event=lambda t, z: z[0, 0] - 0.5, **keywords)
    assert found.event_t is not None
    assert abs(found.event_t.item() - math.pi / 3) < 10 * tolerance


@pytest.mark.parametrize("solver", ["rock2", "rock4"])
def test_between_the_steps_of_stabilized_solvers(solver: str) -> None:
    """At loose tolerances they take long steps on a stiff field, and slopes at their ends mislead too."""
    field, t, tolerance = Attracted(1e4), torch.linspace(0, 6, 301, dtype=torch.float64), 1e-4
    with torch.no_grad():
        z = pynode.solve(
            field,
            torch.ones(1, 1, dtype=torch.float64),
            t,
            solver=solver,
            rtol=tolerance,
            atol=tolerance,
            engine="julia",
        ).z
    assert (z[:, 0, 0] - t.cos()).abs().max() < 5 * tolerance


@pytest.mark.parametrize(
    ("solver", "sensitivity"), [("kencarp4", "gauss"), ("rodas5p", "gauss"), ("trbdf2", "interpolating")]
)
def test_continuous_adjoints_of_a_very_stiff_field(solver: str, sensitivity: str) -> None:
    """They interpolate both solves. By the slopes at the ends of steps they had relative errors of up to a tenth."""
    field, tolerance = Attracted(), 1e-6
    z = pynode.solve(
        field,
        field.a,
        torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64),
        solver=solver,
        rtol=tolerance,
        atol=tolerance,
        sensitivity=sensitivity,
        engine="julia",
    ).z
    z[1:].square().sum().backward()
    exact = 2 * (math.cos(1) ** 2 + math.cos(2) ** 2)
    assert field.a.grad is not None
    assert abs(field.a.grad.item() / exact - 1) < 20 * tolerance


@pytest.mark.parametrize("sensitivity", ["gauss", "interpolating", "quadrature"])
def test_continuous_adjoints_of_kencarp5_keep_the_order_of_its_steps(sensitivity: str) -> None:
    """They interpolate both solves. By the cubic polynomial of a step they were off by 340 to 680 tolerances."""
    field, tolerance = Oscillator(), 1e-8
    z = pynode.solve(
        field,
        field.start,
        [0.0, 2.0],
        solver="kencarp5",
        rtol=tolerance,
        atol=tolerance,
        sensitivity=sensitivity,
        engine="julia",
    ).z
    (gradient,) = torch.autograd.grad(z[-1, 0, 0] ** 2, field.rate)
    end = field.exact(torch.tensor([2.0], dtype=torch.float64))[0, 0, 0]
    (exact,) = torch.autograd.grad(end**2, field.rate)
    assert abs(gradient / exact - 1) < 100 * tolerance


@pytest.mark.parametrize(
    ("solver", "sensitivity"),
    [
        *(("fbdf", name) for name in ("gauss", "interpolating", "quadrature", "backsolve")),
        *(("fbdf_krylov", "gauss"), ("qndf", "gauss"), ("vcabm", "backsolve")),
    ],
)
def test_backward_solves_of_multistep_methods_begin_anew_at_each_time(solver: str, sensitivity: str) -> None:
    """They went on as though nothing jumped there, off by up to 15,000 tolerances; Gauss's sums were of order two."""
    field, t, tolerance = Oscillator(), torch.linspace(0, 2, 6, dtype=torch.float64), 1e-8
    keywords: dict[str, Any] = {"solver": solver, "rtol": tolerance, "atol": tolerance, "engine": "julia"}
    start = field.start.clone().requires_grad_()
    z = pynode.solve(field, start, t, sensitivity=sensitivity, **keywords).z
    gradients = torch.autograd.grad(z[:, 0, 0].sum(), (field.rate, start))
    expected = torch.autograd.grad(field.exact(t)[:, 0, 0].sum(), field.rate)
    assert abs(gradients[0] / expected[0] - 1) < 100 * tolerance


@pytest.mark.parametrize("mass", [None, torch.eye(2, dtype=torch.float64)], ids=["", "mass"])
@pytest.mark.parametrize("dt", [0.1, 1.0])
def test_a_first_step_that_is_too_long_for_fbdf(dt: float, mass: Tensor | None) -> None:
    """Its estimate was the smaller the later the solve begins, and at 1e-3 the solution was off by 250 tolerances."""
    field, t, tolerance = Oscillator(1.0), torch.tensor([1000.0, 1002.0], dtype=torch.float64), 1e-3
    keywords: dict[str, Any] = {"solver": "fbdf", "rtol": tolerance, "atol": 1e-5, "engine": "julia"}
    with torch.no_grad():
        z = pynode.solve(field, field.start, t, dt=dt, mass=mass, **keywords).z
        assert (z[-1] - field.exact(t - 1000)[-1]).abs().max() < 2 * tolerance


def test_a_field_of_time_takes_rosenbrock23_no_more_steps() -> None:
    """Its estimate counted the derivative by time for more than it is, and 16,000 steps were taken here."""
    field, t = Attracted(), torch.tensor([0.0, 6.0], dtype=torch.float64)
    with torch.no_grad():
        solution = pynode.solve(
            field,
            torch.ones(1, 1, dtype=torch.float64),
            t,
            solver="rosenbrock23",
            rtol=1e-4,
            atol=1e-4,
            engine="julia",
        )
    assert abs(solution.z[-1, 0, 0] - math.cos(6)) < 2e-4
    assert solution.stats.n_accepted is not None
    assert solution.stats.n_accepted < 1000


@pytest.mark.parametrize("solver", STIFF)
def test_van_der_pol(solver: str) -> None:
    second = solver in ("rosenbrock23", "trbdf2")
    rtol, close = (1e-5, 3e-2) if second else (1e-7, 3e-3)
    sol = pynode.solve(VanDerPol(), Z0, [0.0, 3000.0], solver=solver, engine="julia", rtol=rtol, atol=rtol * 1e-2)
    # By Radau of SciPy and by Rodas5P, both at 1e-11.
    assert sol.z[-1, 0, 0].item() == pytest.approx(-1.5106069, rel=close)
    assert sol.stats.n_accepted is not None
    assert sol.stats.n_accepted < 10_000  # an explicit method needs two million


@pytest.mark.parametrize("solver", STIFF)
def test_robertson(solver: str) -> None:
    z0 = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    sol = pynode.solve(Robertson(), z0, [0.0, 40.0], solver=solver, engine="julia", rtol=1e-6, atol=1e-10)
    # Hairer & Wanner, Solving Ordinary Differential Equations II, section IV.10.
    expected = torch.tensor([0.7158270688, 9.185534765e-06, 0.2841637457], dtype=torch.float64)
    torch.testing.assert_close(sol.z[-1, 0], expected, rtol=1e-3, atol=0.0)


def test_gradient_of_van_der_pol() -> None:
    field = VanDerPol()
    sol = pynode.solve(
        field, Z0, [0.0, 3000.0], solver="auto_stiff", sensitivity="gauss", engine="julia", rtol=1e-10, atol=1e-10
    )
    sol.z[-1].sum().backward()
    assert field.mu.grad is not None
    assert field.mu.grad.item() == pytest.approx(-0.0035417, rel=1e-2)  # by central differences at 1e-11


def test_stiff_network() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).double()

    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.stack([-1e4 * (z[:, 0] - torch.sin(t)), z[:, 0] - z[:, 1]], -1) + network(z)

    z0, grads = torch.randn(3, 2, dtype=torch.float64), []
    for engine, solver, how in (("julia", "rodas5p", "gauss"), ("julia", "tsit5", "discrete")):
        options = {"rtol": 1e-8, "atol": 1e-10, "max_steps": 1_000_000}
        sol = pynode.solve(field, z0, [0.0, 0.5], engine=engine, solver=solver, sensitivity=how, **options)
        grads.append(torch.autograd.grad(sol.z[-1].square().sum(), list(network.parameters())))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("solver", ["rodas5p", "fbdf"])
def test_batch_as_blocks(solver: str) -> None:
    """The samples of a batch, whose Jacobian is made of blocks, as one by one; and a field that mixes them."""
    z0 = torch.tensor([[2.0, 0.0], [1.5, 0.3], [-1.0, 0.2]], dtype=torch.float64)
    options = {"solver": solver, "engine": "julia", "rtol": 1e-8, "atol": 1e-10}
    field = VanDerPol(100.0)
    whole = pynode.solve(field, z0, [0.0, 60.0], **options).z[-1]
    alone = torch.cat([pynode.solve(field, z[None], [0.0, 60.0], **options).z[-1] for z in z0])
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-6)

    def mixed(t: Tensor, z: Tensor) -> Tensor:
        return 200 * (z.mean(0, keepdim=True) - z) - z

    found = pynode.solve(mixed, z0, [0.0, 1.0], **options).z[-1]
    mean, decay = z0.mean(0, keepdim=True), torch.exp(torch.tensor(-1.0, dtype=torch.float64))
    torch.testing.assert_close(
        found, mean * decay + (z0 - mean) * decay * torch.exp(torch.tensor(-200.0)), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("lowering", ["trace", "callback"])
def test_samples_that_depend_on_one_another_from_a_time_on(lowering: str) -> None:
    """Their Jacobian is of blocks at first; a solver that goes on with these takes 3735 steps."""

    def mixed(t: Tensor, z: Tensor) -> Tensor:
        return 400 * torch.relu(t - 0.5) * (z.mean(0, keepdim=True) - z) - z + torch.sin(t)

    z0 = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2)
    tight = {"rtol": 1e-7, "atol": 1e-9, "engine": "julia"}
    found = pynode.solve(mixed, z0, [0.0, 2.0], solver="rodas5p", lowering=lowering, **tight)
    assert found.stats.n_accepted < 200
    torch.testing.assert_close(
        found.z, pynode.solve(mixed, z0, [0.0, 2.0], solver="vern9", **tight).z, rtol=1e-5, atol=1e-6
    )


def test_switching_takes_the_explicit_method_where_it_can() -> None:
    network = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    options = {"engine": "julia", "rtol": 1e-6, "atol": 1e-8}
    z0 = torch.randn(4, 2, dtype=torch.float64)
    counts = [
        pynode.solve(lambda t, z: network(z), z0, [0.0, 1.0], solver=s, **options).stats.nfe
        for s in ("auto_stiff", "tsit5")
    ]
    assert counts[0] <= 2 * counts[1]


class AllenCahn(nn.Module):
    """z' = d z_xx + z - z³ on a ring of cells."""

    def __init__(self, d: float = 0.01) -> None:
        super().__init__()
        self.d = nn.Parameter(torch.tensor(d, dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        left, right = (torch.cat([z[:, k:], z[:, :k]], 1) for k in (-1, 1))
        return self.d * z.shape[1] ** 2 * (left - 2 * z + right) + z - z**3


def waves(cells: int) -> Tensor:
    x = torch.arange(cells, dtype=torch.float64) / cells
    return (0.5 * torch.sin(2 * torch.pi * x) + 0.3 * torch.cos(14 * torch.pi * x))[None]


def test_without_jacobian() -> None:
    """512 cells of a reaction with diffusion, by GMRES; against an explicit method in some 6000 small steps."""
    field, z0 = AllenCahn(), waves(512)
    with torch.no_grad():
        exact = pynode.solve(
            field, z0, [0.0, 2.0], solver="tsit5", engine="julia", rtol=1e-10, atol=1e-12, max_steps=100_000
        )
        for solver in KRYLOV:
            sol = pynode.solve(field, z0, [0.0, 2.0], solver=solver, engine="julia", rtol=1e-6, atol=1e-8)
            torch.testing.assert_close(sol.z[-1], exact.z[-1], rtol=0, atol=2e-6)
            assert sol.stats.n_accepted is not None
            assert exact.stats.n_accepted is not None
            assert 20 * sol.stats.n_accepted < exact.stats.n_accepted
    tangents = get_engine("julia").session.tangents  # type: ignore[attr-defined]
    assert True in tangents.values()


def test_gradient_without_jacobian() -> None:
    field, z0, grads = AllenCahn(), waves(64), []
    for solver, how in (("kencarp4_krylov", "gauss"), ("tsit5", "discrete")):
        options = {"engine": "julia", "rtol": 1e-8, "atol": 1e-10, "max_steps": 100_000}
        sol = pynode.solve(field, z0, [0.0, 2.0], solver=solver, sensitivity=how, **options)
        grads.append(torch.autograd.grad((sol.z[-1] * torch.linspace(0, 1, 64).double()).sum(), field.d)[0])
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-6)


def test_a_new_batch_size_needs_no_other_kernel() -> None:
    """Nor does the derivative in one direction of a field that reads the time."""
    field, counts = TimeConcat(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))), []
    for batch in (2, 3, 7):
        with torch.no_grad():
            pynode.solve(field, torch.rand(batch, 2), [0.0, 1.0], solver="fbdf_krylov", engine="julia")
        counts.append(julia_runtime.module().kernel_count())
    assert counts[0] == counts[1] == counts[2]


def test_without_jacobian_of_a_julia_field() -> None:
    """Its products with the Jacobian are differences."""
    code = "(u, p, t) -> p .* (circshift(u, 1) .- 2 .* u .+ circshift(u, -1)) .+ u .- u .^ 3"
    field, z0 = pynode.JuliaField(code, torch.tensor(0.01 * 64**2, dtype=torch.float64)), waves(64)
    with torch.no_grad():
        same = pynode.solve(AllenCahn(), z0, [0.0, 2.0], solver="fbdf", engine="julia", rtol=1e-8, atol=1e-10).z
        found = pynode.solve(field, z0, [0.0, 2.0], solver="fbdf_krylov", engine="julia", rtol=1e-8, atol=1e-10).z
    torch.testing.assert_close(found, same, rtol=0, atol=1e-6)
