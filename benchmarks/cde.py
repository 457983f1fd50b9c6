"""Neural controlled differential equations: a solve and its gradient beside torchcde, on the problems of its own pages.

    pip install --no-deps torchcde torchsde
    OMP_NUM_THREADS=1 python benchmarks/cde.py

`readme` is the code of torchcde's README: one path of ten observations, two channels, a linear field of a state of
three. `spirals` has the sizes of its example of classification: 128 paths of 100 observations, three channels, a field
with 128 hidden units and tanh of a state of eight. All solve from the same state with the same weights along the same
cubic Hermite paths, made beforehand, by a 5(4) pair at torchcde's tolerances, rtol 1e-4 and atol 1e-6, in float32.
torchcde's own default is the continuous adjoint; it backpropagates through its operations with `adjoint=False`.
Errors of gradients are against torchcde's backpropagation in float64 with a hundredth of the tolerances. A time is the
least of `--rounds`, in which contenders take turns.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import torch
import torchcde
from torch import Tensor, nn

import pynode
from pynode import control

TOLERANCES = {"rtol": 1e-4, "atol": 1e-6}


class Field(nn.Module):
    """F(z), `(batch, hidden, channels)`, as torchcde calls it."""

    def __init__(self, hidden: int, channels: int, width: int | None) -> None:
        super().__init__()
        self.shape = (hidden, channels)
        layers: list[nn.Module] = [nn.Linear(hidden, hidden * channels)]
        if width is not None:
            layers = [nn.Linear(hidden, width), nn.ReLU(), nn.Linear(width, hidden * channels), nn.Tanh()]
        self.network = nn.Sequential(*layers)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.network(z).unflatten(-1, self.shape)


class Problem:
    """Paths, a first state and a field."""

    def __init__(self, batch: int, length: int, channels: int, hidden: int, width: int | None) -> None:
        torch.manual_seed(0)
        self.t = torch.linspace(0, 1, length)
        phase = 6.28 * torch.rand(batch, 1, channels - 1)
        walk = torch.sin(6.28 * self.t[:, None] + phase) + 0.01 * torch.randn(batch, length, channels - 1)
        self.x = torch.cat([self.t.expand(batch, -1).unsqueeze(-1), walk], -1)
        self.z0 = torch.rand(batch, hidden)
        self.field = Field(hidden, channels, width)

    def double(self) -> Problem:
        """The same in double."""
        other = copy.copy(self)
        other.t, other.x, other.z0 = (a.detach().double() for a in (self.t, self.x, self.z0))
        other.field = copy.deepcopy(self.field).double()
        return other


def by_torchcde(problem: Problem, adjoint: bool, factor: float = 1.0) -> Callable[[], Tensor]:
    """The states at the end, by torchcde."""
    coefficients = torchcde.hermite_cubic_coefficients_with_backward_differences(problem.x, t=problem.t)
    tolerances = {name: factor * value for name, value in TOLERANCES.items()}

    def solve() -> Tensor:
        path = torchcde.CubicSpline(coefficients, t=problem.t)
        return torchcde.cdeint(
            X=path, func=problem.field, z0=problem.z0, t=path.interval, adjoint=adjoint, method="dopri5", **tolerances
        )[:, -1]

    return solve


def by_pynode(problem: Problem, engine: str) -> Callable[[], Tensor]:
    """The same, by pynode."""
    path = control.CubicHermite(problem.t, problem.x)

    def driven(t: Tensor, z: Tensor, X: control.Control) -> Tensor:
        return (problem.field(t, z) @ X.derivative(t).unsqueeze(-1)).squeeze(-1)

    def solve() -> Tensor:
        return pynode.solve(driven, problem.z0, [0.0, 1.0], control=path, engine=engine, **TOLERANCES).z[-1]

    return solve


def gradient(problem: Problem, solve: Callable[[], Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(solve().square().sum(), [problem.z0, *problem.field.parameters()]))


def apart(a: list[Tensor], b: list[Tensor]) -> float:
    """The relative distance of gradients."""
    x, y = (torch.cat([g.flatten().double() for g in gs]) for gs in (a, b))
    return float((x - y).norm() / y.norm())


SIZES: dict[str, tuple[int, int, int, int, int | None]] = {
    "readme": (1, 10, 2, 3, None),
    "spirals": (128, 100, 3, 8, 128),
}


def main(names: list[str], rounds: int) -> None:
    print(f"{torch.get_num_threads()} threads of torch; milliseconds of a solve and its gradient: clock, processor")
    for name in names:
        problem = Problem(*SIZES[name])
        problem.z0.requires_grad_()
        contenders = {
            "pynode julia": by_pynode(problem, "julia"),
            "pynode torch": by_pynode(problem, "torch"),
            "torchcde, adjoint": by_torchcde(problem, True),
            "torchcde, backpropagation": by_torchcde(problem, False),
        }
        gradient(problem, contenders["pynode julia"])  # compiles
        found: dict[str, list[Tensor]] = {}
        least = {who: (float("inf"), float("inf")) for who in contenders}
        for _ in range(rounds):
            for who, solve in contenders.items():
                n = 20 if who == "pynode julia" else 1
                start, processor = time.perf_counter(), time.process_time()
                for _ in range(n):
                    found[who] = gradient(problem, solve)
                taken = (time.perf_counter() - start) / n, (time.process_time() - processor) / n
                least[who] = tuple(map(min, least[who], taken))  # type: ignore[assignment]
        exact_problem = problem.double()
        exact_problem.z0.requires_grad_()
        exact = gradient(exact_problem, by_torchcde(exact_problem, False, 1e-2))
        print(name)
        ours = least["pynode julia"]
        for who, (clock, processor) in least.items():
            print(
                f"  {who:<26} {1e3 * clock:9.2f} {1e3 * processor:9.2f}   ratios {clock / ours[0]:6.1f}"
                f" {processor / ours[1]:6.1f}   gradient {apart(found[who], exact):.0e} off",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--problems", nargs="+", default=list(SIZES), choices=list(SIZES))
    given = parser.parse_args()
    main(given.problems, given.rounds)
