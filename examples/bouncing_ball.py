"""A bouncing ball whose gravity and loss of speed are learned from when it was heard to bounce.

The ball is an ordinary neural-ODE field; each bounce is an event that turns its velocity round, and the solve goes on.
The times of the events have gradients, also to what comes after a bounce (the saltation term), so that Adam finds the
two numbers from six times with some noise.

    python examples/bouncing_ball.py

After R. T. Q. Chen, B. Amos and M. Nickel, "Learning Neural Event Functions for Ordinary Differential Equations",
ICLR 2021, section 5.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from _shared import write
from torch import nn
from tqdm import trange

import pynode


class Ball(nn.Module):
    """Free fall: height and velocity, `(batch, 2)`; and the bounce."""

    def __init__(self, gravity: float, restitution: float) -> None:
        super().__init__()
        self.gravity = nn.Parameter(torch.tensor(gravity))
        self.restitution = nn.Parameter(torch.tensor(restitution))

    def forward(self, t, z):
        """dz/dt."""
        return torch.stack([z[:, 1], (-self.gravity).expand(len(z))], 1)

    def bounce(self, t, z):
        """The state after one before."""
        return torch.stack([z[:, 0], -self.restitution * z[:, 1]], 1)

    def solve(self, bounces: int, t, engine: str):
        """From a height of 1 m at rest to so many bounces, or to the last of the times."""
        floor = pynode.Event(lambda t, z: z[0, 0], direction=-1, terminal=bounces, affect=self.bounce)
        return pynode.solve(self, torch.tensor([[1.0, 0.0]]), t, event=floor, engine=engine, rtol=1e-6)


def main(iterations: int, engine: str, out: Path, seed: int) -> None:
    """Make the times, learn from them, and write what was found."""
    torch.manual_seed(seed)
    with torch.no_grad():
        heard = Ball(9.81, 0.8).solve(6, [0.0, 10.0], engine).events.t
        heard = heard + 2e-3 * torch.randn(len(heard))
    ball = Ball(7.0, 0.6)
    rates = [{"params": [ball.gravity], "lr": 0.3}, {"params": [ball.restitution], "lr": 0.02}]
    optimizer = torch.optim.Adam(rates)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    losses = []
    for _ in (bar := trange(iterations, desc="bounces")):
        optimizer.zero_grad()
        loss = (ball.solve(6, [0.0, 10.0], engine).events.t - heard).pow(2).mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        bar.set_postfix(g=f"{ball.gravity.item():.3f}", e=f"{ball.restitution.item():.3f}", refresh=False)
    results = {
        "gravity": ball.gravity.item(),
        "restitution": ball.restitution.item(),
        "rms": losses[-1] ** 0.5,
        "engine": engine,
    }
    print(f"gravity {results['gravity']:.3f} (9.81), restitution {results['restitution']:.3f} (0.8)")

    def draw():
        import matplotlib.pyplot as plt

        with torch.no_grad():
            t = torch.linspace(0, float(heard[-1]), 300)
            height = ball.solve(10, t, engine).z[:, 0, 0]
        figure, axes = plt.subplots(figsize=(6, 3))
        axes.plot(t, height, label="learned")
        axes.plot(heard, torch.zeros_like(heard), "k^", label="heard")
        axes.set(xlabel="t (s)", ylabel="height (m)")
        axes.legend()
        return {"ball.png": figure}

    write(out, results, draw)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=300, help="steps of Adam")
    parser.add_argument("--engine", default="auto", help="auto, julia or torch")
    parser.add_argument("--out", type=Path, default=Path("out/bouncing_ball"), help="folder of results and figures")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    main(given.iterations, given.engine, given.out, given.seed)
