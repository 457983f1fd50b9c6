"""RNODE's regularisers on densities in the plane: none, kinetic energy, Jacobian norm, both.

    python examples/rnode.py

After C. Finlay et al., "How to train your neural ODE", ICML 2020, table 1 and figure 1. Each flow is trained from the
same weights on the same samples at a tolerance of 1e-3, then judged without regularisers at 1e-5, at which the solver's
steps are small enough to tell flows apart: negative log-likelihood of new samples in nats, evaluations of the field for
the density of 500 samples (the mean of 20 solves), both energies, and seconds of training.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from _shared import train_flow, write

from pynode import data, plot
from pynode.models import CNF, FFJORD

SETS = "pinwheel,swissroll,2spirals"
WEIGHT = 0.015
ABLATION = {
    "none": {},
    "kinetic": {"kinetic": WEIGHT},
    "jacobian": {"jacobian": WEIGHT},
    "both": {"kinetic": WEIGHT, "jacobian": WEIGHT},
}
LOOSE, TIGHT = {"rtol": 1e-3, "atol": 1e-3}, {"rtol": 1e-5, "atol": 1e-5}  # in training, in evaluation


@torch.no_grad()
def evaluate(flow, name, seed, engine):
    """The density and its cost without any regulariser, the energies by a solve of their own; paths of the data."""
    (block,) = flow.blocks
    x = data.density(name, 10_000, generator=torch.Generator().manual_seed(seed + 1))
    density = CNF(block.field, flow.base, engine=engine, **TIGHT)
    log_p, nfe = [], []
    for part in x.split(500):
        log_p.append(density.log_prob(part))
        nfe.append(density.stats.nfe)
    energy = CNF(block.field, flow.base, kinetic=1.0, jacobian=1.0, engine=engine, **TIGHT)
    energy.transform(x)
    numbers = {
        "nll": -torch.cat(log_p).mean().item(),
        "nfe": sum(nfe) / len(nfe),
        **{name: value.item() for name, value in energy.regularisation.items()},
    }
    paths = density.trajectory(x[:100], torch.linspace(0, 1, 30))
    return numbers, paths


def run(out, engine="auto", seed=0, epochs=800, sets=SETS):
    torch.set_num_threads(1)  # the networks are too small to share between threads
    results, paths = {}, {}
    for name in sets.split(","):
        results[name], paths[name] = {}, {}
        torch.manual_seed(seed)
        first = FFJORD(2, hidden=(64, 64)).state_dict()
        for label, weights in ABLATION.items():
            flow = FFJORD(2, hidden=(64, 64), engine=engine, **weights, **LOOSE)
            flow.load_state_dict(copy.deepcopy(first))
            torch.manual_seed(seed)  # the same noise
            fresh = torch.Generator().manual_seed(seed)
            batches = ((data.density(name, 128, generator=fresh),) for _ in range(epochs))
            seconds = train_flow(flow, batches, epochs, f"{name:<12} {label:<8}", lr=2e-2)
            numbers, paths[name][label] = evaluate(flow, name, seed, engine)
            results[name][label] = {**numbers, "seconds": seconds}

    print("set           regulariser  NLL (test)   vs none    NFE  vs none   ∫|f|²  ∫|∂f/∂z|²  seconds")
    for name, rows in results.items():
        for label, r in rows.items():
            none = rows["none"]
            print(
                f"{name:<12}  {label:<11}  {r['nll']:>10.3f}  {r['nll'] - none['nll']:>+8.3f}  {r['nfe']:>5.1f}  "
                f"{r['nfe'] / none['nfe'] - 1:>+7.0%}  {r['kinetic']:>6.2f}  {r['jacobian']:>10.2f}  "
                f"{r['seconds']:>7.1f}"
            )

    def figures():
        return {
            f"{name}.png": plot.flow({f"{name}, {label}": paths[name][label] for label in ("none", "both")})
            for name in results
        }

    write(out, results, figures)
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out/rnode"), help="folder of results and figures")
    parser.add_argument("--engine", choices=("auto", "torch", "julia"), default="auto", help="which engine solves")
    parser.add_argument("--seed", type=int, default=0, help="of parameters and samples")
    parser.add_argument("--epochs", type=int, default=800, help="steps of the optimizer, 128 new samples each")
    parser.add_argument("--sets", default=SETS, help="comma-separated")
    run(**vars(parser.parse_args()))
