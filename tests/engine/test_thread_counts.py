"""How many threads Julia takes: as many as torch, at most; and that the numbers do not depend on it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import pynode
from pynode.engine.julia import runtime as julia_runtime


def lines_of(code: str, *arguments: str) -> list[str]:
    """What code prints in a process of one torch thread, whose Julia has two."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON_JULIACALL_THREADS": "2"}
    environment.pop("OPENBLAS_NUM_THREADS", None)
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


FOLLOWS = """
import torch, pynode
from pynode.engine.julia import runtime
net = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)).double()
with torch.no_grad():
    for p in net.parameters():
        p.copy_(torch.linspace(-1, 1, p.numel(), dtype=p.dtype).sin().reshape(p.shape))
# Samples that take very different times, so that threads end in another order each time.
z0 = torch.linspace(-3, 3, 180, dtype=torch.float64).reshape(90, 2) ** 3
def field(t, z, a, b):
    return net(z[0]) * b, a * z[1]
rows = [torch.linspace(-1, 0, 90, dtype=torch.float64).reshape(90, 1).requires_grad_() for _ in range(2)]
def gradients(**options):
    state = z0, z0[:, :1].sin()
    z = pynode.solve(field, state, [0.0, 2.0], args=rows, engine="julia", rtol=1e-6, atol=1e-6, **options).z
    loss = sum((x[-1] ** 2).sum() for x in z)
    return [*(x.detach() for x in z), *torch.autograd.grad(loss, [*net.parameters(), *rows])]
def joint():
    return gradients(solver="rk4", dt=0.5)
def independent():
    return gradients(batching="independent")
def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
julia = runtime.module()
def counts():
    return julia.seval("PyNODE.BLAS.get_num_threads()"), julia.seval("PyNODE.MAX_TASKS[]")
one, alone = joint(), independent()
print("started", *counts())
torch.set_num_threads(2)
two, several = joint(), [independent() for _ in range(20)]
print("two", *counts())
assert len(next(iter(julia.SAMPLE_FIELDS.values()))) == 2
torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
assert all(same(alone, x) for x in several)
torch.set_num_threads(1)
assert same(independent(), alone) and same(joint(), one)
print("one", *counts())
print("threads", julia.seval("Threads.nthreads()"))
"""


@pytest.mark.julia
def test_julia_follows_torch() -> None:
    """From torch's number at the start through its changes; equal numbers from one thread and from two."""
    assert lines_of(FOLLOWS) == ["started 1 1", "two 2 2", "one 1 1", "threads 2"]


PARTED = """
import sys, torch, pynode
sensitivities = sys.argv[1:]
from pynode.engine.julia import runtime
torch.manual_seed(0)
layers = torch.nn.Linear(8, 96), torch.nn.Tanh(), torch.nn.Linear(96, 96), torch.nn.Tanh(), torch.nn.Linear(96, 8)
net = torch.nn.Sequential(*layers).double()
z0, c = torch.randn(1501, 8).double(), torch.randn(1501, 8).double().requires_grad_()
def field(t, z, c):
    a, b = z
    return net(a) * c.tanh() * t, a.sin().mean(1, keepdim=True) - b
def gradients(**options):
    state = z0.clone().requires_grad_(), z0[:, :1].clone().requires_grad_()
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64, requires_grad=options.get("sensitivity") == "discrete")
    sol = pynode.solve(field, state, t, args=(c,), engine="julia", rtol=1e-7, atol=1e-7, **options)
    loss = sum((x[1:].sin() * x[1:]).sum() for x in sol.z)
    inputs = [*state, c, *net.parameters(), *([t] if t.requires_grad else [])]
    return [*(x.detach() for x in sol.z), *torch.autograd.grad(loss, inputs)]
kinds = [{"sensitivity": name} for name in sensitivities]
kinds += [{"sensitivity": "discrete", "solver": "rk4", "dt": 0.1}]
kinds += [{"sensitivity": pynode.Discrete(memory=2**17)}]  # which makes steps again
alone = [gradients(**kind) for kind in kinds]
julia = runtime.module()
parted = lambda: julia.seval("count(k -> length(k.field.tape.workspace.blocks) > 1, values(PyNODE.FIELDS))")
print(parted())
torch.set_num_threads(2)
for kind, expected in zip(kinds, alone, strict=True):
    again = [gradients(**kind) for _ in range(3)]
    assert all(torch.equal(x, y) for found in again[1:] for x, y in zip(found, again[0], strict=True)), kind
    torch.testing.assert_close(again[0], expected, rtol=1e-9, atol=1e-9, msg=str(kind))
print(parted())
mixed = torch.nn.BatchNorm1d(8, track_running_stats=False, affine=False).double()
sol = pynode.solve(lambda t, z: net(mixed(z)), z0, [0.0, 1.0], engine="julia")
print(parted())
"""


@pytest.mark.julia
@pytest.mark.parametrize(
    "sensitivities",
    [
        pytest.param(("discrete", "backsolve"), id="discrete and backsolve"),
        pytest.param(("gauss", "interpolating"), marks=pytest.mark.exhaustive, id="gauss and interpolating"),
    ],
)
def test_samples_are_shared_out(sensitivities: tuple[str, ...]) -> None:
    """Values and gradients of a batch that is parted are those of the whole one, and the same each time."""
    assert lines_of(PARTED, *sensitivities) == ["0", "2", "2"]  # for joint products, and for those that are split


FLOWS = """
import torch, pynode
from pynode.engine.julia import runtime
from pynode.models import FFJORD
def flow(d):
    torch.manual_seed(0)
    flow = FFJORD(d, hidden=(64, 64), trace="exact", engine="julia", solver="tsit5", rtol=1e-7, atol=1e-7).double()
    return flow, torch.randn(3000, d).double().requires_grad_()
def gradients(flow, x):
    loss = flow.loss(x)
    return [loss.detach(), *torch.autograd.grad(loss, [x, *flow.parameters()])]
flows = [flow(d) for d in (2, 7)]  # the trace is made of the parts' own products, or of those of seven batches at once
alone = [gradients(*flow) for flow in flows]
julia = runtime.module()
parted = lambda: julia.seval("count(k -> length(k.field.tape.workspace.blocks) > 1, values(PyNODE.FIELDS))")
print(parted())
torch.set_num_threads(2)
for flow, expected in zip(flows, alone, strict=True):
    again = [gradients(*flow) for _ in range(3)]
    assert all(torch.equal(x, y) for found in again[1:] for x, y in zip(found, again[0], strict=True))
    torch.testing.assert_close(again[0], expected, rtol=1e-9, atol=1e-9)
    print(parted())
"""


@pytest.mark.julia
def test_samples_of_a_flow_are_shared_out() -> None:
    """Also where the exact trace has the batch several times, one after the other."""
    assert lines_of(FLOWS) == ["0", "1", "2"]


COUPLED = """
import torch, pynode
torch.manual_seed(0)
layer = torch.nn.Linear(96, 96).double()
edges = torch.rand(600, 600).double() / 300
z0 = torch.randn(600, 96).double().requires_grad_()
def field(t, z):
    return (edges @ layer(z)).tanh() - z
def gradients():
    z = pynode.solve(field, z0, [0.0, 1.0], solver="rk4", dt=0.25, engine="julia").z
    return [z.detach(), *torch.autograd.grad(z.sin().sum(), [z0, *layer.parameters()])]
alone = gradients()
torch.set_num_threads(2)
for _ in range(3):
    torch.testing.assert_close(gradients(), alone, rtol=1e-11, atol=1e-11)
"""


@pytest.mark.julia
def test_products_of_coupled_samples_are_shared() -> None:
    """Their numbers are those of one thread."""
    assert lines_of(COUPLED) == []


SHARED = """
import torch, pynode
from pynode.engine.julia import runtime
torch.manual_seed(0)
class Image(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inward = torch.nn.Conv2d(4, 16, 3, padding=1, padding_mode="circular")
        self.outward = torch.nn.Conv2d(16, 4, 3, padding=1)
    def forward(self, t, z):
        laplacian = z.roll(1, 2) + z.roll(-1, 2) + z.roll(1, 3) + z.roll(-1, 3) - 4 * z
        return self.outward((self.inward(z) * t.cos()).tanh()) + 0.1 * laplacian - 0.1 * z**3
net = Image().double()
z0 = torch.randn(1, 4, 200, 150).double().requires_grad_()
def gradients(**options):
    z = pynode.solve(net, z0, [0.0, 0.2], solver="midpoint", dt=0.1, engine="julia", **options).z
    return [z.detach(), *torch.autograd.grad(z.sin().sum(), [z0, *net.parameters()])]
kinds = [{"sensitivity": "discrete"}, {"sensitivity": "backsolve"}]
alone = [gradients(**kind) for kind in kinds]
julia = runtime.module()
shared = lambda: julia.seval(
    "count(values(PyNODE.FIELDS)) do k; scratch = k.field.tape.workspace.scratch;"
    "any(b -> b isa PyNODE.Rows && !isempty(b.others), Iterators.flatten(values(scratch))); end"
)
print(shared())
torch.set_num_threads(2)
for kind, expected in zip(kinds, alone, strict=True):
    again = [gradients(**kind) for _ in range(3)]
    assert all(torch.equal(x, y) for found in again[1:] for x, y in zip(found, again[0], strict=True)), kind
    assert torch.equal(again[0][0], expected[0]), kind
    torch.testing.assert_close(again[0], expected, rtol=1e-11, atol=1e-11, msg=str(kind))
print(shared())
"""


@pytest.mark.julia
def test_threads_share_the_operations_of_a_large_sample() -> None:
    """An image's gradient is that by one thread, and the same each time."""
    assert lines_of(SHARED) == ["0", "2"]


@pytest.mark.julia
def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def solve() -> int:
        pynode.solve(lambda t, z: -z, torch.ones(1, 1), [0.0, 1.0], engine="julia")
        return int(julia_runtime.module().seval("PyNODE.BLAS.get_num_threads()"))

    before = torch.get_num_threads()
    assert solve() == before
    try:
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", str(before))
        torch.set_num_threads(before + 1)
        assert solve() == before
        monkeypatch.delenv("OPENBLAS_NUM_THREADS")
        torch.set_num_threads(before)
        assert solve() == before
        torch.set_num_threads(before + 1)
        assert solve() == before + 1
    finally:
        torch.set_num_threads(before)
    assert solve() == before


def test_what_julia_is_started_with_is_set_for_its_start_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("PYTHON_JULIACALL_THREADS", "JULIA_NUM_THREADS", "JULIA_THREAD_SLEEP_THRESHOLD")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHON_JULIACALL_HANDLE_SIGNALS", "yes")

    def at_the_start() -> list[str | None]:
        with julia_runtime._threads_of_torch():
            return [os.environ.get(name) for name in names]

    assert at_the_start() == [str(torch.get_num_threads()), None, "1000000"]
    assert not set(names) & os.environ.keys()
    monkeypatch.setenv("JULIA_NUM_THREADS", "3")
    monkeypatch.setenv("JULIA_THREAD_SLEEP_THRESHOLD", "5")
    assert at_the_start() == [None, "3", "5"]
    assert [os.environ.get(name) for name in names] == [None, "3", "5"]


@pytest.mark.parametrize("name", ["PYTHON_JULIACALL_THREADS", "JULIA_NUM_THREADS"])
def test_threads_without_signals_are_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv("PYTHON_JULIACALL_THREADS", raising=False)
    monkeypatch.setenv(name, "4")
    monkeypatch.setenv("PYTHON_JULIACALL_HANDLE_SIGNALS", "no")
    state = julia_runtime.available()
    assert not state.ok
    assert f"{name} is 4" in state.why
    assert "PYTHON_JULIACALL_HANDLE_SIGNALS=yes" in state.fix
