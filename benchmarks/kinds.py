"""Kinds of field beyond perceptrons: a gradient by pynode's julia engine and by torchdiffeq, in one run.

    python benchmarks/kinds.py [--repeats 20] [--cases lagrangian,spectral]

Both solve by dopri5 with the same tolerance, and pynode differentiates by the exact transpose of its steps. A figure is
the least of the repeats, taken in turns after a warm-up, in milliseconds of the process's processor time, which other
programs do not count in.

How far the gradients are apart is told too. Each is that of its own steps, and they need not be alike: where the steps
are as long as stability allows (`spectral`), the highest frequencies of a gradient to z0 are those of the steps; and
steps read some entries of a table (`forced`), and other steps its other ones.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
import torchdiffeq
from cases import Conv
from torch import Tensor, nn
from torch.func import grad, hessian, jacrev, vmap

import pynode


class Lagrangian(nn.Module):
    """Accelerations of a learned Lagrangian with two coordinates (Cranmer et al. 2020, equation 6)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, width), nn.Softplus(), nn.Linear(width, width), nn.Softplus())
        self.out = nn.Linear(width, 1)

    def energy(self, q: Tensor, v: Tensor) -> Tensor:
        return self.out(self.net(torch.cat([q, v])))[0] + 0.5 * (v * v).sum()

    def acceleration(self, x: Tensor) -> Tensor:
        q, v = x[:2], x[2:]
        mass = hessian(self.energy, 1)(q, v)
        coupling = jacrev(grad(self.energy, 1), 0)(q, v)
        return torch.linalg.solve(mass, grad(self.energy, 0)(q, v) - coupling @ v)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return torch.cat([x[:, 2:], vmap(self.acceleration)(x)], 1)


class KuramotoSivashinsky(nn.Module):
    """u' = -u u_x - u_xx - ν u_xxxx on a circle, by Fourier transforms; ν is learned."""

    def __init__(self, points: int = 256, length: float = 100.0) -> None:
        super().__init__()
        self.nu = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.register_buffer("k", 2 * torch.pi * torch.fft.rfftfreq(points, length / points, dtype=torch.float64))
        self.points = points

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        modes = torch.fft.rfft(u)
        linear = torch.fft.irfft((self.k**2 - self.nu * self.k**4) * modes, n=self.points)
        return linear - u * torch.fft.irfft(1j * self.k * modes, n=self.points)


class Forced(nn.Module):
    """A damped oscillator that a table of 1000 values drives, which are learned; linear between them."""

    def __init__(self, knots: int = 1000) -> None:
        super().__init__()
        self.register_buffer("times", torch.linspace(0, 10, knots, dtype=torch.float64))
        self.values = nn.Parameter(torch.sin(2 * self.times))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        i = torch.searchsorted(self.times, t).clamp(1, len(self.times) - 1)
        w = (t - self.times[i - 1]) / (self.times[i] - self.times[i - 1])
        force = self.values[i - 1] * (1 - w) + self.values[i] * w
        x, v = z.unbind(1)
        return torch.stack([v, force - x - 0.1 * v], 1)


class Graph(nn.Module):
    """Messages along 10,500 random edges of 2,700 nodes with 16 features."""

    def __init__(self, nodes: int = 2700, edges: int = 10_500, features: int = 16) -> None:
        super().__init__()
        self.register_buffer("source", torch.randint(nodes, (edges,)))
        self.register_buffer("target", torch.randint(nodes, (edges,)))
        self.first, self.second = nn.Linear(features, features), nn.Linear(features, features)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        messages = torch.tanh(self.first(z))[:, self.source]
        return self.second(torch.zeros_like(z).index_add(1, self.target, messages)) / 4 - z


def cases() -> dict[str, tuple[nn.Module, Tensor, Tensor, dict[str, Any]]]:
    """Field, state, times and options of each."""
    torch.manual_seed(0)
    x = torch.arange(256, dtype=torch.float64) / 256
    wave = torch.cos(2 * torch.pi * x) * (1 + torch.sin(4 * torch.pi * x))
    single = {"rtol": 1e-4, "atol": 1e-6}
    return {
        "lagrangian": (Lagrangian(), 0.5 * torch.randn(64, 4), torch.linspace(0, 1, 5), single),
        "spectral": (
            KuramotoSivashinsky(),
            wave[None],
            torch.tensor([0.0, 0.05]).double(),
            {"rtol": 1e-5, "atol": 1e-7},
        ),
        "forced": (Forced(), torch.tensor([[1.0, 0.0]]).double(), torch.tensor([0.0, 10.0]).double(), single),
        "graph": (Graph(), 0.5 * torch.randn(1, 2700, 16), torch.tensor([0.0, 1.0]), single),
        "convolutions": (Conv(16), torch.randn(128, 16, 8, 8), torch.tensor([0.0, 1.0]), single),
    }


def least(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Least milliseconds of each, in turns."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 2):
        for name, run in runs.items():
            started = time.process_time()
            run()
            if turn >= 2:
                taken[name].append(time.process_time() - started)
    return {name: 1e3 * min(each) for name, each in taken.items()}


def compare(field: nn.Module, z0: Tensor, t: Tensor, options: dict[str, Any], repeats: int) -> str:
    """Milliseconds of both, their ratio, the evaluations of a solve, and how far the gradients are apart."""
    z0 = z0.requires_grad_()
    wrt = [z0, *field.parameters()]
    nfe = 0

    def ours() -> list[Tensor]:
        # torchdiffeq's dopri5 is not told of the kinks of a table either.
        nonlocal nfe
        sol = pynode.solve(field, z0, t, engine="julia", solver="dopri5", tstops=None, max_steps=100_000, **options)
        nfe = sol.stats.nfe
        return list(torch.autograd.grad((sol.z[-1] ** 2).sum(), wrt, allow_unused=True))

    def theirs() -> list[Tensor]:
        z = torchdiffeq.odeint(field, z0, t, method="dopri5", **options)
        return list(torch.autograd.grad((z[-1] ** 2).sum(), wrt, allow_unused=True))

    apart = max(
        float((a - b).abs().max() / b.abs().max().clamp(min=1e-12))
        for a, b in zip(ours(), theirs(), strict=True)
        if b is not None
    )
    ms = least({"theirs": theirs, "ours": ours}, repeats)
    figures = f"{ms['theirs']:9.2f} {ms['ours']:9.2f} {ms['theirs'] / ms['ours']:7.1f}x"
    return f"{figures}  nfe {nfe}, gradients differ by {apart:.1e}"


def main() -> None:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--cases", default="", help="names, with commas between")
    args = parser.parse_args()
    print(f"torch threads {torch.get_num_threads()}; ms of a gradient: torchdiffeq, pynode julia, ratio; evaluations")
    for name, case in cases().items():
        if not args.cases or name in args.cases.split(","):
            print(f"{name:12s} {compare(*case, args.repeats)}", flush=True)


if __name__ == "__main__":
    main()
