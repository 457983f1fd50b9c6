"""A universal differential equation: predators and prey whose interaction is a network inside a Julia function.

Known, and written in Julia, is how prey grow and predators die, and that the two meet in proportion to the number of
each; what comes of a meeting is learned from noisy data: first from slopes that collocation estimates, without solving
anything, then from the trajectory. Beside it the same network, trained in the same way, learns the whole derivative.
The table has the errors of the trajectory from its first point, within the span of the data and as far again beyond
it, and of the interaction that was found. It needs Julia; where there is none, it says how to get it.

    python examples/universal_lotka_volterra.py

After C. Rackauckas et al., "Universal Differential Equations for Scientific Machine Learning", 2020.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from _shared import write
from torch import nn
from tqdm import trange

import pynode
from pynode import fit

KNOWN = """
(u, p, t, response) -> [p.growth * u[1] * (1 - u[1] / p.capacity), -p.death * u[2]] .+ u[1] * u[2] .* response(u)
"""
RATES = {"growth": 1.3, "capacity": 10.0, "death": 1.8}
BITE, FEED, SATED = 0.9, 0.8, 0.1
NOISE = 0.02
STAGES = ("untrained", "collocation", "trajectory")


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


def interaction(z):
    """What is to be found, `(batch, 2)`: prey eaten, predators fed; both are sated where prey are many."""
    meetings = z[:, 0] * z[:, 1] / (1 + SATED * z[:, 0])
    return torch.stack([-BITE * meetings, FEED * meetings], 1)


def truth(t, z):
    """After M. Rosenzweig and R. MacArthur, 1963."""
    prey, predators = z.unbind(1)
    alone = [RATES["growth"] * prey * (1 - prey / RATES["capacity"]), -RATES["death"] * predators]
    return torch.stack(alone, 1) + interaction(z)


def pretrain(field, data, t, iterations, label):
    """Fit the field to the slopes that collocation estimates; no solve."""
    slopes, smooth = fit.collocate(data[:, 0], t, "EpanechnikovKernel", 0.1)
    optimizer = torch.optim.Adam([p for p in field.parameters() if p.requires_grad], lr=1e-2)
    scale = slopes.square().mean()
    for _ in (bar := trange(iterations, desc=f"{label}: slopes")):
        optimizer.zero_grad()
        loss = (field(t[0], smooth) - slopes).square().mean() / scale
        loss.backward()
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.1e}", refresh=False)


def follow(field, data, t, iterations, label):
    """Fit the solution from the first point."""
    optimizer = torch.optim.Adam([p for p in field.parameters() if p.requires_grad], lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=iterations)
    for _ in (bar := trange(iterations, desc=f"{label}: trajectory")):
        optimizer.zero_grad()
        loss = (pynode.solve(field, data[0], t, engine="julia", rtol=1e-5, atol=1e-5).z - data).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.1e}", refresh=False)


@torch.no_grad()
def errors(field, exact, t, z0, inside):
    """Root mean square errors of the trajectory within the data's span and beyond it, and of the interaction."""
    found = pynode.solve(field, z0, t, engine="julia", rtol=1e-6, atol=1e-6, throw=False).z
    wrong = field(t[0], exact[:, 0]) - truth(t[0], exact[:, 0])
    off = (found - exact).square().mean((1, 2))
    return {
        "rmse_within": off[inside].mean().sqrt().item(),
        "rmse_beyond": off[~inside].mean().sqrt().item(),
        "interaction": (wrong.square().mean() / interaction(exact[:, 0]).square().mean()).sqrt().item(),
    }, found


def run(out, engine="julia", seed=0, slopes=400, iterations=200):
    julia = pynode.engines()["julia"]
    if engine != "julia" or not julia.ok:
        reason = "" if julia.ok else f" {julia.why}. {julia.fix}"
        print(f"Skipped: the field is written in Julia and runs on the julia engine only.{reason}")
        return
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    t = torch.linspace(0, 12, 121)
    inside = t <= 6.0
    z0 = torch.tensor([[0.9, 1.1]])
    with torch.no_grad():
        exact = pynode.solve(truth, z0, t, rtol=1e-7, atol=1e-8, engine="julia").z
    data = exact[inside] * (1 + NOISE * torch.randn_like(exact[inside]))
    universal = pynode.JuliaField(KNOWN, RATES, networks={"response": network()})
    universal.p.requires_grad_(False)
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
                follow(field, data, t[inside], iterations, name)
            rows[stage], curves[name][stage] = errors(field, exact, t, z0, inside)
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
    write(out, results, lambda: {"trajectory.png": draw(t, exact, data, curves)})


def draw(t, exact, data, curves):
    """The trajectories from the first point, of both fields, beside the data and the truth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained", dpi=150)
    axes = figure.subplots(2, sharex=True)
    for k, (axis, species) in enumerate(zip(axes, ("prey", "predators"), strict=True)):
        axis.axvspan(t[0], t[len(data) - 1], color="0.94", label="span of the data")
        axis.plot(t, exact[:, 0, k], color="k", lw=1, label="truth")
        for name, style, color in (("neural", "--", "C0"), ("universal", "-", "C3")):
            axis.plot(t, curves[name]["trajectory"][:, 0, k], style, color=color, lw=1.8, label=name)
        axis.plot(t[: len(data)], data[:, 0, k], ".", color="0.3", ms=4, label="data")
        axis.set_ylabel(species)
        axis.set_ylim(0, 1.3 * exact[:, 0, k].max())
    axes[1].set_xlabel("t")
    axes[0].legend(ncols=5, fontsize=8, loc="upper right")
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out/universal_lotka_volterra"), help="folder of the results")
    parser.add_argument("--engine", choices=("julia", "torch"), default="julia", help="torch: only says why not")
    parser.add_argument("--seed", type=int, default=0, help="of the networks and the noise")
    parser.add_argument("--slopes", type=int, default=400, help="steps of the optimizer on the estimated slopes")
    parser.add_argument("--iterations", type=int, default=200, help="steps of the optimizer on the trajectory")
    run(**vars(parser.parse_args()))
