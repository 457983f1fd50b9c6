"""Parameters that vary with depth: Galerkin layers by basis and size, stacked fields, a hypernetwork, time as input.

Every model learns, from trajectories, the linear field ż = A(s) z whose rotation swings back and whose strain turns
over with depth. A field with constant parameters cannot follow it. The others can, and the question is how
well, with how many parameters. Where the model is linear too, its W(s) is compared to the A(s) that made the data.

    python examples/depth_variance.py

After S. Massaroli et al., "Dissecting Neural ODEs", NeurIPS 2020, section 3.
"""

from __future__ import annotations

import time

import torch
from _shared import arguments, write
from torch import nn
from tqdm import tqdm

import pynode
from pynode import plot
from pynode.models import NODE, StackedNODE
from pynode.nn import (
    Chebyshev,
    DepthVariant,
    Fourier,
    GalerkinLinear,
    GaussianRBF,
    Hypernetwork,
    Legendre,
    PiecewiseLinear,
    TimeConcat,
    TimeSequential,
)

BASES = (Fourier, Chebyshev, Legendre, PiecewiseLinear, GaussianRBF)
DEPTHS = torch.linspace(0, 1, 21)


def true_matrix(s):
    """A(s) `(…, 2, 2)`: rotation 8 cos 5s, strain 2 tanh (6s - 3)."""
    rotation, strain = 8 * torch.cos(5 * s), 2 * torch.tanh(6 * s - 3)
    return torch.stack([torch.stack([strain, rotation], -1), torch.stack([-rotation, -strain], -1)], -2)


def trajectories(n, generator):
    """Initial values `(n, 2)` and what becomes of them, `(time, n, 2)`."""
    z0 = torch.randn(n, 2, generator=generator)
    exact = pynode.solve(
        lambda t, z: z @ true_matrix(t).T, z0.double(), DEPTHS.double(), rtol=1e-8, atol=1e-8, engine="torch"
    )
    return z0, exact.z.float()


class Linear(nn.Linear):
    """ż = W z."""

    def forward(self, t, z):
        """ż `(batch, 2)` at `t`, 0-d, and z `(batch, 2)`."""
        return super().forward(z)


def mlp(first, width=16):
    """ż = W₂ tanh(first(z)) + b₂."""
    return TimeSequential(first, nn.Tanh(), nn.Linear(width, 2))


def models(sizes):
    """For each name, how to make the field or fields."""
    found = {
        "constant, linear": lambda: Linear(2, 2, bias=False),
        "constant, MLP": lambda: mlp(nn.Linear(2, 16)),
        "TimeConcat, MLP": lambda: mlp(TimeConcat(nn.Linear(3, 16))),
        "hypernetwork": lambda: Hypernetwork(nn.Linear(2, 2, bias=False), width=16),
    }
    for n in sizes:
        found[f"stacked {n}"] = lambda n=n: [Linear(2, 2, bias=False) for _ in range(n)]
    for basis in BASES:
        for n in sizes:
            found[f"{basis.__name__} {n}"] = lambda n=n, basis=basis: GalerkinLinear(2, 2, basis(n), bias=False)
    return found


def matrix_of(model, s):
    """W(s) `(time, 2, 2)` where the model is linear, else `None`."""
    weights = []
    for depth in s:
        field = model._field_at(depth)
        if isinstance(field, Linear):
            weights.append(field.weight)
        elif isinstance(field, DepthVariant):
            weights.append(field.parameters_at(depth)["weight"])
        else:
            return None
    return torch.stack(weights).detach()


def train(name, model, z0, z, iterations):
    """L-BFGS on the mean squared error along the trajectories; the loss at each evaluation, and the seconds."""
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=iterations, max_eval=2 * iterations, history_size=20, line_search_fn="strong_wolfe"
    )
    losses, bar, start = [], tqdm(desc=f"{name:<18}", total=2 * iterations), time.perf_counter()

    def closure():
        optimizer.zero_grad()
        loss = ((model.trajectory(z0, DEPTHS) - z) ** 2).mean()
        loss.backward()
        losses.append(loss.item())
        bar.update()
        bar.set_postfix(mse=f"{losses[-1]:.1e}", refresh=False)
        return loss

    optimizer.step(closure)
    bar.close()
    return losses, time.perf_counter() - start


def run(out, engine="auto", seed=0, iterations=80, sizes=(3, 5, 9)):
    torch.set_num_threads(1)  # states of two numbers are too small to share between threads
    generator = torch.Generator().manual_seed(seed)
    z0, z = trajectories(32, generator)
    test_z0, test_z = trajectories(256, generator)
    fine = torch.linspace(0, 1, 201)
    truth = true_matrix(fine)
    keywords = {"solver": "rk4", "dt": 0.05, "engine": engine}
    results, matrices = {}, {"true": truth}
    for name, make in models(sizes).items():
        torch.manual_seed(seed)
        field = make()
        model = StackedNODE(field, **keywords) if isinstance(field, list) else NODE(field, **keywords)
        losses, seconds = train(name, model, z0, z, iterations)
        with torch.no_grad():
            error = (model.trajectory(test_z0, DEPTHS) - test_z).norm() / test_z.norm()
        matrix = matrix_of(model, fine)
        if matrix is not None:
            matrices[name] = matrix
        results[name] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "mse": min(losses),
            "error": error.item(),
            "error_of_matrix": None if matrix is None else ((matrix - truth).norm() / truth.norm()).item(),
            "evaluations": len(losses),
            "seconds": seconds,
        }

    print("model              parameters      MSE  relative error, test  relative error of A(s)  evaluations  seconds")
    for name, r in results.items():
        of_matrix = "-" if r["error_of_matrix"] is None else f"{r['error_of_matrix']:.3f}"
        print(
            f"{name:<17}  {r['parameters']:>10}  {r['mse']:>7.1e}  {r['error']:>20.4f}  {of_matrix:>22}  "
            f"{r['evaluations']:>11}  {r['seconds']:>7.1f}"
        )

    def figures():
        kinds = ["stacked", *(basis.__name__ for basis in BASES)]
        by_size = {kind: (sizes, [results[f"{kind} {n}"]["error"] for n in sizes]) for kind in kinds}
        for name in ("constant, linear", "constant, MLP", "TimeConcat, MLP", "hypernetwork"):
            by_size[name] = ((sizes[0], sizes[-1]), (results[name]["error"],) * 2)
        shown = ["true", *(name for name in matrices if name.endswith(f" {sizes[-1]}")), "hypernetwork"]
        entries = {
            title: {name: (fine, matrices[name][:, i, j]) for name in shown}
            for title, i, j in (("A₁₁(s), strain", 0, 0), ("A₁₂(s), rotation", 0, 1))
        }
        return {
            "error.png": plot.lines({"relative error, test": by_size}, xlabel="functions or intervals"),
            "matrix.png": plot.lines(entries, xlabel="depth s"),
        }

    write(out, results, figures, engine=engine, seed=seed)
    return results


if __name__ == "__main__":
    parser = arguments(__doc__, "depth_variance", on_torch="a minute", on_julia="half a minute")
    parser.add_argument("--seed", type=int, default=0, help="of the parameters and the trajectories")
    parser.add_argument("--iterations", type=int, default=80, help="of L-BFGS")
    parser.add_argument("--sizes", type=int, nargs="+", default=(3, 5, 9), help="of the bases, and of the stack")
    run(**vars(parser.parse_args()))
