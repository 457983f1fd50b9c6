"""`solve` and `Solution` where no engine matters: the choice of the engine, times, what comes back."""

from __future__ import annotations

import functools
import gc
import logging
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode.engine import Availability, choose
from pynode.engine.protocol import Gradients, Integration, Problem, Stats
from pynode.engine.solvers import SOLVERS, SolverInfo
from pynode.field import Field

Z0 = torch.tensor([[1.0, 2.0]])


def decay(t: Tensor, z: Tensor) -> Tensor:
    return -z


# ---- times ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [[0, 1, 2], (0.0, 1.0, 2.0), torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)])
def test_t_may_be_a_sequence_or_a_tensor(t: Any) -> None:
    sol = pynode.solve(decay, Z0, t, engine="torch")
    assert sol.t.dtype == (t.dtype if isinstance(t, torch.Tensor) else torch.float32)
    assert sol.t.tolist() == [0, 1, 2]
    assert sol.z.shape == (3, 1, 2)


def test_t_may_be_an_array() -> None:
    numpy = pytest.importorskip("numpy")
    assert pynode.solve(decay, Z0, numpy.linspace(0, 1, 4), engine="torch").z.shape == (4, 1, 2)


def test_t_is_converted_with_its_gradient() -> None:
    t = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    pynode.solve(decay, Z0, t, engine="torch").z[-1].sum().backward()
    assert t.grad is not None
    assert t.grad[1].item() == pytest.approx(-3 * 0.36788, rel=1e-2)


# ---- the solution --------------------------------------------------------------------------------


def test_repr() -> None:
    text = repr(pynode.solve(decay, Z0, [0.0, 1.0], engine="torch"))
    assert text.startswith("Solution(SUCCESS, dopri5 on torch, z: (2, 1, 2), t: 0 to 1, Stats(nfe=")


def test_a_tuple_of_one_stays_a_tuple() -> None:
    sol = pynode.solve(lambda t, z: (-z[0],), (Z0,), [0.0, 1.0], engine="torch", dense=True)
    assert isinstance(sol.z, tuple)
    assert isinstance(sol(0.5), tuple)


def test_interpolation_with_a_running_cost_shows_the_state_only() -> None:
    def cost(t: Tensor, z: Tensor) -> Tensor:
        return z.sum(-1)

    sol = pynode.solve(decay, Z0, [0.0, 1.0], engine="torch", running_cost=cost, dense=True)
    assert sol(0.5).shape == (1, 2)
    pair = pynode.solve(
        lambda t, z: (-z[0], -z[1]),
        (Z0, Z0[:, 0]),
        [0.0, 1.0],
        engine="torch",
        dense=True,
        running_cost=lambda t, z: z[1],
    )
    assert len(pair(0.5)) == len(pair.z) == 2


# ---- fields of every kind ------------------------------------------------------------------------


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.5))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return -self.rate * z

    def doubled(self, t: Tensor, z: Tensor) -> Tensor:
        return -2 * self.rate * z

    def powered(self, power: float, t: Tensor, z: Tensor) -> Tensor:
        return -power * self.rate * z


@pytest.mark.parametrize(("kind", "factor"), [("module", 1), ("method", 2), ("partial", 3), ("closure", 4)])
@pytest.mark.parametrize("with_cost", [False, True])
def test_parameters_are_found_in_every_kind_of_field(kind: str, factor: float, with_cost: bool) -> None:
    module = Scaled()
    field = {
        "module": module,
        "method": module.doubled,
        "partial": functools.partial(module.powered, 3.0),
        "closure": lambda t, z: -4 * module.rate * z,
    }[kind]
    weight = nn.Parameter(torch.tensor(2.0))
    cost = nn.Linear(1, 1)
    cost.weight = weight
    keywords: dict[str, Any] = (
        {"running_cost": lambda t, z: cost.weight * t * torch.ones_like(z[:, 0])} if with_cost else {}
    )
    sol = pynode.solve(field, Z0, [0.0, 1.0], engine="torch", rtol=1e-6, **keywords)
    sol.z[-1].sum().backward(retain_graph=with_cost)
    expected = -factor * 3 * torch.exp(torch.tensor(-factor * 0.5))
    torch.testing.assert_close(module.rate.grad, expected, rtol=1e-3, atol=1e-4)
    if with_cost:
        sol.running_cost.sum().backward()
        torch.testing.assert_close(weight.grad, torch.tensor(0.5), rtol=1e-3, atol=1e-4)


def test_what_is_known_of_a_field_with_a_cost_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The field is examined once for each cost, also where each call makes a new function of the same code."""
    examined = []
    original = Field._examine
    monkeypatch.setattr(Field, "_examine", lambda self, *a: examined.append(1) or original(self, *a))
    field = Scaled()
    for _ in range(3):
        pynode.solve(field, Z0, [0.0, 1.0], engine="torch", running_cost=lambda t, z: z.sum(-1))
    assert len(examined) == 1
    pynode.solve(field, Z0, [0.0, 1.0], engine="torch", running_cost=lambda t, z: z.prod(-1))
    assert len(examined) == 2


def test_a_cost_does_not_keep_the_field_alive() -> None:
    field = Scaled()
    pynode.solve(field, Z0, [0.0, 1.0], engine="torch", running_cost=lambda t, z: z.sum(-1))
    gone = weakref.ref(field)
    del field
    gc.collect()
    assert gone() is None


# ---- the choice of the engine --------------------------------------------------------------------


class Fake:
    """An engine that stands in for Julia's: it has its solvers, and returns zeros."""

    name = "julia"

    def __init__(self, ok: bool = True) -> None:
        self.ok = ok
        self.problems: list[Problem] = []

    def available(self) -> Availability:
        return Availability(self.ok, "Julia is not installed", "Run: pynode julia install")

    def sensitivities(self, solver: SolverInfo) -> tuple[str, ...]:
        return ("gauss", "backsolve")

    def solve(self, problem: Problem) -> Integration:
        self.problems.append(problem)
        z = tuple(x.new_zeros((len(problem.t), *x.shape)) for x in problem.z0)
        return Integration(z, Stats(nfe=1), pynode.Retcode.SUCCESS, 1.0)


@pytest.fixture
def julia(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    fake, original = Fake(), choose.get_engine
    monkeypatch.setattr(choose, "get_engine", lambda name: fake if name == "julia" else original(name))
    choose._choose.cache_clear()
    choose.announce.cache_clear()
    yield fake
    choose._choose.cache_clear()
    choose.announce.cache_clear()


def engine_of(**keywords: Any) -> str:
    return pynode.solve(decay, Z0, [0.0, 1.0], **keywords).engine


def test_auto_takes_julia_where_it_is_available(julia: Fake, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="pynode"):
        assert engine_of() == "julia"
        assert engine_of() == "julia"
    assert [r.message for r in caplog.records] == ['engine="auto" takes julia (it is available, and preferred)']


def test_auto_takes_torch_otherwise_and_says_why(julia: Fake, caplog: pytest.LogCaptureFixture) -> None:
    julia.ok = False
    with caplog.at_level(logging.INFO, logger="pynode"):
        assert engine_of() == "torch"
        assert engine_of(rtol=1e-4) == "torch"
    (record,) = caplog.records
    assert record.name == "pynode"
    assert record.message == (
        'engine="auto" takes torch (the julia engine is not available here: Julia is not installed. '
        "Run: pynode julia install)"
    )


def test_auto_takes_the_engine_that_has_what_is_asked_for(julia: Fake) -> None:
    assert engine_of(solver="lsoda") == "torch"
    assert engine_of(sensitivity="discrete") == "torch"
    assert engine_of(solver="tsit5") == "julia"
    with pytest.raises(
        pynode.EngineUnavailable, match=r"torch engine has no solver 'tsit5'.*; the julia engine has no sens"
    ):
        engine_of(solver="tsit5", sensitivity="discrete")


def test_a_named_engine_is_never_replaced(julia: Fake) -> None:
    with pytest.raises(
        pynode.EngineUnavailable, match="the julia engine has no solver 'lsoda'; it is on engine=\"torch\""
    ):
        engine_of(engine="julia", solver="lsoda")
    julia.ok = False
    choose._choose.cache_clear()
    with pytest.raises(
        pynode.EngineUnavailable, match=r"julia engine is not available here: Julia is not installed. Run: pynode julia"
    ):
        engine_of(engine="julia")
    with pytest.raises(pynode.EngineUnavailable, match=r"no solver 'tsit5'.*Run: pynode julia install"):
        engine_of(solver="tsit5")


def test_the_environment_stands_for_auto(julia: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYNODE_ENGINE", "torch")
    assert engine_of() == "torch"
    assert engine_of(engine="julia") == "julia"
    with pytest.raises(pynode.EngineUnavailable, match="torch engine has no solver 'tsit5'"):
        engine_of(solver="tsit5")
    monkeypatch.setenv("PYNODE_ENGINE", "")
    assert engine_of() == "julia"


def test_what_an_engine_is_given(julia: Fake) -> None:
    field, u = Scaled(), torch.ones(1, 2, requires_grad=True)
    pynode.solve(
        lambda t, z, u: field(t, z) + u,
        Z0,
        [0.0, 1.0],
        args=(u,),
        solver="rk4",
        dt=0.1,
        rtol=1e-5,
        max_steps=77,
        dense=True,
    )
    (problem,) = julia.problems
    assert problem.solver == SOLVERS["rk4"]
    assert (problem.rtol, problem.atol, problem.dt, problem.max_steps, problem.dense) == (1e-5, 1e-6, 0.1, 77, True)
    assert problem.wants == {"z0": (False,), "t": (False,), "args": (True,), "parameters": (True,)}
    assert problem.sensitivity == pynode.Gauss()
    assert not any(x.requires_grad for x in (*problem.z0, problem.t, *problem.args))
    assert [p is field.rate for p in problem.parameters] == [True]
    with torch.no_grad():
        pynode.solve(field, Z0, [0.0, 1.0])
    assert julia.problems[1].sensitivity is None


class Recorded(Fake):
    """Remembers its pullback weakly."""

    def sensitivities(self, solver: SolverInfo) -> tuple[str, ...]:
        return ("discrete",)

    def solve(self, problem: Problem) -> Integration:
        class Pullback:
            def __call__(self, cotangents: Any) -> Gradients:
                return Gradients([torch.ones_like(z) for z in problem.z0], None, [], [])

        integration = super().solve(problem)
        integration.pullback = Pullback()
        self.pullback = weakref.ref(integration.pullback)
        return integration


def test_the_graph_is_freed_by_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """As autograd frees what it saved: a loss that is still in scope does not hold the graph of its solve."""
    fake = Recorded()
    monkeypatch.setattr(choose, "get_engine", lambda name: fake)
    choose._choose.cache_clear()
    try:
        loss = pynode.solve(decay, Z0.clone().requires_grad_(), [0.0, 1.0], engine="julia").z.sum()
        loss.backward(retain_graph=True)
        assert fake.pullback() is not None
        loss.backward()
        assert fake.pullback() is None
    finally:
        choose._choose.cache_clear()


def test_engines_and_solvers_are_listed() -> None:
    assert list(pynode.engines()) == ["julia", "torch"]
    assert pynode.engines()["torch"].ok
    names = [s.name for s in pynode.solvers()]
    assert {"euler", "rk4", "dopri5", "tsit5", "lsoda"} <= set(names)
    assert len(set(names)) == len(names)
