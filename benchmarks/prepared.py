"""Small problems, by turns: `pynode.solve` for other times, for the same, prepared; NODE; and diffrax, jitted.

    OMP_NUM_THREADS=1 python benchmarks/prepared.py [--engine julia] [--rounds 60]

Prints the least and the lower tenth of the microseconds of a call, of 100 in each of the rounds. diffrax, where it
is installed, solves by the same method to the same tolerances; its figure is that of the jitted function alone, with
the arrays as they are.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
from cases import Spiral
from torch import Tensor, nn

from pynode import prepare, solve
from pynode.models import NODE

CALLS = 100
TOLERANCES = {"rtol": 1e-4, "atol": 1e-4}


class Lorenz(nn.Module):
    """The Lorenz equations."""

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        x, y, w = z.unbind(-1)
        return torch.stack([10 * (y - x), x * (28 - w) - y, x * y - 8 / 3 * w], -1)


class LotkaVolterra(nn.Module):
    """The Lotka-Volterra equations."""

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        x, y = z.unbind(-1)
        return torch.stack([1.3 * x - 0.9 * x * y, 0.8 * x * y - 1.8 * y], -1)


def diffrax_call(name: str, z0: Tensor, t: Tensor) -> Callable[[], object]:
    """The same equations, jitted."""
    import diffrax as dfx
    import jax
    import jax.numpy as jnp

    def field(t: Any, z: Any, args: Any) -> Any:
        if name == "Lorenz":
            x, y, w = z[..., 0], z[..., 1], z[..., 2]
            return jnp.stack([10 * (y - x), x * (28 - w) - y, x * y - 8 / 3 * w], -1)
        x, y = z[..., 0], z[..., 1]
        return jnp.stack([1.3 * x - 0.9 * x * y, 0.8 * x * y - 1.8 * y], -1)

    term, solver, control = dfx.ODETerm(field), dfx.Tsit5(), dfx.PIDController(**TOLERANCES)
    times = jnp.asarray(t.numpy())

    @jax.jit
    def run(z: Any) -> Any:
        saved = dfx.SaveAt(ts=times)
        return dfx.diffeqsolve(term, solver, times[0], times[-1], None, z, saveat=saved, stepsize_controller=control).ys

    start = jnp.asarray(z0.numpy())
    return lambda: jax.block_until_ready(run(start))


def microseconds(call: Callable[[], object]) -> list[float]:
    found = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        found.append((time.perf_counter() - start) * 1e6)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="julia")
    parser.add_argument("--rounds", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
    problems = {
        "spiral 2-50-2, 30 times": (Spiral(), torch.tensor([[2.0, 0.0]]), torch.linspace(0, 1.5, 30)),
        "2-16-2, batch 4": (layers, torch.randn(4, 2), torch.tensor([0.0, 1.0])),
        "Lorenz": (Lorenz(), torch.ones(1, 3), torch.tensor([0.0, 1.0])),
        "Lotka-Volterra": (LotkaVolterra(), torch.tensor([[1.0, 1.0]]), torch.linspace(0, 3, 30)),
    }
    keywords: dict[str, Any] = {**TOLERANCES, "engine": arguments.engine}
    for name, (field, z0, t) in problems.items():
        others, prepared = itertools.cycle([t, 1.001 * t]), prepare(field, like=(z0, t), **keywords)
        ways: dict[str, Callable[[Tensor], Tensor]] = {
            "solve, other times": lambda z, f=field, o=others: solve(f, z, next(o), **keywords).z,  # type: ignore[misc]
            "solve": lambda z, f=field, t=t: solve(f, z, t, **keywords).z,  # type: ignore[misc]
            "prepared": lambda z, p=prepared: p(z).z,  # type: ignore[misc]
        }
        if field is layers:
            ways["NODE"] = NODE(field, **keywords)
        parameters = list(field.parameters())
        calls: dict[str, Callable[[], object]] = {}
        for way, call in ways.items():
            calls[f"forward, {way}"] = torch.no_grad()(lambda call=call, z0=z0: call(z0))
            if parameters:
                calls[f"gradient, {way}"] = lambda call=call, z0=z0, of=parameters: torch.autograd.grad(
                    call(z0).square().sum(), of
                )
        if not parameters and importlib.util.find_spec("diffrax"):
            calls["forward, diffrax"] = diffrax_call(name, z0, t)
        for call in calls.values():
            call()
        taken: dict[str, list[float]] = {what: [] for what in calls}
        for _ in range(arguments.rounds):
            for what, call in calls.items():
                taken[what] += microseconds(call)
        for what, each in taken.items():
            print(f"{name:<24} {what:<28} {min(each):6.0f} {sorted(each)[len(each) // 10]:6.0f}", flush=True)


if __name__ == "__main__":
    main()
