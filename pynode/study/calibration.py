"""How fast this machine is just now: the seconds of a fixed piece of work."""

from __future__ import annotations

import statistics
import time

import torch

__all__ = ["calibrate"]

_REPEATS = 5


def calibrate() -> float:
    """The median seconds of a fixed workload, of products of matrices and of many small operations."""
    large = torch.linspace(-1, 1, 128 * 128).reshape(128, 128)
    small = torch.linspace(-1, 1, 16)
    seconds = []
    with torch.no_grad():
        for _ in range(_REPEATS + 1):
            started = time.perf_counter()
            x, y = large, small
            for _ in range(20):
                x = torch.tanh(x @ large)
            for _ in range(400):
                y = torch.tanh(y * 0.5 + small)
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])
