"""A pendulum and two bodies: Hamiltonian networks against a neural ODE, over 100 times the time of training.

All are trained on the states along the same short paths, without derivatives and without noise, and have about as many
parameters. What counts is the true energy along paths a hundred times as long: a NODE's drifts away, that of a
Hamiltonian network goes up and down with its error, as long as the path stays where there were data: those of two
bodies leave it in the end, whichever model it is, and then the numbers say only who went less far.

    python examples/hamiltonian.py

After S. Greydanus, M. Dzamba, J. Yosinski, "Hamiltonian Neural Networks", NeurIPS 2019, sections 3 and 4.
"""

from __future__ import annotations

import statistics

import torch
from _shared import arguments, minimise, write
from torch import nn

from pynode import plot, solve
from pynode.models import NODE, HamiltonianNN
from pynode.nn import HamiltonianField, SeparableHamiltonian


class Pendulum:
    """Mass, length and gravity are 1: from rest at angles up to two radians, half a period of small swings."""

    horizon, size = 3.0, 1
    coordinates = ("angle q, rad", "momentum p")

    @staticmethod
    def energy(z):
        """H of states, (batch,)."""
        return z[:, 1] ** 2 / 2 - torch.cos(z[:, 0])

    @staticmethod
    def starts(n):
        """Where n paths begin."""
        energy, angle = 1.4 * torch.rand(n), 6.283 * torch.rand(n)  # energies up to 1.4 above the lowest
        swing = torch.acos(1 - energy)
        return torch.stack([swing * torch.cos(angle), torch.sqrt(2 * energy) * torch.sin(angle)], 1)


class TwoBodies:
    """Two bodies under gravity, in the coordinates and momenta of one relative to the other: ellipses, half a turn."""

    horizon, size = 3.0, 2
    coordinates = ("q₁", "q₂")

    @staticmethod
    def energy(z):
        """H of states, (batch,)."""
        return z[:, 2:].square().sum(1) / 2 - 1 / z[:, :2].norm(dim=1)

    @staticmethod
    def starts(n):
        """Where n paths begin."""
        radius, angle, speed = 0.9 + 0.3 * torch.rand(n), 6.283 * torch.rand(n), 0.9 + 0.2 * torch.rand(n)
        across = torch.stack([torch.cos(angle), torch.sin(angle)], 1)
        along = torch.stack([-torch.sin(angle), torch.cos(angle)], 1)
        return torch.cat([radius[:, None] * across, (speed / radius.sqrt())[:, None] * along], 1)


def network(n_in, n_out, width):
    return nn.Sequential(nn.Linear(n_in, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, n_out))


MODELS = {
    "NODE": lambda n, **k: NODE(network(2 * n, 2 * n, 40), **k),
    "HNN": lambda n, **k: HamiltonianNN(network(2 * n, 1, 40), **k),
    "HNN, separable": lambda n, **k: HamiltonianNN(
        SeparableHamiltonian(network(n, 1, 28), network(n, 1, 28)),
        **k,
    ),
}


def compared(system, seed, iterations, paths, horizons, engine):
    """The errors of each model on one system, and its long paths."""
    torch.manual_seed(seed)
    t = torch.linspace(0, system.horizon, 16, dtype=torch.float64)
    z0, unseen = system.starts(paths).double(), system.starts(8).double()
    truth = HamiltonianField(system.energy)
    exact = {"rtol": 1e-10, "atol": 1e-10, "max_steps": 100_000, "engine": engine}
    data = solve(truth, z0, t, **exact).z
    long = torch.linspace(0, horizons * system.horizon, 40 * horizons + 1, dtype=torch.float64)
    shown = solve(truth, unseen, long, **exact).z
    results, courses, figures = {}, {}, {"truth": shown}
    for name, make in MODELS.items():
        torch.manual_seed(seed)
        model = make(system.size, rtol=1e-4, atol=1e-5, engine=engine).double()
        courses[name] = minimise(
            model.parameters(),
            lambda model=model: (model.trajectory(data[0], t) - data).square().mean(),
            iterations,
            f"{system.__name__}, seed {seed}, {name}",
            5e-3,
        )
        model.solver_keywords = {"rtol": 1e-7, "atol": 1e-7, "max_steps": 100_000, "engine": engine, "throw": False}
        with torch.no_grad():
            states = model.trajectory(unseen, long)
        energy = system.energy(states.flatten(0, 1)).reshape(states.shape[:2])
        error = (energy - energy[0]).abs().nan_to_num(torch.inf, torch.inf).amax(0)  # a path that ends has none
        results[name] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "mse_training": courses[name][-1],
            "mse_unseen": (states[:41] - shown[:41]).square().mean().item(),
            "energy_error": error.median().item(),
            "energy_error_worst": error.max().item(),
        }
        if name != "NODE":
            results[name]["drift_of_its_own_energy"] = model.energy_drift(states).max().item()
        figures[name] = states
    return results, courses, figures, long


SYSTEMS = {"Pendulum": Pendulum, "TwoBodies": TwoBodies}


def run(out, engine="auto", seed=0, seeds=2, iterations=400, paths=24, horizons=100, systems=tuple(SYSTEMS)):
    torch.set_num_threads(1)  # some dozen paths are too few to share between threads
    results, first = {}, {}
    for system in (SYSTEMS[name] for name in systems):
        for s in range(seed, seed + seeds):
            found, courses, figures, long = compared(system, s, iterations, paths, horizons, engine)
            results.setdefault(system.__name__, []).append(found)
            if s == seed:
                first[system] = courses, figures, long

    print("system     model           parameters  MSE, unseen  energy error, median  over NODE's")
    summary = {}
    for system, runs in results.items():
        node = statistics.median(r["NODE"]["energy_error"] for r in runs)
        for name in MODELS:
            error = statistics.median(r[name]["energy_error"] for r in runs)
            mse = statistics.median(r[name]["mse_unseen"] for r in runs)
            summary.setdefault(system, {})[name] = {"energy_error": error, "over_node": error / node, "mse": mse}
            print(
                f"{system:<9}  {name:<14}  {runs[0][name]['parameters']:>10}  {mse:>11.1e}  {error:>20.1e}  "
                f"{error / node:>11.3f}"
            )

    def figures():
        drawn = {}
        for system, (courses, states, long) in first.items():
            name = system.__name__.lower()
            curves = {
                label: (long[::20], (system.energy(z[::20, 0]) - system.energy(z[:1, 0])).abs().clamp(min=1e-9))
                for label, z in states.items()
                if label != "truth"
            }
            drawn[f"{name}_energy.png"] = plot.lines({"error of the energy": curves}, xlabel="time")
            shown = {label: z[:2000, 0, :2] for label, z in states.items()}
            drawn[f"{name}_paths.png"] = plot.phase(shown, axes_names=system.coordinates)
            drawn[f"{name}_training.png"] = plot.history({"mean squared error": courses}, xlabel="iteration")
        return drawn

    write(out, {"seeds": results, "summary": summary}, figures, engine=engine, seed=seed)
    return summary


if __name__ == "__main__":
    parser = arguments(__doc__, "hamiltonian", on_torch="5 minutes", on_julia="a minute")
    parser.add_argument("--seed", type=int, default=0, help="the first seed: of parameters and starts")
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds")
    parser.add_argument("--iterations", type=int, default=400, help="steps of the optimizer")
    parser.add_argument("--paths", type=int, default=24, help="how many paths each model is trained on")
    parser.add_argument("--horizons", type=int, default=100, help="times of training that the paths are followed for")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), help="which move")
    run(**vars(parser.parse_args()))
