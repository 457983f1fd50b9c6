"""The dtype of times: what a user gives, what lists become, and that models do not lose it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode.errors import InputError
from pynode.fit import multiple_shooting_loss
from pynode.models import ANODE, CNF, NODE, RNN, AdaptiveDepthNODE, LatentODE, StackedNODE, parameter_gradient_density
from pynode.nn import HigherOrder
from pynode.problem.inputs import as_times, check_times

DOUBLE, SINGLE = torch.float64, torch.float32
START = 1.7e9 + 37.0
NARROW, WIDE = torch.ones(1, 1), torch.ones(1, 1, dtype=DOUBLE)


@pytest.mark.parametrize(
    ("t", "like", "dtype"),
    [
        ([0.0, 0.1, 1.0], NARROW, SINGLE),
        ([0, 1], NARROW, SINGLE),
        ([0.0, 0.1, 1.0], WIDE, DOUBLE),
        ([START, START + 200, START + 400], NARROW, DOUBLE),  # distinct in float32, at other distances
        ([1.0, 1.0 + 1e-9], NARROW, DOUBLE),
        ([0.0, 1e39], NARROW, DOUBLE),
        ([0.0, 1e-50], NARROW, DOUBLE),
        ([[0.0, 1.0], [START, START + 1]], NARROW, DOUBLE),
        ([[0.0, 1.0, 2.0], [0.0, 1.0, float("nan")]], NARROW, SINGLE),
        ([0.0, torch.tensor(1.0)], NARROW, SINGLE),
        ([0.0, torch.tensor(1.0)], WIDE, DOUBLE),
        ([0.0, torch.tensor(1.0, dtype=DOUBLE)], NARROW, DOUBLE),
        ([START, torch.tensor(1.7e9 + 1280)], NARROW, DOUBLE),
        (np.linspace(0, 1, 3), NARROW, DOUBLE),
        (np.linspace(0, 1, 3, dtype=np.float32), WIDE, SINGLE),
        (np.arange(3), NARROW, SINGLE),
        (torch.linspace(0, 1, 3), WIDE, SINGLE),
        (torch.linspace(0, 1, 3, dtype=DOUBLE), NARROW, DOUBLE),
    ],
)
def test_dtype(t: Any, like: Tensor, dtype: torch.dtype) -> None:
    times, values = check_times(t, like)
    assert times.dtype == dtype
    np.testing.assert_array_equal(values, times)
    right = torch.tensor(np.array([[float(x) for x in row] if isinstance(row, list) else float(row) for row in t]))
    torch.testing.assert_close(times.double(), right, rtol=0 if dtype == DOUBLE else 1e-7, atol=0, equal_nan=True)


def test_whole_numbers_too_large_for_the_dtype() -> None:
    """The times of a series may be whole numbers: seconds since 1970, say."""
    assert as_times("t", torch.arange(10), NARROW).dtype == SINGLE
    times = as_times("t", 1_700_000_037 + torch.arange(10), NARROW)
    assert times.dtype == DOUBLE
    assert times[3].item() == 1_700_000_040


def test_gradient_of_a_learned_last_time_behind_numbers_that_float32_does_not_hold() -> None:
    end = torch.tensor(1.7e9 + 128.0, requires_grad=True)  # a float32
    z = pynode.solve(lambda t, z: -z / 50, NARROW, [1.7e9 + 28, end], engine="torch", rtol=1e-6).z[-1].sum()
    assert z.item() == pytest.approx(np.exp(-2), rel=1e-4)
    z.backward()
    assert end.grad is not None
    assert end.grad.dtype == SINGLE
    assert end.grad.item() == pytest.approx(-np.exp(-2) / 50, rel=1e-4)


def test_float32_times_that_repeat_are_refused() -> None:
    with pytest.raises(InputError, match=r"need torch\.float64"):
        pynode.solve(lambda t, z: -z, NARROW, (START + torch.tensor([0.0, 1.0], dtype=DOUBLE)).float(), engine="torch")


class Field(nn.Module):
    """Does not depend on the time, so that a model of it is the same from any time on."""

    def __init__(self, n: int = 2, out: int | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(n, out or n)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(self.linear(z))


TIGHT = {"rtol": 1e-5, "atol": 1e-6, "engine": "torch"}
MODELS = {
    "node": lambda field, t: NODE(field, t=t, **TIGHT),
    "higher order": lambda field, t: NODE(field, order=2, t=t, **TIGHT),
    "anode": lambda field, t: ANODE(field, 2, t=t, **TIGHT),
    "adaptive": lambda field, t: AdaptiveDepthNODE(field, lambda x: 2 + 0 * x[:, :1], t=t, **TIGHT),
    "stacked": lambda field, t: StackedNODE([field] * 3, t=t, **TIGHT),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_at_depths_that_float32_does_not_resolve(kind: str) -> None:
    """An autonomous model is the same from another depth on, if none of its ways loses the depth."""
    field = Field(4) if kind == "anode" else Field(4, 2) if kind == "higher order" else Field()
    x = torch.randn(3, 2)
    t = torch.tensor([0.0, 0.3, 1.1, 3.0], dtype=DOUBLE)
    here = MODELS[kind](field, (0.0, 3.0))
    there = MODELS[kind](field, (START, START + 3))
    if kind == "adaptive":  # its field is given START + g (t - START), which float32 does not hold: refused, not wrong
        with pytest.raises(InputError, match="the field computes with t"):
            there(x)
        return
    torch.testing.assert_close(there(x), here(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(there.trajectory(x, START + t), here.trajectory(x, t), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(there.trajectory(x, START + t[1:]), here.trajectory(x, t[1:]), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"torch\.float32, which does not hold the model's depths"):
        there.trajectory(x, (START + t).float())


def test_density_of_the_gradient() -> None:
    field, x, s = Field(), torch.randn(3, 2), torch.tensor([0.0, 0.4, 1.0], dtype=DOUBLE)
    here, there = NODE(field, **TIGHT), NODE(field, t=(START, START + 1), **TIGHT)
    found = [parameter_gradient_density(m, x, torch.sum, at) for m, at in ((here, s), (there, START + s))]
    for name, density in found[0].items():
        torch.testing.assert_close(found[1][name], density, rtol=1e-4, atol=1e-5)


def test_flow() -> None:
    field, x, t = Field(), torch.randn(3, 2), torch.tensor([0.0, 0.4, 1.0], dtype=DOUBLE)
    base = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), torch.ones(2)), 1)
    here, there = (CNF(field, base, t=(a, a + 1), **TIGHT) for a in (0.0, START))
    torch.testing.assert_close(there.log_prob(x), here.log_prob(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(there.inverse(x), here.inverse(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(there.trajectory(x, START + t), here.trajectory(x, t), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", [{}, {"encoder": "ode_rnn"}, {"likelihood": "gaussian+poisson"}], ids=str)
def test_latent_ode(how: dict[str, Any]) -> None:
    """Series at times since 1970 are the series at the times since the first one's."""
    x, mask = torch.randn(2, 5, 1), torch.tensor([[True] * 5, [True, False, True, True, False]])
    t = torch.tensor([[0.0, 0.2, 0.3, 0.9, 1.4], [0.1, 0.2, 0.5, 0.7, 0.7]], dtype=DOUBLE)
    new = torch.tensor([0.15, 0.4, 0.65], dtype=DOUBLE)
    found = []
    for start in (0.0, START):
        torch.manual_seed(4)
        model = LatentODE(1, 3, hidden=8, t0=start, **how, **TIGHT)
        loss = model.elbo(x, start + t, mask).sum()
        loss.backward()
        gradients = [p.grad for p in model.parameters()]
        made = [model.reconstruct(x, start + t, mask), model.interpolate(x, start + t, start + new, mask)]
        made += [model.extrapolate(x, start + t, start + t[:, -1:] + 0.5, mask), model.sample(2, start + new)]
        found.append((loss, *gradients, *made))
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-4)


def test_recurrent_baseline() -> None:
    x, t, new = (
        torch.randn(2, 4, 1),
        torch.tensor([0.0, 0.2, 0.3, 0.9], dtype=DOUBLE),
        torch.tensor([0.1, 2.0]).double(),
    )
    found = []
    for start in (0.0, START):
        torch.manual_seed(4)
        model = RNN(1, 8, t0=start)
        found.append((model.log_prob(x, start + t), model.predict(x, start + t, start + new)))
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-5)


def test_multiple_shooting() -> None:
    field, data, t = Field(), torch.randn(6, 3, 2), torch.linspace(0, 1, 6, dtype=DOUBLE)
    here, there = (multiple_shooting_loss(field, data, start + t, 3, **TIGHT) for start in (0.0, START))
    torch.testing.assert_close(there, here, rtol=1e-5, atol=0)


@pytest.mark.julia
def test_collocation() -> None:
    data, t = torch.randn(40, 2), torch.linspace(0, 1, 40, dtype=DOUBLE)
    for here, there in zip(*(pynode.fit.collocate(data, start + t) for start in (0.0, START)), strict=True):
        torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-3)
    with pytest.raises(InputError, match=r"entries that torch\.float32 does not tell apart"):
        pynode.fit.collocate(data[:3], [0.0, 1.0, 1.0 + 1e-9])


def test_higher_order_asks_for_the_time_as_its_field_does() -> None:
    def field(t: Tensor, z: Tensor) -> Tensor:
        assert t.dtype == DOUBLE
        return (t - START) + 0 * z[:, :1]

    field.time_dtype = DOUBLE  # type: ignore[attr-defined]
    t = START + torch.tensor([0.0, 3.0], dtype=DOUBLE)
    z = pynode.solve(HigherOrder(field, 2), torch.zeros(1, 2), t, engine="torch", rtol=1e-6).z[-1]
    torch.testing.assert_close(z, torch.tensor([[4.5, 4.5]]), rtol=1e-4, atol=0)


HUGE = 10**400


@pytest.mark.parametrize(
    "ask",
    [
        lambda solve: solve(t=[0.0, HUGE]),
        lambda solve: solve(tstops=[HUGE]),
        lambda solve: solve(event=pynode.At([HUGE], lambda t, z: z)),
        lambda solve: solve(rtol=HUGE),
        lambda solve: solve(atol=[HUGE]),
        lambda solve: solve(solver="rk4", dt=HUGE),
        lambda solve: solve(max_steps=HUGE),
        lambda _: pynode.StepControl(dt_min=HUGE),
        lambda _: pynode.StepControl(controller=(HUGE, 0, 0)),
        lambda _: pynode.control.Linear([0, HUGE], torch.zeros(3, 2, 2)),
        lambda _: NODE(nn.Linear(2, 2), t=(0, HUGE)),
        lambda _: StackedNODE([nn.Linear(2, 2)], t=(0, HUGE)),
    ],
)
def test_an_int_beyond_all_floats_is_refused(ask):
    def solve(t: Any = (0.0, 1.0), **keywords: Any) -> pynode.Solution:
        return pynode.solve(nn.Linear(2, 2), torch.zeros(3, 2), t, engine="torch", **keywords)

    with pytest.raises(InputError, match="must"):
        ask(solve)


@pytest.mark.parametrize("memory", [HUGE, "9" * 400 + "GiB"])
def test_memory_beyond_all_memory_is_no_bound(memory):
    assert pynode.sensitivity.Discrete(memory=memory).memory == 2**62


@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve"])
def test_an_array_that_changes_after_the_solve(sensitivity, engine):
    torch.manual_seed(0)
    field, z0 = nn.Linear(2, 2).double(), torch.randn(3, 2, dtype=DOUBLE)

    def gradient(change: bool) -> Tensor:
        t = np.array([0.0, 0.5, 1.0])
        solution = pynode.solve(field, z0, t, solver="rk4", dt=0.1, sensitivity=sensitivity, engine=engine)
        if change:
            t[1:] = 7.0, 9.0
        assert solution.t.tolist() == [0.0, 0.5, 1.0]
        (found,) = torch.autograd.grad(solution.z.square().sum(), field.weight)
        return found

    assert torch.equal(gradient(True), gradient(False))
    knots = np.array([0.0, 1.0])
    path = pynode.control.Linear(knots, torch.zeros(2, 3, 1, dtype=DOUBLE).transpose(0, 1))
    knots[1] = 0.25
    assert [float(x) for x in path.span] == [0.0, 1.0]


@pytest.mark.parametrize("t", [np.array([0.0, 1.0])[::-1], np.array([1.0, 0.0], dtype=">f8")])
def test_arrays_in_another_order(t):
    times = as_times("t", t, NARROW)
    assert times.tolist() == [1.0, 0.0]
    assert times.dtype is DOUBLE
    fixed = np.array([1.0, 0.0])
    fixed.flags.writeable = False
    assert as_times("t", fixed, NARROW).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("library", ["numpy", "pandas", "jax"])
def test_times_of_an_array_keep_their_dtype_whatever_its_library(library: str) -> None:
    module = pytest.importorskip("jax.numpy" if library == "jax" else library)
    array = module.Series if library == "pandas" else module.asarray
    for dtype, kept in ((np.float32, SINGLE), (np.int64, SINGLE), *((np.float64, DOUBLE),) * (library != "jax")):
        times = as_times("t", array(np.array([0, 1, 2], dtype)), NARROW)
        assert times.dtype is kept
        assert times.tolist() == [0, 1, 2]


@pytest.mark.parametrize("batching", ["joint", "independent"])
@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve"])
@pytest.mark.parametrize("solver", ["dopri5", "dopri8", "midpoint", "euler"])
@pytest.mark.parametrize(("start", "span"), [(1.7e9, 5e-6), (1.7e9, 2e-5), (1.7e9, 1e-4), (1.7e9, 0.1), (1e15, 10.0)])
def test_steps_of_a_few_roundings(
    engine: str, start: float, span: float, solver: str, sensitivity: str, batching: str
) -> None:
    """Around 1.7e9, seconds of our days, double precision tells times apart by 2.4e-7."""
    z0 = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([start, start + span], dtype=torch.float64)
    length = (t[1] - t[0]).item()
    keywords: dict[str, Any] = {"solver": solver, "sensitivity": sensitivity, "rtol": 1e-6, "atol": 1e-9}
    if solver in ("midpoint", "euler"):
        keywords |= {"dt": 0.1 * span, "rtol": 1e-3}
    expected = {"euler": 0.9**10, "midpoint": 0.905**10}.get(solver, math.exp(-1))
    rate = -1 / length
    sol = pynode.solve(lambda t, z: rate * z, z0, t, engine=engine, batching=batching, **keywords)
    (grad,) = torch.autograd.grad(sol.z[-1].sum(), z0)
    accuracy = 1e-5 if solver.startswith("dopri") else 0.05  # of equal steps, which rounding makes unequal
    assert sol.z[-1].item() == pytest.approx(expected, rel=accuracy)
    assert grad.item() == pytest.approx(sol.z[-1].item(), rel=1e-4 if sensitivity == "discrete" else 0.2)
