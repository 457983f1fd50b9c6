"""States that are not in the processor's memory: what is refused, and whole solves on arrays like a GPU's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode.engine.julia import device as julia_device
from pynode.engine.julia import runtime as julia_runtime
from pynode.engine.julia.device import Device, device_of
from pynode.engine.solvers import resolve_solver
from pynode.models import CNF
from pynode.nn import TimeConcat

LIKE = Path(__file__).resolve().parents[2] / "julia" / "test" / "like.jl"


@pytest.fixture(scope="module")
def like_a_gpu() -> Device:
    """A device over the processor's memory; its Julia arrays refuse access to single entries, as a GPU's do."""
    julia_runtime.start()
    import juliacall

    try:
        juliacall.Main.seval("import JLArrays")
    except juliacall.JuliaError:
        pytest.skip("the Julia environment has no JLArrays")
    juliacall.Main.include(str(LIKE))
    return Device(int(juliacall.Main.LIKE))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, like_a_gpu: Device) -> Callable[[], None]:
    """Called, has every solve from then on take place there."""
    return lambda: monkeypatch.setattr(julia_device, "device_of", lambda problem: like_a_gpu)


def both(elsewhere: Callable[[], None], run: Callable[[], list[Tensor]]) -> None:
    expected = run()
    elsewhere()
    found = run()
    assert len(found) == len(expected)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-9)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return TimeConcat(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))).double()


@pytest.mark.julia
@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve", "interpolating", "quadrature", "gauss", "forward"])
def test_every_sensitivity(elsewhere, sensitivity: str) -> None:
    field = mlp()

    def run() -> list[Tensor]:
        z0 = torch.tensor([[1.0, 0.5], [-0.3, 0.8]], dtype=torch.float64, requires_grad=True)
        t = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64, requires_grad=sensitivity != "forward")
        sol = pynode.solve(field, z0, t, engine="julia", sensitivity=sensitivity, rtol=1e-6, atol=1e-8)
        inputs = [z0, *field.parameters(), *([t] if t.requires_grad else [])]
        return [sol.z, *torch.autograd.grad(sol.z.sin().sum(), inputs)]

    both(elsewhere, run)


@pytest.mark.julia
@pytest.mark.parametrize("solver", ["bosh3", "dopri8", "rk4"])
def test_every_kind_of_solver(elsewhere, solver: str) -> None:
    field, fixed = mlp(), solver == "rk4"

    def run() -> list[Tensor]:
        z0 = torch.tensor([[1.0, 0.5], [-0.3, 0.8]], dtype=torch.float64, requires_grad=True)
        how = {"solver": solver, "engine": "julia", "rtol": 1e-6, "atol": 1e-8}
        sol = pynode.solve(field, z0, [1.0, 0.3, 0.0], dt=0.05 if fixed else None, **how)
        return [sol.z, *torch.autograd.grad(sol.z.sin().sum(), [z0, *field.parameters()])]

    both(elsewhere, run)


@pytest.mark.julia
def test_tuples_running_cost_conditioning_and_the_interpolant(elsewhere) -> None:
    def field(t: Tensor, z: tuple[Tensor, Tensor], u: Tensor) -> tuple[Tensor, Tensor]:
        a, b = z
        return -a * u, torch.sin(t) * a.sum(-1, keepdim=True) - b

    def cost(t: Tensor, z: tuple[Tensor, Tensor], u: Tensor) -> Tensor:
        return z[0].square().sum(-1)

    def run() -> list[Tensor]:
        a = torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=torch.float64, requires_grad=True)
        b, u = (
            torch.zeros(2, 1, dtype=torch.float64),
            torch.tensor([[0.3], [0.9]], dtype=torch.float64, requires_grad=True),
        )
        sol = pynode.solve(
            field, (a, b), [0.0, 1.0], args=(u,), running_cost=cost, dense=True, engine="julia", rtol=1e-6, atol=1e-8
        )
        assert sol.running_cost is not None
        gradients = torch.autograd.grad(sol.z[1].sum() + sol.running_cost.sum(), [a, u])
        return [*sol.z, sol.running_cost, *sol([0.25, 0.5]), *gradients]

    both(elsewhere, run)


@pytest.mark.julia
def test_an_event(elsewhere) -> None:
    def run() -> list[Tensor]:
        z0 = torch.tensor([[10.0, 0.0]], dtype=torch.float64, requires_grad=True)
        fall = pynode.solve(
            lambda t, z: torch.stack([z[..., 1], -9.81 * torch.ones_like(z[..., 1])], -1),
            z0,
            [0.0, 5.0],
            event=lambda t, z: z[0, 0],
            engine="julia",
            rtol=1e-8,
            atol=1e-8,
        )
        assert fall.event_t is not None
        return [fall.event_t.detach(), *torch.autograd.grad(fall.event_t, z0)]

    both(elsewhere, run)


@pytest.mark.julia
def test_a_flow_with_regularisers(elsewhere) -> None:
    field = mlp()
    base = torch.distributions.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    flow = CNF(field, base, trace="exact", kinetic=0.1, engine="julia", rtol=1e-6, atol=1e-8)

    def run() -> list[Tensor]:
        x = torch.tensor([[1.0, 0.5], [-0.3, 0.8]], dtype=torch.float64)
        log_p = flow.log_prob(x)
        loss = -log_p.mean() + flow.regularisation["kinetic"]
        return [log_p.detach(), *torch.autograd.grad(loss, list(field.parameters()))]

    both(elsewhere, run)


# -- refusals ------------------------------------------------------------------------------------------------------


def problem_on(device: str, solver: str = "tsit5", times: int = 1) -> Any:
    where = SimpleNamespace(device=torch.device(device))
    info = resolve_solver(solver, "julia")
    return SimpleNamespace(z0=(where,), t=torch.zeros([2] * times), solver=info, parameters=(), args=())


def test_what_is_refused() -> None:
    with pytest.raises(pynode.EngineUnavailable, match="works on CPU and CUDA tensors, the state is on meta: move the"):
        device_of(problem_on("meta"))
    with pytest.raises(pynode.EngineUnavailable, match="has the solver 'fbdf' on the CPU only, the state is on cuda:0"):
        device_of(problem_on("cuda:0", solver="fbdf"))
    with pytest.raises(pynode.EngineUnavailable, match=r"solves independent samples on the CPU only.*batching"):
        device_of(problem_on("cuda:0", times=2))


def test_a_field_and_a_state_on_different_devices() -> None:
    problem = problem_on("cuda:0")
    problem.parameters = (torch.zeros(3, 2),)
    with pytest.raises(pynode.FieldError, match=r"on cuda:0, and a parameter of shape \(3, 2\) on cpu: move the field"):
        device_of(problem)
    problem.parameters, problem.args = (), (torch.zeros(4),)
    with pytest.raises(pynode.FieldError, match=r"on cuda:0, and a conditioning tensor of shape \(4,\) on cpu"):
        device_of(problem)


@pytest.mark.julia
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_without_the_package() -> None:
    with pytest.raises(pynode.EngineUnavailable, match=r"the state is on cuda:0, and Julia.* package CUDA"):
        julia_runtime.open_cuda(0)


@pytest.mark.julia
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu() -> None:
    field = mlp()
    z0 = torch.randn(5, 2, dtype=torch.float64)

    def run(device: str) -> list[Tensor]:
        field.to(device)
        field.zero_grad()
        sol = pynode.solve(field, z0.to(device), [0.0, 0.5, 1.0], engine="julia", rtol=1e-6, atol=1e-8)
        assert sol.z.device.type == device
        sol.z.sin().sum().backward()
        return [x.cpu() for x in (sol.z.detach(), *(p.grad for p in field.parameters() if p.grad is not None))]

    for x, y in zip(run("cuda"), run("cpu"), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-8)
