"""RNODE's regularisers on densities in the plane: none, kinetic energy, Jacobian norm, both.

    python examples/rnode.py [--sets moons,… --seeds 3 --regularisers both]

After C. Finlay et al., "How to train your neural ODE", ICML 2020, table 1 and figure 1. Each flow is trained from the
same weights on the same samples at a tolerance of 1e-3, then judged without regularisers at 1e-5, at which the solver's
steps are small enough to tell flows apart: negative log-likelihood of new samples in nats, evaluations of the field for
the density of 500 samples (the mean of 20 solves), both energies, and seconds of training. Several seeds are averaged.
"""

from __future__ import annotations

import torch
from _shared import arguments, train_flow, write

from pynode import data, plot
from pynode.models import CNF, FFJORD

SETS = "moons,checkerboard,swissroll"
WEIGHT = 0.03
ABLATION = {
    "kinetic": {"kinetic": WEIGHT},
    "jacobian": {"jacobian": WEIGHT},
    "both": {"kinetic": WEIGHT, "jacobian": WEIGHT},
}
REGULARISERS = tuple(ABLATION)
FEWER, NATS = 0.3, 0.05  # what counts as a cut: evaluations and cost
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


def train(name, label, seed, epochs, engine):
    """One flow: its numbers, and paths of the data."""
    torch.manual_seed(seed)
    flow = FFJORD(2, hidden=(64, 64), layer="concat", engine=engine, **ABLATION.get(label, {}), **LOOSE)
    torch.manual_seed(seed)  # the same noise
    fresh = torch.Generator().manual_seed(seed)
    batches = ((data.density(name, 256, generator=fresh),) for _ in range(epochs))
    seconds = train_flow(flow, batches, epochs, f"{name}, {label}, seed {seed}", lr=2e-2)
    numbers, paths = evaluate(flow, name, seed, engine)
    return {**numbers, "seconds": seconds}, paths


def mean(rows):
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


def run(out, engine="auto", seed=0, seeds=1, epochs=500, sets=SETS, regularisers=REGULARISERS):
    torch.set_num_threads(1)  # the networks are too small to share between threads
    labels = ["none", *regularisers]
    results, paths = {}, {}
    for name in sets.split(","):
        runs = {label: [train(name, label, seed + k, epochs, engine) for k in range(seeds)] for label in labels}
        paths[name] = {label: trained[0][1] for label, trained in runs.items()}
        each = {label: [numbers for numbers, _ in trained] for label, trained in runs.items()}
        results[name] = {label: {**mean(rows), "each": rows} for label, rows in each.items()}

    print("set           regulariser  NLL (test)   vs none    NFE  vs none   ∫|f|²  ∫|∂f/∂z|²  seconds")
    cut = {label: [] for label in labels[1:]}
    for name, rows in results.items():
        for label, r in rows.items():
            cost, nfe = r["nll"] - rows["none"]["nll"], r["nfe"] / rows["none"]["nfe"] - 1
            print(
                f"{name:<12}  {label:<11}  {r['nll']:>10.3f}  {cost:>+8.3f}  {r['nfe']:>5.1f}  {nfe:>+7.0%}  "
                f"{r['kinetic']:>6.2f}  {r['jacobian']:>10.2f}  {r['seconds']:>7.1f}"
            )
            if label in cut and nfe <= -FEWER and cost <= NATS:
                cut[label].append(name)
    for label, names in cut.items():
        print(f"{label}: NFE lower by {FEWER:.0%} or more, for at most {NATS} nats, on {', '.join(names) or 'no set'}")

    def figures():
        return {
            f"{name}.png": plot.flow(
                {f"{name}, regulariser: {label}": paths[name][label] for label in (labels[0], labels[-1])}
            )
            for name in results
        }

    write(out, results, figures, engine=engine, seed=seed)
    return results


if __name__ == "__main__":
    parser = arguments(__doc__, "rnode", on_torch="10 minutes", on_julia="2 minutes")
    parser.add_argument("--seed", type=int, default=0, help="the first seed: of parameters and samples")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds to average over")
    parser.add_argument("--epochs", type=int, default=500, help="steps of the optimizer, 256 new samples each")
    parser.add_argument("--sets", default=SETS, help="comma-separated")
    parser.add_argument(
        "--regularisers", nargs="+", choices=REGULARISERS, default=REGULARISERS, help="what to compare with none"
    )
    run(**vars(parser.parse_args()))
