"""Hypersolvers: what a network adds to Euler's, the midpoint and the classical Runge-Kutta method, at equal steps.

A neural ODE is trained to sort two moons by an adaptive solver. Then its states are computed by few steps, without and
with a correction that is trained on what the steps lack.

    python examples/hypersolver.py

After M. Poli et al., "Hypersolvers: Toward Fast Continuous-Depth Models", NeurIPS 2020, section 4.
"""

from __future__ import annotations

import statistics

import torch
from _shared import arguments, minimise, write
from sklearn.datasets import make_moons
from torch import nn
from torch.nn.functional import cross_entropy

from pynode import plot
from pynode.models import NODE, Hypersolver
from pynode.nn import TimeConcat, TimeSequential

METHODS = {"euler": 1, "midpoint": 2, "rk4": 4}


class Correction(nn.Module):
    """g(h, s, z, ż), zero before its training."""

    def __init__(self, width=32):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(6, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2)
        )
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, h, s, z, dz):
        """From (batch, 2) to (batch, 2)."""
        ones = torch.ones_like(z[:, :1])
        return self.net(torch.cat([z, dz, s * ones, h * ones], 1))


def nothing(h, s, z, dz):
    return torch.zeros_like(z)


def moons(n, seed):
    x, y = make_moons(n, noise=0.1, random_state=seed)
    return torch.from_numpy(x), torch.from_numpy(y)


def trained(x, y, seed, iterations, engine):
    """The neural ODE."""
    torch.manual_seed(seed)
    field = TimeSequential(TimeConcat(nn.Linear(3, 32)), nn.Tanh(), nn.Linear(32, 2))
    model = NODE(field, output_network=nn.Linear(2, 2), rtol=1e-4, atol=1e-4, engine=engine).double()

    minimise(model.parameters(), lambda: cross_entropy(model(x), y), iterations, f"seed {seed}, NODE", 0.03)
    return model.requires_grad_(False)


def compared(seed, iterations, dt, engine):
    """For each base method and both losses, the error at the last depth beside the base method's."""
    (x, y), (unseen, labels) = moons(256, seed), moons(512, 1000 + seed)
    model = trained(x, y, seed, iterations, engine)
    results = {}
    for method, order in METHODS.items():
        base = Hypersolver(model.field, nothing, solver=method, dt=dt, engine=engine)
        known, exact = base.reference(x, rtol=1e-9, atol=1e-9), base.reference(unseen, rtol=1e-9, atol=1e-9)

        def error(solver, exact=exact):
            with torch.no_grad():
                return (solver(unseen) - exact[-1]).norm(dim=1).mean().item()

        def accuracy(solver):
            with torch.no_grad():
                return (model.output_network(solver(unseen)).argmax(1) == labels).double().mean().item()

        results[method] = {"order": order, "base": error(base), "accuracy_base": accuracy(base)}
        for loss in ("residual_loss", "trajectory_loss"):
            torch.manual_seed(seed)
            hyper = Hypersolver(model.field, Correction().double(), solver=method, dt=dt, engine=engine)
            minimise(
                hyper.field.correction.parameters(),
                lambda hyper=hyper, loss=loss, known=known: getattr(hyper, loss)(x, known),
                iterations,
                f"seed {seed}, {method}, {loss}",
                0.01,
            )
            results[method][loss] = error(hyper)
            results[method][f"accuracy_{loss}"] = accuracy(hyper)
            if loss == "residual_loss":  # of the step it was not trained at
                for other in (dt / 2, dt * 2):
                    base.dt = hyper.dt = other
                    again = base.reference(unseen, rtol=1e-9, atol=1e-9)
                    results[method][f"at dt {other:g}"] = {"base": error(base, again), loss: error(hyper, again)}
                base.dt = hyper.dt = dt
        results[method]["nfe"] = round(1 / dt) * {"euler": 1, "midpoint": 2, "rk4": 4}[method]
    with torch.no_grad():
        results["accuracy"] = (model(unseen).argmax(1) == labels).double().mean().item()
    results["nfe"] = model.stats.nfe
    return results


def run(out, engine="auto", seed=0, seeds=2, iterations=200, dt=0.25):
    torch.set_num_threads(1)  # a few hundred points are too few to share between threads
    runs = [compared(s, iterations, dt, engine) for s in range(seed, seed + seeds)]

    def median(method, key):
        return statistics.median(r[method][key] for r in runs)

    print(f"error at the last depth on points not seen, {round(1 / dt)} steps, median of {seeds} seeds")
    print("method    NFE  alone    residual fitting  trajectory fitting")
    summary = {}
    for method in METHODS:
        errors = [median(method, key) for key in ("base", "residual_loss", "trajectory_loss")]
        summary[method] = dict(zip(("base", "residual_loss", "trajectory_loss"), errors, strict=True))
        print(f"{method:<8}  {runs[0][method]['nfe']:>3}  {errors[0]:.1e}  {errors[1]:>16.1e}  {errors[2]:>18.1e}")
    print(f"(the adaptive solver of training: {runs[0]['nfe']} evaluations)")

    def figures():
        curves = {
            label: ([runs[0][m]["nfe"] for m in METHODS], [summary[m][key] for m in METHODS])
            for label, key in (
                ("base method", "base"),
                ("residual fitting", "residual_loss"),
                ("trajectory fitting", "trajectory_loss"),
            )
        }
        return {"error.png": plot.lines({"error": curves}, xlabel="evaluations of the field")}

    write(out, {"seeds": runs, "summary": summary}, figures, engine=engine, seed=seed)
    return summary


if __name__ == "__main__":
    parser = arguments(__doc__, "hypersolver", on_torch="45 seconds", on_julia="50 seconds")
    parser.add_argument("--seed", type=int, default=0, help="the first seed: of parameters and points")
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds")
    parser.add_argument("--iterations", type=int, default=200, help="steps of the optimizer, for each training")
    parser.add_argument("--dt", type=float, default=0.25, help="the step, which divides 1")
    run(**vars(parser.parse_args()))
