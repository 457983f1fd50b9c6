"""A double pendulum: a Lagrangian network against a neural ODE, from angles and velocities alone.

Both are trained on the states along short paths, and have about as many parameters. A Lagrangian network conserves the
energy that it has learned, a NODE none.

    python examples/lagrangian.py

After M. Cranmer et al., "Lagrangian Neural Networks", ICLR 2020 workshop on integration of deep neural models and
differential equations, section 4.
"""

from __future__ import annotations

import statistics

import torch
from _shared import arguments, minimise, write
from torch import nn

from pynode import plot, solve
from pynode.models import NODE, LagrangianNN
from pynode.nn import LagrangianField

GRAVITY, HORIZON = 9.8, 1.0


def parts(z):
    """Kinetic and potential energy of unit masses on unit rods; the angles are those to the vertical."""
    a, b, u, v = z.unbind(1)
    return u**2 + v**2 / 2 + u * v * torch.cos(a - b), -GRAVITY * (2 * torch.cos(a) + torch.cos(b))


def truth(z):
    kinetic, potential = parts(z)
    return kinetic - potential


class Angles(nn.Module):
    """A network of the sines and cosines of two angles, and of two velocities."""

    def __init__(self, n_out, width):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(6, width), nn.Softplus(), nn.Linear(width, width), nn.Softplus(), nn.Linear(width, n_out)
        )

    def forward(self, z):
        """From (batch, 4) to (batch, n_out)."""
        angles, velocities = z.chunk(2, 1)
        return self.net(torch.cat([torch.sin(angles), torch.cos(angles), velocities], 1))


class Lagrangian(Angles):
    """A network, and the kinetic energy of free particles, with which its training begins."""

    def forward(self, z):
        """ℒ, (batch,)."""
        return super().forward(z).squeeze(1) + z[:, 2:].square().sum(1) / 2


class Plain(Angles):
    """Velocities, and a network for the accelerations: as much as a Lagrangian network knows without its equations."""

    def forward(self, z):
        """The derivative of the state, (batch, 4)."""
        return torch.cat([z[:, 2:], super().forward(z)], 1)


MODELS = {
    "NODE": lambda **k: NODE(Plain(2, 48), t=(0.0, HORIZON), **k),
    "LNN": lambda **k: LagrangianNN(Lagrangian(1, 48), t=(0.0, HORIZON), **k),
}


def starts(n):
    """Angles up to 1, at rest."""
    return torch.cat([2 * torch.rand(n, 2) - 1, torch.zeros(n, 2)], 1)


def compared(seed, iterations, paths, horizons, engine):
    """The errors of both models, and their long paths."""
    torch.manual_seed(seed)
    exact = {"rtol": 1e-9, "atol": 1e-9, "max_steps": 100_000, "engine": engine}
    t = torch.linspace(0, HORIZON, 11, dtype=torch.float64)
    z0, unseen = starts(paths).double(), starts(8).double()
    # From a path's course, so that the states of training are not those at rest alone.
    data = solve(LagrangianField(truth), z0, torch.linspace(0, 2 * HORIZON, 21).double(), **exact).z
    data = torch.cat([data[:11], data[10:]], 1)
    long = torch.linspace(0, horizons * HORIZON, 20 * horizons + 1, dtype=torch.float64)
    shown = solve(LagrangianField(truth), unseen, long, **exact).z
    scale = data.std((0, 1))
    results, courses, figures = {}, {}, {"truth": shown}
    for name, make in MODELS.items():
        torch.manual_seed(seed)
        model = make(rtol=1e-4, atol=1e-5, engine=engine).double()
        courses[name] = minimise(
            model.parameters(),
            lambda model=model: ((model.trajectory(data[0], t) - data) / scale).square().mean(),
            iterations,
            f"seed {seed}, {name}",
            5e-3,
        )
        model.solver_keywords = {"rtol": 1e-6, "atol": 1e-6, "max_steps": 100_000, "engine": engine, "throw": False}
        with torch.no_grad():
            states = model.trajectory(unseen, long)
        energy = sum(parts(states.flatten(0, 1))).reshape(states.shape[:2])
        error = (energy - energy[0]).abs().nan_to_num(torch.inf, torch.inf).amax(0)
        results[name] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "mse_training": courses[name][-1],
            "mse_unseen": ((states[:21] - shown[:21]) / scale).square().mean().item(),
            "energy_error": error.median().item(),
            "energy_error_worst": error.max().item(),
        }
        figures[name] = states
    return results, courses, figures, long


def run(out, engine="auto", seed=0, seeds=2, iterations=250, paths=24, horizons=20):
    torch.set_num_threads(1)  # some dozen paths are too few to share between threads
    runs = [compared(s, iterations, paths, horizons, engine) for s in range(seed, seed + seeds)]
    results = [r[0] for r in runs]
    print(f"model  parameters  MSE, unseen  energy error over {horizons} horizons, median of the seeds' medians")
    summary = {}
    for name in MODELS:
        summary[name] = {k: statistics.median(r[name][k] for r in results) for k in ("mse_unseen", "energy_error")}
        print(
            f"{name:<5}  {results[0][name]['parameters']:>10}  {summary[name]['mse_unseen']:>11.1e}  "
            f"{summary[name]['energy_error']:>10.2f}"
        )

    def figures():
        _, courses, states, long = runs[0]
        energy = {
            label: (long, (sum(parts(z[:, 0])) - sum(parts(z[:1, 0]))).abs().clamp(min=1e-6))
            for label, z in states.items()
            if label != "truth"
        }
        return {
            "energy.png": plot.lines({"error of the energy": energy}, xlabel="time"),
            "angles.png": plot.phase(
                {label: z[:101, 0, :2] for label, z in states.items()},
                axes_names=("first angle, rad", "second angle, rad"),
            ),
            "training.png": plot.history({"mean squared error": courses}, xlabel="iteration"),
        }

    write(out, {"seeds": results, "summary": summary}, figures, engine=engine, seed=seed)
    return summary


if __name__ == "__main__":
    parser = arguments(__doc__, "lagrangian", on_torch="5 minutes", on_julia="70 seconds")
    parser.add_argument("--seed", type=int, default=0, help="the first seed: of parameters and starts")
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds")
    parser.add_argument("--iterations", type=int, default=250, help="steps of the optimizer")
    parser.add_argument("--paths", type=int, default=24, help="how many paths each model is trained on")
    parser.add_argument("--horizons", type=int, default=20, help="times of training that the paths are followed for")
    run(**vars(parser.parse_args()))
