"""Which engine makes a call of `pynode.compat`, with a stand-in for julia: the torch engine, for traced fields only."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

import pynode
from pynode import compat
from pynode.engine import choose
from pynode.engine.protocol import Availability, Integration, Problem
from pynode.engine.torch.engine import TorchEngine
from pynode.field._trace import trace_field

DOUBLE = torch.float64
Y0 = torch.tensor([[0.3, -0.7], [1.1, 0.2], [0.0, 0.5]], dtype=DOUBLE)
T = torch.tensor([0.0, 0.21, 0.5, 1.0], dtype=DOUBLE)


class Julia(TorchEngine):
    """Solves as the torch engine does, but a field that has a graph only."""

    name = "julia"

    def __init__(self) -> None:
        self.calls = 0

    def available(self) -> Availability:
        return Availability(True)

    def solve(self, problem: Problem) -> Integration:
        trace_field(problem.field, problem.z0, problem.t[0], problem.args)
        self.calls += 1
        return super().solve(problem)


@pytest.fixture
def julia(monkeypatch: pytest.MonkeyPatch) -> Iterator[Julia]:
    stand_in, original = Julia(), choose.get_engine
    monkeypatch.setattr(choose, "get_engine", lambda name: stand_in if name == "julia" else original(name))
    choose._choose.cache_clear()
    choose.announce.cache_clear()
    yield stand_in
    choose._choose.cache_clear()
    choose.announce.cache_clear()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(2, 8, dtype=DOUBLE), nn.Tanh(), nn.Linear(8, 2, dtype=DOUBLE))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y) * torch.cos(t)


class Switched(Net):
    """A field that cannot be traced."""

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y) if t < 0.5 else -self.net(y)


class Watched(Net):
    """A field with callbacks, which remembers their times."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[tuple[str, float]] = []

    def callback_step(self, t: Tensor, y: Tensor, dt: Tensor) -> None:
        self.times.append(("step", t.item()))

    def callback_accept_step(self, t: Tensor, y: Tensor, dt: Tensor) -> None:
        self.times.append(("accept", t.item()))


class WatchedBackwards(Net):
    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def callback_step_adjoint(self, t: Tensor, y: Tensor, dt: Tensor) -> None:
        self.times.append(t.item())


def everything(odeint: Any, field: nn.Module, y0: Any = Y0, t: Tensor = T, **keywords: Any) -> list[Tensor]:
    """The result of a call and its gradients."""
    states = tuple(y.clone().requires_grad_() for y in (y0 if isinstance(y0, tuple) else (y0,)))
    out = odeint(field, states if isinstance(y0, tuple) else states[0], t, **keywords)
    outputs = out if isinstance(out, tuple) else (out,)
    loss = sum((x.abs() ** 2).sum() for x in outputs)
    gradients = torch.autograd.grad(loss, [*states, *field.parameters()], allow_unused=True)
    return [*outputs, *(g for g in gradients if g is not None)]


@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
def test_a_field_that_cannot_be_traced_runs_on_torch(name: str, julia: Julia, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pynode")
    field = Switched()
    for _ in range(3):
        found = everything(getattr(compat, name), field, rtol=1e-4, atol=1e-5)
    for a, b in zip(found, everything(getattr(torchdiffeq, name), field, rtol=1e-4, atol=1e-5), strict=True):
        assert torch.equal(a, b)
    assert julia.calls == 0
    (message,) = caplog.messages  # once for three calls
    assert message.startswith('engine="auto" takes torch (')
    assert "t < 0.5" in message
    with pytest.raises(pynode.TraceError, match=r"t < 0\.5"):
        getattr(compat, name)(field, Y0, T, engine="julia")


def test_a_field_that_pynode_refuses_runs_on_torch(julia: Julia) -> None:
    """torchdiffeq adds a slope of shape (2,), or of float32, to a state of (3, 2) in float64."""
    for slope in (torch.ones(2, dtype=DOUBLE), torch.ones(3, 2)):
        z = compat.odeint(lambda t, y, slope=slope: slope, Y0, T, method="euler")
        torch.testing.assert_close(z[-1], Y0 + 1)
        with pytest.raises(pynode.FieldError):
            compat.odeint(lambda t, y, slope=slope: slope, Y0, T, method="euler", engine="julia")
    assert julia.calls == 0


def test_an_event_function_that_cannot_be_traced(julia: Julia) -> None:
    class Other(Julia):
        def find_event(self, problem: Problem, search: Any) -> Any:
            raise pynode.TraceError("the event function has no graph")

    julia.__class__ = Other
    t, y = compat.odeint_event(lambda t, y: -y, Y0[1, :1], T[0], event_fn=lambda t, y: y - 1.0)
    assert t.item() == pytest.approx(0.0953101798, abs=1e-6)
    assert y.shape == (2, 1)


def test_callbacks_are_called(julia: Julia) -> None:
    for method, lacking in (("dopri5", set()), ("rk4", {"callback_accept_step"}), ("euler", {"callback_accept_step"})):
        told = []
        for odeint in (compat.odeint, torchdiffeq.odeint):
            field = Watched()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                odeint(field, Y0, T, method=method)
            told.append((field.times, [str(w.message) for w in caught]))
        assert told[0] == told[1]
        assert len(told[0][0]) >= 3
        assert [f"does not support callbacks {lacking}" in message for message in told[0][1]] == [True] * len(lacking)
    field = WatchedBackwards()
    compat.odeint_adjoint(field, Y0, T)[-1].sum().backward()
    assert field.times
    assert julia.calls == 0
    compat.odeint(WatchedBackwards(), Y0, T)  # has no backward solve
    assert julia.calls == 1
    with pytest.raises(
        pynode.EngineUnavailable, match=r"torchdiffeq's func\.callback_step, func\.callback_accept_step:"
    ):
        compat.odeint(Watched(), Y0, T, engine="julia")
    with pytest.raises(pynode.EngineUnavailable, match=r"func\.callback_step_adjoint"):
        compat.odeint_adjoint(WatchedBackwards(), Y0, T, engine="julia")


def double(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=DOUBLE)


FIXED = {"method": "rk4", "options": {"step_size": 0.1}}
ONLY_TORCH = [
    ("options['norm']", {"options": {"norm": lambda y: y.abs().max()}}),
    ("options['min_step']", {"options": {"min_step": 0.3}}),
    ("options['max_step']", {"options": {"max_step": 0.02}}),
    ("options['dtype']", {"options": {"dtype": torch.float32}}),
    ("options['safety']", {"options": {"safety": 0.5}}),
    ("options['ifactor']", {"options": {"ifactor": 1.1}}),
    ("options['dfactor']", {"options": {"dfactor": 0.9}}),
    ("options['first_step']", {"options": {"first_step": double(0.1)}}),
    ("options['interp']", {"method": "rk4", "options": {"step_size": 0.3, "interp": "cubic"}}),
    ("options['perturb']", {"method": "rk4", "options": {"perturb": True}}),
    ("options['grid_constructor']", {"method": "euler", "options": {"grid_constructor": lambda f, y, t: t}}),
    ("method='explicit_adams'", {"method": "explicit_adams", "options": {"step_size": 0.1}}),
    ("method='heun3'", {"method": "heun3", "options": {"step_size": 0.1}}),
    ("tolerances per component", {"rtol": torch.full((3, 2), 1e-3, dtype=DOUBLE)}),
    ("tolerances per component", {"y0": (Y0, Y0[:, :1].clone()), "atol": (1e-3, 1e-6)}),
    ("rtol=0", {"rtol": 0.0}),
    ("atol=0", {"atol": 0, "y0": Y0 + 2}),
    ("state of this type", {"y0": (1 + 1j) * Y0}),
    ("state of this type", {"y0": (Y0, Y0.float())}),
    ("solve for a single time", {"t": T[:1]}),
    ("adjoint_method", {"adjoint_method": "rk4"}),
    ("adjoint_options", {"adjoint_options": {"norm": "seminorm"}}),
    ("adjoint_options", {**FIXED, "adjoint_options": {}}),
    ("adjoint_rtol", {"adjoint_rtol": (1e-3, 1e-4, 1e-5, 1e-6)}),
    ("adjoint_atol", {"adjoint_atol": (1e-3, 1e-4, 1e-5, 1e-6)}),
]


class Scaled(nn.Module):
    """A field of tensors of any type."""

    def __init__(self, dtype: torch.dtype = DOUBLE) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.8, dtype=dtype))

    def forward(self, t: Tensor, y: Any) -> Any:
        if isinstance(y, tuple):
            return tuple(-self.rate.to(x) * x * torch.cos(t) for x in y)
        return -self.rate.to(y) * y * torch.cos(t)


@pytest.mark.parametrize(("obstacle", "keywords"), ONLY_TORCH)
def test_what_only_torchdiffeq_can_express_runs_on_torch(obstacle: str, keywords: dict[str, Any], julia: Julia) -> None:
    """Bit for bit, and never something else: on julia by name it is refused."""
    # torchdiffeq's adjoint takes neither tolerances per component, nor 0, nor a real parameter of a complex state.
    names = ["odeint"] if obstacle.startswith(("tolerances", "rtol", "atol", "state")) else ["odeint", "odeint_adjoint"]
    for name in names[-1:] if obstacle.startswith("adjoint") else names:
        found = everything(getattr(compat, name), Scaled(), **keywords)
        expected = everything(getattr(torchdiffeq, name), Scaled(), **keywords)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        with pytest.raises(pynode.EngineUnavailable) as caught:
            everything(getattr(compat, name), Scaled(), engine="julia", **keywords)
        assert f"no counterpart of torchdiffeq's {obstacle}: " in str(caught.value)
    assert julia.calls == 0


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"t": [0.0, 1.0]}, AssertionError, "must be a torch.Tensor"),
        ({"t": torch.arange(3)}, TypeError, "floating point"),
        ({"t": T[None]}, AssertionError, "one dimensional"),
        ({"y0": [Y0]}, AssertionError, "must be either a torch.Tensor or a tuple"),
        ({"rtol": torch.tensor(1e-3, requires_grad=True)}, AssertionError, "cannot require gradient"),
        ({"method": "rk4", "options": {"step_size": 0.1, "grid_constructor": len}}, ValueError, "mutually exclusive"),
    ],
)
def test_what_torchdiffeq_refuses(keywords: dict[str, Any], error: Any, message: str, julia: Julia) -> None:
    keywords = {"y0": Y0, "t": T, **keywords}
    with pytest.raises(error, match=message):
        compat.odeint(Scaled(), **keywords)
    with pytest.raises(error, match=message):
        torchdiffeq.odeint(Scaled(), **keywords)


ON_JULIA = [
    {},
    {"t": T.float()},
    {"y0": Y0.float()},
    {"t": T.flip(0)},
    {"method": "bosh3", "options": {"first_step": 0.01, "max_num_steps": 1000}},
    {"rtol": torch.tensor(1e-5), "options": {"first_step": None}},
    {"method": "midpoint", "options": {"step_size": 0.01}},
    {"method": "euler", "options": {"step_size": torch.tensor(0.01), "interp": "linear"}},
    {"y0": (Y0, Y0[:, :1].clone())},
    {"y0": (Y0, Y0[0].clone(), Y0[0, 0].clone())},
    {"y0": Y0[0, 0].clone()},
]


@pytest.mark.parametrize("keywords", ON_JULIA)
@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
def test_what_julia_can_express_runs_there(name: str, keywords: dict[str, Any], julia: Julia) -> None:
    y0 = keywords.get("y0", Y0)
    field = Scaled(y0.dtype if isinstance(y0, Tensor) else DOUBLE)
    found = everything(getattr(compat, name), field, **keywords)
    expected = everything(getattr(torchdiffeq, name), field, **keywords)
    assert julia.calls == 1
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("step", [0.1, 0.099, 1 / 3, 0.7, 2.0])
@pytest.mark.parametrize("end", [1.1, 0.6, 1.00005, -1.1])
def test_fixed_steps_are_torchdiffeqs(step: float, end: float, julia: Julia) -> None:
    """The same steps, to rounding, also where the last one is a sliver."""
    t = torch.tensor([0.0, 0.3 * end, 0.95 * end, end], dtype=DOUBLE).requires_grad_()
    keywords: dict[str, Any] = {"method": "euler", "options": {"step_size": step}}
    found = compat.odeint(Scaled(), Y0, t, **keywords)
    expected = torchdiffeq.odeint(Scaled(), Y0, t, **keywords)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    (g,), (h,) = (torch.autograd.grad(z.square().sum(), t) for z in (found, expected))
    torch.testing.assert_close(g, h, rtol=1e-9, atol=1e-9)
    assert julia.calls == 1


# ---- adjoint_params ------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["torch", "auto"])
def test_adjoint_params_as_an_iterator(engine: str, julia: Julia) -> None:
    field = Net()
    expected = everything(torchdiffeq.odeint_adjoint, field, adjoint_params=tuple(field.parameters()))
    found = everything(compat.odeint_adjoint, field, adjoint_params=field.parameters(), engine=engine)
    assert julia.calls == (engine == "auto")
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    rate = torch.tensor(1.5, dtype=DOUBLE, requires_grad=True)
    t, _ = compat.odeint_event(
        lambda t, y: -rate * y,
        Y0[1, :1],
        T[0],
        event_fn=lambda t, y: y - 1.0,
        odeint_interface=compat.odeint_adjoint,
        adjoint_params=(x for x in [rate]),
        engine=engine,
    )
    assert t.item() == pytest.approx(0.0953101798 / 1.5, abs=1e-6)
    (g,) = torch.autograd.grad(t, rate)
    assert g.item() == pytest.approx(-0.0953101798 / 1.5**2, abs=1e-5)


def test_adjoint_params_say_what_is_differentiated(julia: Julia) -> None:
    """As in torchdiffeq: those only, and all of those."""
    field, other = Net(), nn.Parameter(torch.zeros(2))
    for params in ((), field.net[0].parameters(), (*field.parameters(), other), (2 * field.net[2].bias,)):
        params = tuple(params)
        grads = []
        for odeint in (compat.odeint_adjoint, torchdiffeq.odeint_adjoint):
            loss, inputs = odeint(field, Y0, T, adjoint_params=params).sum(), [*field.parameters(), other]
            how = {"retain_graph": True, "allow_unused": True}
            grads.append(torch.autograd.grad(loss, inputs, **how) if loss.requires_grad else ())
        assert all((a is None) == (b is None) and (a is None or torch.equal(a, b)) for a, b in zip(*grads, strict=True))
    assert julia.calls == 0
    rate = torch.tensor(1.5, dtype=DOUBLE, requires_grad=True)
    z = compat.odeint_adjoint(lambda t, y: -rate * y, Y0, T, adjoint_params=(rate, Y0))  # Y0 needs none
    (g,) = torch.autograd.grad(z[-1].sum(), rate)
    assert g.item() == pytest.approx(-Y0.sum().item() * 0.22313016, rel=1e-5)
    assert julia.calls == 1


# ---- events --------------------------------------------------------------------------------------


def test_events(julia: Julia) -> None:
    t, _ = compat.odeint_event(Scaled(), Y0[1, :1], T[0], event_fn=lambda t, y: y - 1.05)
    assert julia.calls > 0
    expected, _ = torchdiffeq.odeint_event(Scaled(), Y0[1, :1], T[0], event_fn=lambda t, y: y - 1.05)
    assert t.item() == pytest.approx(expected.item(), abs=1e-6)
    julia.calls = 0
    for event_fn in (lambda t, y: y - 1.1, lambda t, y: torch.stack([y[0] - 1.05, y[0] - 1.1])):
        call = (Scaled(), Y0[1, :1], T[0])
        t, _ = compat.odeint_event(*call, event_fn=event_fn)  # zero at t0: torchdiffeq ends there
        assert t.item() == torchdiffeq.odeint_event(*call, event_fn=event_fn)[0].item() == 0.0
        with pytest.raises(pynode.EngineUnavailable, match="event_fn that is zero at t0"):
            compat.odeint_event(*call, event_fn=event_fn, engine="julia")
    found = compat.odeint(Scaled(), Y0[1, :1], T[:2], event_fn=lambda t, y: y - 1.05)
    assert all(map(torch.equal, found, torchdiffeq.odeint(Scaled(), Y0[1, :1], T[:2], event_fn=lambda t, y: y - 1.05)))
    assert julia.calls == 0


def test_keywords_of_the_other_interface_are_refused() -> None:
    for engine in ("torch", "auto"):
        with pytest.raises(TypeError, match="unexpected keyword argument 'adjoint_rtol'"):
            compat.odeint_event(Scaled(), Y0, T[0], event_fn=lambda t, y: y - 1, adjoint_rtol=1e-3, engine=engine)


def test_an_interface_of_the_users(julia: Julia) -> None:
    def interface(func: Any, y0: Any, t: Tensor, *, mine: int, **keywords: Any) -> Any:
        assert mine == 3
        return torchdiffeq.odeint(func, y0, t, **keywords)

    def event_fn(t: Tensor, y: Tensor) -> Tensor:
        return y - 1.05

    t, _ = compat.odeint_event(Scaled(), Y0[1, :1], T[0], event_fn=event_fn, odeint_interface=interface, mine=3)
    assert t.item() == torchdiffeq.odeint_event(Scaled(), Y0[1, :1], T[0], event_fn=event_fn)[0].item()
    assert julia.calls == 0
