"""What is done with a solution: changed in place, pickled, copied, kept by the module that made it; on both engines."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import pynode

DOUBLE = torch.float64
TIMES = [0.0, 0.5, 1.0]


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.4, dtype=DOUBLE))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.a * torch.tanh(z) * z


class Pair(Field):
    def forward(self, t: Tensor, z: Any) -> Any:
        x, y = z
        return self.a * torch.tanh(x) * y, x - y


class Named(NamedTuple):
    x: Tensor
    y: Tensor


def start() -> Tensor:
    return torch.tensor([[0.7], [-0.4]], dtype=DOUBLE, requires_grad=True)


# ---- changed in place ------------------------------------------------------------------------------------------------


def mask(z: Tensor) -> None:
    z[1, 0] = 0.0


def scale(z: Tensor) -> None:
    z.mul_(3.0)


def last(z: Tensor) -> None:
    z[-1].add_(1.0)


CASES = [("discrete", "dopri5"), ("discrete", "rk4"), ("backsolve", "dopri5"), ("backsolve", "rk4")]
CASES += [("forward", "dopri5"), ("forward", "rk4")]


@pytest.mark.parametrize("edit", [mask, scale, torch.relu_, last])
@pytest.mark.parametrize(("sensitivity", "solver"), CASES)
def test_states_changed_before_the_loss(
    engine: str, sensitivity: str, solver: str, edit: Callable[[Tensor], Any]
) -> None:
    keywords: dict[str, Any] = {"sensitivity": sensitivity, "solver": solver, "engine": engine}
    keywords |= {"rtol": 1e-7, "atol": 1e-9, "dt": 0.05 if solver == "rk4" else None}
    for field, z0 in ((Field(), start()), (Pair(), (start(), start().detach()))):
        grads = []
        for copied in (False, True):
            field.zero_grad()
            z = pynode.solve(field, z0, TIMES, **keywords).z
            parts = [x.clone() if copied else x for x in (z if isinstance(z, tuple) else (z,))]
            for x in parts:
                edit(x)
            sum((x**2).sum() for x in parts).backward()
            grads.append(field.a.grad)
        assert grads[0].abs() > 1e-3
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve", "forward"])
def test_a_state_changed_behind_autograds_back(engine: str, sensitivity: str) -> None:
    """Through `.data`, which no version counts: the gradient is that of the state that was solved from."""
    field, z0 = Field(), start()
    grads = []
    for change in (False, True):
        given = z0.detach().clone()
        z = pynode.solve(field, given, TIMES, sensitivity=sensitivity, engine=engine, rtol=1e-7, atol=1e-9).z
        if change:
            given.data.zero_()
        field.zero_grad()
        z[-1].sum().backward()
        grads.append(field.a.grad)
        assert torch.equal(z[0], z0)
    torch.testing.assert_close(*grads)
    z = pynode.solve(field, given, TIMES, engine=engine).z.detach()
    z.fill_(5.0)
    assert not given.any()


def test_a_state_changed_in_sight_of_autograd_is_torchs_error(engine: str) -> None:
    given = start() * 1.0
    z = pynode.solve(Field(), given, TIMES, engine=engine).z
    given.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_all_results_may_be_changed(engine: str) -> None:
    for batching in ("joint", "independent"):
        sol = pynode.solve(
            Pair(),
            (start(), start().detach()),
            TIMES,
            engine=engine,
            batching=batching,
            event=lambda t, z: t - 0.8,
            running_cost=lambda t, z: z[0][:, 0],
        )
        results = [*sol.z, *sol.event_z, sol.event_t, sol.running_cost, sol.t_end, *sol.z_end]
        assert sum(x.requires_grad for x in results) >= 6
        for x in results:
            x.mul_(2.0)


# ---- pickled and copied ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("remake", [copy.copy, copy.deepcopy, lambda sol: pickle.loads(pickle.dumps(sol))])
def test_a_copy_has_the_numbers(engine: str, remake: Callable[[Any], Any]) -> None:
    keywords: dict[str, Any] = {
        "engine": engine,
        "running_cost": lambda t, z: z[0][:, 0],
        "event": lambda t, z: t - 0.8,
    }
    sol = pynode.solve(Pair(), (start(), start()), TIMES, dense=True, batching="independent", **keywords)
    assert sol.z[0].requires_grad
    other = remake(sol)
    for name in ("t", "running_cost", "event_t", "event_index", "t_end"):
        assert torch.equal(getattr(other, name), getattr(sol, name))
    for name in ("z", "event_z", "z_end"):
        for x, y in zip(getattr(other, name), getattr(sol, name), strict=True):
            torch.testing.assert_close(x, y, equal_nan=True, rtol=0, atol=0)
            assert not x.requires_grad
    assert other.retcode is sol.retcode
    assert (other.engine, other.solver, other.stats.nfe) == (sol.engine, sol.solver, sol.stats.nfe)
    assert repr(other) == repr(sol)
    with pytest.raises(pynode.InputError, match="pickled or copied has lost its own"):
        other(0.3)
    assert torch.isfinite(sol(0.3)[0]).all()
    plain = remake(pynode.solve(Field(), start(), TIMES, engine=engine))
    with pytest.raises(pynode.InputError, match="dense=True"):
        plain(0.3)


def test_a_copy_keeps_the_form_of_the_state_and_what_a_failure_reached(engine: str) -> None:
    field = Pair()
    sol = pynode.solve(
        lambda t, z: Named(*field(t, z)), Named(start(), start()), [0.0, 50.0], engine=engine, max_steps=3, throw=False
    )
    other = pickle.loads(pickle.dumps(sol))
    assert isinstance(other.z, Named)
    assert isinstance(other.z_end, Named)
    assert torch.equal(other.z_end.x, sol.z_end.x)
    assert torch.equal(other.t_end, sol.t_end)
    with pytest.raises(pynode.InputError, match="failed"):
        other(0.3)


# ---- kept by the module that made it ---------------------------------------------------------------------------------


class Keeper(nn.Module):
    """Keeps its latest solution."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.layer(z)

    def solve(self, **keywords: Any) -> Tensor:
        self.latest = pynode.solve(self, torch.ones(2, 2), TIMES, **keywords)
        return self.latest.z[-1].sum()


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve", "forward"])
def test_a_module_that_keeps_its_solution_is_freed(engine: str, sensitivity: str, backward: bool) -> None:
    keeper = Keeper()
    for dense in (False, True):
        loss = keeper.solve(engine=engine, sensitivity=sensitivity, dense=dense)
        if backward:
            loss.backward()
    assert copy.deepcopy(keeper).latest.z.shape == (3, 2, 2)
    gone = weakref.ref(keeper)
    del keeper, loss
    gc.collect()
    assert gone() is None


# ---- between the times, with a gradient ------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["dopri5", "rk4", "bosh3"])
@pytest.mark.parametrize("span", [(0.0, 1.0), (1.0, 0.25)])
def test_the_gradient_between_times(engine: str, solver: str, span: tuple[float, float]) -> None:
    """That of a solve which reports there, to the state, the parameters, and the times."""
    field, z0 = Field(), start()
    options: dict[str, Any] = {"solver": solver, "engine": engine, "rtol": 1e-9, "atol": 1e-9}
    options |= {"dt": 0.02} if solver == "rk4" else {}
    sol = pynode.solve(field, z0, span, dense=True, **options)
    inner = torch.tensor([0.7, 0.3, 0.55], dtype=DOUBLE, requires_grad=True)
    found = sol(inner)
    order = [1, 2, 0] if span[0] < span[1] else [0, 2, 1]
    other = inner.detach().clone().requires_grad_()
    times = torch.cat([torch.tensor(span[:1], dtype=DOUBLE), other[order], torch.tensor(span[1:], dtype=DOUBLE)])
    expected = pynode.solve(field, z0, times, **options).z[1:-1][torch.tensor(order).argsort()]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    weights = torch.randn(found.shape, dtype=DOUBLE)
    inputs = [z0, *field.parameters()]
    ours = torch.autograd.grad((found * weights).sum(), [*inputs, inner])
    theirs = torch.autograd.grad((expected * weights).sum(), [*inputs, other])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    again = sol([span[1], 0.7, span[0], 0.7])
    torch.testing.assert_close(again[1], again[3], rtol=0, atol=0)
    torch.testing.assert_close(again[2], z0, rtol=0, atol=0)
    torch.testing.assert_close(torch.autograd.grad(again[2].sum(), z0)[0], torch.ones_like(z0))
    with torch.no_grad():
        assert not sol(0.5).requires_grad


def test_no_wrong_gradient_between_times(engine: str) -> None:
    """Where there is none, or what was solved with has changed, it is an error."""
    field, z0 = Field(), start()
    for options in ({"batching": "independent"}, {"tstops": [0.5]}, {"event": lambda t, z: t - 0.8}):
        sol = pynode.solve(field, z0, [0.0, 1.0], dense=True, engine=engine, **options)
        value = sol(0.3)
        with torch.no_grad():
            torch.testing.assert_close(value, sol(0.3))
        with pytest.raises(pynode.EngineUnavailable, match="report the times"):
            value.sum().backward()
    sol = pynode.solve(field, z0, [0.0, 1.0], dense=True, engine=engine)
    with pytest.raises(pynode.InputError, match="differ from one another"):
        sol(torch.tensor([0.5, 0.5], requires_grad=True))
    with torch.no_grad():
        next(iter(field.parameters())).mul_(2.0)
    with pytest.raises(pynode.InputError, match="changed in place"):
        sol(0.5)


def test_times_made_in_inference_mode_are_interpolated(engine: str) -> None:
    with torch.inference_mode():
        t = torch.tensor([0.0, 1.0], dtype=DOUBLE)
    z0 = start()
    sol = pynode.solve(Field(), z0, t, dense=True, engine=engine)
    assert torch.isfinite(torch.autograd.grad(sol(0.5).sum(), z0)[0]).all()
