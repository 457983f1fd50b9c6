"""Gradients on a GPU, side by side: torchdiffeq, and pynode's two engines.

    python benchmarks/gpu.py [--device cuda] [--warm 30] [--repeats 15] [--only NAME]

Each row is one loss and its gradient in the weights, by Dormand and Prince's pair at rtol 1e-5 in float32, from equal
weights and states. The contenders take turns; given are medians, and how many evaluations of the field a solve took.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import statistics
import time
from collections.abc import Callable

import torch
import torchdiffeq
from torch import Tensor, nn

import pynode
from pynode.models import CNF
from pynode.nn import TimeConcat

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
TIMES = [0.0, 0.5, 1.0]


class Autonomous(nn.Module):
    """A network of the state alone, which counts its evaluations."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.evaluations = net, 0

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        self.evaluations += 1
        return self.net(z)


def mlp(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(widths):
        layers += [nn.Linear(n, m), nn.Tanh()]
    return Autonomous(nn.Sequential(*layers[:-1]))


def convolutions() -> nn.Module:
    return Autonomous(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.Tanh(), nn.Conv2d(16, 16, 3, padding=1)))


FIELDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp 2-64-64-2 × 256": (lambda: mlp(2, 64, 64, 2), (256, 2)),
    "mlp 2-64-64-2 × 8192": (lambda: mlp(2, 64, 64, 2), (8192, 2)),
    "mlp 2-64-64-2 × 262144": (lambda: mlp(2, 64, 64, 2), (262144, 2)),
    "mlp 64-256-256-64 × 1024": (lambda: mlp(64, 256, 256, 64), (1024, 64)),
    "mlp 64-256-256-64 × 16384": (lambda: mlp(64, 256, 256, 64), (16384, 64)),
    "mlp 256-1024-1024-256 × 8192": (lambda: mlp(256, 1024, 1024, 256), (8192, 256)),
    "convolutions 16×16×16 × 512": (convolutions, (512, 16, 16, 16)),
}
FLOWS = {"flow of 2-64-64-2, exact trace × 4096": 4096, "flow of 2-64-64-2, exact trace × 65536": 65536}

Step = Callable[[], tuple[Tensor, int]]


def solved(field: nn.Module, z0: Tensor, engine: str) -> tuple[Tensor, int]:
    if engine == "torchdiffeq":
        field.evaluations = 0  # type: ignore[assignment]
        z = torchdiffeq.odeint(field, z0, torch.tensor(TIMES, device=z0.device), method="dopri5", **TOLERANCE)
        return z.square().mean(), int(field.evaluations)  # type: ignore[arg-type]
    sol = pynode.solve(field, z0, TIMES, solver="dopri5", engine=engine, sensitivity="discrete", **TOLERANCE)
    return sol.z.square().mean(), sol.stats.nfe


class Density(nn.Module):
    """A flow's dynamics as programs on torchdiffeq write them: the exact trace by autograd."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field, self.evaluations = field, 0

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        self.evaluations += 1
        with torch.enable_grad():
            z = state[0].requires_grad_(True)
            dz = self.field(t, z)
            columns = (torch.autograd.grad(dz[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(2))
            return dz, functools.reduce(torch.add, columns)


def flowed(field: nn.Module, x: Tensor, engine: str) -> tuple[Tensor, int]:
    base = torch.distributions.MultivariateNormal(torch.zeros(2, device=x.device), torch.eye(2, device=x.device))
    if engine == "torchdiffeq":
        density, t = Density(field), torch.tensor([0.0, 1.0], device=x.device)
        z, log_det = torchdiffeq.odeint(density, (x.clone(), x.new_zeros(len(x))), t, method="dopri5", **TOLERANCE)
        return -(base.log_prob(z[-1]) + log_det[-1]).mean(), density.evaluations
    flow = CNF(field, base, trace="exact", solver="dopri5", engine=engine, sensitivity="discrete", **TOLERANCE)
    return flow.loss(x), flow.stats.nfe


def measure(
    steps: dict[str, Callable[[], tuple[Tensor, int]]], fields: dict[str, nn.Module], warm: int, repeats: int
) -> str:
    def synchronize() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    seconds: dict[str, list[float]] = {name: [] for name in steps}
    evaluations, gradients = {}, {}
    for turn in range(warm + repeats):  # the first ten or twenty on a GPU take up to twice as long, in each contender
        for name, step in steps.items():
            fields[name].zero_grad()
            synchronize()
            start = time.perf_counter()
            loss, evaluations[name] = step()
            loss.backward()
            synchronize()
            if turn >= warm:
                seconds[name].append(time.perf_counter() - start)
            gradients[name] = torch.cat([p.grad.reshape(-1) for p in fields[name].parameters() if p.grad is not None])
    base = statistics.median(seconds["torchdiffeq"])
    cells = []
    for name, taken in seconds.items():
        median = statistics.median(taken)
        apart = (gradients[name] - gradients["torchdiffeq"]).norm() / gradients["torchdiffeq"].norm()
        cells.append(f"{1e3 * median:.4g} ({evaluations[name]}; {base / median:.2f}×; {apart:.0e})")
    return " | ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--warm", type=int, default=30, help="turns that do not count")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--engines", default="torchdiffeq,torch,julia", help="comma-separated; torchdiffeq is the base")
    arguments = parser.parse_args()
    engines = arguments.engines.split(",")
    if arguments.device == "cuda":
        print(torch.cuda.get_device_name())
    print("| ms (evaluations; times as fast; gradient apart) |", " | ".join(engines), "|")
    rows = {name: (solved, make, shape) for name, (make, shape) in FIELDS.items()}
    rows |= {name: (flowed, lambda: TimeConcat(mlp(3, 64, 64, 2).net), (n, 2)) for name, n in FLOWS.items()}
    for name, (step, make, shape) in rows.items():
        if arguments.only not in name:
            continue
        torch.manual_seed(0)
        field, z0 = make().to(arguments.device), torch.randn(shape).to(arguments.device)
        fields = {engine: copy.deepcopy(field) for engine in engines}
        steps = {engine: functools.partial(step, fields[engine], z0, engine) for engine in engines}
        print(f"| {name} | {measure(steps, fields, arguments.warm, arguments.repeats)} |", flush=True)


if __name__ == "__main__":
    main()
