"""Independent samples on every engine: values, costs, gradients, times of their own, events, refusals."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode import FieldError, InputError, Retcode, SolveError

DOUBLE = torch.float64
FINE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}
NAN = math.nan


class Rates(nn.Module):
    """dz/dt = -k r z, with a rate `r` for each sample: z = z0 exp(-k r t)."""

    def __init__(self) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(1.3, dtype=DOUBLE))

    def forward(self, t: Tensor, z: Tensor, r: Tensor) -> Tensor:
        return -self.k * r * z

    def exact(self, z0: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """For `(batch, time)` times, `(time, batch, 2)`."""
        return (z0[:, None] * torch.exp(-self.k * r[:, None] * (t - t[:, :1])[..., None])).transpose(0, 1)


class MLP(nn.Module):
    """A perceptron of z and t."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8, dtype=DOUBLE), nn.Tanh(), nn.Linear(8, 2, dtype=DOUBLE))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.net(torch.cat([z, t.expand(len(z), 1)], 1))


def inputs() -> tuple[Rates, Tensor, Tensor]:
    z0 = torch.randn(4, 2, dtype=DOUBLE, requires_grad=True)
    r = torch.tensor([[0.2], [1.0], [3.0], [8.0]], dtype=DOUBLE, requires_grad=True)
    return Rates(), z0, r


def test_values_and_gradients(engine: str) -> None:
    """Each sample is what a solve of it alone gives, exactly; gradients are those of the exact solution."""
    field, z0, r = inputs()
    t = torch.tensor([0.1, 0.5, 1.1], dtype=DOUBLE, requires_grad=True)
    sol = pynode.solve(field, z0, t, args=(r,), batching="independent", engine=engine, **FINE)
    assert sol.z.shape == (3, 4, 2)
    assert torch.equal(sol.t, t.detach())
    for b in range(4):
        alone = pynode.solve(field, z0[b : b + 1], t, args=(r[b : b + 1],), engine=engine, **FINE)
        torch.testing.assert_close(sol.z[:, b : b + 1], alone.z, rtol=1e-14, atol=1e-14)
    exact = field.exact(z0, t.expand(4, -1), r)
    torch.testing.assert_close(sol.z, exact, rtol=1e-7, atol=1e-8)
    weights = torch.randn_like(exact)
    wrt = [z0, r, t, field.k]
    got = torch.autograd.grad((weights * sol.z).sum(), wrt)
    expected = torch.autograd.grad((weights * exact).sum(), wrt)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve"])
def test_parameters_of_a_network(engine: str, sensitivity: str) -> None:
    """The gradients of a joint solve, to the tolerances."""
    field, z0 = MLP(), torch.randn(5, 2, dtype=DOUBLE, requires_grad=True)
    found = []
    for batching in ("joint", "independent"):
        sol = pynode.solve(
            field, z0, [0.0, 0.7, 1.5], batching=batching, sensitivity=sensitivity, engine=engine, **FINE
        )
        found.append(torch.autograd.grad(sol.z.pow(2).sum(), [z0, *field.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)


def test_nobody_pays_for_another(engine: str) -> None:
    """One sample in four needs many steps; the others take as few as without it."""
    z0 = torch.ones(4, 2, dtype=DOUBLE)
    calm = torch.full((4, 1), 0.5, dtype=DOUBLE)
    mixed = calm.clone()
    mixed[2] = 200.0
    field = Rates()
    keywords = {"engine": engine, "batching": "independent"}
    expected = pynode.solve(field, z0, [0.0, 2.0], args=(calm,), **keywords).stats
    sol = pynode.solve(field, z0, [0.0, 2.0], args=(mixed,), **keywords)
    stats, each, before = sol.stats, sol.stats.per_sample, expected.per_sample
    others = torch.tensor([True, True, False, True])
    assert torch.equal(each.nfe[others], before.nfe[others])
    assert torch.equal(each.n_accepted[others], before.n_accepted[others])
    assert each.nfe[2] > 20 * each.nfe[0]
    assert stats.nfe == each.nfe.sum()
    assert stats.n_accepted == each.n_accepted.sum()
    assert stats.n_rejected == each.n_rejected.sum()
    joint = pynode.solve(field, z0, [0.0, 2.0], args=(mixed,), engine=engine).stats
    assert joint.per_sample is None
    assert 4 * joint.nfe > 2 * stats.nfe  # in evaluations of one sample


def test_backward_counts(engine: str) -> None:
    field, z0, r = inputs()
    sol = pynode.solve(field, z0, [0.0, 1.0], args=(r,), batching="independent", engine=engine)
    assert sol.stats.per_sample.nfe_backward is None
    sol.z[-1].sum().backward()
    backward = sol.stats.per_sample.nfe_backward
    assert backward.shape == (4,)
    assert bool((backward > 0).all())
    assert backward[3] > backward[0]
    assert sol.stats.nfe_backward == backward.sum()


def test_times_of_each_sample(engine: str) -> None:
    """Each row of t is a sample's own: other times, another number of them, another direction."""
    field, z0, r = inputs()
    rows = [[0.0, 0.3, 1.0], [0.5, 0.8, NAN], [0.2, 0.25, 0.4], [1.0, 0.9, 0.7]]
    t = torch.tensor(rows, dtype=DOUBLE, requires_grad=True)
    sol = pynode.solve(field, z0, t, args=(r,), engine=engine, **FINE)
    exact = field.exact(z0, torch.where(t.isnan(), 0.9, t), r)
    asked = ~sol.z.isnan()
    assert asked.all(2).tolist() == [[True] * 4, [True] * 4, [True, False, True, True]]
    torch.testing.assert_close(sol.z[asked], exact[asked], rtol=1e-7, atol=1e-8)
    weights = torch.randn_like(exact)
    wrt = [z0, r, t, field.k]
    got = torch.autograd.grad((weights * sol.z)[asked].sum(), wrt)
    expected = torch.autograd.grad((weights * exact)[asked].sum(), wrt)
    assert got[2][1, 2] == 0
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("solver", "dt"), [("rk4", 0.05), ("bosh3", None)])
def test_solvers(engine: str, solver: str, dt: float | None) -> None:
    field, z0, r = inputs()
    t = torch.tensor([[0.0, 0.3, 1.0], [0.5, 0.8, NAN], [0.2, 0.25, 0.4], [1.0, 0.9, 0.7]], dtype=DOUBLE)
    sol = pynode.solve(field, z0, t, args=(0.1 * r,), engine=engine, solver=solver, dt=dt, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(sol.z, field.exact(z0, t, 0.1 * r), rtol=1e-5, atol=1e-5, equal_nan=True)
    sol.z[~sol.z.isnan()].sum().backward()
    assert torch.isfinite(field.k.grad)


def test_tuple_running_cost_and_shared_args(engine: str) -> None:
    """A cost's integral is each sample's own, to its own last time; an arg without a row per sample is shared."""
    weight = torch.tensor([[0.5, 0.1], [-0.2, 0.7]], dtype=DOUBLE, requires_grad=True)
    z0 = (torch.randn(3, 2, dtype=DOUBLE, requires_grad=True), torch.zeros(3, dtype=DOUBLE))

    def field(t: Tensor, z: tuple[Tensor, Tensor], W: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(z[0] @ W), z[0].sum(-1)

    def cost(t: Tensor, z: tuple[Tensor, Tensor], W: Tensor) -> Tensor:
        return t + (z[0] ** 2).sum(-1)

    t = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.5, NAN], [1.0, 0.5, 0.2]], dtype=DOUBLE)
    sol = pynode.solve(field, z0, t, args=(weight,), running_cost=cost, engine=engine, **FINE)
    (got,) = torch.autograd.grad(sol.running_cost.sum() + sol.z[1][0].sum(), weight)
    expected = torch.zeros_like(weight)
    for b, last in enumerate((2.0, 0.5, 0.2)):
        state = tuple(x[b : b + 1] for x in z0)
        own = pynode.solve(
            field, state, [t[b, 0].item(), last], args=(weight,), running_cost=cost, engine=engine, **FINE
        )
        torch.testing.assert_close(sol.running_cost[b], own.running_cost[0], rtol=1e-8, atol=1e-9)
        expected += torch.autograd.grad(own.running_cost.sum(), weight)[0]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


def test_dense(engine: str) -> None:
    field, z0, r = inputs()
    t = torch.tensor([[0.0, 1.0], [0.1, 0.8], [0.2, 1.4], [1.0, 0.0]], dtype=DOUBLE)
    sol = pynode.solve(field, z0, t, args=(r,), engine=engine, dense=True, **FINE)
    times = torch.tensor([0.3, 0.75, 0.5], dtype=DOUBLE)
    exact = field.exact(z0, torch.cat([t[:, :1], times.expand(4, -1)], 1), r)[1:]
    torch.testing.assert_close(sol(times), exact.detach(), rtol=1e-6, atol=1e-6)
    assert sol(0.5).shape == (4, 2)
    with pytest.raises(InputError, match=r"times within \[0.2, 0.8\]"):
        sol(0.1)


def test_event_of_each_sample(engine: str) -> None:
    """Each sample stops at its own event, or at its last time; times and states have their derivatives."""
    field, z0, r = inputs()
    with torch.no_grad():
        z0.copy_(torch.tensor([[2.0, 1.0], [2.0, 1.0], [3.0, 1.0], [4.0, 1.0]]))
    sol = pynode.solve(
        field, z0, [0.0, 0.1, 1.0], args=(r,), event=lambda t, z, r: z[0, 0] - 1.0, batching="independent",
        engine=engine, dense=True, **FINE,
    )  # fmt: skip
    exact = torch.log(z0[:, 0]) / (field.k * r[:, 0])
    met = torch.tensor([False, True, True, True])
    torch.testing.assert_close(sol.event_t[met], exact[met], rtol=1e-8, atol=1e-9)
    assert bool(sol.event_t[~met].isnan())
    assert sol.event_index.tolist() == [-1, 0, 0, 0]
    assert sol.event_z.shape == (4, 2)
    torch.testing.assert_close(sol.event_z[met], z0[met] / z0[met][:, :1], rtol=1e-8, atol=1e-9)
    assert bool(sol.event_z[0].isnan().all())
    assert sol.z.shape == (3, 4, 2)
    torch.testing.assert_close(sol.z[1], z0 * torch.exp(-0.1 * field.k * r), rtol=1e-7, atol=1e-8)
    assert sol.z[2].isnan().all(1).tolist() == [False, True, True, True]
    wrt = [z0, r, field.k]
    got = torch.autograd.grad(sol.event_t[met].sum() + sol.z[2, 0].sum(), wrt)
    last = z0[0] * torch.exp(-field.k * r[0])
    expected = torch.autograd.grad(exact[met].sum() + last.sum(), wrt)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)
    assert sol(0.05).shape == (4, 2)
    assert sol.stats.nfe == sol.stats.per_sample.nfe.sum()


def test_failure_of_one_sample(engine: str) -> None:
    """dz/dt = z² blows up at 1 / z0: in the third sample before the last time."""
    z0 = torch.tensor([[0.1], [0.2], [2.0], [0.3]], dtype=DOUBLE, requires_grad=True)
    with pytest.raises(SolveError, match=r"sample 2, stopped at t=0\.[45]"):
        pynode.solve(lambda t, z: z**2, z0, [0.0, 1.0], batching="independent", engine=engine)
    sol = pynode.solve(lambda t, z: z**2, z0, [0.0, 1.0], batching="independent", engine=engine, throw=False)
    assert sol.retcode is not Retcode.SUCCESS
    assert [code is Retcode.SUCCESS for code in sol.stats.per_sample.retcode] == [True, True, False, True]
    assert sol.z[1].isnan()[:, 0].tolist() == [False, False, True, False]
    torch.testing.assert_close(sol.z[1, 0, 0].item(), 1 / (10 - 1), rtol=1e-3, atol=1e-3)


def test_batches_of_one_and_none(engine: str) -> None:
    field = MLP()
    z0 = torch.randn(1, 2, dtype=DOUBLE)
    one = pynode.solve(field, z0, [0.0, 1.0], batching="independent", engine=engine)
    torch.testing.assert_close(one.z, pynode.solve(field, z0, [0.0, 1.0], engine=engine).z, rtol=1e-12, atol=1e-12)
    none = pynode.solve(field, z0[:0], [0.0, 1.0], batching="independent", engine=engine)
    assert none.z.shape == (2, 0, 2)
    none.z.sum().backward()


class Centred(nn.Module):
    """A field with statistics over the batch."""

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return z - z.mean(0)


def test_mixing_that_a_weight_of_zero_hides(engine: str) -> None:
    """As in a network whose last layer starts with zeros."""

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(2, 2, bias=False)
            nn.init.zeros_(self.last.weight)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return self.last(torch.tanh(z - z.mean(0, keepdim=True)))

    with pytest.raises(FieldError, match="mixes samples"):
        pynode.solve(Field(), torch.randn(3, 2), [0.0, 1.0], batching="independent", engine=engine)


def test_fields_that_mix_samples(engine: str) -> None:
    z0 = torch.randn(3, 2, dtype=DOUBLE)
    pynode.solve(Centred(), z0, [0.0, 1.0], engine=engine)
    for field in (Centred(), lambda t, z: z * z[:1], lambda t, z: z - z[-1]):
        with pytest.raises(FieldError, match=r"mixes samples: dz/dt of sample . is another"):
            pynode.solve(field, z0, [0.0, 1.0], batching="independent", engine=engine)


@pytest.mark.parametrize(
    ("t", "keywords", "message"),
    [
        ([0.0, 1.0], {"batching": "each"}, "unknown batching 'each'"),
        (torch.rand(2, 5).cumsum(1), {}, r"a row for each of the 3 samples, got shape \(2, 5\)"),
        ([[0.0, 1.0], [0.0, NAN], [0.0, 1.0]], {}, r"at least 2 finite times.*in row 1"),
        ([[0.0, 1.0, 2.0], [0.0, NAN, 1.0], [0.0, 1.0, 2.0]], {}, r"at least 2 finite times.*in row 1"),
        ([[0.0, 1.0, 2.0], [0.0, 2.0, 1.0], [0.0, 1.0, 2.0]], {}, r"strictly monotone.*in row 1"),
    ],
)
def test_refusals(t: Any, keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pynode.solve(MLP(), torch.randn(3, 2, dtype=DOUBLE), torch.as_tensor(t), engine="torch", **keywords)


THREADS = """
import torch, pynode
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()
z0 = torch.randn(40, 2, dtype=torch.float64, requires_grad=True)
scale = torch.logspace(-1, 1, 40, dtype=torch.float64)[:, None]
field = lambda t, z, s: s * net(z)
found = []
for batching in ("joint", "independent"):
    for repeat in range(3):
        keywords = {"args": (scale,), "batching": batching, "engine": "julia", "rtol": 1e-8, "atol": 1e-10}
        sol = pynode.solve(field, z0, [0.0, 1.0, 2.0], **keywords)
        gradients = torch.autograd.grad(sol.z.pow(2).sum(), [z0, *net.parameters()])
    found.append((sol.z.detach(), *gradients))
for a, b in zip(*found):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
from pynode.engine.julia import runtime as julia_runtime
import juliacall
print("threads", juliacall.Main.seval("Threads.nthreads()"))
"""


@pytest.mark.julia
def test_threads() -> None:
    """Samples on two Julia threads, in a process of its own, since a process has the threads that it started with."""
    environment = os.environ | {"PYTHON_JULIACALL_THREADS": "2"}
    run = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    assert "threads 2" in run.stdout


@pytest.mark.parametrize("shape", [(), (3,)])
def test_a_state_without_a_batch_is_refused(shape: tuple[int, ...]) -> None:
    """`(3,)` may be one sample or three; with times for each of them it is three."""
    z0 = torch.ones(shape, dtype=DOUBLE)
    with pytest.raises(InputError, match=r"needs z0 of shape \(batch, \*features\).*z0.unsqueeze\(0\) if this is one"):
        pynode.solve(lambda t, z: -z, z0, [0.0, 1.0], batching="independent", engine="torch")
    rows = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]], dtype=DOUBLE)
    z = pynode.solve(lambda t, z: -z, torch.ones(3, dtype=DOUBLE), rows, engine="torch", **FINE).z
    torch.testing.assert_close(z, torch.exp(-rows.T), rtol=1e-7, atol=0)


def test_vmap_over_times_of_each_sample(engine: str) -> None:
    """Also where one has fewer of them than another that is mapped over."""
    nan = math.nan
    t = torch.tensor([[[0.0, 1.0, 2.0], [0.0, 0.5, nan]], [[0.0, 0.7, nan], [0.1, 0.5, 0.9]]], dtype=DOUBLE)
    z0 = torch.arange(1.0, 5.0, dtype=DOUBLE).reshape(2, 2, 1)

    def solve(t: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        sol = pynode.solve(
            lambda t, z: -z, z, t, running_cost=lambda t, z: z[:, 0], rtol=1e-9, atol=1e-9, engine=engine
        )
        return sol.z, sol.running_cost, sol.t_end, sol.z_end

    mapped = torch.vmap(solve)(t, z0)
    alone = [torch.stack(x) for x in zip(*map(solve, t, z0), strict=True)]
    for x, y in zip(mapped, alone, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize("how", [{"tstops": [0.3]}, {"event": pynode.At([0.3], lambda t, z: z * 0.5)}])
def test_pieces_under_transforms(how: dict[str, Any], engine: str) -> None:
    """dz/dt = -z, with a stop, or a dose that halves it."""
    z0, t = torch.tensor([[1.0], [2.0], [3.0]], dtype=DOUBLE), torch.tensor([0.0, 1.0], dtype=DOUBLE)

    def end(z0: Tensor, t: Tensor) -> Tensor:
        solution = pynode.solve(lambda t, z: -z, z0, t, batching="independent", engine=engine, **FINE, **how)
        return solution.z[-1].sum()

    slope = math.exp(-1) * (0.5 if "event" in how else 1.0)
    torch.testing.assert_close(torch.func.grad(end)(z0, t), torch.full_like(z0, slope), rtol=1e-7, atol=0)
    total = slope * z0.sum()
    by_t = torch.func.grad(end, 1)(z0, t)
    torch.testing.assert_close(by_t, torch.stack([total, -total]), rtol=1e-6, atol=0)
    with pytest.raises(pynode.EngineUnavailable, match=r"torch\.vmap over independent samples that start afresh"):
        torch.vmap(end, (0, None))(torch.stack([z0, z0]), t)
