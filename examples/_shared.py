"""What the examples have in common: how flows and other models are trained, and how results are written."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm, trange

from pynode import plot
from pynode.cli.record import record

_STARTED = time.perf_counter()  # of the program


def arguments(doc: str, name: str, *, on_torch: str, on_julia: str) -> argparse.ArgumentParser:
    """The command line that all examples have.

    Args:
        doc: of the example's module, whose first line describes it.
        name: of the example.
        on_torch: how long it takes with the torch engine, one thread and the options' defaults.
        on_julia: and how long with the julia engine, its start included.
    """
    parser = argparse.ArgumentParser(
        description=doc.split("\n")[0],
        epilog=f"Takes, at the defaults and on one core, about {on_torch} (torch engine) or {on_julia} (julia engine).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("out") / name, help="folder of results and figures")
    parser.add_argument("--engine", choices=("auto", "torch", "julia"), default="auto", help="which engine solves")
    return parser


def train_flow(flow, batches: Iterable[tuple], steps: int, label: str, lr: float = 1e-2) -> float:
    """Train a flow with Adam, whose learning rate goes down a cosine.

    Args:
        flow: what is trained, in place.
        batches: the arguments of `flow.loss` for each step.
        steps: of the optimizer, as many as batches.
        label: of the progress bar.
        lr: the learning rate of the first step.

    Returns:
        The seconds that it took.
    """
    optimizer = torch.optim.Adam(flow.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    start = time.perf_counter()
    for batch in (bar := tqdm(batches, total=steps, desc=label)):
        optimizer.zero_grad()
        loss = flow.loss(*batch)
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", nfe=flow.stats.nfe, refresh=False)
    return time.perf_counter() - start


def minimise(
    parameters: Iterable[torch.nn.Parameter], loss: Callable[[], torch.Tensor], steps: int, label: str, lr: float
) -> list[float]:
    """Adam on a loss of all data, with a learning rate that goes down a cosine.

    Args:
        parameters: what is trained, in place.
        loss: computes the loss, 0-d.
        steps: of the optimizer.
        label: of the progress bar.
        lr: the learning rate of the first step.

    Returns:
        The loss before each step.
    """
    optimizer, losses = torch.optim.Adam(parameters, lr=lr), []
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in (bar := trange(steps, desc=label)):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        schedule.step()
        losses.append(value.item())
        bar.set_postfix(loss=f"{losses[-1]:.1e}", refresh=False)
    return losses


def write(
    out: Path, results: Mapping[str, Any], draw: Callable[[], Mapping[str, Any]], *, engine: str, seed: int
) -> None:
    """Write results.json, with how they came about under `"run"`, and, where matplotlib is installed, the figures.

    Args:
        out: the folder, made where there is none.
        results: numbers, lists and dicts of them.
        draw: makes the figures, by the names of their files.
        engine: which engine was asked for.
        seed: the first one.
    """
    results = {**results, "run": record(engine, seed, time.perf_counter() - _STARTED)}
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    if not plot.available():
        print(
            f"Written to {out}: results.json. No figures: matplotlib is not installed. To get them: {plot.HOW_TO_GET}"
        )
        return
    figures = draw()
    for name, figure in figures.items():
        figure.savefig(out / name)
    print(f"Written to {out}: {', '.join(['results.json', *figures])}")
