"""A universal differential equation: predators and prey whose interaction is a network.

Known is how prey grow and predators die, and that the two meet in proportion to the number of
each; what comes of a meeting is learned from noisy data: first from slopes that collocation estimates, without solving
anything, then from the trajectory. Beside it the same network, trained in the same way, learns the whole derivative.
The table has the errors of the trajectory from its first point, within the span of the data and as far again beyond
it, and of the interaction that was found. The known part is PyTorch, which runs on both engines; or, with
`--known julia`, a Julia function, which the julia engine runs.

    python examples/universal_lotka_volterra.py
    python examples/universal_lotka_volterra.py --known julia

After C. Rackauckas et al., "Universal Differential Equations for Scientific Machine Learning", 2020.
"""

from __future__ import annotations

import time

import torch
from _shared import arguments, write
from torch import nn
from tqdm import trange

import pynode
from pynode import fit, plot

KNOWN = """
(u, p, t, response) -> [p.growth * u[1] * (1 - u[1] / p.capacity), -p.death * u[2]] .+ u[1] * u[2] .* response(u)
"""
RATES = {"growth": 1.3, "capacity": 10.0, "death": 1.8}
BITE, FEED, SATED = 0.9, 0.8, 0.1
NOISE = 0.02
STAGES = ("untrained", "collocation", "trajectory")


class Universal(nn.Module):
    """The known part, and a network for what comes of a meeting."""

    def __init__(self, response):
        super().__init__()
        self.response = response

    def forward(self, t, z):
        """The field at (t, z), which has no t."""
        return alone(z) + z[:, :1] * z[:, 1:] * self.response(z)


class Neural(nn.Module):
    """dz/dt as a network alone."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, t, z):
        """The field at (t, z), which has no t."""
        return self.network(z)


def network():
    return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))


def alone(z):
    """What is known, `(batch, 2)`: prey that grow to a capacity, predators that die."""
    prey, predators = z.unbind(1)
    return torch.stack([RATES["growth"] * prey * (1 - prey / RATES["capacity"]), -RATES["death"] * predators], 1)


def interaction(z):
    """What is to be found, `(batch, 2)`: prey eaten, predators fed; both are sated where prey are many."""
    meetings = z[:, 0] * z[:, 1] / (1 + SATED * z[:, 0])
    return torch.stack([-BITE * meetings, FEED * meetings], 1)


def truth(t, z):
    """After M. Rosenzweig and R. MacArthur, 1963."""
    return alone(z) + interaction(z)


def pretrain(field, data, t, iterations, label):
    """Fit the field to the slopes that collocation estimates; no solve."""
    slopes, smooth = fit.collocate(data[:, 0], t, "EpanechnikovKernel", 0.1, "torch")
    optimizer = torch.optim.Adam([p for p in field.parameters() if p.requires_grad], lr=1e-2)
    scale = slopes.square().mean()
    for _ in (bar := trange(iterations, desc=f"{label}: slopes")):
        optimizer.zero_grad()
        loss = (field(t[0], smooth) - slopes).square().mean() / scale
        loss.backward()
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.1e}", refresh=False)


def follow(field, data, t, iterations, label, engine):
    """Fit the solution from the first point."""
    optimizer = torch.optim.Adam([p for p in field.parameters() if p.requires_grad], lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=iterations)
    for _ in (bar := trange(iterations, desc=f"{label}: trajectory")):
        optimizer.zero_grad()
        loss = (pynode.solve(field, data[0], t, engine=engine, rtol=1e-5, atol=1e-5).z - data).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.1e}", refresh=False)


@torch.no_grad()
def errors(field, exact, t, z0, inside, engine):
    """Root mean square errors of the trajectory within the data's span and beyond it, and of the interaction."""
    found = pynode.solve(field, z0, t, engine=engine, rtol=1e-6, atol=1e-6, throw=False).z
    wrong = field(t[0], exact[:, 0]) - truth(t[0], exact[:, 0])
    off = (found - exact).square().mean((1, 2))
    return {
        "rmse_within": off[inside].mean().sqrt().item(),
        "rmse_beyond": off[~inside].mean().sqrt().item(),
        "interaction": (wrong.square().mean() / interaction(exact[:, 0]).square().mean()).sqrt().item(),
    }, found


def run(out, engine="auto", seed=0, slopes=400, iterations=200, known="torch"):
    julia = pynode.engines()["julia"]
    if known == "julia" and (engine == "torch" or not julia.ok):
        reason = "" if julia.ok else f" {julia.why}. {julia.fix}"
        print(f"Skipped: the field is written in Julia and runs on the julia engine only.{reason}")
        return
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    t = torch.linspace(0, 12, 121)
    inside = t <= 6.0
    z0 = torch.tensor([[0.9, 1.1]])
    with torch.no_grad():
        exact = pynode.solve(truth, z0, t, rtol=1e-7, atol=1e-8, engine=engine).z
    data = exact[inside] * (1 + NOISE * torch.randn_like(exact[inside]))
    if known == "julia":
        engine = "julia"
        universal = pynode.JuliaField(KNOWN, RATES, networks={"response": network()})
        universal.p.requires_grad_(False)
    else:
        universal = Universal(network())
    fields = {"universal": universal, "neural": Neural(network())}
    results = {"noise": (data - exact[inside]).square().mean().sqrt().item()}
    curves = {}
    print(f"noise of the data: {results['noise']:.3f}")
    for name, field in fields.items():
        started = time.perf_counter()
        rows, curves[name] = {}, {}
        for stage in STAGES:
            if stage == "collocation":
                pretrain(field, data, t[inside], slopes, name)
            elif stage == "trajectory":
                follow(field, data, t[inside], iterations, name, engine)
            rows[stage], curves[name][stage] = errors(field, exact, t, z0, inside, engine)
        results[name] = rows | {"seconds": time.perf_counter() - started}
    print(f"\n{'':<28} {'within data':>12} {'beyond':>9} {'interaction':>12}")
    for name in fields:
        for stage in STAGES:
            row = results[name][stage]
            print(
                f"{name + ', ' + stage:<28} {row['rmse_within']:>12.3f} {row['rmse_beyond']:>9.3f} "
                f"{row['interaction']:>12.1%}"
            )
        print(f"{name}: {results[name]['seconds']:.0f} s")
    write(out, results, lambda: {"trajectory.png": draw(t, exact, data, curves)}, engine=engine, seed=seed)


def draw(t, exact, data, curves):
    """The trajectories from the first point, of both fields, beside the data and the truth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained", dpi=150)
    axes = figure.subplots(2, sharex=True)
    for k, (axis, species) in enumerate(zip(axes, ("prey", "predators"), strict=True)):
        axis.axvspan(t[0], t[len(data) - 1], color="0.94", label="span of the data")
        for name, style, color in (("neural", "-", plot.COLOURS[1]), ("universal", "-", plot.COLOURS[0])):
            axis.plot(t, curves[name]["trajectory"][:, 0, k], style, color=color, lw=1.8, label=name)
        axis.plot(t, exact[:, 0, k], "--", color="k", lw=1.2, label="truth", zorder=3)
        axis.plot(t[: len(data)], data[:, 0, k], ".", color="0.3", ms=4, label="data")
        axis.set_ylabel(species)
        axis.set_ylim(0, 1.3 * exact[:, 0, k].max())
    axes[1].set_xlabel("t")
    axes[0].legend(ncols=5, fontsize=8, loc="upper right")
    return figure


if __name__ == "__main__":
    parser = arguments(__doc__, "universal_lotka_volterra", on_torch="half a minute", on_julia="half a minute")
    parser.add_argument(
        "--known", choices=("torch", "julia"), default="torch", help="what the known part is written in"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the networks and the noise")
    parser.add_argument("--slopes", type=int, default=400, help="steps of the optimizer on the estimated slopes")
    parser.add_argument("--iterations", type=int, default=200, help="steps of the optimizer on the trajectory")
    run(**vars(parser.parse_args()))
