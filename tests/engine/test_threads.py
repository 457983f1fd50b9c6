"""Python's threads: models that several solve and differentiate at once, replicas, and backward on another thread."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hammer
import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode.engine.julia import runtime as julia_runtime
from pynode.models import FFJORD, NODE


def started(engine: str) -> None:
    if engine == "julia":  # on the main thread
        julia_runtime.start()


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.timeout(900)
def test_threads_that_hammer_models(engine: str) -> None:
    """Solves and gradients of three models from eight threads are equal to one thread's, to the bit."""
    started(engine)
    collect = (lambda: julia_runtime.module().seval("GC.gc(false)")) if engine == "julia" else (lambda: None)
    # Continuous adjoints, which take Julia minutes to compile, are in the long one.
    hammer.hammer(hammer.jobs(engine, "auto"), 40 if engine == "julia" else 6, collect)


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
def test_threads_that_hammer_for_long(engine: str) -> None:
    script, solves = Path(hammer.__file__), "1000" if engine == "julia" else "25"
    done = subprocess.run(
        [sys.executable, str(script), engine, solves], capture_output=True, text=True, timeout=1700, check=False
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)  # the seconds, with -rP


def test_first_solves_at_once(engine: str) -> None:
    """Eight threads are the first to solve with one new architecture each, and two share one."""
    started(engine)
    fields = [hammer.TimeField(2 + k // 2).double() for k in range(hammer.THREADS)]
    states = [torch.linspace(-1, 1, 2 + k // 2, dtype=torch.float64).reshape(1, -1) for k in range(hammer.THREADS)]
    work = [hammer.job(field, z0, engine) for field, z0 in zip(fields, states, strict=True)]
    found: dict[int, list[Tensor]] = {}
    hammer.spread(lambda k: found.update({k: work[k]()}))
    for k, run in enumerate(work):
        assert same(found[k], run())


def test_inference_by_a_pool(engine: str) -> None:
    """A server's way: one model, a request to each thread of a pool."""
    model = NODE(hammer.TimeField(2), engine=engine).eval().requires_grad_(False)
    requests = [torch.randn(n % 5 + 1, 2) for n in range(64)]
    expected = [model(x) for x in requests]
    with ThreadPoolExecutor(hammer.THREADS) as pool:
        found = list(pool.map(model, requests))
    assert same(found, expected)


def replica_of(model: nn.Module) -> nn.Module:
    """What `nn.DataParallel` makes of a model for each device; its own function asks for GPUs."""
    modules = list(model.modules())
    copies = {module: module._replicate_for_data_parallel() for module in modules}
    for module, copy in copies.items():
        for name, child in module._modules.items():
            if child is not None:
                setattr(copy, name, copies[child])
        for name, parameter in module._parameters.items():
            if parameter is not None:
                setattr(copy, name, parameter.view_as(parameter))  # a tensor with a gradient, and no parameter
    return copies[model]


def test_replicas(engine: str) -> None:
    """Replicas, each on a thread of its own: the chunks' results, and gradients of the model's own parameters."""
    model = NODE(hammer.TimeField(2).double(), engine=engine, rtol=1e-6, atol=1e-6)
    chunks = torch.randn(12, 2, dtype=torch.float64).chunk(4)
    expected = torch.cat([model(x) for x in chunks])
    wanted = torch.autograd.grad((expected**2).sum(), list(model.parameters()))
    found: dict[int, Tensor] = {}
    replicas = [replica_of(model) for _ in chunks]

    def work(k: int) -> None:
        found[k] = replicas[k](chunks[k])

    hammer.spread(work, len(chunks))
    y = torch.cat([found[k] for k in range(len(chunks))])
    assert torch.equal(y, expected)
    (y**2).sum().backward()
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-14)


def elsewhere(work: Callable[[], Tensor | tuple[Tensor, ...]]) -> Tensor | tuple[Tensor, ...]:
    """What a function returns on a thread that has ended by then."""
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize("batching", ["joint", "independent"])
@pytest.mark.parametrize("sensitivity", ["auto", pytest.param("backsolve", marks=pytest.mark.slow)])
def test_backward_on_another_thread(engine: str, batching: str, sensitivity: str) -> None:
    started(engine)
    field, z0 = hammer.TimeField(2).double(), torch.randn(3, 2, dtype=torch.float64, requires_grad=True)

    def forward() -> Tensor:
        sol = pynode.solve(field, z0, [0.0, 1.0], engine=engine, batching=batching, sensitivity=sensitivity)
        return (sol.z[-1] ** 2).sum()

    def backward(loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, [z0, *field.parameters()])

    expected = backward(forward())
    made_here = forward()
    for found in (
        backward(elsewhere(forward)),
        elsewhere(lambda: backward(elsewhere(forward))),
        elsewhere(lambda: backward(made_here)),
    ):
        assert same(list(found), list(expected))


def test_losses_of_a_flow_at_once(engine: str) -> None:
    """The regularisers in a loss are those of its own solves, not of another thread's."""
    started(engine)
    keywords = {"engine": engine, "solver": "rk4", "dt": 0.5}
    flow = FFJORD(2, hidden=(4,), blocks=2, trace="exact", kinetic=0.5, jacobian=0.3, **keywords)
    points = [torch.randn(3, 2) * (k + 1) for k in range(hammer.THREADS)]
    expected = [flow.loss(x) for x in points]
    found: dict[tuple[int, int], Tensor] = {}
    hammer.spread(lambda k: [found.update({(k, i): flow.loss(points[k])}) for i in range(5)] and None)
    assert all(torch.equal(loss, expected[k]) for (k, _), loss in found.items())
