"""The reflection φ(x) = -x of the line: a neural ODE cannot learn it, its augmented and controlled relatives can.

The paths of a flow on the line cannot cross, so that the best a NODE can do is to send every point to 0, with
a mean squared error of 1/3. Each other model has another way out: more dimensions (ANODE: zeros appended; IL-NODE:
a linear input layer; second order: a velocity), the input as a control of the field, or a depth for each sample.

    python examples/reflection.py

After S. Massaroli et al., "Dissecting Neural ODEs", NeurIPS 2020, sections 4 and 5.
"""

from __future__ import annotations

import time

import torch
from _shared import arguments, write
from torch import nn
from tqdm import trange

from pynode import data, plot
from pynode.models import ANODE, NODE, AdaptiveDepthNODE
from pynode.nn import DataControl, TimeConcat, TimeSequential


def field(n_in, n_out, width=16):
    """ż = W₂ tanh(W₁ [z, s] + b₁) + b₂."""
    return TimeSequential(TimeConcat(nn.Linear(n_in + 1, width)), nn.Tanh(), nn.Linear(width, n_out))


def controlled(width=16):
    """ż = W₂ tanh(W₁ [z, x, s] + b₁) + b₂."""
    return TimeSequential(DataControl(TimeConcat(nn.Linear(3, width))), nn.Tanh(), nn.Linear(width, 1))


def adaptive(**keywords):
    """From depth 0, by a field without a zero: else the field may first pull all points into one, and stay there."""
    flow, depth = field(1, 1), nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    nn.init.zeros_(depth[-1].weight)
    nn.init.zeros_(depth[-1].bias)
    nn.init.ones_(flow[-1].bias)
    return AdaptiveDepthNODE(flow, depth, **keywords)


def position(z):
    """The first coordinate, which is what all of the models are read at."""
    return z[:, :1]


MODELS = {
    "NODE": lambda **k: NODE(field(1, 1), **k),
    "ANODE": lambda **k: ANODE(field(2, 2), 1, output_network=position, **k),
    "IL-NODE": lambda **k: ANODE(field(2, 2), 1, input_network="linear", output_network=position, **k),
    "second order": lambda **k: NODE(field(2, 1), order=2, output_network=position, **k),
    "data control": lambda **k: NODE(controlled(), control=True, **k),
    "adaptive depth": adaptive,
}


def train(name, model, x, y, iterations):
    """Adam on the mean squared error of all points: its course, and what the last iteration cost."""
    model(x).sum().backward()  # gives the lazy layer its size, and an engine its first sight of the field
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    losses, start = [], time.perf_counter()
    for _ in (bar := trange(iterations, desc=f"{name:<14}")):
        optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        bar.set_postfix(mse=f"{losses[-1]:.1e}", refresh=False)
    stats, seconds = model.stats, time.perf_counter() - start
    with torch.no_grad():
        mse = ((model(x) - y) ** 2).mean().item()
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "mse": mse,
        "nfe_forward": stats.nfe,
        "nfe_backward": stats.nfe_backward,
        "seconds": seconds,
        "losses": losses,
    }


def run(out, engine="auto", seed=0, iterations=300):
    torch.set_num_threads(1)  # a hundred points are too few to share between threads
    x, y = data.reflection(100, generator=torch.Generator().manual_seed(seed)).tensors
    models, results = {}, {}
    for name, make in MODELS.items():
        torch.manual_seed(seed)
        models[name] = make(rtol=1e-4, atol=1e-4, engine=engine)
        results[name] = train(name, models[name], x, y, iterations)

    print("model           parameters      MSE  NFE forward  NFE backward  seconds")
    for name, r in results.items():
        print(
            f"{name:<14}  {r['parameters']:>10}  {r['mse']:>7.1e}  {r['nfe_forward']:>11}  {r['nfe_backward']:>12}  "
            f"{r['seconds']:>7.1f}"
        )

    def figures():
        grid, few = torch.linspace(-1, 1, 101).unsqueeze(1), torch.linspace(-1, 1, 15).unsqueeze(1)
        depths = torch.linspace(0, 1, 51)
        with torch.no_grad():
            fits = {name: (grid, model(grid)) for name, model in models.items()}
            paths = {name: (depths, model.trajectory(few, depths)) for name, model in models.items()}
        losses = {"mean squared error": {name: r["losses"] for name, r in results.items()}}
        return {
            "fit.png": plot.fit(fits, (x[::5], y[::5]), (grid, -grid)),
            "trajectories.png": plot.trajectories(paths),
            "training.png": plot.history(losses, xlabel="iteration"),
        }

    write(out, results, figures, engine=engine, seed=seed)
    return results


if __name__ == "__main__":
    parser = arguments(__doc__, "reflection", on_torch="half a minute", on_julia="half a minute")
    parser.add_argument("--seed", type=int, default=0, help="of the parameters and the points")
    parser.add_argument("--iterations", type=int, default=300, help="steps of the optimizer")
    run(**vars(parser.parse_args()))
