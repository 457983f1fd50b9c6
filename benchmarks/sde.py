"""An SDE on both engines and by torchsde itself: the problem of torchsde's README, at equal steps.

    OMP_NUM_THREADS=1 python benchmarks/sde.py

A state of 3 with 2 Brownian motions, drift and diffusion linear layers, a batch of 32, Euler-Maruyama by 1000 steps of
1e-3, reported at 20 times: the solve, and the solve with the gradient. Processor seconds of this process, the least of
several rounds, the contenders one after the other in each. Needs the extra `sde`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torchsde
from torch import Tensor, nn

import pynode

BATCH, STATE, MOTIONS, TIMES, DT = 32, 3, 2, 20, 1e-3


class Linear(nn.Module):
    """The SDE as torchsde's README has it."""

    noise_type, sde_type = "general", "ito"

    def __init__(self) -> None:
        super().__init__()
        self.mu, self.sigma = nn.Linear(STATE, STATE), nn.Linear(STATE, STATE * MOTIONS)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return self.mu(y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return self.sigma(y).view(-1, STATE, MOTIONS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    sde, y0, t = Linear(), torch.full((BATCH, STATE), 0.1), torch.linspace(0, 1, TIMES)

    def by_engine(engine: str) -> Callable[[], Tensor]:
        return lambda: pynode.solve_sde(sde.f, sde.g, y0, t, noise="general", solver="em", dt=DT, engine=engine).z

    contenders = {
        "torchsde": lambda: torchsde.sdeint(sde, y0, t, method="euler", dt=DT),
        "pynode torch": by_engine("torch"),
        "pynode julia": by_engine("julia"),
    }
    least: dict[tuple[str, str], float] = {}
    for _ in range(rounds + 1):  # the first compiles
        for name, solve in contenders.items():
            for what in ("solve", "gradient"):
                started = time.process_time()
                with torch.set_grad_enabled(what == "gradient"):
                    z = solve()
                if what == "gradient":
                    z[-1].square().mean().backward()
                spent = time.process_time() - started
                least[name, what] = min(spent, least.get((name, what), spent))
    print(f"{'processor ms':<14}{'solve':>10}{'gradient':>10}")
    for name in contenders:
        print(f"{name:<14}" + "".join(f"{1e3 * least[name, what]:>10.1f}" for what in ("solve", "gradient")))
    ratios = [least["torchsde", what] / least["pynode julia", what] for what in ("solve", "gradient")]
    print(f"torchsde / pynode julia: {ratios[0]:.1f} and {ratios[1]:.1f}")


if __name__ == "__main__":
    main()
