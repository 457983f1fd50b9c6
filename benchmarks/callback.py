"""What it costs that Julia calls a field in Python, beside torchdiffeq, which does so too: `lowering="callback"`.

Seconds are those of the thread's processor, which other programs do not count in; the least of some repetitions.

    OMP_NUM_THREADS=1 python benchmarks/callback.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torchdiffeq
from torch import Tensor, nn

import pynode

CALLBACK: dict[str, Any] = {"engine": "julia", "lowering": "callback"}


class Network(nn.Module):
    """A perceptron whose output is held back where the state is far out: control flow on values."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(features, width), nn.Tanh(), nn.Linear(width, features)).double()

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.net(z) if z.abs().max() < 100 else -z


class VanDerPol(nn.Module):
    """A stiff oscillator, with control flow on values."""

    def __init__(self) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.tensor(100.0, dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        x, y = z.unbind(-1)
        return torch.stack([y, self.mu * (1 - x**2) * y - x], -1) if x.abs().max() < 100 else -z


def seconds(run: Callable[[], Any], repetitions: int = 5) -> float:
    run()
    found = []
    for _ in range(repetitions):
        start = time.thread_time()
        run()
        found.append(time.thread_time() - start)
    return min(found)


def overhead() -> None:
    """Of one evaluation: from solves of many and of few steps by Euler's method."""
    field, z0, t = Network(2, 16), torch.randn(3, 2, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)

    def solve(n: int) -> None:
        with torch.no_grad():
            pynode.solve(field, z0, [0.0, 1.0], solver="euler", dt=1 / n, **CALLBACK)

    def evaluate() -> None:
        with torch.no_grad():
            for _ in range(1000):
                field(t, z0)

    eager = seconds(evaluate) / 1000
    called = (seconds(lambda: solve(5100)) - seconds(lambda: solve(100))) / 5000
    print(f"one evaluation: {eager * 1e6:.1f} µs by itself, {called * 1e6:.1f} µs called by Julia")


def gradients() -> None:
    """By solvers that make the same steps, and evaluations, in both."""
    for features, width, batch in ((2, 16, 3), (8, 64, 64), (64, 256, 256)):
        field, z0 = Network(features, width), torch.randn(batch, features, dtype=torch.float64).requires_grad_()
        wrt = [z0, *field.parameters()]
        t = torch.linspace(0, 1, 2, dtype=torch.float64)

        def pynodes(method: str, field: Any = field, z0: Any = z0, wrt: Any = wrt, t: Any = t) -> None:
            options = {"dt": 0.01} if method in ("euler", "rk4") else {"rtol": 1e-9, "atol": 1e-9}
            z = pynode.solve(field, z0, t, solver=method, **options, **CALLBACK).z
            torch.autograd.grad((z**2).sum(), wrt)

        def theirs(method: str, field: Any = field, z0: Any = z0, wrt: Any = wrt, t: Any = t) -> None:
            options = {"options": {"step_size": 0.01}} if method in ("euler", "rk4") else {"rtol": 1e-9, "atol": 1e-9}
            z = torchdiffeq.odeint(field, z0, t, method=method, **options)
            torch.autograd.grad((z**2).sum(), wrt)

        for method in ("euler", "rk4", "dopri5"):
            ours, other = seconds(lambda m=method: pynodes(m)), seconds(lambda m=method: theirs(m))
            print(
                f"gradient, {method}, {features}-{width}-{features} × {batch}: {ours * 1e3:.1f} ms, "
                f"torchdiffeq {other * 1e3:.1f} ms, {ours / other:.2f} times that"
            )


def stiff() -> None:
    field, t = VanDerPol(), [0.0, 200.0]
    z0 = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    tolerances = {"rtol": 1e-6, "atol": 1e-8}

    def solve(solver: str, options: dict[str, Any]) -> Tensor:
        with torch.no_grad():
            return pynode.solve(field, z0, t, solver=solver, **tolerances, **options).z[-1]

    reference = pynode.solve(field, z0, t, solver="rodas5p", rtol=1e-11, atol=1e-12, **CALLBACK).z[-1].detach()
    ways = (("fbdf", CALLBACK), ("rodas5p", CALLBACK), ("bdf", {"engine": "torch"}))
    for solver, options in ways:
        took = seconds(lambda s=solver, o=options: solve(s, o), 3)
        error = (solve(solver, options) - reference).abs().max().item()
        print(f"Van der Pol, {solver} on {options['engine']}: {took * 1e3:.0f} ms, error {error:.1e}")

    def gradient() -> None:
        z = pynode.solve(field, z0, t, solver="rodas5p", sensitivity="gauss", **tolerances, **CALLBACK).z
        torch.autograd.grad(z[-1].sum(), [field.mu])

    print(f"Van der Pol, gradient by rodas5p and gauss on julia: {seconds(gradient, 3) * 1e3:.0f} ms")


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    overhead()
    gradients()
    stiff()
