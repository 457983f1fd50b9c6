"""A neural ODE trained by several processes, with a checkpoint that another number of processes takes up.

    torchrun --standalone --nproc-per-node 2 examples/distributed.py --epochs 20
    torchrun --standalone --nproc-per-node 4 examples/distributed.py --epochs 40   # goes on from epoch 20
    python examples/distributed.py --epochs 60                                     # one process, from epoch 40

Each process solves its share of every batch, and DistributedDataParallel averages the gradients. The batch and the
order of the samples do not depend on how many processes there are, so that neither does the result, but for rounding
and, with an adaptive solver, for the steps, which are chosen for a process's share.
"""

from __future__ import annotations

import os
import time

import torch
import torch.distributed as dist
from _shared import arguments, write
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from pynode import data, plot
from pynode.models import ANODE

SAMPLES, BATCH = 960, 96  # of all processes together


def make_model(engine, solver):
    """A disc and the annulus around it are parted in three dimensions, and told apart by a plane."""
    field = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 3))
    dt = 0.25 if solver == "rk4" else None
    return ANODE(field, 1, output_network=nn.Linear(3, 1), engine=engine, solver=solver, dt=dt)


def save(path, model, optimizer, epoch, losses):
    """Write a checkpoint, all of it or none, so that a process that is stopped leaves the last one as it was."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch, "losses": losses}
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def train(out, engine, solver, seed, epochs, rank, processes):
    """Train up to an epoch, from the checkpoint where there is one; returns the results."""
    torch.manual_seed(seed)  # the same parameters and samples in every process
    dataset = data.annuli(SAMPLES)
    model = make_model(engine, solver)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    checkpoint, first, losses = out / "checkpoint.pt", 0, []
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, losses = state["epoch"], state["losses"]
        if rank == 0:
            print(f"from epoch {first} of {checkpoint}, in {processes} process{'es' if processes > 1 else ''}")
    replica = DistributedDataParallel(model) if processes > 1 else model
    sampler = DistributedSampler(dataset, processes, rank, shuffle=True, seed=seed)
    loader = DataLoader(dataset, batch_size=BATCH // processes, sampler=sampler)
    start = time.perf_counter()
    for epoch in range(first, epochs):
        sampler.set_epoch(epoch)  # another order in each epoch, the same in every process
        total = torch.zeros(())
        for inputs, wanted in loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(replica(inputs), wanted)
            loss.backward()
            optimizer.step()
            total += loss.detach() / len(loader)
        if processes > 1:
            dist.all_reduce(total)
        losses.append(total.item() / processes)
        if rank == 0:
            save(checkpoint, model, optimizer, epoch + 1, losses)
            print(f"epoch {epoch + 1}: loss {losses[-1]:.4f}, {model.stats.nfe} evaluations in the first process")
    with torch.no_grad():
        x, targets = dataset.tensors
        accuracy = ((model(x) > 0) == (targets > 0)).float().mean().item()
    return {
        "processes": processes,
        "epochs": epochs,
        "losses": losses,
        "accuracy": accuracy,
        "seconds": time.perf_counter() - start,
    }


def run(out, engine="auto", solver="auto", seed=0, epochs=20):
    out.mkdir(parents=True, exist_ok=True)
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun
    if BATCH % processes or SAMPLES % BATCH:
        raise SystemExit(f"a batch of {BATCH} samples cannot be shared equally by {processes} processes")
    torch.set_num_threads(1)  # a process for each core instead
    if processes > 1:
        dist.init_process_group("gloo")
    try:
        results = train(out, engine, solver, seed, epochs, rank, processes)
    finally:
        if processes > 1:
            dist.destroy_process_group()
    if rank == 0:
        for name in ("processes", "accuracy", "seconds"):
            print(f"{name:<10} {results[name]:.3g}")
        write(
            out,
            results,
            lambda: {"training.png": plot.history({"loss": {"ANODE": results["losses"]}})},
            engine=engine,
            seed=seed,
        )
    return results


if __name__ == "__main__":
    parser = arguments(__doc__, "distributed", on_torch="half a minute", on_julia="half a minute")
    parser.add_argument("--solver", choices=("auto", "rk4"), default="auto", help="rk4 takes four steps for any batch")
    parser.add_argument("--seed", type=int, default=0, help="of the parameters and of the order of the samples")
    parser.add_argument("--epochs", type=int, default=20, help="up to which to train, those of a checkpoint included")
    run(**vars(parser.parse_args()))
