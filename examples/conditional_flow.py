"""One conditional flow for two targets: the context chooses both the base and the density that it becomes.

    python examples/conditional_flow.py

After S. Massaroli et al., "Dissecting Neural ODEs", NeurIPS 2020, section 4: a data-controlled field f(t, z, c) carries
each of several bases to a target of its own. The two bases are normal distributions at opposite places, whose paths
would have to cross those of one another if the field did not know the context.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import nn
from torch.distributions import Independent, Normal
from tqdm import trange

from pynode import data, plot
from pynode.models import CNF, FFJORD

TARGETS = ("moons", "8gaussians")
WHOLE, SHOWN = 6.0, 4.5  # half the side of the square that is integrated over, and of that in the figure
LOOSE, TIGHT = {"rtol": 1e-3, "atol": 1e-3}, {"rtol": 1e-5, "atol": 1e-5}  # in training, in evaluation


class Bases(nn.Module):
    """A normal distribution for each context, a row with a one at its number."""

    def __init__(self):
        super().__init__()
        self.register_buffer("means", torch.tensor([[2.0, 0.0], [-2.0, 0.0]]))

    def forward(self, context):
        """The base of each row."""
        mean = context @ self.means
        return Independent(Normal(mean, torch.ones_like(mean)), 1)


def train(flow, epochs):
    """Batches half of the one, half of the other target; seconds."""
    context = torch.eye(2).repeat_interleave(128, 0)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    start = time.perf_counter()
    for _ in (bar := trange(epochs, desc="both targets")):
        optimizer.zero_grad()
        loss = flow.loss(torch.cat([data.density(name, 128) for name in TARGETS]), context)
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", nfe=flow.stats.nfe, refresh=False)
    return time.perf_counter() - start


@torch.no_grad()
def evaluate(density, name, own, other, cells=240):
    """Numbers of one target, under its own context and under the other's, and what the figure shows."""
    x = data.density(name, 10_000)
    side = 2 * WHOLE / cells
    axis = torch.linspace(-WHOLE + side / 2, WHOLE - side / 2, cells)
    grid = torch.cartesian_prod(axis, axis)
    heat = torch.cat([density.log_prob(part, own).exp() for part in grid.split(10_000)]).reshape(cells, cells)
    numbers = {
        "nll": -density.log_prob(x, own).mean().item(),
        "nll_other_context": -density.log_prob(x, other).mean().item(),
        "integral": heat.double().sum().item() * side**2,
        "nfe": density.stats.nfe,
    }
    start = density.base(own.expand(150, 2)).sample()
    paths = density.trajectory(start, torch.linspace(1, 0, 30), own, reverse=True)
    margin = round((WHOLE - SHOWN) / side)
    return numbers, (x[:4000], heat[margin:-margin, margin:-margin], density.sample(4000, own), paths)


def run(out, engine="auto", seed=0, epochs=400):
    torch.manual_seed(seed)
    flow = FFJORD(2, hidden=(64, 64), base=Bases(), context=2, trace="exact", kinetic=0.01, engine=engine, **LOOSE)
    seconds = train(flow, epochs)
    density = CNF(flow.blocks[0].field, flow.base, engine=engine, **TIGHT)
    contexts = torch.eye(2).unsqueeze(1)
    results, rows = {"seconds": seconds}, {}
    for i, name in enumerate(TARGETS):
        results[name], rows[name] = evaluate(density, name, contexts[i], contexts[1 - i])

    print("target        NLL (test)  NLL, other context  ∫ density  NFE")
    for name in TARGETS:
        r = results[name]
        print(f"{name:<12}  {r['nll']:>10.3f}  {r['nll_other_context']:>18.3f}  {r['integral']:>9.4f}  {r['nfe']:>3}")
    print(f"{seconds:.1f} seconds")
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    if not plot.available():
        print(f"No figures: matplotlib is not installed. To get them: {plot.HOW_TO_GET}")
        return results
    plot.densities(rows, extent=(-SHOWN, SHOWN, -SHOWN, SHOWN)).savefig(out / "densities.png")
    print(f"Written to {out}: results.json, densities.png")
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out/conditional_flow"), help="folder of results and figures")
    parser.add_argument("--engine", choices=("auto", "torch", "julia"), default="auto", help="which engine solves")
    parser.add_argument("--seed", type=int, default=0, help="of parameters and samples")
    parser.add_argument(
        "--epochs", type=int, default=400, help="steps of the optimizer, 128 new samples of each target"
    )
    run(**vars(parser.parse_args()))
