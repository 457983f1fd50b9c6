"""Small problems: `pynode.solve` and a prepared solve, by turns, so that the ratios hold on a machine with other work.

    python benchmarks/prepared.py [--engine julia] [--rounds 60]

Prints the least and the lower tenth of the microseconds per call over the rounds, of 100 calls each.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from cases import Spiral
from torch import Tensor, nn

from pynode import prepare, solve

CALLS = 100


class Lorenz(nn.Module):
    """The Lorenz equations."""

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        x, y, w = z.unbind(-1)
        return torch.stack([10 * (y - x), x * (28 - w) - y, x * y - 8 / 3 * w], -1)


def microseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - start) / CALLS * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="julia")
    parser.add_argument("--rounds", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    problems = {
        "spiral 2-50-2, 30 times": (Spiral(), torch.tensor([[2.0, 0.0]]), torch.linspace(0, 1.5, 30)),
        "Lorenz, t to 1": (Lorenz(), torch.ones(1, 3), torch.tensor([0.0, 1.0])),
    }
    keywords = {"rtol": 1e-4, "atol": 1e-4, "engine": arguments.engine}
    for name, (field, z0, t) in problems.items():
        ways = {"solve": lambda z: solve(field, z, t, **keywords), "prepared": prepare(field, like=(z0, t), **keywords)}  # noqa: B023
        parameters = list(field.parameters())
        calls: dict[str, Callable[[], object]] = {}
        for way, call in ways.items():
            calls[f"forward, {way}"] = torch.no_grad()(lambda call=call, z0=z0: call(z0))
            if parameters:
                calls[f"gradient, {way}"] = lambda call=call, z0=z0, of=parameters: torch.autograd.grad(
                    call(z0).z.square().sum(), of
                )
        for call in calls.values():
            call()
        taken: dict[str, list[float]] = {what: [] for what in calls}
        for _ in range(arguments.rounds):
            for what, call in calls.items():
                taken[what].append(microseconds(call))
        for what, each in taken.items():
            print(f"{name:<24} {what:<18} {min(each):6.0f} {sorted(each)[len(each) // 10]:6.0f}", flush=True)


if __name__ == "__main__":
    main()
