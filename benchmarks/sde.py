"""Stochastic differential equations on both engines and by torchsde itself, at equal steps.

    OMP_NUM_THREADS=1 python benchmarks/sde.py

`readme` is the problem of torchsde's README: a state of 3 with 2 Brownian motions, drift and diffusion linear layers,
a batch of 32, Euler-Maruyama by 1000 steps of 1e-3, reported at 20 times. `latent` has the sizes of its example of a
latent SDE of the Lorenz attractor: a batch of 128 with a state of 3 and a context of 64, drifts of posterior and prior
with two hidden layers of 128, a diffusion of each coordinate, the divergence of the two processes solved for beside the
state, 100 steps of 1e-2, reported at 51 times, each the end of a step. The context is constant in time here.

Least times of this process over several rounds, in which the contenders take turns: the solve, and the solve with its
gradient by backpropagation through the steps. All have the same weights; the noise differs from engine to engine. Needs
the extra `sde`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torchsde
from torch import Tensor, nn

import pynode


class Readme(nn.Module):
    """The SDE of the README; torchsde calls `f` and `g`."""

    noise_type, sde_type = "general", "ito"
    batch, state, motions, times, dt = 32, 3, 2, 20, 1e-3

    def __init__(self) -> None:
        super().__init__()
        self.mu, self.sigma = nn.Linear(self.state, self.state), nn.Linear(self.state, self.state * self.motions)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return self.mu(y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return self.sigma(y).view(-1, self.state, self.motions)

    def by_torchsde(self, y0: Tensor, t: Tensor) -> Tensor:
        return torchsde.sdeint(self, y0, t, method="euler", dt=self.dt)[-1].square().mean()

    def by_pynode(self, y0: Tensor, t: Tensor, engine: str) -> Tensor:
        solution = pynode.solve_sde(self.f, self.g, y0, t, noise="general", solver="em", dt=self.dt, engine=engine)
        return solution.z[-1].square().mean()


class Latent(nn.Module):
    """Posterior and prior of a latent SDE with one diffusion."""

    noise_type, sde_type = "diagonal", "ito"
    batch, state, times, dt = 128, 3, 51, 1e-2
    context, hidden = 64, 128

    def __init__(self) -> None:
        super().__init__()
        n = self.hidden
        self.posterior, self.prior = (
            nn.Sequential(nn.Linear(m, n), nn.Softplus(), nn.Linear(n, n), nn.Softplus(), nn.Linear(n, self.state))
            for m in (self.state + self.context, self.state)
        )
        self.weights = nn.Parameter(torch.randn(2, n, self.state))
        self.sums = nn.Parameter(torch.randn(n, self.state) / n)
        self.given = nn.Parameter(torch.randn(self.batch, self.context))

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return self.of_posterior(t, y, self.given)

    def of_posterior(self, t: Tensor, y: Tensor, context: Tensor) -> Tensor:
        return self.posterior(torch.cat([y, context], dim=1))

    def h(self, t: Tensor, y: Tensor) -> Tensor:
        return self.prior(y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        features = nn.functional.softplus(y.unsqueeze(1) * self.weights[0] + self.weights[1])
        return torch.sigmoid((features * self.sums).sum(1))

    def cost(self, t: Tensor, y: Tensor, context: Tensor) -> Tensor:
        u = (self.of_posterior(t, y, context) - self.h(t, y)) / self.g(t, y)
        return 0.5 * u.square().sum(1)

    def by_torchsde(self, y0: Tensor, t: Tensor) -> Tensor:
        y, cost = torchsde.sdeint(self, y0, t, method="euler", dt=self.dt, logqp=True)
        return y[-1].square().mean() + cost.sum(0).mean()

    def by_pynode(self, y0: Tensor, t: Tensor, engine: str) -> Tensor:
        solution = pynode.solve_sde(
            self.of_posterior,
            lambda t, y, context: self.g(t, y),
            y0,
            t,
            args=(self.given,),
            running_cost=self.cost,
            solver="em",
            dt=self.dt,
            engine=engine,
        )
        assert solution.running_cost is not None
        return solution.z[-1].square().mean() + solution.running_cost.mean()


def contenders(sde: Readme | Latent) -> dict[str, Callable[[], Tensor]]:
    """The loss of each."""
    y0, t = torch.full((sde.batch, sde.state), 0.1), torch.linspace(0, 1, sde.times)
    return {
        "pynode julia": lambda: sde.by_pynode(y0, t, "julia"),
        "pynode torch": lambda: sde.by_pynode(y0, t, "torch"),
        "torchsde": lambda: sde.by_torchsde(y0, t),
    }


def main(names: list[str], rounds: int) -> None:
    print(f"{torch.get_num_threads()} threads of torch; milliseconds of the processor, and of the clock")
    for name in names:
        torch.manual_seed(0)
        sde = SIZES[name]()
        least: dict[tuple[str, bool], tuple[float, float]] = {}
        of = contenders(sde)
        for _ in range(rounds + 1):  # the first compiles
            for who, loss in of.items():
                for gradient in (False, True):
                    processor, clock = time.process_time(), time.perf_counter()
                    with torch.set_grad_enabled(gradient):
                        value = loss()
                    if gradient:
                        value.backward()
                    spent = time.process_time() - processor, time.perf_counter() - clock
                    least[who, gradient] = tuple(map(min, spent, least.get((who, gradient), spent)))  # type: ignore[assignment]
        print(f"{name}{'solve':>29}{'ratio':>9}{'gradient':>20}{'ratio':>9}")
        for who in of:
            row = f"  {who:<14}"
            for gradient in (False, True):
                processor, clock = least[who, gradient]
                ratio = least["torchsde", gradient][0] / processor
                row += f"{1e3 * processor:>10.1f}{1e3 * clock:>10.1f}{ratio:>9.1f}"
            print(row, flush=True)


SIZES: dict[str, type[Readme] | type[Latent]] = {"readme": Readme, "latent": Latent}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--problems", nargs="+", default=list(SIZES), choices=list(SIZES))
    given = parser.parse_args()
    main(given.problems, given.rounds)
