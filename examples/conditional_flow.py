"""One conditional flow for two targets: the context chooses both the base and the density that it becomes.

    python examples/conditional_flow.py

After S. Massaroli et al., "Dissecting Neural ODEs", NeurIPS 2020, section 4: a data-controlled field f(t, z, c) carries
each of several bases to a target of its own. The two bases are normal distributions at opposite places, whose paths
would have to cross those of one another if the field did not know the context.
"""

from __future__ import annotations

import torch
from _shared import arguments, train_flow, write
from torch import nn
from torch.distributions import Independent, Normal

from pynode import data, plot
from pynode.models import CNF, FFJORD

TARGETS = ("moons", "8gaussians")
WHOLE, SHOWN = 6.0, 4.5  # half the side of the square that is integrated over, and of that in the figure
LOOSE, TIGHT = {"rtol": 1e-3, "atol": 1e-3}, {"rtol": 1e-5, "atol": 1e-5}  # in training, in evaluation


class Bases(nn.Module):
    """A normal distribution for each context, a row with a one at its number."""

    def __init__(self):
        super().__init__()
        self.register_buffer("means", torch.tensor([[2.0, 0.0], [-2.0, 0.0]]))

    def forward(self, context):
        """The base of each row."""
        mean = context @ self.means
        return Independent(Normal(mean, torch.ones_like(mean)), 1)


@torch.no_grad()
def evaluate(density, name, own, other):
    """Numbers of one target, under its own context and under the other's, and what the figure shows."""
    x = data.density(name, 10_000)
    heat, integral = plot.density_on_grid(lambda z: density.log_prob(z, own), WHOLE)
    numbers = {
        "nll": -density.log_prob(x, own).mean().item(),
        "nll_other_context": -density.log_prob(x, other).mean().item(),
        "integral": integral,
        "nfe": density.stats.nfe,
    }
    start = density.base(own.expand(150, 2)).sample()
    paths = density.trajectory(start, torch.linspace(1, 0, 30), own, reverse=True)
    return numbers, (x[:4000], heat, density.sample(4000, own), paths)


def run(out, engine="auto", seed=0, epochs=1000):
    torch.set_num_threads(1)  # the networks are too small to share between threads
    torch.manual_seed(seed)
    flow = FFJORD(2, hidden=(64, 64), base=Bases(), context=2, trace="exact", kinetic=0.01, engine=engine, **LOOSE)
    context = torch.eye(2).repeat_interleave(128, 0)
    batches = ((torch.cat([data.density(name, 128) for name in TARGETS]), context) for _ in range(epochs))
    seconds = train_flow(flow, batches, epochs, "both targets")
    density = CNF(flow.blocks[0].field, flow.base, engine=engine, **TIGHT)
    contexts = torch.eye(2).unsqueeze(1)
    results, rows = {"seconds": seconds}, {}
    for i, name in enumerate(TARGETS):
        results[name], rows[name] = evaluate(density, name, contexts[i], contexts[1 - i])

    print("target        NLL (test)  NLL, other context  ∫ density  NFE")
    for name in TARGETS:
        r = results[name]
        print(f"{name:<12}  {r['nll']:>10.3f}  {r['nll_other_context']:>18.3f}  {r['integral']:>9.4f}  {r['nfe']:>3}")
    print(f"{seconds:.1f} seconds")

    def figures():
        return {"densities.png": plot.densities(rows, extent=2 * (-WHOLE, WHOLE), shown=2 * (-SHOWN, SHOWN))}

    write(out, results, figures, engine=engine, seed=seed)
    return results


if __name__ == "__main__":
    parser = arguments(__doc__, "conditional_flow", on_torch="5 minutes", on_julia="80 seconds")
    parser.add_argument("--seed", type=int, default=0, help="of parameters and samples")
    parser.add_argument(
        "--epochs", type=int, default=1000, help="steps of the optimizer, 128 new samples of each target"
    )
    run(**vars(parser.parse_args()))
