"""What it costs that Julia calls a field in Python, beside torchdiffeq, which does so too: `lowering="callback"`.

Seconds are those of the thread's processor, which other programs do not count in; the least of some repetitions.

    OMP_NUM_THREADS=1 python benchmarks/callback.py
"""

from __future__ import annotations

import time
import warnings
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


def seconds(*runs: Callable[[], Any], repetitions: int = 7) -> list[float]:
    """The least seconds of each, in turns after a warm-up."""
    found: list[list[float]] = [[] for _ in runs]
    for turn in range(repetitions + 1):
        for taken, run in zip(found, runs, strict=True):
            start = time.thread_time()
            run()
            if turn:
                taken.append(time.thread_time() - start)
    return [min(taken) for taken in found]


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

    eager, long, short = seconds(evaluate, lambda: solve(5100), lambda: solve(100))
    called = (long - short) / 5000
    print(f"one evaluation: {eager * 1e3:.1f} µs by itself, {called * 1e6:.1f} µs called by Julia")


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
            ours, other = seconds(lambda m=method: pynodes(m), lambda m=method: theirs(m))
            print(
                f"gradient, {method}, {features}-{width}-{features} × {batch}: {ours * 1e3:.1f} ms, "
                f"torchdiffeq {other * 1e3:.1f} ms, {ours / other:.2f} times that"
            )


def stiff() -> None:
    """Beside SciPy's BDF, by which torchdiffeq solves stiff problems; its backward solve of this one fails."""
    field = VanDerPol()
    z0, t = torch.tensor([[2.0, 0.0]], dtype=torch.float64), torch.tensor([0.0, 200.0], dtype=torch.float64)
    tolerances = {"rtol": 1e-6, "atol": 1e-8}
    scipys = {"method": "scipy_solver", "options": {"solver": "BDF"}, **tolerances}
    reference = pynode.solve(field, z0, t, solver="rodas5p", rtol=1e-11, atol=1e-12, **CALLBACK).z[-1].detach()

    def ours(rtol: float) -> Tensor:
        with torch.no_grad():
            return pynode.solve(field, z0, t, solver="fbdf", rtol=rtol, atol=rtol / 100, **CALLBACK).z[-1]

    def theirs() -> Tensor:
        with torch.no_grad():
            return torchdiffeq.odeint(field, z0, t, **scipys)[-1]

    def gradient() -> Tensor:
        z = pynode.solve(field, z0, t, solver="rodas5p", sensitivity="gauss", **tolerances, **CALLBACK).z
        return torch.autograd.grad(z[-1].sum(), [field.mu])[0]

    def error(z: Tensor) -> float:
        return (z - reference).abs().max().item()

    loosest = next(r for r in (1e-4, 5e-5, 2e-5, 1e-5, 5e-6, 2e-6, 1e-6) if error(ours(r)) <= error(theirs()))
    *took, base = seconds(lambda: ours(1e-6), lambda: ours(loosest), theirs, repetitions=5)
    print(f"Van der Pol, torchdiffeq's SciPy BDF at 1e-6: {base * 1e3:.0f} ms, error {error(theirs()):.1e}")
    for rtol, s in zip((1e-6, loosest), took, strict=True):
        print(
            f"Van der Pol, fbdf on julia at {rtol:.0e}: {s * 1e3:.0f} ms, error {error(ours(rtol)):.1e}; torchdiffeq "
            f"takes {base / s:.1f} times as long"
        )
    (took_gradient,) = seconds(gradient, repetitions=2)
    print(f"Van der Pol, gradient by rodas5p and gauss on julia: {took_gradient * 1e3:.0f} ms, {gradient().item():.6g}")
    try:
        z = torchdiffeq.odeint_adjoint(field, z0, t, **scipys)
        print(f"Van der Pol, gradient by torchdiffeq: {torch.autograd.grad(z[-1].sum(), [field.mu])[0].item():.6g}")
    except Exception as error:  # what SciPy's solver raises, or torchdiffeq
        print(f"Van der Pol, gradient by torchdiffeq: {type(error).__name__}: {error}")


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="The following arguments have no effect for a chosen solver")
    overhead()
    gradients()
    stiff()
