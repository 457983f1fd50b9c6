"""Whether torch's threads pay for tensors as small as a neural ODE's, measured here and now."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

__all__ = ["advice", "seconds"]

_BUDGET = 0.5  # seconds for each number of threads


def advice() -> str:
    """Torch's present number of threads, and whether one alone is faster; takes a second where there are several."""
    threads = torch.get_num_threads()
    if threads == 1:
        return "1 thread"
    many, one = seconds(threads), seconds(1)
    measured = f"{threads} threads: a small training step takes {many * 1e3:.1f} ms, on one thread {one * 1e3:.1f} ms"
    if many <= one:
        return measured
    return f"{measured}. Models of this size are faster with OMP_NUM_THREADS=1 or torch.set_num_threads(1)"


def seconds(threads: int) -> float:
    """Seconds of a step of many small operations, as a solve with its gradient is; the mean, for threads that wait."""
    net = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
    z0 = torch.linspace(-1, 1, 2000).reshape(1000, 2)
    before = torch.get_num_threads()
    taken: list[float] = []
    torch.set_num_threads(threads)
    try:
        while len(taken) < 2 or sum(taken) < _BUDGET:
            started = time.perf_counter()
            z = z0
            for _ in range(4):
                z = z + 0.1 * net(z)
            z.square().mean().backward()
            taken.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(before)
    return statistics.fmean(taken[1:])  # the first one warms up
