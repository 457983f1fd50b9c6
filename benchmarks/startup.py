"""Start-up: seconds from a fresh process to the first gradient on julia, by phase, in as many processes as asked for.

    python benchmarks/startup.py [--solver dopri5] [--sensitivity discrete] [--runs 3]

Prints the median of each phase: importing PyTorch and pynode, juliacall, the package PyNODE, the rest of Julia's start,
the first forward solve, the first gradient, and the first gradient of another network and of a flow (FFJORD).
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tabulate import tabulate

Seconds = dict[str, float]


@contextmanager
def timed(seconds: Seconds, phase: str) -> Iterator[None]:
    """Add how long the block takes to a phase."""
    start = time.perf_counter()
    yield
    seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start


def measured(solver: str, sensitivity: str) -> Seconds:
    """The seconds of each phase in this process, which must not have imported PyTorch yet."""
    seconds: Seconds = {}
    with timed(seconds, "torch, pynode"):
        import torch
        from torch import nn

        import pynode
    torch.set_num_threads(1)
    runtime = importlib.import_module("pynode.engine.julia.runtime")
    with timed(seconds, "start"):
        watch_imports(runtime, seconds)
        runtime.start()
    seconds["start"] -= seconds["juliacall"] + seconds["PyNODE"]
    with timed(seconds, "torch's tracing"):
        import torch._dynamo

    z0, t = torch.randn(32, 2), torch.tensor([0.0, 1.0])

    def solution(width: int, z0: torch.Tensor) -> torch.Tensor:
        net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2))
        return pynode.solve(lambda t, z: net(z), z0, t, solver=solver, sensitivity=sensitivity, engine="julia").z

    with timed(seconds, "forward"):
        solution(50, z0)
    with timed(seconds, "gradient"):
        solution(50, z0.requires_grad_()).square().sum().backward()
    with timed(seconds, "another network"):
        solution(40, z0).square().sum().backward()
    with timed(seconds, "FFJORD"):
        flow = pynode.models.FFJORD(2, hidden=(16,), solver=solver, sensitivity=sensitivity, engine="julia")
        flow.log_prob(z0).sum().backward()
    return seconds


def watch_imports(runtime: object, seconds: Seconds) -> None:
    """Time two steps of the start: juliacall, and the loading of PyNODE behind it."""
    for phase, name in (("juliacall", "_import_juliacall"), ("PyNODE", "_import_pynode")):
        setattr(runtime, name, timing(getattr(runtime, name), seconds, phase))


def timing(function: Callable[..., object], seconds: Seconds, phase: str) -> Callable[..., object]:
    """The same function, whose calls count for a phase."""

    def timed_function(*arguments: object) -> object:
        with timed(seconds, phase):
            return function(*arguments)

    return timed_function


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solver", default="dopri5")
    parser.add_argument("--sensitivity", default="discrete")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--here", action="store_true", help="measure in this process, and print JSON")
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(measured(arguments.solver, arguments.sensitivity)))
        return
    command = [sys.executable, __file__, "--here", "--solver", arguments.solver, "--sensitivity", arguments.sensitivity]
    runs = []
    for _ in range(arguments.runs):
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    rows = [(phase, statistics.median(run[phase] for run in runs)) for phase in runs[0]]
    first = [phase for phase, _ in rows if phase not in ("torch, pynode", "another network", "FFJORD")]
    rows.append(("juliacall to first gradient", statistics.median(sum(run[p] for p in first) for run in runs)))
    print(tabulate(rows, headers=["phase", "seconds"], floatfmt=".2f"))


if __name__ == "__main__":
    main()
