"""Gradients of networks, of a flow and of single large images, at one and at two threads, beside torchdiffeq.

    OMP_WAIT_POLICY=passive python benchmarks/threads.py [--repeats 7] [--only NAME]
    OMP_WAIT_POLICY=passive python benchmarks/threads.py --products [--repeats 7] [--only NAME]
    python benchmarks/threads.py --bound

Each row is the loss of a solve by Dormand and Prince's pair at rtol 1e-4 in float32, alone and with its gradient in
the weights; that of the flow, FFJORD with the exact trace, is its negative log-likelihood. The contenders take turns;
given are medians in milliseconds. `--products` has in torchdiffeq's place what no solver can do without: the products
and tanh of as many evaluations of a network, and their adjoints, by PyTorch into memory that is there. `--bound` is
what two processors bring at most: how much two programs of one thread, side by side, compute in the time of one.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import torch
import torchdiffeq
from cases import Conv
from flow import Published
from products import Products
from torch import Tensor, nn

import pynode
from pynode.models import FFJORD

WIDTHS = [
    ((32, 128, 128, 32), 256),
    ((64, 256, 256, 64), 1024),
    ((64, 64, 64, 64), 4096),
    ((8, 512, 8), 8192),
    ((2, 64, 64, 2), 8192),
    ((2, 64, 64, 2), 65536),
    ((16, 128, 128, 16), 32768),
]
TIMES = [0.0, 0.5, 1.0]
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


class Autonomous(nn.Module):
    """A network of the state alone."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for n, m in itertools.pairwise(widths):
            layers += [nn.Linear(n, m), nn.Tanh()]
        self.net = nn.Sequential(*layers[:-1])

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.net(z)


class Waves(nn.Module):
    """Reaction and diffusion of Gray and Scott on a torus: a state (batch, 2, height, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.tensor([0.16, 0.08, 0.035, 0.065]))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        a, b, feed, kill = self.rates
        laplacian = z.roll(1, 2) + z.roll(-1, 2) + z.roll(1, 3) + z.roll(-1, 3) - 4 * z
        u, v = z.unbind(1)
        reaction = u * v * v
        du = a * laplacian[:, 0] - reaction + feed * (1 - u)
        dv = b * laplacian[:, 1] + reaction - (feed + kill) * v
        return torch.stack([du, dv], 1)


class Flow(nn.Module):
    """FFJORD in the plane, as pynode's model and as programs on torchdiffeq write it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = FFJORD(
            2, hidden=(64, 64), layer="concat", trace="exact", engine="julia", solver="dopri5", **TOLERANCE
        )
        self.published = Published(self.model, "exact", "odeint", TOLERANCE)

    def loss(self, x: Tensor, package: str) -> Tensor:
        return (self.published if package == "torchdiffeq" else self.model).loss(x)


def problems() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]:
    """The fields by name, with the shapes of their states."""
    found: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {}
    for widths, batch in WIDTHS:
        found[f"{'-'.join(map(str, widths))} × {batch}"] = functools.partial(Autonomous, *widths), (batch, widths[0])
    found["FFJORD 2-64-64-2 × 4096"] = Flow, (4096, 2)
    for size in (128, 256):
        found[f"convolutions {size}×{size}×16 × 1"] = functools.partial(Conv, 16), (1, 16, size, size)
    found["reaction and diffusion 512×512×2 × 1"] = Waves, (1, 2, 512, 512)
    return found


def loss(field: nn.Module, z0: Tensor, package: str) -> Tensor:
    if isinstance(field, Flow):
        return field.loss(z0, package)
    if package == "torchdiffeq":
        z = torchdiffeq.odeint(field, z0, torch.tensor(TIMES), method="dopri5", **TOLERANCE)
    else:
        z = pynode.solve(field, z0, TIMES, solver="dopri5", sensitivity="discrete", engine="julia", **TOLERANCE).z
    return z.square().mean()


def forward(field: nn.Module, z0: Tensor, package: str) -> None:
    with torch.no_grad():
        loss(field, z0, package)


def gradient(field: nn.Module, z0: Tensor, package: str) -> None:
    field.zero_grad()
    loss(field, z0, package).backward()


def bare(field: nn.Module, z0: Tensor) -> Products:
    """The products of a network's evaluations in a solve."""
    made = pynode.solve(field, z0, TIMES, solver="dopri5", engine="julia", **TOLERANCE).stats.nfe
    products = Products()
    problem = SimpleNamespace(field=field, z0=z0, t=torch.tensor(TIMES), parameters=dict(field.named_parameters()))
    products.prepare(cast(Any, problem), cast(Any, None), nfe=made)
    return products


def measure(calls: list[Callable[[], object]], repeats: int) -> list[float]:
    """Milliseconds of each call."""
    seconds: list[list[float]] = [[] for _ in calls]
    for turn in range(repeats + 1):  # the first warms up
        for call, found in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            if turn:
                found.append(time.perf_counter() - start)
    return [1e3 * statistics.median(found) for found in seconds]


# In a process of its own: the seconds of products of matrices and of tanh, each in a processor's cache.
ALONE = """
import statistics, sys, time, torch
torch.set_num_threads(1)
a, b, x = torch.randn(256, 256), torch.randn(1024, 256), torch.randn(2**17)
def seconds(work, times):
    found = []
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(times):
            work()
        found.append(time.perf_counter() - start)
    return statistics.median(found)
print(flush=True)
sys.stdin.readline()
print(seconds(lambda: b @ a, 400), seconds(lambda: torch.tanh(x), 2000))
"""


def side_by_side(n: int) -> list[float]:
    """The mean seconds that the same work takes `n` programs that run at the same time."""
    command = [sys.executable, "-c", ALONE]
    programs = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(n)]
    for program in programs:
        assert program.stdout is not None
        program.stdout.readline()  # it is ready
    for program in programs:
        assert program.stdin is not None
        program.stdin.write("\n")
        program.stdin.flush()
    found = [program.communicate()[0].split() for program in programs]
    return [statistics.fmean(map(float, column)) for column in zip(*found, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--products", action="store_true", help="beside the products of networks, not torchdiffeq")
    parser.add_argument("--bound", action="store_true", help="what two processors bring at most, and nothing else")
    arguments = parser.parse_args()
    if arguments.bound:
        alone, two = side_by_side(1), side_by_side(2)
        for name, a, b in zip(("products of matrices", "tanh"), alone, two, strict=True):
            print(f"{name}: two programs compute {2 * a / b:.2f} times as much as one")
        return
    torch.set_num_threads(2)  # Julia starts with as many
    pynode.solve(nn.Linear(1, 1), torch.ones(1, 1), [0.0, 1.0], engine="julia")
    other = "products" if arguments.products else "torchdiffeq"
    print(f"| field | | {other}, 1 and 2 threads | julia, 1 and 2 | ratio at 1 and 2 | 2 threads of julia's |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for name, (make, shape) in problems().items():
        if arguments.only not in name:
            continue
        torch.manual_seed(0)
        field, z0 = make(), torch.randn(shape)
        if arguments.products and not isinstance(field, Autonomous):
            continue
        products = bare(field, z0) if arguments.products else None
        for what in (forward, gradient):
            calls: list[Callable[[], object]]
            calls = [functools.partial(what, field, z0, package) for package in ("torchdiffeq", "julia")]
            if products is not None:
                calls[0] = torch.no_grad()(products.solve if what is forward else products.gradient)
            found = []
            for threads in (1, 2):
                torch.set_num_threads(threads)
                found.append(measure(calls, arguments.repeats))
            (a1, b1), (a2, b2) = found
            ratios = f"{a1 / b1:.2f}, {a2 / b2:.2f} | {b1 / b2:.2f}×"
            print(f"| {name} | {what.__name__} | {a1:.3g}, {a2:.3g} | {b1:.3g}, {b2:.3g} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
