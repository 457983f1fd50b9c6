"""Densities in the plane by FFJORD: training, heat maps, samples, and the paths of the flow.

    python examples/flow_densities.py

After W. Grathwohl et al., "FFJORD", ICLR 2019, figures 2 and 5. The table shows the negative log-likelihood of new
samples in nats, the integral of the density over a grid, the field's evaluations and the seconds of training.
"""

from __future__ import annotations

import torch
from _shared import arguments, train_flow, write

from pynode import data, plot
from pynode.models import CNF, FFJORD

SETS = "moons,pinwheel,8gaussians,checkerboard,swissroll,2spirals"
SHARE = {"8gaussians": 0.5, "2spirals": 1.5}  # of the steps: some sets are easier, some harder than the others
WHOLE, SHOWN = 6.0, 4.5  # half the side of the square that is integrated over, and of that in the figure


@torch.no_grad()
def evaluate(flow, name):
    """Numbers, and what the figure shows."""
    (block,) = flow.blocks  # the density alone, at a tighter tolerance than in training
    density = CNF(block.field, flow.base, rtol=1e-5, atol=1e-5, engine=block.solver_keywords["engine"])
    nll = -density.log_prob(data.density(name, 10_000)).mean().item()
    nfe = density.stats.nfe
    heat, integral = plot.density_on_grid(density.log_prob, WHOLE)
    numbers = {"nll": nll, "integral": integral, "nfe": nfe}
    paths = density.trajectory(torch.randn(150, 2), torch.linspace(1, 0, 30), reverse=True)
    return numbers, (data.density(name, 4000), heat, density.sample(4000), paths)


def run(out, engine="auto", seed=0, epochs=600, sets=SETS):
    torch.set_num_threads(1)  # the networks are too small to share between threads
    torch.manual_seed(seed)
    results, rows = {}, {}
    for name in sets.split(","):
        regularisers = {"kinetic": 0.01, "jacobian": 0.01}
        flow = FFJORD(2, hidden=(64, 64), layer="concat", rtol=1e-3, atol=1e-3, engine=engine, **regularisers)
        steps = round(SHARE.get(name, 1.0) * epochs)
        batches = ((data.density(name, 512),) for _ in range(steps))
        seconds = train_flow(flow, batches, steps, f"{name:<12}", lr=2e-2)
        numbers, rows[name] = evaluate(flow, name)
        results[name] = {**numbers, "seconds": seconds}

    print("set           NLL (test)  ∫ density  NFE  seconds")
    for name, r in results.items():
        print(f"{name:<12}  {r['nll']:>10.3f}  {r['integral']:>9.4f}  {r['nfe']:>3}  {r['seconds']:>7.1f}")

    def figures():
        return {"densities.png": plot.densities(rows, extent=2 * (-WHOLE, WHOLE), shown=2 * (-SHOWN, SHOWN))}

    write(out, results, figures, engine=engine, seed=seed)
    return results


if __name__ == "__main__":
    parser = arguments(__doc__, "flow_densities", on_torch="10 minutes", on_julia="2 minutes")
    parser.add_argument("--seed", type=int, default=0, help="of parameters and samples")
    parser.add_argument("--epochs", type=int, default=600, help="steps of the optimizer, 512 samples each")
    parser.add_argument("--sets", default=SETS, help="comma-separated")
    run(**vars(parser.parse_args()))
