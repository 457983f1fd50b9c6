"""Regression of y = x³ + 0.1 x on ten points: a ResNet against the ODE-Net of the same vector field.

Both have the same parameters. The ResNet's layers may jump past each other; the paths of the ODE-Net cannot
cross, which makes its fit increase between the points.

    python examples/cubic_regression.py

After Z. Kolter, D. Duvenaud, M. Johnson, "Deep Implicit Layers", NeurIPS 2020 tutorial, chapter 3.
"""

from __future__ import annotations

import copy
import time

import torch
from _shared import arguments, write
from torch import nn
from tqdm import trange

from pynode import data, plot
from pynode.models import NODE, ResNet
from pynode.nn import TimeConcat, TimeSequential


def train(model, x, y, iterations):
    """Adam on the mean squared error of all points; what training gave, and what its last iteration cost."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    start = time.perf_counter()
    for _ in (bar := trange(iterations, desc=f"{type(model).__name__:<6}")):
        optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(mse=f"{loss.item():.2e}", refresh=False)
    stats, seconds = model.stats, time.perf_counter() - start
    fine_x, fine_y = data.cubic(401).tensors
    with torch.no_grad():
        mse, mse_between = (((model(a) - b) ** 2).mean().item() for a, b in ((x, y), (fine_x, fine_y)))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "mse": mse,
        "mse_between": mse_between,
        "nfe_forward": stats.nfe,
        "nfe_backward": stats.nfe_backward or stats.nfe,  # each residual layer is pulled back once
        "seconds": seconds,
    }


def run(out, engine="auto", seed=0, iterations=1500):
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # ten points are too few to share between threads
    x, y = data.cubic().tensors
    field = TimeSequential(TimeConcat(nn.Linear(2, 25)), nn.Tanh(), nn.Linear(25, 1))
    models = {
        "ResNet": ResNet(copy.deepcopy(field), depth=3),
        "ODE-Net": NODE(field, rtol=1e-4, atol=1e-4, engine=engine),
    }
    results = {name: train(model, x, y, iterations) for name, model in models.items()}

    print("model    parameters  MSE of the points  MSE between them  NFE forward  NFE backward  seconds")
    for name, r in results.items():
        print(
            f"{name:<8} {r['parameters']:>10}  {r['mse']:>17.1e}  {r['mse_between']:>16.1e}  "
            f"{r['nfe_forward']:>11}  {r['nfe_backward']:>12}  {r['seconds']:>7.1f}"
        )

    def figures():
        grid, few = torch.linspace(-2.5, 2.5, 201).unsqueeze(1), torch.linspace(-2, 2, 21).unsqueeze(1)
        depths = torch.linspace(0, 1, 51)
        with torch.no_grad():
            fits = {name: (grid, model(grid)) for name, model in models.items()}
            paths = {
                "ResNet": (torch.linspace(0, 1, models["ResNet"].depth + 1), models["ResNet"].trajectory(few)),
                "ODE-Net": (depths, models["ODE-Net"].trajectory(few, depths)),
            }
        return {
            "fit.png": plot.fit(fits, (x, y), (grid, grid**3 + 0.1 * grid)),
            "trajectories.png": plot.trajectories(paths),
        }

    write(out, results, figures, engine=engine, seed=seed)
    return results


if __name__ == "__main__":
    parser = arguments(__doc__, "cubic_regression", on_torch="half a minute", on_julia="15 seconds")
    parser.add_argument("--seed", type=int, default=0, help="of the parameters")
    parser.add_argument("--iterations", type=int, default=1500, help="steps of the optimizer")
    run(**vars(parser.parse_args()))
