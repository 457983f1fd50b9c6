"""Augmentation strategies on images: NODE, ANODE, IL-NODE and second order, with equally many parameters.

Each model is a flow of convolutions on the image itself, then a 1 × 1 convolution back to the image's channels and a
linear layer, so that all are read out alike. NODE flows in the image's own channels, with a wider field instead; ANODE
adds channels of zeros; IL-NODE and the second-order model begin from a convolution of the image, the latter with a
velocity of zero. What differs is how hard the flow has to work, which the evaluations of the field (NFE) show, and how
well it generalises.

    python examples/image_strategies.py
    python examples/image_strategies.py --dataset mnist --root ~/data

With its defaults on the torch engine (digits, seeds 0 to 2, 8 epochs; 3417 to 3555 parameters), mean ± deviation:

    NODE       96.56 ± 0.85 %  NFE 30
    ANODE      96.94 ± 0.48 %  NFE 24
    IL-NODE    97.40 ± 0.43 %  NFE 20
    2nd order  97.40 ± 0.32 %  NFE 26

After S. Massaroli et al., "Dissecting Neural ODEs", NeurIPS 2020, the table of augmentation strategies.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from _shared import arguments, write
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from pynode import data, plot
from pynode.models import ANODE, NODE
from pynode.nn import TimeSequential
from pynode.text import table


def load(dataset, root, images, seed):
    """Training and test set; of the sets in files at most `images` for training and as many for testing."""
    generator = torch.Generator().manual_seed(seed)
    if dataset == "digits":
        return data.digits(generator=generator)
    parts = data.mnist(root) if dataset == "mnist" else data.cifar10(root)
    chosen = [torch.randperm(len(part), generator=generator)[:images] for part in parts]
    return tuple(TensorDataset(*part[index]) for part, index in zip(parts, chosen, strict=True))


def models(shape, parameters, **solver):
    """The models for images `(channels, h, w)`, each as wide as `parameters` allow."""
    c, h, w = shape

    def field(channels, hidden, out):
        convolutions = nn.Conv2d(channels, hidden, 3, padding=1), nn.Conv2d(hidden, hidden, 3, padding=1)
        return TimeSequential(convolutions[0], nn.Softplus(), convolutions[1], nn.Softplus(), nn.Conv2d(hidden, out, 1))

    def head(channels):
        return nn.Sequential(nn.Conv2d(channels, c, 1), nn.Flatten(), nn.Linear(c * h * w, 10))

    def anode(n, lifted=False, order=1):
        d = n // order  # channels of the position
        parts = {"input_network": nn.Conv2d(c, d, 3, padding=1) if lifted else None, "output_network": head(d * order)}
        return ANODE(field(d * order, n, d), d - c, order=order, **parts, **solver)

    parts = {
        "NODE": lambda n: NODE(field(c, n, c), output_network=head(c), **solver),
        "ANODE": anode,
        "IL-NODE": lambda n: anode(n, lifted=True),
        "2nd order": lambda n: anode(n, lifted=True, order=2),
    }
    return {name: lambda make=make: make(width(make, parameters, 2 * c + 2)) for name, make in parts.items()}


def width(make, parameters, least):
    """The greatest width, from `least` on, at which a model has no more than so many parameters."""
    n = least
    while count(make(n + 1)) <= parameters:
        n += 1
    return n


def count(model):
    return sum(p.numel() for p in model.parameters())


def accuracy(model, test):
    with torch.no_grad():
        batches = zip(*(x.split(500) for x in test.tensors), strict=True)
        return sum((model(x).argmax(1) == y).sum().item() for x, y in batches) / len(test)


def train(name, model, parts, epochs, seed):
    """Adam with a one-cycle learning rate; per epoch the mean loss, the test accuracy and the mean NFE."""
    train_set, test_set = parts
    batches = DataLoader(train_set, 64, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(seed))
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-2, total_steps=epochs * len(batches))
    history = {"loss": [], "accuracy": [], "nfe_forward": [], "nfe_backward": []}
    start = time.perf_counter()
    for _ in (bar := tqdm(range(epochs), desc=f"{name:<9} seed {seed}", unit="epoch")):
        losses, forward, backward = [], [], []
        for x, y in batches:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            forward.append(model.stats.nfe)
            backward.append(model.stats.nfe_backward)
        for key, values in (("loss", losses), ("nfe_forward", forward), ("nfe_backward", backward)):
            history[key].append(sum(values) / len(values))
        history["accuracy"].append(accuracy(model, test_set))
        bar.set_postfix(test=f"{100 * history['accuracy'][-1]:.1f} %", nfe=f"{history['nfe_forward'][-1]:.0f}")
    return {"parameters": count(model), "seconds": time.perf_counter() - start, **history}


def over_seeds(runs, key):
    """Mean and standard deviation over the seeds, per epoch."""
    values = torch.tensor([run[key] for run in runs])
    return values.mean(0), values.std(0) if len(runs) > 1 else torch.zeros_like(values[0])


def run(out, engine="auto", seed=0, seeds=3, epochs=8, dataset="digits", root=None, images=10_000, parameters=None):
    torch.set_num_threads(1)
    solver = {"rtol": 1e-4, "atol": 1e-4, "sensitivity": "discrete", "engine": engine}
    results = {}
    for k in range(seed, seed + seeds):
        parts = load(dataset, root, images, k)
        shape = parts[0].tensors[0].shape[1:]
        budget = parameters or 10 * shape.numel() + 3000
        for name, make in models(shape, budget, **solver).items():
            torch.manual_seed(k)
            results.setdefault(name, []).append(train(name, make(), parts, epochs, k))

    rows = []
    for name, runs in results.items():
        (mean, deviation), (nfe, _), (back, _) = (
            (m[-1].item(), s[-1].item())
            for m, s in (over_seeds(runs, k) for k in ("accuracy", "nfe_forward", "nfe_backward"))
        )
        seconds = sum(r["seconds"] for r in runs) / seeds
        accuracy_text = f"{100 * mean:.2f} ± {100 * deviation:.2f} %"
        rows.append((name, runs[0]["parameters"], accuracy_text, f"{nfe:.1f}", f"{back:.1f}", f"{seconds:.1f}"))
    print(table(("model", "parameters", "test accuracy", "NFE forward", "NFE backward", "seconds"), rows))

    def figures():
        panels = {"training loss": {}, "test error": {}, "NFE forward": {}}
        for name, runs in results.items():
            panels["training loss"][name] = over_seeds(runs, "loss")[0].tolist()
            panels["test error"][name] = (1 - over_seeds(runs, "accuracy")[0]).tolist()
            panels["NFE forward"][name] = over_seeds(runs, "nfe_forward")[0].tolist()
        figure = plot.history(panels)
        for axis in figure.axes[:2]:
            axis.set_yscale("log")
        return {"training.png": figure}

    write(out, {"dataset": dataset, "engine": engine, "runs": results}, figures, engine=engine, seed=seed)
    return results


if __name__ == "__main__":
    parser = arguments(__doc__, "image_strategies", on_torch="10 minutes", on_julia="4 minutes")
    parser.add_argument("--seed", type=int, default=0, help="the first seed: of the split, parameters and batches")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--epochs", type=int, default=8, help="passes over the training images")
    parser.add_argument("--dataset", choices=("digits", "mnist", "cifar10"), default="digits", help="the images")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder with the files of mnist or cifar10")
    parser.add_argument("--images", type=int, default=10_000, help="most images of mnist or cifar10 for each part")
    parser.add_argument(
        "--parameters", type=int, help="most parameters of a model; by the images' shape where not given"
    )
    run(**vars(parser.parse_args()))
