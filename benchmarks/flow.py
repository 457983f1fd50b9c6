"""A training step of FFJORD, side by side in one run: torchdiffeq's adjoint and backpropagation, and each engine.

    python benchmarks/flow.py [--repeats 30] [--batch 512] [--tolerance 1e-5] [--out FILE]

The loss and its gradient for a field 2-64-64-2 with the time as a third input, on two moons, float32. All
contenders have the same field and samples, and solve by a 5(4) pair of their own. Figures are medians of turns
as in `solve.py`; "nfe" counts evaluations of the field in the forward solve.
"""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable
from pathlib import Path

import torch
import torchdiffeq
from solve import append, medians
from torch import Tensor, nn

import pynode
from pynode import data
from pynode.models import FFJORD


class Published(nn.Module):
    """The dynamics as programs on torchdiffeq write them: a state (z, log-density), the trace by autograd."""

    def __init__(self, field: nn.Module, trace: str) -> None:
        super().__init__()
        self.field = field
        self.trace = trace
        self.noise = torch.empty(0)
        self.nfe = 0

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        self.nfe += 1
        with torch.enable_grad():
            z = state[0].requires_grad_(True)
            dz = self.field(t, z)
            if self.trace == "exact":
                columns = (torch.autograd.grad(dz[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(2))
                divergence = functools.reduce(torch.add, columns)
            else:
                (pulled,) = torch.autograd.grad(dz, z, self.noise, create_graph=True)
                divergence = (pulled * self.noise).sum(1)
        return dz, divergence


def contenders(batch: int, tolerance: float, trace: str) -> tuple[dict[str, Callable[[], object]], dict[str, int]]:
    """What each does in a step, and its evaluations of the field, filled in as it runs."""
    torch.manual_seed(0)
    options = {"rtol": tolerance, "atol": tolerance}
    flow = FFJORD(2, hidden=(64, 64), layer="concat", trace=trace, **options)
    block = flow.blocks[0]
    x = data.density("moons", batch)
    t = torch.tensor([0.0, 1.0])
    base = flow.base()
    nfe: dict[str, int] = {}

    def published(name: str, solve: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[], object]:
        dynamics = Published(block.field, trace)

        def step() -> object:
            flow.zero_grad(set_to_none=True)
            dynamics.noise, dynamics.nfe = block._draw(x), 0
            z, log_det = solve(dynamics, (x.clone(), x.new_zeros(batch)), t, method="dopri5", **options)
            nfe[name] = dynamics.nfe
            loss = -(base.log_prob(z[-1]) + log_det[-1]).mean()
            loss.backward()
            return loss

        return step

    def ours(name: str, engine: str) -> Callable[[], object]:
        def step() -> object:
            flow.zero_grad(set_to_none=True)
            block.solver_keywords["engine"] = engine
            loss = flow.loss(x)
            loss.backward()
            nfe[name] = flow.stats.nfe
            return loss

        return step

    runs = {
        "torchdiffeq adjoint": published("torchdiffeq adjoint", torchdiffeq.odeint_adjoint),
        "torchdiffeq backpropagation": published("torchdiffeq backpropagation", torchdiffeq.odeint),
    }
    for engine, status in pynode.engines().items():
        if status.ok:
            runs[f"pynode {engine}"] = ours(f"pynode {engine}", engine)
    return runs, nfe


def table(title: str, results: dict[str, float], nfe: dict[str, int]) -> str:
    adjoint = results["torchdiffeq adjoint"]
    lines = [f"\n### {title}\n", "| contender | ms | nfe | torchdiffeq adjoint / this |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {name} | {ms:.3g} | {nfe[name]} | {adjoint / ms:.2f} |"
        for name, ms in sorted(results.items(), key=lambda item: item[1])
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--budget", type=float, default=10.0, help="seconds per contender and measurement")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--tolerance", type=float, default=1e-5, help="relative and absolute")
    parser.add_argument("--out", type=Path, help="append the tables to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    report, steps = [], {}
    for trace in ("hutchinson", "exact"):
        runs, nfe = contenders(arguments.batch, arguments.tolerance, trace)
        steps[trace] = medians(runs, arguments.repeats, arguments.budget)
        title = f"FFJORD 2-64-64-2, batch {arguments.batch}, tolerance {arguments.tolerance:g}: {trace} trace"
        report.append(table(title, steps[trace], nfe))
        print(report[-1], flush=True)
    costs = ", ".join(f"{name} {steps['exact'][name] / ms:.2f}" for name, ms in steps["hutchinson"].items())
    report.append(f"\nThe exact trace's cost over Hutchinson's: {costs}.")
    print(report[-1])
    append(report, arguments.out)


if __name__ == "__main__":
    main()
