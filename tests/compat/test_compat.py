"""`pynode.compat` is torchdiffeq after its import line is replaced: signatures, numbers, gradients, errors."""

from __future__ import annotations

import importlib
import inspect
import math
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

import pynode
from pynode import compat
from pynode.compat import call as compat_call
from pynode.compat import odeint, odeint_adjoint, odeint_dense, odeint_event
from pynode.compat.methods import check_method

DOUBLE = torch.float64
SOLVERS = importlib.import_module("torchdiffeq._impl.odeint").SOLVERS  # whatever its version has
FIXED = [method for method, solver in SOLVERS.items() if hasattr(solver, "_grid_constructor_from_step_size")]
ADAPTIVE = [method for method in SOLVERS if method not in (*FIXED, "scipy_solver")]


class Net(nn.Module):
    """A field of `(…, 2)` that depends on time and counts its evaluations."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(2, 8, dtype=DOUBLE), nn.Tanh(), nn.Linear(8, 2, dtype=DOUBLE))
        self.nfe = 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.nfe += 1
        return self.net(y) * torch.cos(t)


def both(name: str, y0: Any, *args: Any, engine: str = "torch", func: nn.Module | None = None, **keywords: Any) -> Any:
    """The results and gradients of a function of torchdiffeq and of its counterpart here."""
    found = []
    for module, more in ((torchdiffeq, {}), (compat, {"engine": engine})):
        net = func or Net()
        net.zero_grad()
        states = y0 if isinstance(y0, tuple) else (y0,)
        given = tuple(y.clone().requires_grad_() for y in states)
        t, *rest = (a.clone().requires_grad_() for a in args)
        out = getattr(module, name)(net, given if isinstance(y0, tuple) else given[0], t, *rest, **keywords, **more)
        z = out if isinstance(out, tuple) else (out,)
        sum((x**2).sum() for x in z).backward()
        gradients = [x.grad.clone() for x in (*given, t, *net.parameters()) if x.grad is not None]
        found.append((out, z, gradients, getattr(net, "nfe", 0)))
    (expected, zs, gs, n), (got, zs_, gs_, n_) = found
    assert type(got) is type(expected)
    assert len(gs) == len(gs_)
    return zip([*zs_, *gs_], [*zs, *gs], strict=True), (n_, n)


Y0 = torch.tensor([[0.3, -0.7], [1.1, 0.2], [0.0, 0.5]], dtype=DOUBLE)
T = torch.tensor([0.0, 0.21, 0.5, 1.0], dtype=DOUBLE)


@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
def test_signatures(name: str) -> None:
    ours = inspect.signature(getattr(compat, name)).parameters
    theirs = inspect.signature(getattr(torchdiffeq, name)).parameters
    assert [p for p in ours if p != "engine"] == list(theirs)
    assert all(ours[p].default == theirs[p].default and ours[p].kind == theirs[p].kind for p in theirs)


@pytest.mark.parametrize("name", ["odeint_event", "odeint_dense"])
def test_signatures_of_the_others(name: str) -> None:
    ours = inspect.signature(getattr(compat, name)).parameters
    theirs = inspect.signature(getattr(torchdiffeq, name)).parameters
    assert [p for p in ours if p != "engine"] == list(theirs)
    assert all(ours[p].kind == theirs[p].kind for p in theirs)


@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
@pytest.mark.parametrize("method", [None, *ADAPTIVE, *FIXED])
@pytest.mark.parametrize("t", [T, T.flip(0)])
def test_every_method(name: str, method: str | None, t: Tensor) -> None:
    tolerances = {"rtol": 1e-4, "atol": 1e-5} if method in ("fehlberg2", "adaptive_heun") else {}
    options = {"options": {"step_size": 0.13}} if method in FIXED else {}
    pairs, (ours, theirs) = both(name, Y0, t, method=method, **tolerances, **options)
    for got, expected in pairs:
        assert torch.equal(got, expected)
    assert ours == theirs


@pytest.mark.parametrize(
    "keywords",
    [
        {"method": "rk4"},
        {"method": "rk4", "options": {"step_size": 0.3, "interp": "cubic", "perturb": True}},
        {"method": "euler", "options": {"grid_constructor": lambda f, y, t: torch.linspace(0, 1, 11, dtype=DOUBLE)}},
        {"method": "dopri5", "options": {"first_step": 0.05, "min_step": 1e-4, "max_step": 0.2}},
        {"method": "dopri5", "options": {"step_t": torch.tensor([0.4], dtype=DOUBLE)}},
        {"method": "dopri5", "options": {"jump_t": torch.tensor([0.4], dtype=DOUBLE), "dtype": DOUBLE}},
        {"method": "dopri5", "options": {"norm": lambda y: y.abs().max()}},
        {"rtol": torch.full((3, 2), 1e-5, dtype=DOUBLE)},
    ],
)
def test_options(keywords: dict[str, Any]) -> None:
    for got, expected in both("odeint", Y0, T, **keywords)[0]:
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    "keywords",
    [
        {"adjoint_rtol": 1e-3, "adjoint_atol": 1e-4},
        {"adjoint_method": "rk4", "adjoint_options": {"step_size": 0.1}},
        {"adjoint_options": {"norm": "seminorm"}},
    ],
)
def test_options_of_the_adjoint(keywords: dict[str, Any]) -> None:
    for got, expected in both("odeint_adjoint", Y0, T, **keywords)[0]:
        assert torch.equal(got, expected)


def test_the_absolute_tolerance_of_the_adjoint_is_as_torchdiffeq_has_it() -> None:
    """Also where the loss is so small that `pynode.solve` would not take it so."""
    found = []
    for module, more in ((torchdiffeq, {}), (compat, {"engine": "torch"})):
        net, y0 = Net(), Y0.clone().requires_grad_()
        out = module.odeint_adjoint(net, y0, T, rtol=1e-6, atol=1e-6, **more)
        (1e-9 * (out**2).sum()).backward()
        found.append((y0.grad, net.nfe))
    (expected, n), (got, n_) = found
    assert torch.equal(got, expected)
    assert n_ == n


def test_scipy() -> None:
    keywords = {"method": "scipy_solver", "options": {"solver": "LSODA"}, "rtol": 1e-6}
    for got, expected in both("odeint_adjoint", Y0, T, **keywords)[0]:
        assert torch.equal(got, expected)


class Spring(nn.Module):
    """A tuple state whose second part is 0-d."""

    def __init__(self) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(1.5, dtype=DOUBLE))

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, energy = state
        return torch.stack([x[1], -self.k * x[0]]), (x**2).sum() - energy


@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
def test_tuples_and_shapes(name: str) -> None:
    for y0 in (torch.tensor(0.4, dtype=DOUBLE), torch.ones(5, dtype=DOUBLE), torch.ones(2, 3, 4, dtype=DOUBLE)):
        decay = nn.Module()
        decay.forward = lambda t, y: -y * t
        for got, expected in both(name, y0, T, func=decay)[0]:
            assert torch.equal(got, expected)
    state = (torch.tensor([1.0, 0.0], dtype=DOUBLE), torch.tensor(0.2, dtype=DOUBLE))
    for got, expected in both(name, state, T, func=Spring())[0]:
        assert torch.equal(got, expected)


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [odeint, odeint_adjoint])
def test_unknown_method(function: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown method 'dopri6': expected one of 'dopri5'|'dopri8'") as caught:
        function(Net(), Y0, T, method="dopri6")
    assert isinstance(caught.value, pynode.InputError)
    with pytest.raises(ValueError, match="Invalid method"):
        torchdiffeq.odeint(Net(), Y0, T, method="dopri6")


def test_methods_are_those_of_torchdiffeq(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that a later version has: here a name of its own for dopri5."""
    for method in SOLVERS:
        check_method("method", method)
    monkeypatch.setitem(SOLVERS, "dopri55", SOLVERS["dopri5"])
    expected = torchdiffeq.odeint(Net(), Y0, T, method="dopri5")
    assert torch.equal(odeint(Net(), Y0, T, method="dopri55"), expected)
    monkeypatch.delitem(SOLVERS, "heun3")
    with pytest.raises(pynode.InputError, match=r"unknown method 'heun3': expected one of "):
        odeint(Net(), Y0, T, method="heun3")
    with pytest.raises(pynode.InputError, match="unknown adjoint_method 'heun3'"):
        odeint_adjoint(Net(), Y0, T, adjoint_method="heun3")


def test_adjoint_needs_parameters() -> None:
    for module in (torchdiffeq, compat):
        with pytest.raises(ValueError, match="adjoint_params"):
            module.odeint_adjoint(lambda t, y: -y, Y0, T)
    z = odeint_adjoint(lambda t, y: -y, Y0, T, adjoint_params=())
    torch.testing.assert_close(z[-1], Y0 * math.exp(-1), rtol=1e-6, atol=1e-8)


def test_unknown_engine() -> None:
    with pytest.raises(pynode.InputError, match="unknown engine 'jax'"):
        odeint(Net(), Y0, T, engine="jax")


@pytest.mark.parametrize(
    ("keywords", "obstacle"),
    [
        ({"method": "explicit_adams"}, "method='explicit_adams'"),
        (
            {"method": "dopri5", "options": {"max_step": 0.1, "norm": torch.max}},
            r"options\['max_step'\], options\['norm'\]",
        ),
        ({"method": "rk4", "options": {"interp": "cubic"}}, r"options\['interp'\]"),
        ({"event_fn": lambda t, y: y[0, 0]}, "event_fn"),
        ({"rtol": torch.full((3, 2), 1e-5)}, "tolerances per component"),
    ],
)
def test_what_only_torchdiffeq_has(keywords: dict[str, Any], obstacle: str) -> None:
    with pytest.raises(
        pynode.EngineUnavailable, match=rf"no counterpart of torchdiffeq's {obstacle}: .* pass engine=\"torch\""
    ):
        odeint(Net(), Y0, T, engine="julia", **keywords)


def test_what_only_torchdiffeqs_adjoint_has() -> None:
    net = Net()
    for keywords in (
        {"adjoint_method": "rk4"},
        {"adjoint_options": {"norm": "seminorm"}},
        {"adjoint_params": (net.net[0].weight,)},
    ):
        with pytest.raises(pynode.EngineUnavailable, match=f"counterpart of torchdiffeq's {next(iter(keywords))}:"):
            odeint_adjoint(net, Y0, T, engine="julia", **keywords)
    with pytest.raises(pynode.EngineUnavailable, match='pass engine="torch"'):
        odeint_dense(net, Y0, T[0], T[-1], engine="julia")
    with pytest.raises(pynode.EngineUnavailable, match=r"counterpart of torchdiffeq's odeint_interface: .*\"torch\""):
        odeint_event(net, Y0, T[0], event_fn=lambda t, y: y[0, 0], odeint_interface=torchdiffeq.odeint, engine="julia")
    with pytest.raises(pynode.InputError, match=r"func must be an nn\.Module"):
        odeint_event(lambda t, y: -y, Y0, T[0], event_fn=lambda t, y: y[0, 0], odeint_interface=odeint_adjoint)


# ---- events --------------------------------------------------------------------


class Fall(nn.Module):
    """A ball: height and velocity; it reaches the ground at sqrt(2 h / g)."""

    def __init__(self) -> None:
        super().__init__()
        self.gravity = nn.Parameter(torch.tensor(9.81, dtype=DOUBLE))

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return state[1], -self.gravity * torch.ones_like(state[0])


@pytest.mark.parametrize("interface", [odeint, odeint_adjoint])
def test_event(interface: Any, engine: str) -> None:
    ball = Fall()
    height = torch.tensor([2.0], dtype=DOUBLE, requires_grad=True)
    state = (height, torch.zeros(1, dtype=DOUBLE))
    t0 = torch.tensor(0.0, dtype=DOUBLE)
    event_t, (h, v) = odeint_event(
        ball, state, t0, event_fn=lambda t, s: s[0], odeint_interface=interface, atol=1e-10, rtol=1e-10, engine=engine
    )
    assert event_t.item() == pytest.approx(math.sqrt(4 / 9.81), abs=1e-6)
    assert h.shape == v.shape == (2, 1)
    event_t.backward()
    assert ball.gravity.grad.item() == pytest.approx(-0.5 * math.sqrt(4 / 9.81**3), rel=1e-4)
    assert height.grad.item() == pytest.approx(0.5 / math.sqrt(9.81), rel=1e-4)


def test_event_in_reverse(engine: str) -> None:
    """A 0-d state that doubles each ln 2, met eight times smaller than it starts, some spans before t0."""
    y0 = torch.tensor(8.0, dtype=DOUBLE, requires_grad=True)
    t0 = torch.tensor(1.0, dtype=DOUBLE)
    event_t, y = odeint_event(lambda t, y: y, y0, t0, event_fn=lambda t, y: y - 0.5, reverse_time=True, engine=engine)
    assert event_t.item() == pytest.approx(1 - math.log(16), abs=1e-6)
    assert y.shape == (2,)
    torch.testing.assert_close(y.detach(), torch.tensor([8.0, 0.5], dtype=DOUBLE), rtol=1e-6, atol=1e-6)
    event_t.backward()
    assert y0.grad.item() == pytest.approx(-1 / 8, rel=1e-5)


@pytest.mark.julia
def test_event_that_is_never_met() -> None:
    with pytest.raises(pynode.SolveError, match="no event was met before t="):
        odeint_event(lambda t, y: 0 * y, Y0, T[0], event_fn=lambda t, y: y[0, 0] + 9, engine="julia")
    with pytest.raises(pynode.SolveError, match="max_steps was reached"):
        odeint_event(
            lambda t, y: torch.cos(t) * y, Y0, T[0], event_fn=lambda t, y: y[0, 0].exp() + 1,
            options={"max_num_steps": 100}, method="dopri5", engine="julia",
        )  # fmt: skip


def test_event_function_of_odeint() -> None:
    event_t, y = odeint(lambda t, y: -y, Y0[:1] + 2, T[:2], event_fn=lambda t, y: y[0, 0] - 1.0)
    assert event_t.item() == pytest.approx(math.log(2.3), abs=1e-6)
    assert y.shape == (2, 1, 2)


# ---- the whole migration -------------------------------------------------------------------------


class SpiralNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
        for layer in (self.net[0], self.net[2]):
            nn.init.normal_(layer.weight, std=0.1)
            nn.init.zeros_(layer.bias)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y**3)


@pytest.mark.parametrize("function", [odeint, odeint_adjoint])
def test_a_program_written_for_torchdiffeq(engine: str, function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit the field of a spiral y' = y³ A from pieces of its trajectory, as torchdiffeq's first example does."""
    monkeypatch.setenv("PYNODE_ENGINE", engine)
    matrix = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])
    times = torch.linspace(0.0, 5.0, 200)
    start = torch.tensor([[2.0, 0.0]])

    class Spiral(nn.Module):
        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return (y**3) @ matrix

    with torch.no_grad():
        truth = function(Spiral(), start, times, method="dopri5")
    assert truth.shape == (200, 1, 2)
    net = SpiralNet()
    optimizer = torch.optim.RMSprop(net.parameters(), lr=5e-3)
    length, size, losses = 8, 12, []
    for _ in range(40):
        first = torch.randint(0, 200 - length, (size,))
        pieces = torch.stack([truth[first + i] for i in range(length)])
        optimizer.zero_grad()
        predicted = function(net, pieces[0], times[:length], rtol=1e-4, atol=1e-5)
        assert predicted.shape == pieces.shape == (length, size, 1, 2)
        loss = (predicted - pieces).abs().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


# ---- on Julia ------------------------------------------------------------------------------------


@pytest.mark.julia
@pytest.mark.parametrize("t", [T, pytest.param(T.flip(0), marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize(
    ("keywords", "discrete", "adjoint"),
    [
        ({}, 1e-5, 1e-5),
        ({"method": "dopri5", "options": {"first_step": 0.01, "max_num_steps": 1000}}, 1e-5, 1e-5),
        # torchdiffeq does not interpolate these two as accurately as it steps.
        ({"method": "dopri8"}, 1e-3, 1e-3),
        ({"method": "bosh3"}, 1e-3, 1e-3),
        # The same arithmetic; but not in the adjoint, where the states are recomputed backwards.
        ({"method": "midpoint", "options": {"step_size": 0.0107}}, 1e-9, 1e-3),
        ({"method": "heun2", "options": {"step_size": 0.013}}, 1e-9, 1e-3),
        ({"method": "euler", "options": {"step_size": 0.0037}}, 1e-9, 2e-2),
        # Two methods of the same order. torchdiffeq's adjoint is 1.5e-2 off its own discrete gradient of t[0] here.
        ({"method": "rk4", "options": {"step_size": 0.083}}, 5e-3, 2e-2),
        ({"method": "rk4"}, 5e-3, 5e-3),
    ],
)
def test_julia_agrees_with_torchdiffeq(keywords: dict[str, Any], discrete: float, adjoint: float, t: Tensor) -> None:
    for name, tolerance in (("odeint", discrete), ("odeint_adjoint", adjoint)):
        for got, expected in both(name, Y0, t, engine="julia", **keywords)[0]:
            torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.julia
@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
def test_shapes_on_julia(name: str) -> None:
    decay = nn.Module()
    decay.forward = lambda t, y: -y * t
    for y0 in (torch.tensor(0.4, dtype=DOUBLE), torch.ones(5, dtype=DOUBLE), torch.ones(2, 3, 4, dtype=DOUBLE)):
        for got, expected in both(name, y0, T, engine="julia", func=decay)[0]:
            # torchdiffeq's gradient of t[0], exactly 0 here, is up to 3e-4 off.
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)
    state = (torch.tensor([1.0, 0.0], dtype=DOUBLE), torch.tensor(0.2, dtype=DOUBLE))
    for got, expected in both(name, state, T, engine="julia", func=Spring())[0]:
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_fixed_steps_as_torchdiffeq_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """How a fixed-step call reaches `pynode.solve`, tried on the torch engine: same steps, same interpolation."""
    original = pynode.solve
    monkeypatch.setattr(compat_call, "solve", lambda *a, **k: original(*a, **{**k, "engine": "torch"}))
    for t in (T, T.flip(0)):
        for options in ({"step_size": 0.13}, {"step_size": 0.25}, {}):
            for y0, func in ((Y0, Net()), (Y0[0, 0], lambda t, y: -y * t)):
                got = compat_call.Call(func, y0, t, 1e-7, 1e-9, "midpoint", options).solve()
                expected = torchdiffeq.odeint(func, y0, t, method="midpoint", options=options)
                torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


class Rotation(nn.Module):
    """y' = i w y: y(t) = y0 exp(i w t)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.6, dtype=DOUBLE))

    def forward(self, t: Tensor, y: Any) -> Any:
        return (1j * self.w * y[0], -y[1]) if isinstance(y, tuple) else 1j * self.w * y


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
def test_real_parameter_of_a_complex_state(name: str, paired: bool) -> None:
    """torchdiffeq's own adjoint raises a RuntimeError in the backward pass."""
    field, y0 = Rotation(), torch.tensor([1.0 + 0.5j, -2.0j], dtype=torch.complex128, requires_grad=True)
    y = getattr(compat, name)(field, (y0, Y0) if paired else y0, T, engine="torch")
    y = y[0] if paired else y
    exact = y0 * torch.exp(1j * 0.6 * T)[:, None]
    torch.testing.assert_close(y, exact, rtol=1e-6, atol=1e-6)
    g_w, g_y0 = torch.autograd.grad(y[-1].real.sum(), [field.w, y0])
    assert g_w.item() == pytest.approx((1j * exact[-1]).real.sum().item(), abs=1e-6)
    torch.testing.assert_close(
        g_y0, torch.exp(torch.tensor(-0.6j, dtype=torch.complex128)).expand(2), rtol=1e-6, atol=0
    )
