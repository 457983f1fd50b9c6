"""A disc inside an annulus: the flow of a NODE in the plane against one with a dimension more (ANODE).

The disc's points have the target -1, those of the annulus 1. A flow of the plane cannot lift the disc out of the
annulus, so that a NODE has to squeeze one through the other: its vector field, and with it the number of its
evaluations (NFE), grows all through training. One dimension more leaves a way out. The same two models trained
without some slices of the plane show what each makes of points that it has not seen. How many evaluations each needs
for the same loss is found for several seeds, all else for the first.

    python examples/annuli.py

After E. Dupont, A. Doucet, Y. W. Teh, "Augmented Neural ODEs", NeurIPS 2019, sections 3 to 5.
"""

from __future__ import annotations

import time

import torch
from _shared import arguments, write
from torch import nn
from tqdm import trange

from pynode import data, plot
from pynode.models import ANODE, NODE
from pynode.nn import TimeSequential
from pynode.text import table

SLICES = ((0.2, 1.0), (1.8, 2.6), (3.4, 4.2), (5.0, 5.8))  # radians
SNAPSHOTS = (0.1, 0.3, 1.0)  # parts of the training after which the features are drawn


def field(d, width=32):
    """ż = W₃ tanh(W₂ tanh(W₁ z + b₁) + b₂) + b₃."""
    return TimeSequential(nn.Linear(d, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, d))


MODELS = {
    "NODE": lambda **k: NODE(field(2), output_network=nn.Linear(2, 1), **k),
    "ANODE": lambda **k: ANODE(field(3), 1, output_network=nn.Linear(3, 1), **k),
}


def features(model, x, t):
    """The states, `(time, batch, features)`, before the output network."""
    read, model.output_network = model.output_network, None
    with torch.no_grad():
        z = model.trajectory(x, t)
    model.output_network = read
    return z


def train(name, model, x, y, epochs, seed, few):
    """Adam on the mean squared error: loss and mean NFE of every epoch, and the features `few` come to on the way."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [round(0.75 * epochs)], 0.2)
    model(x[:2]).sum().backward()  # what an engine does at the first solve of a field is not part of the training
    generator, start = torch.Generator().manual_seed(seed), time.perf_counter()
    course = {"loss": [], "nfe_forward": [], "nfe_backward": []}
    snapshots, ends = {}, torch.tensor(model.t)
    for epoch in (bar := trange(epochs, desc=f"{name:<22}")):
        sums = torch.zeros(3)
        for rows in torch.randperm(len(x), generator=generator).split(125):
            optimizer.zero_grad()
            loss = ((model(x[rows]) - y[rows]) ** 2).mean()
            loss.backward()
            optimizer.step()
            sums += len(rows) / len(x) * torch.tensor([loss.item(), model.stats.nfe, model.stats.nfe_backward])
        schedule.step()
        for values, value in zip(course.values(), sums.tolist(), strict=True):
            values.append(value)
        if epoch + 1 in {round(part * epochs) for part in SNAPSHOTS}:
            snapshots[epoch + 1] = features(model, few, ends)[-1]
        bar.set_postfix(mse=f"{sums[0].item():.1e}", nfe=f"{sums[1].item():.0f}", refresh=False)
    return {**course, "seconds": time.perf_counter() - start}, snapshots


def at_equal_loss(courses):
    """The lowest loss that both have reached, each one's NFE in its first epoch there, and NODE's over ANODE's."""
    loss = max(min(course["loss"]) for course in courses.values())
    first = {name: next(i for i, v in enumerate(c["loss"]) if v <= loss) for name, c in courses.items()}
    nfe = {name: courses[name]["nfe_forward"][i] for name, i in first.items()}
    return {"loss": loss, "nfe_forward": nfe, "ratio": nfe["NODE"] / nfe["ANODE"]}


def error(model, x, y):
    with torch.no_grad():
        return ((model(x) - y) ** 2).mean().item()


def compared(seed, epochs, solver):
    """Both models trained from another seed: NFE at an equal loss."""
    x, y = data.annuli(1000, generator=torch.Generator().manual_seed(seed)).tensors
    courses = {}
    for name, make in MODELS.items():
        torch.manual_seed(seed)
        courses[name], _ = train(f"{name}, seed {seed}", make(**solver), x, y, epochs, seed, x[:2])
    return at_equal_loss(courses)


def run(out, engine="auto", seed=0, seeds=3, epochs=60):
    torch.set_num_threads(1)  # batches of some hundred points are too small to share between threads
    solver = {"rtol": 1e-6, "atol": 1e-6, "engine": engine}
    generator = torch.Generator().manual_seed(seed)
    train_set, few = data.annuli(1000, generator=generator).tensors, data.annuli(150, generator=generator).tensors
    with_gaps = data.annuli(1000, slices=SLICES, generator=generator).tensors
    unseen = data.annuli(4000, generator=generator).tensors
    gap = data.in_slices(unseen[0], SLICES)

    models, courses, snapshots, results = {}, {}, {}, {}
    for name, make in MODELS.items():
        torch.manual_seed(seed)
        models[name], twin = make(**solver), make(**solver)
        courses[name], snapshots[name] = train(name, models[name], *train_set, epochs, seed, few[0])
        train(f"{name} without slices", twin, *with_gaps, epochs, seed, few[0])
        results[name] = {
            "parameters": sum(p.numel() for p in twin.parameters()),
            "mse_unseen": error(models[name], *unseen),
            "mse_outside_of_slices": error(twin, unseen[0][~gap], unseen[1][~gap]),
            "mse_inside_slices": error(twin, unseen[0][gap], unseen[1][gap]),
            **courses[name],
        }
    others = {k: compared(k, epochs, solver) for k in range(seed + 1, seed + seeds)}
    results["equal_loss"] = {seed: at_equal_loss(courses), **others}

    print("                                                NFE, by epoch         trained without slices, MSE")
    print("model  parameters  MSE, training  MSE, unseen   first    last   max   seen angles  unseen angles  seconds")
    for name in MODELS:
        r, forward = results[name], results[name]["nfe_forward"]
        print(
            f"{name:<5}  {r['parameters']:>10}  {r['loss'][-1]:>13.1e}  {r['mse_unseen']:>11.1e}  {forward[0]:>6.0f}  "
            f"{forward[-1]:>6.0f}  {max(forward):>4.0f}  {r['mse_outside_of_slices']:>11.1e}  "
            f"{r['mse_inside_slices']:>13.1e}  {r['seconds']:>7.1f}"
        )
    print("\nAt an equal loss:")
    rows = [
        (k, f"{at['loss']:.1e}", *(f"{at['nfe_forward'][name]:.0f}" for name in MODELS), f"{at['ratio']:.2f}")
        for k, at in results["equal_loss"].items()
    ]
    print(table(("seed", "loss", *(f"NFE of {name}" for name in MODELS), "NODE / ANODE"), rows))

    def figures():
        curves = {"training loss": "loss", "NFE forward": "nfe_forward", "NFE backward": "nfe_backward"}
        labels = (few[1][:, 0] > 0).long()
        depths = torch.linspace(0, 1, 41)
        flows = {name: features(model, few[0], depths) for name, model in models.items()}
        flows["ANODE"] = plot.principal_plane(flows["ANODE"])
        panels = {f"{name}, epoch {k}": z for name in MODELS for k, z in snapshots[name].items()}
        with torch.no_grad():
            surfaces = {name: plot.on_grid(model, 1.7) for name, model in models.items()}
        return {
            "training.png": plot.history(
                {title: {n: c[key] for n, c in courses.items()} for title, key in curves.items()}
            ),
            "flow.png": plot.flow(flows, labels),
            "features.png": plot.points(panels, labels),
            "surface.png": plot.surface(surfaces, few[0], labels),
        }

    write(out, results, figures, engine=engine, seed=seed)
    return results


if __name__ == "__main__":
    parser = arguments(__doc__, "annuli", on_torch="2 minutes", on_julia="half a minute")
    parser.add_argument("--seed", type=int, default=0, help="the first seed: of the parameters, points and their order")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds for the evaluations at an equal loss")
    parser.add_argument("--epochs", type=int, default=60, help="passes over the 1000 points")
    run(**vars(parser.parse_args()))
