"""Models within `torch.compile` and `torch.jit.trace`."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import pynode
from pynode import compat
from pynode.models import FFJORD, NODE, StackedNODE

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated:DeprecationWarning")


class Rate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 8), nn.Linear(8, 2)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(z))) * torch.cos(t)


class Around(nn.Module):
    """A solve, or what makes one, between two layers."""

    def __init__(self, solve: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.before, self.rate, self.after, self.solve = nn.Linear(2, 2), Rate(), nn.Linear(2, 1), solve

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.solve(self.rate, torch.relu(self.before(x))))


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The output and the gradients of the sum of its squares."""
    x = x.clone().requires_grad_()
    out = model(x)
    return [out, *torch.autograd.grad(out.square().sum(), [x, *model.parameters()])]


# ---- torch.compile -------------------------------------------------------------------------------

T = torch.linspace(0, 1, 3)


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("how", ["discrete", "backsolve"])
def test_compiled_model(engine: str, how: str, backend: str, caplog: pytest.LogCaptureFixture) -> None:
    """The same numbers, without a warning and with one break of the graph; with another batch size too."""

    def solve(rate: nn.Module, z: Tensor) -> Tensor:
        return pynode.solve(rate, z, T, solver="dopri5", sensitivity=how, engine=engine).z[-1]

    model = Around(solve)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, backend=backend)
    caplog.set_level(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module="torch")  # its own, of its own
        for x in (torch.randn(6, 2), torch.randn(6, 2), torch.randn(4, 2)):
            for got, expected in zip(gradients(compiled, x), gradients(model, x), strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert not [r.getMessage() for r in caplog.records if r.name.startswith("torch")]
    broken = torch._dynamo.utils.counters["graph_break"]
    assert all("disable" in reason for reason in broken)
    with pytest.raises(Exception, match=r"torch\.compiler\.disable"):
        torch.compile(model, backend=backend, fullgraph=True)(torch.randn(6, 2))


@pytest.mark.slow
def test_compiled_models(engine: str, caplog: pytest.LogCaptureFixture) -> None:
    """What the models do around their solves."""
    nets: list[nn.Module] = [StackedNODE([Rate(), Rate()], engine=engine), FFJORD(2, engine=engine)]

    caplog.set_level(logging.WARNING)
    x = torch.randn(6, 2)
    for net in nets:
        function = net.log_prob if isinstance(net, FFJORD) else net
        torch._dynamo.reset()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            results = []
            for f in (function, torch.compile(function, backend="eager")):
                torch.manual_seed(1)
                results.append(torch.autograd.grad(f(x).sum(), list(net.parameters())))
        assert not caught
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected)
    assert not [r.getMessage() for r in caplog.records if r.name.startswith("torch")]


@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
def test_compiled_program_for_torchdiffeq(engine: str, name: str) -> None:
    model = Around(lambda rate, z: getattr(compat, name)(rate, z, T, rtol=1e-5, atol=1e-6, engine=engine)[-1])
    torch._dynamo.reset()
    x = torch.randn(6, 2)
    for got, expected in zip(gradients(torch.compile(model, backend="aot_eager"), x), gradients(model, x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


# ---- torch.jit.trace -----------------------------------------------------------------------------


def plain(rate: nn.Module, z: Tensor) -> Tensor:
    return pynode.solve(rate, z, T, solver="rk4", dt=0.13).z[-1]


def backwards(rate: nn.Module, z: Tensor) -> Tensor:
    how: dict[str, Any] = {"solver": "midpoint", "dt": 0.1, "sensitivity": "discrete", "engine": "torch"}
    return pynode.solve(rate, z, T.flip(0), **how).z[-1]


def costly(rate: nn.Module, z: Tensor) -> Tensor:
    sol = pynode.solve(rate, z, T, solver="euler", dt=0.1, running_cost=lambda t, z: z.square().sum(1))
    return sol.z[-1] + sol.running_cost[:, None]


def paired(rate: nn.Module, z: Tensor) -> Tensor:
    """A tuple state, of which one part has no features, and a conditioning tensor."""

    def field(t: Tensor, state: Any, u: Tensor) -> Any:
        return rate(t, state[0]) + u, state[0].square().sum(1) - state[1]

    first, second = pynode.solve(field, (z, z[:, 0]), T, args=(z,), solver="heun3", dt=0.2).z
    return first[-1] * second[-1][:, None]


@pytest.mark.parametrize("solve", [plain, backwards, costly, paired])
def test_traced_model(solve: Any) -> None:
    """Numbers and gradients for inputs of another batch size, saved and loaded."""
    model = Around(solve)
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(model, torch.randn(3, 2))
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    x = torch.randn(7, 2)
    for got, expected in zip(gradients(loaded, x), gradients(model, x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    before = copy.deepcopy(loaded)(x)
    with torch.no_grad():
        for p in loaded.parameters():
            p.add_(0.1)
    assert not torch.allclose(loaded(x), before)


def test_traced_node() -> None:
    model = NODE(Rate(), solver="rk4", dt=0.1)
    warnings.simplefilter("error", torch.jit.TracerWarning)
    for traced in (torch.jit.trace(model, torch.randn(3, 2)), torch.jit.trace(model.eval(), torch.randn(1, 2))):
        x = torch.randn(5, 2)
        torch.testing.assert_close(traced(x), model(x))


def test_warnings_about_the_users_field_stay() -> None:
    def solve(rate: nn.Module, z: Tensor) -> Tensor:
        how = {"solver": "euler", "dt": 0.5, "engine": "torch"}
        return pynode.solve(lambda t, z: -z if z.sum() > 0 else z, z, T, **how).z[-1]

    with pytest.warns(torch.jit.TracerWarning, match="Converting a tensor to a Python boolean"):
        torch.jit.trace(Around(solve), torch.randn(3, 2))


REFUSED = [
    ({"solver": "auto"}, "those of 'dopri5' depend on the state: pass a fixed-step solver"),
    ({"solver": "adams", "dt": 0.1}, "those of 'adams' depend on the state"),
    ({"batching": "independent"}, "of independent samples"),
    ({"event": lambda t, z: z.sum() - 9.0}, "to an event"),
    ({"dense": True}, "a dense solution"),
]


@pytest.mark.parametrize(("keywords", "message"), REFUSED)
def test_what_a_recording_would_get_wrong_is_refused(keywords: dict[str, Any], message: str) -> None:
    how: dict[str, Any] = {"solver": "rk4", "dt": 0.1, "engine": "torch"} | keywords
    if how["solver"] == "auto":
        del how["dt"]
    with pytest.raises(pynode.InputError, match=rf"torch\.jit\.trace records the steps of one call, and .*{message}"):
        torch.jit.trace(Around(lambda rate, z: pynode.solve(rate, z, T, **how).z[-1]), torch.randn(3, 2))


def test_recorded_times_are_refused() -> None:
    class Timed(nn.Module):
        def forward(self, z: Tensor, t: Tensor) -> Tensor:
            return pynode.solve(lambda t, z: -z, z, 2 * t, solver="rk4", dt=0.1).z

    with pytest.raises(pynode.InputError, match="t, which is an input of the recorded module"):
        torch.jit.trace(Timed(), (torch.randn(3, 2), T))


@pytest.mark.julia
def test_julia_is_refused_in_a_recording() -> None:
    how: dict[str, Any] = {"solver": "rk4", "dt": 0.1, "engine": "julia"}
    with pytest.raises(pynode.EngineUnavailable, match=r"torch\.jit\.trace .* pass engine='torch'"):
        torch.jit.trace(Around(lambda rate, z: pynode.solve(rate, z, T, **how).z[-1]), torch.randn(3, 2))


# ---- recordings without values ------------------------------------------------------------------------------------


class Decay(nn.Module):
    def __init__(self, solve: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.solve = solve

    def forward(self, z: Tensor) -> Tensor:
        return self.solve(z)


def test_what_records_without_values_is_refused(engine: str) -> None:
    """`linearize` and `make_fx` kept what happened to be in memory."""
    z0 = torch.tensor([[1.0, 0.2]], dtype=torch.float64)

    def rate(t: Tensor, z: Tensor) -> Tensor:
        return -0.7 * z

    prepared = pynode.prepare(rate, like=(z0, [0.0, 1.0]), engine=engine)
    solves: list[Callable[[Tensor], Tensor]] = [
        lambda z: pynode.solve(rate, z, [0.0, 1.0], engine=engine).z[-1],
        lambda z: prepared(z).z[-1],
        lambda z: pynode.solve_sde(rate, lambda t, z: 0.1 * z, z, [0.0, 1.0], dt=0.5, engine=engine).z[-1],
    ]
    for solve in solves:
        for _ in range(2):
            solve(z0)
        for record in (
            lambda f: torch.func.linearize(f, z0),
            lambda f: make_fx(f)(z0),
            lambda f: make_fx(f, tracing_mode="fake")(z0),
            lambda f: torch.export.export(Decay(f), (z0,), strict=False),
        ):
            with pytest.raises(pynode.EngineUnavailable, match=r"record"):
                record(solve)
    for z in (FakeTensorMode().from_tensor(z0), z0.to("meta")):
        for solve in solves[:2]:
            with pytest.raises(pynode.InputError, match=r"must have numbers|on meta"):
                solve(z)


@pytest.mark.julia
@pytest.mark.parametrize("inner", ["prepare", "model"])
def test_a_field_that_solves(inner: str) -> None:
    """Of a solve that had been made before Julia read the memory of a tensor that had none, and ended the process."""
    z0 = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    how: dict[str, Any] = {"solver": "rk4", "dt": 0.25, "engine": "julia"}
    if inner == "prepare":
        prepared = pynode.prepare(lambda t, x: -0.5 * x, like=(z0, [0.0, 1.0]), **how)
        solve = lambda z: prepared(z).z[-1]  # noqa: E731
    else:
        solve = NODE(nn.Linear(2, 2, dtype=torch.float64), **how)
    for _ in range(3):
        solve(z0)
    with pytest.raises(pynode.TraceError, match=r"test_recorders.py.*a solve takes its steps.*lowering='callback'"):
        pynode.solve(lambda t, z: -solve(z), z0, [0.0, 1.0], **how)
    called = pynode.solve(lambda t, z: -solve(z), z0, [0.0, 1.0], lowering="callback", **how)
    k = [None] * 4
    z = z0
    for _ in range(4):
        k[0] = -solve(z)
        k[1] = -solve(z + k[0] / 8)
        k[2] = -solve(z + k[1] / 8)
        k[3] = -solve(z + k[2] / 4)
        z = z + (k[0] + 2 * k[1] + 2 * k[2] + k[3]) / 24
    torch.testing.assert_close(called.z[-1], z, rtol=1e-10, atol=1e-10)
