"""A neural vector field fitted from a trajectory of the cubic spiral ẏ = y³ A.

The field learns from short pieces of the trajectory; the measure is how well it then continues from the
first point alone.

    python examples/spiral_fit.py

After R. T. Q. Chen et al., "Neural Ordinary Differential Equations", NeurIPS 2018.
"""

from __future__ import annotations

import time

import torch
from _shared import arguments, write
from torch import nn
from tqdm import trange

import pynode
from pynode import data, plot

BATCH, PIECE = 256, 20


class Field(nn.Module):
    """ẏ = W₂ tanh(W₁ y³ + b₁) + b₂."""

    def __init__(self, width=50):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2))

    def forward(self, t, y):
        """ẏ `(batch, 2)` at y `(batch, 2)`."""
        return self.layers(y**3)


def error(field, t, y, **keywords):
    """Mean squared error of the whole trajectory from its first point, and the trajectory."""
    with torch.no_grad():
        fitted = pynode.solve(field, y[0], t, **keywords).z
    return ((fitted - y) ** 2).mean().item(), fitted


def run(out, engine="auto", seed=0, iterations=1500):
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # states of two numbers are too small to share between threads
    t, y = data.spiral(1000)
    field = Field()
    optimizer = torch.optim.Adam(field.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-2, total_steps=iterations)
    before, _ = error(field, t, y, engine=engine)
    losses, start = [], time.perf_counter()
    for _ in (bar := trange(iterations, desc="spiral")):
        first = torch.randint(len(t) - PIECE, (BATCH,))
        target = torch.stack([y[first + i, 0] for i in range(PIECE)])  # (time, batch, 2)
        optimizer.zero_grad()
        solution = pynode.solve(field, target[0], t[:PIECE], engine=engine)
        loss = ((solution.z - target) ** 2).mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{loss.item():.1e}", refresh=False)
    seconds = time.perf_counter() - start
    after, fitted = error(field, t, y, engine=engine)
    results = {
        "engine": solution.engine,
        "solver": solution.solver,
        "mse_before": before,
        "mse_after": after,
        "nfe_forward": solution.stats.nfe,
        "nfe_backward": solution.stats.nfe_backward,
        "seconds": seconds,
    }
    for name, value in results.items():
        print(f"{name:<13} {value:.3g}" if isinstance(value, float) else f"{name:<13} {value}")

    def figures():
        return {
            "training.png": plot.history({"loss of the pieces": {"NODE": losses}}, xlabel="iteration"),
            "spiral.png": plot.phase({"data": y[:, 0], "fitted, from the first point": fitted[:, 0]}),
        }

    write(out, results, figures, engine=engine, seed=seed)
    return results


if __name__ == "__main__":
    parser = arguments(__doc__, "spiral_fit", on_torch="35 seconds", on_julia="20 seconds")
    parser.add_argument("--seed", type=int, default=0, help="of the parameters and the pieces")
    parser.add_argument("--iterations", type=int, default=1500, help="steps of the optimizer")
    run(**vars(parser.parse_args()))
