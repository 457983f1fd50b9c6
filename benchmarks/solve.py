"""Forward solves and gradients, side by side in one run: torchdiffeq, diffrax (where installed), and each engine.

    python benchmarks/solve.py [--repeats 100] [--cases spiral,MLP] [--out FILE]

Every contender solves the same field from the same state at the same tolerances. A figure is the median of the
repeats after a warm-up, in milliseconds; contenders take turns, so that a drift of the machine meets all alike.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torchdiffeq
from torch import Tensor, nn

import pynode

RTOL, ATOL = 1e-3, 1e-6


class Spiral(nn.Module):
    """W2 tanh(W1 z³ + b1) + b2."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.net(z**3)


class MLP(nn.Module):
    """A tanh network of the given widths."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        pairs = itertools.pairwise(widths)
        layers = [layer for a, b in pairs for layer in (nn.Linear(a, b), nn.Tanh())]
        self.net = nn.Sequential(*layers[:-1])

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.net(z)


@dataclass
class Case:
    """A field, a state and times."""

    name: str
    field: nn.Module
    z0: Tensor
    t: Tensor


def cases() -> Iterator[Case]:
    torch.manual_seed(0)
    yield Case("spiral 2-50-2, 30 times", Spiral(), torch.tensor([[2.0, 0.0]]), torch.linspace(0, 1.5, 30))
    yield Case("MLP 32-128-128-32, batch 256", MLP(32, 128, 128, 32), torch.randn(256, 32), torch.tensor([0.0, 1.0]))
    yield Case("MLP 64-256-256-64, batch 1024", MLP(64, 256, 256, 64), torch.randn(1024, 64), torch.tensor([0.0, 1.0]))


Run = Callable[[], object]


def contenders(case: Case) -> dict[str, tuple[Run, Run]]:
    """For each contender a forward solve and a gradient."""
    field, z0, t = case.field, case.z0, case.t

    def forward(solve: Callable[[], Tensor]) -> Run:
        def run() -> object:
            with torch.no_grad():
                return solve()

        return run

    def gradient(solve: Callable[[], Tensor]) -> Run:
        def run() -> object:
            field.zero_grad(set_to_none=True)
            loss = solve().square().mean()
            loss.backward()
            return loss

        return run

    def of(solve: Callable[[], Tensor]) -> tuple[Run, Run]:
        return forward(solve), gradient(solve)

    options = {"rtol": RTOL, "atol": ATOL}
    found = {
        "torchdiffeq discretise": of(lambda: torchdiffeq.odeint(field, z0, t, method="dopri5", **options)),
        "torchdiffeq adjoint": of(lambda: torchdiffeq.odeint_adjoint(field, z0, t, method="dopri5", **options)),
        "pynode torch discrete": of(lambda: pynode.solve(field, z0, t, engine="torch", **options).z),
    }
    if pynode.engines()["julia"].ok:
        for name in ("discrete", "gauss", "interpolating"):
            found[f"pynode julia {name}"] = of(
                lambda name=name: pynode.solve(field, z0, t, engine="julia", sensitivity=name, **options).z
            )
    found.update(diffrax_contender(case))
    return found


def diffrax_contender(case: Case) -> dict[str, tuple[Run, Run]]:
    """The same field in JAX, jitted, with diffrax's default adjoint."""
    try:
        import diffrax
        import jax
        import jax.numpy as jnp
    except ModuleNotFoundError:
        return {}
    linear = [m for m in case.field.net if isinstance(m, nn.Linear)]
    weights = [(jnp.asarray(m.weight.detach().numpy()), jnp.asarray(m.bias.detach().numpy())) for m in linear]
    cubed = isinstance(case.field, Spiral)
    z0, t = jnp.asarray(case.z0.numpy()), jnp.asarray(case.t.numpy())

    def field(_, z, weights):
        z = z**3 if cubed else z
        for i, (w, b) in enumerate(weights):
            z = z @ w.T + b
            z = jnp.tanh(z) if i < len(weights) - 1 else z
        return z

    def solve(weights):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Tsit5(),
            t[0],
            t[-1],
            None,
            z0,
            args=weights,
            saveat=diffrax.SaveAt(ts=t),
            stepsize_controller=diffrax.PIDController(rtol=RTOL, atol=ATOL),
        ).ys

    forward = jax.jit(solve)
    gradient = jax.jit(jax.grad(lambda w: jnp.mean(solve(w) ** 2)))
    return {
        "diffrax (jit)": (
            lambda: jax.block_until_ready(forward(weights)),
            lambda: jax.block_until_ready(gradient(weights)),
        )
    }


ROUNDS = 5


def medians(runs: dict[str, Run], repeats: int, budget: float) -> dict[str, float]:
    """Median milliseconds of each.

    The contenders take turns, in rounds; within its turn a contender runs several times in a row, of which the first
    is not counted, so that none pays for caches that another has filled.
    """
    for run in runs.values():
        run()
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            run()
            until = time.perf_counter() + budget / ROUNDS
            for _ in range(max(1, repeats // ROUNDS)):
                started = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - started)
                if time.perf_counter() > until:
                    break
    return {name: 1e3 * statistics.median(each) for name, each in times.items()}


def table(title: str, results: dict[str, float]) -> str:
    best_torch = results.get("torchdiffeq discretise", float("nan"))
    adjoint = results.get("torchdiffeq adjoint", float("nan"))
    lines = [
        f"\n### {title}\n",
        "| contender | ms | torchdiffeq discretise / this | torchdiffeq adjoint / this |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {name} | {ms:.3g} | {best_torch / ms:.2f} | {adjoint / ms:.2f} |"
        for name, ms in sorted(results.items(), key=lambda item: item[1])
    ]
    return "\n".join(lines)


def versions() -> str:
    found = [f"{name} {package.__version__}" for name, package in (("torch", torch), ("torchdiffeq", torchdiffeq))]
    found.insert(0, f"Python {platform.python_version()}")
    if "diffrax" in sys.modules:
        found += [f"{name} {sys.modules[name].__version__}" for name in ("jax", "diffrax")]
    if pynode.engines()["julia"].ok:
        from juliacall import Main

        found.append(f"Julia {Main.VERSION}")
    machine = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return f"{time.strftime('%Y-%m-%d')}, {machine}: {', '.join(found)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--budget", type=float, default=10.0, help="seconds per contender and measurement")
    parser.add_argument("--cases", default="", help="only cases whose name contains one of these, comma-separated")
    parser.add_argument("--out", type=Path, help="append the tables to this file")
    arguments = parser.parse_args()
    wanted = [part for part in arguments.cases.split(",") if part]
    report = []
    for case in cases():
        if wanted and not any(part in case.name for part in wanted):
            continue
        found = contenders(case)
        for kind, which in (("forward", 0), ("gradient", 1)):
            runs = {
                name: both[which]
                for name, both in found.items()
                if which == 1 or not name.endswith(("adjoint", "gauss", "interpolating"))
            }
            report.append(table(f"{case.name}: {kind}", medians(runs, arguments.repeats, arguments.budget)))
            print(report[-1], flush=True)
    report.insert(0, versions())
    print("\n" + report[0])
    if arguments.out:
        with arguments.out.open("a") as file:
            file.write("\n".join(report) + "\n")


if __name__ == "__main__":
    main()
