"""Test log-likelihood in the plane beside torchdyn's CNF: equal field, first weights, samples and number of steps.

    python benchmarks/density.py [--steps 500] [--batch 512] [--sets moons,…] [--out FILE]

All train a field 2-64-64-2 (tanh) with the exact trace at tolerance 1e-4. torchdyn runs twice: by the recipe of its
tutorial (Adam at 2e-3, weight decay 1e-5), and with the optimizer that pynode has here (Adam from 1e-2 down a cosine).
All are judged alike: by the density of their weights, solved at tolerance 1e-6, on 20 000 new samples.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torchdyn.core import NeuralODE
from torchdyn.models import CNF as TorchdynCNF
from torchdyn.nn import Augmenter
from tqdm import tqdm, trange

import pynode
from pynode import data
from pynode.models import CNF

SETS = ("moons", "pinwheel", "8gaussians", "checkerboard", "swissroll", "2spirals")
TOLERANCE = 1e-4
BASE = MultivariateNormal(torch.zeros(2), torch.eye(2))


class Field(nn.Module):
    """A tanh network that does not look at the time, as in torchdyn's tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.net(z)


def torchdyn_loss(field: Field) -> Callable[[Tensor], Tensor]:
    """As in the tutorial on continuous normalizing flows."""
    options = {"solver": "dopri5", "sensitivity": "adjoint", "atol": TOLERANCE, "rtol": TOLERANCE}
    node = NeuralODE(TorchdynCNF(field.net), return_t_eval=False, **options)
    model = nn.Sequential(Augmenter(augment_idx=1, augment_dims=1), node)

    def loss(x: Tensor) -> Tensor:
        end = model(x)[-1]
        return -(BASE.log_prob(end[:, 1:]) - end[:, 0]).mean()

    return loss


def pynode_loss(field: Field) -> Callable[[Tensor], Tensor]:
    return CNF(field, BASE, rtol=TOLERANCE, atol=TOLERANCE).loss


def train(
    loss: Callable[[Tensor], Tensor], field: Field, name: str, steps: int, batch: int, tutorial: bool, label: str
) -> float:
    """Train in place; seconds that it took."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(
        field.parameters(), **({"lr": 2e-3, "weight_decay": 1e-5} if tutorial else {"lr": 1e-2})
    )
    schedule = None if tutorial else torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    start = time.perf_counter()
    for _ in trange(steps, desc=f"{name} {label}", leave=False):
        optimizer.zero_grad()
        value = loss(data.density(name, batch, generator=generator))
        value.backward()
        optimizer.step()
        if schedule:
            schedule.step()
    return time.perf_counter() - start


def test_nll(field: Field, x: Tensor) -> float:
    judge = CNF(field, BASE, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        return -torch.cat([judge.log_prob(part) for part in x.split(5000)]).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--sets", default=",".join(SETS), help="comma-separated")
    parser.add_argument("--out", type=Path, help="append the table to this file")
    arguments = parser.parse_args()
    contenders = {
        "torchdyn, its recipe": (torchdyn_loss, True),
        "torchdyn, our optimizer": (torchdyn_loss, False),
        "pynode": (pynode_loss, False),
    }
    lines = [
        f"\n### Test NLL after {arguments.steps} steps, batch {arguments.batch}\n",
        f"| set | {' | '.join(contenders)} |",
        f"| --- |{' --- |' * len(contenders)}",
    ]
    for name in arguments.sets.split(","):
        torch.manual_seed(0)
        first = Field()
        held_out = data.density(name, 20_000, generator=torch.Generator().manual_seed(2))
        cells = []
        for label, (make, tutorial) in contenders.items():
            field = copy.deepcopy(first)
            seconds = train(make(field), field, name, arguments.steps, arguments.batch, tutorial, label)
            cells.append(f"{test_nll(field, held_out):.3f} ({seconds:.0f} s)")
        lines.append(f"| {name} | {' | '.join(cells)} |")
        tqdm.write(lines[-1])
    print("\n".join(lines))
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "torchdyn", "torchdiffeq")]
    versions.append(f"pynode {pynode.__version__}")
    lines.append(f"\n{time.strftime('%Y-%m-%d')}, {torch.get_num_threads()} threads: {', '.join(versions)}")
    print(lines[-1])
    if arguments.out:
        with arguments.out.open("a") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
