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
from pynode.engine.julia import function as julia_function
from pynode.engine.julia import runtime as julia_runtime
from pynode.engine.julia.callback import PythonField
from pynode.engine.julia.device import Device, device_of
from pynode.engine.solvers import resolve_solver
from pynode.field import Field
from pynode.field._trace import trace_field
from pynode.models import CNF
from pynode.nn import TimeConcat
from pynode.sensitivity import find_sensitivity

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


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU")


@pytest.fixture(params=["like a GPU", pytest.param("GPU", marks=NO_GPU)])
def elsewhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Called, has every solve from then on take place there; returns PyTorch's name of where tensors have to lie."""
    if request.param == "GPU":
        return lambda: "cuda"
    like_a_gpu = request.getfixturevalue("like_a_gpu")

    def switch() -> str:
        monkeypatch.setattr(julia_device, "device_of", lambda problem: like_a_gpu)
        return "cpu"

    return switch


def both(elsewhere: Callable[[], str], run: Callable[[str], list[Tensor]], close: float = 1e-7) -> None:
    """A run on the processor and one elsewhere give the same numbers; a run makes its tensors on a device."""
    expected = run("cpu")
    device = elsewhere()
    found = run(device)
    assert found[0].device.type == device
    assert len(found) == len(expected)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x.cpu(), y, rtol=close, atol=close / 100)


def tensor(values: list[Any], device: str, differentiated: bool = True) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device, requires_grad=differentiated)


def mlp(device: str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    return TimeConcat(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))).double().to(device)


STATES = [[1.0, 0.5], [-0.3, 0.8]]


@pytest.mark.julia
@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve", "interpolating", "quadrature", "gauss", "forward"])
def test_every_sensitivity(elsewhere, sensitivity: str) -> None:
    def run(device: str) -> list[Tensor]:
        field, z0 = mlp(device), tensor(STATES, device)
        t = tensor([0.0, 0.4, 1.0], "cpu", differentiated=sensitivity != "forward")
        sol = pynode.solve(field, z0, t, engine="julia", sensitivity=sensitivity, rtol=1e-6, atol=1e-8)
        inputs = [z0, *field.parameters(), *([t] if t.requires_grad else [])]
        return [sol.z, *torch.autograd.grad(sol.z.sin().sum(), inputs)]

    both(elsewhere, run)


@pytest.mark.julia
@pytest.mark.parametrize("solver", ["bosh3", "dopri8", "rk4"])
def test_every_kind_of_solver(elsewhere, solver: str) -> None:
    def run(device: str) -> list[Tensor]:
        field, z0 = mlp(device), tensor(STATES, device)
        how = {"solver": solver, "engine": "julia", "rtol": 1e-6, "atol": 1e-8}
        sol = pynode.solve(field, z0, [1.0, 0.3, 0.0], dt=0.05 if solver == "rk4" else None, **how)
        return [sol.z, *torch.autograd.grad(sol.z.sin().sum(), [z0, *field.parameters()])]

    both(elsewhere, run)


@pytest.mark.julia
@pytest.mark.parametrize("solver", ["verlet", "dprkn6"])
def test_states_of_second_order(elsewhere, solver: str) -> None:
    def run(device: str) -> list[Tensor]:
        force, z0 = nn.Linear(2, 2).double(), (tensor(STATES, device), tensor(STATES, device))
        nn.init.constant_(force.weight, -0.5)
        nn.init.zeros_(force.bias)
        force.to(device)
        how = {"solver": solver, "engine": "julia", "rtol": 1e-6, "atol": 1e-8}
        dt = 0.05 if solver == "verlet" else None
        sol = pynode.solve(lambda t, z: (z[1], force(z[0]).tanh()), z0, [0.0, 0.3, 1.0], dt=dt, **how)
        total = sum(x.sin().sum() for x in sol.z)
        return [*sol.z, *torch.autograd.grad(total, [*z0, *force.parameters()])]

    both(elsewhere, run)


@pytest.mark.julia
def test_exponentials(elsewhere) -> None:
    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.sigmoid(z) - torch.exp(-z) + torch.log1p(z**2) * nn.functional.softplus(z) - torch.softmax(z, 1)

    def run(device: str) -> list[Tensor]:
        z0 = tensor(STATES, device)
        sol = pynode.solve(field, z0, [0.0, 0.3], solver="rk4", dt=0.1, engine="julia")
        return [sol.z, *torch.autograd.grad(sol.z.sin().sum(), [z0])]

    both(elsewhere, run)


@pytest.mark.julia
def test_tuples_running_cost_conditioning_and_the_interpolant(elsewhere) -> None:
    def field(t: Tensor, z: tuple[Tensor, Tensor], u: Tensor) -> tuple[Tensor, Tensor]:
        a, b = z
        return -a * u, torch.sin(t) * a.sum(-1, keepdim=True) - b

    def cost(t: Tensor, z: tuple[Tensor, Tensor], u: Tensor) -> Tensor:
        return z[0].square().sum(-1)

    def run(device: str) -> list[Tensor]:
        a, b = tensor([[1.0, 2.0], [0.5, -1.0]], device), tensor([[0.0], [0.0]], device, differentiated=False)
        u = tensor([[0.3], [0.9]], device)
        sol = pynode.solve(
            field, (a, b), [0.0, 1.0], args=(u,), running_cost=cost, dense=True, engine="julia", rtol=1e-6, atol=1e-8
        )
        assert sol.running_cost is not None
        gradients = torch.autograd.grad(sol.z[1].sum() + sol.running_cost.sum(), [a, u])
        return [*sol.z, sol.running_cost, *sol([0.25, 0.5]), *gradients]

    both(elsewhere, run)


@pytest.mark.julia
def test_an_event(elsewhere) -> None:
    def run(device: str) -> list[Tensor]:
        z0 = tensor([[10.0, 0.0]], device)
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
        return [fall.z[:1], fall.event_t.detach(), *torch.autograd.grad(fall.event_t, z0)]

    both(elsewhere, run)


@pytest.mark.julia
def test_a_flow_with_regularisers(elsewhere) -> None:
    def run(device: str) -> list[Tensor]:
        field = mlp(device)
        zeros, eye = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
        base = torch.distributions.MultivariateNormal(zeros.to(device), eye.to(device))
        flow = CNF(field, base, trace="exact", kinetic=0.1, engine="julia", rtol=1e-6, atol=1e-8)
        log_p = flow.log_prob(tensor(STATES, device, differentiated=False))
        loss = -log_p.mean() + flow.regularisation["kinetic"]
        return [log_p.detach(), *torch.autograd.grad(loss, list(field.parameters()))]

    both(elsewhere, run)


# -- stiff solvers --------------------------------------------------------------------------------------------------


class Stiff(nn.Module):
    """A network beside a fast relaxation, of any number of features."""

    def __init__(self, features: int = 2, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(features, features, dtype=dtype))
        self.rates = nn.Parameter(torch.linspace(1.0, 60.0, features, dtype=dtype))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(z @ self.weight) - self.rates * (z - torch.sin(t))


class Mixed(Stiff):
    """The same, drawn to the mean of the samples: their Jacobian has no blocks."""

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return super().forward(t, z) + 5 * (z.mean(0, keepdim=True) - z)


# Rounding decides what the steps of a BDF method are, and GMRES solves to a tolerance: results agree within tolerances.
ROUGH = ("fbdf", "qndf", "kencarp4_krylov", "fbdf_krylov")


def stiff(solver: str, sensitivity: str = "gauss", field: type[Stiff] = Stiff, shape: tuple[int, int] = (3, 2)) -> Any:
    def run(device: str) -> list[Tensor]:
        z0 = torch.linspace(-1, 1, shape[0] * shape[1], dtype=torch.float64).reshape(shape).to(device).requires_grad_()
        f, t = field(shape[1]).to(device), tensor([0.0, 0.3, 1.0], "cpu", differentiated=sensitivity != "forward")
        tight = {"rtol": 1e-9, "atol": 1e-11} if solver in ROUGH else {"rtol": 1e-6, "atol": 1e-8}
        sol = pynode.solve(f, z0, t, engine="julia", solver=solver, sensitivity=sensitivity, **tight)
        inputs = [z0, *f.parameters(), *([t] if t.requires_grad else [])]
        return [sol.z, *torch.autograd.grad(sol.z.sin().sum(), inputs)]

    return run


@pytest.mark.julia
@pytest.mark.parametrize("sensitivity", ["gauss", "quadrature", "forward"])
def test_a_stiff_solver(elsewhere, sensitivity: str) -> None:
    both(elsewhere, stiff("rodas5p", sensitivity))


@pytest.mark.julia
@pytest.mark.parametrize(
    "solver",
    [
        "kencarp4",
        "fbdf",
        *(pytest.param(s, marks=pytest.mark.exhaustive) for s in ("rosenbrock23", "trbdf2", "qndf", "auto_stiff")),
    ],
)
def test_every_kind_of_stiff_solver(elsewhere, solver: str) -> None:
    both(elsewhere, stiff(solver), close=1e-4 if solver in ROUGH else 1e-7)


@pytest.mark.julia
@pytest.mark.parametrize("solver", ["kencarp4_krylov", pytest.param("fbdf_krylov", marks=pytest.mark.exhaustive)])
def test_without_a_jacobian(elsewhere, solver: str) -> None:
    both(elsewhere, stiff(solver), close=1e-4)


@pytest.mark.julia
@pytest.mark.parametrize(
    ("field", "shape"), [(Mixed, (3, 2)), (Mixed, (3, 7)), (Stiff, (1, 3)), (Stiff, (4, 17)), (Stiff, (1, 20))]
)
def test_jacobians_of_every_shape(elsewhere, field: type[Stiff], shape: tuple[int, int]) -> None:
    """Blocks of samples or none, which one thread of a device takes alone or all take together."""
    both(elsewhere, stiff("rodas5p", field=field, shape=shape))


@pytest.mark.julia
@pytest.mark.parametrize("dense", [False, True])
def test_tuples_and_running_cost_of_a_stiff_solver(elsewhere, dense: bool) -> None:
    def field(t: Tensor, z: tuple[Tensor, Tensor], u: Tensor) -> tuple[Tensor, Tensor]:
        a, b = z
        return -10 * a * u - b, torch.sin(t) * a.sum(-1, keepdim=True) - 20 * b

    def cost(t: Tensor, z: tuple[Tensor, Tensor], u: Tensor) -> Tensor:
        return z[0].square().sum(-1)

    def run(device: str) -> list[Tensor]:
        a, b = tensor([[1.0, 2.0], [0.5, -1.0]], device), tensor([[0.3], [-0.2]], device)
        u = tensor([[0.3, 1.0], [0.9, 0.4]], device)
        sol = pynode.solve(
            field,
            (a, b),
            [0.0, 0.4, 1.0],
            args=(u,),
            running_cost=cost,
            dense=dense,
            engine="julia",
            solver="rodas5p",
            rtol=1e-7,
            atol=1e-9,
        )
        assert sol.running_cost is not None
        gradients = torch.autograd.grad(sol.z[0].sin().sum() + sol.z[1].sum() + sol.running_cost.sum(), [a, b, u])
        return [*sol.z, sol.running_cost, *(sol([0.25, 0.5]) if dense else ()), *gradients]

    both(elsewhere, run)


@pytest.mark.julia
def test_a_stiff_solver_in_single_precision(elsewhere) -> None:
    def run(device: str) -> Tensor:
        z0, f = torch.ones(3, 2, device=device), Stiff(2, torch.float32).to(device)
        sol = pynode.solve(f, z0, [0.0, 1.0], engine="julia", solver="rodas5p", rtol=1e-4, atol=1e-5)
        assert sol.z.dtype == torch.float32
        gradients = torch.autograd.grad(sol.z[-1].sum(), list(f.parameters()))
        return torch.cat([x.flatten().cpu() for x in (sol.z, *gradients)])

    expected = run("cpu")
    torch.testing.assert_close(run(elsewhere()), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.julia
def test_an_event_of_a_stiff_solver(elsewhere) -> None:
    def run(device: str) -> list[Tensor]:
        z0, f = tensor([[2.0, 0.0]], device), Stiff().to(device)
        how = {"solver": "rodas5p", "rtol": 1e-8, "atol": 1e-8}
        sol = pynode.solve(f, z0, [0.0, 5.0], event=lambda t, z: z[0, 0] - 1.0, engine="julia", **how)
        assert sol.event_t is not None
        return [sol.z[:1], sol.event_t.detach(), *torch.autograd.grad(sol.event_t, [z0, *f.parameters()])]

    both(elsewhere, run)


def blows_up(t: Tensor, z: Tensor) -> Tensor:
    return z**2


def has_no_value(t: Tensor, z: Tensor) -> Tensor:
    return torch.where(t > 0.5, torch.nan, 1.0) * z


@pytest.mark.julia
@pytest.mark.parametrize("solver", ["rodas5p", "kencarp4"])
@pytest.mark.parametrize(("field", "max_steps"), [(blows_up, 10_000), (has_no_value, 10_000), (blows_up, 5)])
def test_stiff_solves_that_fail(
    elsewhere, solver: str, field: Callable[[Tensor, Tensor], Tensor], max_steps: int
) -> None:
    def run(device: str) -> tuple[pynode.Retcode, Tensor]:
        z0 = tensor([[1.0, 0.5], [0.3, 2.0]], device, differentiated=False)
        how = {"solver": solver, "engine": "julia", "max_steps": max_steps, "throw": False}
        sol = pynode.solve(field, z0, [0.0, 0.2, 3.0], **how)
        return sol.retcode, sol.z.cpu()

    retcode, z = run("cpu")
    found, values = run(elsewhere())
    assert found == retcode != pynode.Retcode.SUCCESS
    torch.testing.assert_close(values, z, rtol=1e-7, atol=1e-9, equal_nan=True)


# -- independent samples --------------------------------------------------------------------------------------------


@pytest.mark.julia
@pytest.mark.parametrize(
    ("solver", "sensitivity"), [("tsit5", "discrete"), ("tsit5", "gauss"), ("tsit5", "forward"), ("rodas5p", "gauss")]
)
def test_independent_samples(elsewhere, solver: str, sensitivity: str) -> None:
    """Times of each sample's own, of which one has fewer, and rows of a conditioning tensor."""

    def run(device: str) -> list[Tensor]:
        field, z0 = mlp(device), tensor([*STATES, [0.2, -0.7]], device)
        u = tensor([[0.3], [0.9], [-0.4]], device)
        differentiated = sensitivity != "forward"
        t = tensor([[0.0, 0.4, 1.0], [0.1, 0.7, torch.nan], [1.0, 0.5, 0.2]], "cpu", differentiated)
        how = {"solver": solver, "sensitivity": sensitivity, "rtol": 1e-6, "atol": 1e-8}
        sol = pynode.solve(lambda t, z, u: field(t, z) * u, z0, t, args=(u,), engine="julia", **how)
        assert sol.stats.per_sample is not None
        inputs = [z0, u, *field.parameters(), *([t] if differentiated else [])]
        gradients = torch.autograd.grad(sol.z.nan_to_num().sin().sum(), inputs)
        return [sol.z.nan_to_num(7.0), sol.stats.per_sample.n_accepted.to(device), *gradients]

    both(elsewhere, run)


@pytest.mark.julia
def test_events_of_independent_samples(elsewhere) -> None:
    def run(device: str) -> list[Tensor]:
        z0 = tensor([[10.0, 0.0], [3.0, 1.0], [5.0, 60.0]], device)
        fall = pynode.solve(
            lambda t, z: torch.stack([z[..., 1], -9.81 * torch.ones_like(z[..., 1])], -1),
            z0,
            [0.0, 5.0],
            event=lambda t, z: z[..., 0],
            batching="independent",
            engine="julia",
            rtol=1e-8,
            atol=1e-8,
        )
        assert fall.event_t is not None
        times = fall.event_t.nan_to_num()
        return [fall.z.detach().nan_to_num(7.0), times.detach(), *torch.autograd.grad(times.sum(), z0)]

    both(elsewhere, run)


@pytest.mark.julia
def test_interpolants_and_failures_of_independent_samples(elsewhere) -> None:
    def run(device: str) -> list[Tensor]:
        z0 = tensor([[1.0], [0.2]], device, differentiated=False)
        how = {"batching": "independent", "engine": "julia", "rtol": 1e-6, "atol": 1e-8}
        sol = pynode.solve(lambda t, z: -z * t, z0, [0.0, 2.0], dense=True, **how)
        failed = pynode.solve(blows_up, z0, [0.0, 0.5, 2.0], throw=False, **how)
        assert failed.stats.per_sample is not None
        codes = [float(code is pynode.Retcode.SUCCESS) for code in failed.stats.per_sample.retcode]
        assert codes == [0.0, 1.0]
        return [sol.z, sol([0.3, 1.7]), failed.z.nan_to_num(7.0)]

    both(elsewhere, run)


# -- refusals ------------------------------------------------------------------------------------------------------


def problem_on(device: str, solver: str = "tsit5", **more: Any) -> Any:
    where = SimpleNamespace(device=torch.device(device))
    problem = {"z0": (where,), "t": torch.zeros(2), "solver": resolve_solver(solver, "julia")}
    others = {"parameters": (), "args": (), "mass": None, "split": None, "sensitivity": None}
    return SimpleNamespace(**(problem | others | more))


def test_what_is_refused() -> None:
    with pytest.raises(pynode.EngineUnavailable, match="works on CPU and CUDA tensors, the state is on meta: move the"):
        device_of(problem_on("meta"))
    for name in ("interpolating", "backsolve"):
        how = find_sensitivity(name)
        with pytest.raises(pynode.EngineUnavailable, match=f"{name}.* of the stiff solver 'fbdf' on the CPU only"):
            device_of(problem_on("cuda:0", solver="fbdf", sensitivity=how))
    with pytest.raises(pynode.EngineUnavailable, match="takes mass matrices on the CPU only, the state is on cuda:0"):
        device_of(problem_on("cuda:0", solver="rodas5p", mass=object()))
    with pytest.raises(pynode.EngineUnavailable, match="takes the parts of a Split on the CPU only, the state is on"):
        device_of(problem_on("cuda:0", solver="kencarp4", split=1))


def test_functions_of_bessel_are_for_the_processor() -> None:
    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.special.i0e(z) + torch.erf(z) * torch.special.i1(z)

    z0, t = torch.ones(2, 3), torch.tensor([0.0, 1.0])
    graph = trace_field(Field(field, (z0,), t, (), False), (z0,), t, ()).graph
    Device(-1).check_operations(graph)
    with pytest.raises(
        pynode.EngineUnavailable, match=r"computes .*torch\.special\.i0e.* on the CPU only, and the state is"
    ):
        Device(0, SimpleNamespace(device="cuda:0")).check_operations(graph)


def test_fields_in_julia_and_callbacks_are_for_the_processor() -> None:
    state = torch.zeros(2, 3, device="meta")
    with pytest.raises(pynode.EngineUnavailable, match="a JuliaField takes CPU tensors, the state is on meta: move it"):
        julia_function.call([torch.zeros(()), state], 0, [])
    problem: Any = SimpleNamespace(z0=(state,))
    with pytest.raises(pynode.EngineUnavailable, match="lowering='callback' works on CPU tensors, the state is on"):
        PythonField(problem, problem, Device(-1))


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
