"""Threads that hammer models, and what they find against what one thread finds: `python hammer.py ENGINE SOLVES`.

Prints the seconds of one thread and of eight for the same work; ends with an error where a number differs.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import pynode

THREADS = 8

Job = Callable[[], list[Tensor]]


class TimeField(nn.Module):
    """A network of the time and the state."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width + 1, 8), nn.Tanh(), nn.Linear(8, width))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.net(torch.cat([z, t.expand(z.shape[:-1]).unsqueeze(-1)], -1))


def job(field: nn.Module, z0: Tensor, engine: str, **options: Any) -> Job:
    """A solve and its gradients to the state and the parameters."""

    def run() -> list[Tensor]:
        z = z0.clone().requires_grad_()
        y = pynode.solve(field, z, [0.0, 0.4, 1.0], engine=engine, **options).z
        return [y.detach(), *torch.autograd.grad((y**2).sum(), [z, *field.parameters()])]

    return run


def jobs(engine: str, sensitivity: str = "backsolve") -> list[Job]:
    """Three models; shapes, solvers and sensitivities of several kinds on each, of which one is given."""
    torch.manual_seed(0)
    models = [TimeField(2).double(), TimeField(3).double(), TimeField(2).double()]
    found = []
    for model, width in zip(models, (2, 3, 2), strict=True):
        for batch in (1, 4):
            z0 = torch.linspace(-1, 1, batch * width, dtype=torch.float64).reshape(batch, width)
            found += [
                job(model, z0, engine),
                job(model, z0, engine, solver="rk4", dt=0.25),
                job(model, z0, engine, solver="dopri5", sensitivity=sensitivity, rtol=1e-5, atol=1e-5),
                job(model, z0, engine, solver="bosh3", batching="independent"),
            ]
    return found


def spread(work: Callable[[int], None], threads: int = THREADS) -> None:
    """Call `work(k)` for each of `threads` threads at once; raises the first error."""
    errors: list[BaseException] = []
    start = threading.Barrier(threads)

    def run(k: int) -> None:
        try:
            start.wait()
            work(k)
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=run, args=(k,), daemon=True) for k in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if errors:
        raise errors[0]


def turn(k: int, i: int, work: Sequence[Job]) -> int:
    """The number of the i-th job of thread k: each begins with another."""
    return (3 * k + i) % len(work)


def hammer(work: Sequence[Job], solves: int, between: Callable[[], object] = lambda: None) -> None:
    """Eight threads do `solves` jobs each, beginning at different ones, and compare with one thread's to the bit.

    Args:
        work: the jobs.
        solves: how many each thread does.
        between: is called now and then, from each thread.
    """
    expected = [run() for run in work]

    def many(k: int) -> None:
        for i in range(solves):
            n = turn(k, i, work)
            for x, y in zip(work[n](), expected[n], strict=True):
                if not torch.equal(x, y):
                    raise AssertionError(f"job {n} of thread {k}: off by {(x - y).abs().max().item():.2g}")
            if i % 10 == k:
                between()

    spread(many)


def main(engine: str, solves: int) -> None:
    """Hammer, then time one thread and eight that do the same."""
    torch.set_num_threads(1)
    work = jobs(engine)
    for run in work:
        run()
    started = time.perf_counter()
    hammer(work, solves)
    print(f"{engine}: {THREADS} threads x {solves} solves with gradients, equal to one thread's to the bit", end="; ")
    print(f"{time.perf_counter() - started:.2f} s")

    def many(k: int) -> None:
        for i in range(solves):
            work[turn(k, i, work)]()

    for _ in range(3):
        seconds = []
        for threads in (1, THREADS):
            started = time.perf_counter()
            if threads == 1:
                for k in range(THREADS):
                    many(k)
            else:
                spread(many)
            seconds.append(time.perf_counter() - started)
        print(f"  one thread {seconds[0]:.2f} s, {THREADS} threads {seconds[1]:.2f} s")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
