"""Losses that are integrals over depth: a path to be tracked, and a classifier whose flow is kept short.

Both are trained by `running_cost`, whose gradient is the generalised adjoint's. Tracking: the only loss is
∫ |z(s) - r(s)|² ds for a closed curve r, from initial values all over the plane. Regularisation: two moons are
classified with ∫ |f(z(s))|² ds, the energy of the path, in the loss; the more it weighs, the shorter are the paths and
the fewer evaluations of the field (NFE) a solve takes, at some cost in accuracy where it weighs too much.

    python examples/tracking.py

After S. Massaroli et al., "Dissecting Neural ODEs", NeurIPS 2020, section 2 (generalised adjoint); C. Finlay et al.,
"How to Train Your Neural ODE", ICML 2020 (kinetic energy).
"""

from __future__ import annotations

import math
import time

import torch
from _shared import arguments, write
from sklearn.datasets import make_moons
from torch import nn
from tqdm import trange

from pynode import plot
from pynode.models import NODE
from pynode.nn import Fourier, GalerkinLinear, TimeSequential

WEIGHTS = (0.0, 0.01, 0.1)  # of the energy


def reference(s):
    """The closed curve r(s) `(…, 2)`, a figure of eight."""
    return torch.stack([torch.sin(2 * math.pi * s), torch.sin(4 * math.pi * s)], dim=-1)


def deviation(t, z):
    """The running cost l = |z - r(t)|², `(batch,)`."""
    return ((z - reference(t)) ** 2).sum(1)


class Energy(nn.Module):
    """The running cost l = |f(t, z)|², `(batch,)`."""

    def __init__(self, field):
        super().__init__()
        self.field = field

    def forward(self, t, z):
        """The running cost `(batch,)` at `t`, 0-d, and z `(batch, features)`."""
        return (self.field(t, z) ** 2).sum(1)


def descend(name, model, loss_of, iterations, lr):
    """Adam; the loss at each iteration, and the seconds."""
    loss_of(model).backward()  # what an engine does at the first solve of a field is not part of the training
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    losses, start = [], time.perf_counter()
    for _ in (bar := trange(iterations, desc=f"{name:<16}")):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.2e}", nfe=model.stats.nfe, refresh=False)
    return losses, time.perf_counter() - start


def track(engine, seed, iterations):
    """The model that tracks the curve, its results, and the initial values `(batch, 2)`."""
    torch.manual_seed(seed)
    basis = Fourier(5)
    field = TimeSequential(GalerkinLinear(2, 16, basis), nn.Tanh(), GalerkinLinear(16, 2, basis))
    model = NODE(field, running_cost=deviation, rtol=1e-4, atol=1e-4, engine=engine)
    start, unseen = 0.7 * torch.randn(2, 64, 2)

    def cost(model):
        model(start)
        return model.running_cost.mean()

    losses, seconds = descend("tracking", model, cost, iterations, 2e-2)
    s = torch.linspace(0, 1, 201)
    with torch.no_grad():
        late = ((model.trajectory(unseen, s)[100:] - reference(s[100:])[:, None]) ** 2).sum(-1).mean().sqrt()
        model(unseen)
    results = {
        "cost_before": losses[0],
        "cost_after": losses[-1],
        "cost_unseen": model.running_cost.mean().item(),
        "distance_in_the_second_half": late.item(),
        "nfe_forward": model.stats.nfe,
        "seconds": seconds,
    }
    return model, results, losses, unseen


def regularise(engine, seed, iterations):
    """For each weight of the energy, the model and its results; and the test set."""
    x, y = (torch.as_tensor(a) for a in make_moons(512, noise=0.1, random_state=seed))
    x, y = x.float(), y.long()
    train, test = (x[:256], y[:256]), (x[256:], y[256:])
    models, results = {}, {}
    for weight in WEIGHTS:
        torch.manual_seed(seed)
        field = TimeSequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
        model = NODE(
            field,
            output_network=nn.Linear(2, 2),
            running_cost=Energy(field),
            rtol=1e-5,
            atol=1e-5,
            engine=engine,
        )

        def loss(model, weight=weight):
            return nn.functional.cross_entropy(model(train[0]), train[1]) + weight * model.running_cost.mean()

        name = f"energy × {weight:g}"
        _, seconds = descend(name, model, loss, iterations, 3e-2)
        with torch.no_grad():
            scores = model(test[0])
            energy, cross_entropy = model.running_cost.mean(), nn.functional.cross_entropy(scores, test[1])
            model.cost = None
            model(test[0])
        models[name] = model
        results[name] = {
            "accuracy": (scores.argmax(1) == test[1]).float().mean().item(),
            "cross_entropy": cross_entropy.item(),
            "energy": energy.item(),
            "nfe_forward": model.stats.nfe,
            "seconds": seconds,
        }
    return models, results, test


def run(out, engine="auto", seed=0, iterations=300):
    torch.set_num_threads(1)  # states of two numbers are too small to share between threads
    tracker, tracking, losses, start = track(engine, seed, iterations)
    models, regularised, (x, y) = regularise(engine, seed, iterations)
    results = {"tracking": tracking, "regularisation": regularised}

    print("tracking")
    for name, value in tracking.items():
        print(f"  {name:<28} {value:.3g}")
    print("regularisation  accuracy, test  cross-entropy, test  energy of the paths  NFE forward  seconds")
    for name, r in regularised.items():
        print(
            f"{name:<14}  {r['accuracy']:>14.3f}  {r['cross_entropy']:>19.4f}  {r['energy']:>19.2f}  "
            f"{r['nfe_forward']:>11}  {r['seconds']:>7.1f}"
        )

    def figures():
        s = torch.linspace(0, 1, 101)
        with torch.no_grad():
            paths = tracker.trajectory(start[:8], s)
            flows = {}
            for name, model in models.items():
                model.output_network = None
                flows[name] = model.trajectory(x[:120], s)
        curves = {"true": (s, reference(s))}
        curves |= {f"path {i + 1}": (s, paths[:, i]) for i in range(8)}
        return {
            "tracking.png": plot.lines(
                {
                    f"{axis} coordinate of z(s)": {k: (a, b[:, i]) for k, (a, b) in curves.items()}
                    for i, axis in enumerate(("first", "second"))
                },
                xlabel="depth s",
            ),
            "training.png": plot.history({"∫ |z - r|² ds": {"tracking": losses}}, xlabel="iteration"),
            "flow.png": plot.flow(flows, y[:120]),
        }

    write(out, results, figures, engine=engine, seed=seed)
    return results


if __name__ == "__main__":
    parser = arguments(__doc__, "tracking", on_torch="a minute", on_julia="half a minute")
    parser.add_argument("--seed", type=int, default=0, help="of the parameters and the data")
    parser.add_argument("--iterations", type=int, default=300, help="steps of the optimizer, for each model")
    run(**vars(parser.parse_args()))
