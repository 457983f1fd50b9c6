"""The demonstration: a neural ODE learns handwritten digits beside the ResNet of the same vector field."""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from pynode import data, plot
from pynode.cli.record import record
from pynode.models import NODE, ResNet
from pynode.nn import TimeConcat, TimeSequential
from pynode.text import table

__all__ = ["Run", "run"]

_FEATURES = 64  # an image of 8 × 8 pixels is the state
_WIDTH = 64
_RESNET_DEPTH = 10


@dataclass
class Run:
    """What training one model gave; the lists hold one value per epoch, `first_gradient` is in seconds."""

    model: str
    parameters: int
    loss: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    nfe_forward: list[float] = field(default_factory=list)
    nfe_backward: list[float] = field(default_factory=list)
    first_gradient: float = 0.0
    seconds: float = 0.0

    def row(self) -> tuple[str, ...]:
        """The line of the table that is printed: the last epoch's values."""
        return (
            self.model,
            str(self.parameters),
            f"{100 * self.test_accuracy[-1]:.2f} %",
            f"{self.nfe_forward[-1]:.1f}",
            f"{self.nfe_backward[-1]:.1f}",
            f"{self.first_gradient:.1f} s",
            f"{self.seconds:.1f} s",
        )


_HEADER = ("model", "parameters", "test accuracy", "NFE forward", "NFE backward", "first gradient", "training")


def _models(engine: str) -> tuple[NODE, ResNet]:
    """The two models, with equal parameters at the start: 64 pixels → flow in 64 dimensions → 10 classes."""
    vector_field = TimeSequential(TimeConcat(nn.Linear(_FEATURES + 1, _WIDTH)), nn.Tanh(), nn.Linear(_WIDTH, _FEATURES))
    head = nn.Linear(_FEATURES, 10)
    node = NODE(
        vector_field,
        input_network=nn.Flatten(),
        output_network=head,
        rtol=1e-3,
        atol=1e-3,
        engine=engine,
    )
    resnet = ResNet(
        copy.deepcopy(vector_field),
        _RESNET_DEPTH,
        input_network=nn.Flatten(),
        output_network=copy.deepcopy(head),
    )
    return node, resnet


def _accuracy(model: nn.Module, test: TensorDataset) -> float:
    images, labels = test.tensors
    with torch.no_grad():
        return (model(images).argmax(1) == labels).float().mean().item()


def _train(model: NODE | ResNet, train: TensorDataset, test: TensorDataset, epochs: int, seed: int) -> Run:
    """Adam with a one-cycle learning rate; the same batches for every model."""
    name = type(model).__name__
    result = Run(name, sum(p.numel() for p in model.parameters()))
    batches = DataLoader(
        train, batch_size=64, shuffle=True, generator=torch.Generator().manual_seed(seed), drop_last=True
    )
    optimizer = torch.optim.Adam(model.parameters())
    n_batches = epochs * len(batches)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=n_batches)
    start = time.perf_counter()  # what is traced and compiled, once per process, is counted apart
    model(train[:2][0]).sum().backward()
    result.first_gradient = time.perf_counter() - start
    start = time.perf_counter()
    with tqdm(total=n_batches, desc=f"{name:<6}", unit="batch") as bar:
        for _ in range(epochs):
            losses, forward, backward = [], [], []
            for images, labels in batches:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(images), labels)
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
                assert model.stats is not None
                forward.append(model.stats.nfe)
                # each residual layer is pulled back once
                backward.append(model.stats.nfe_backward or model.stats.nfe)
                bar.update()
            result.loss.append(sum(losses) / len(losses))
            result.nfe_forward.append(sum(forward) / len(forward))
            result.nfe_backward.append(sum(backward) / len(backward))
            result.test_accuracy.append(_accuracy(model, test))
            bar.set_postfix(loss=f"{result.loss[-1]:.4f}", test=f"{100 * result.test_accuracy[-1]:.1f}%")
    result.seconds = time.perf_counter() - start
    return result


def _feature_flow(node: NODE, resnet: ResNet, images: Tensor) -> dict[str, Tensor]:
    """The states of both models on the way through depth, on their principal planes."""
    bare = NODE(node.field, input_network=node.input_network, **node.solver_keywords)
    layers = ResNet(resnet.field, resnet.depth, input_network=resnet.input_network)
    with torch.no_grad():
        flows = {
            "NODE: flow of the features": bare.trajectory(images, torch.linspace(0, 1, 41)),
            f"ResNet: features after each of {resnet.depth} layers": layers.trajectory(images),
        }
    return {title: plot.principal_plane(z) for title, z in flows.items()}


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Within the context torch computes on one thread: for tensors this small, sharing the work costs more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(engine: str = "auto", epochs: int = 30, out: Path = Path("out/demo"), seed: int = 0) -> list[Run]:
    """Train, print the table, write `results.json` and the figures.

    Args:
        engine: which engine solves the neural ODE.
        epochs: passes over the 1437 training images.
        out: folder of results and figures, made if it is missing.
        seed: of the split, the parameters and the order of the batches.

    Returns:
        The runs of NODE and ResNet.
    """
    out.mkdir(parents=True, exist_ok=True)
    train, test = data.digits(generator=torch.Generator().manual_seed(seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        node, resnet = _models(engine)
    started = time.perf_counter()
    with _one_thread():
        runs = [_train(model, train, test, epochs, seed) for model in (node, resnet)]
        how = record(engine, seed, time.perf_counter() - started)
    print(table(_HEADER, [r.row() for r in runs]))
    results = {
        "epochs": epochs,
        "train_images": len(train),
        "test_images": len(test),
        "run": how,
        "runs": [asdict(r) for r in runs],
    }
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    written = ["results.json"]
    if plot.available():
        panels = {
            "training loss": {r.model: r.loss for r in runs},
            "test accuracy": {r.model: r.test_accuracy for r in runs},
            "NFE forward": {r.model: r.nfe_forward for r in runs},
        }
        if any(r.nfe_backward != r.nfe_forward for r in runs):
            panels["NFE backward"] = {r.model: r.nfe_backward for r in runs}
        plot.history(panels).savefig(out / "training.png")
        images, labels = test[:150]
        plot.flow(_feature_flow(node, resnet, images), labels).savefig(out / "flow.png")
        written += ["training.png", "flow.png"]
    else:
        print(f"No figures: matplotlib is not installed. To get them: {plot.HOW_TO_GET}")
    print(f"Written to {out}: {', '.join(written)}")
    return runs
