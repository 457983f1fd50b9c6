"""Training steps of small models: in one call, in a loop, with diffrax and optax jitted, and with torchdiffeq.

    OMP_NUM_THREADS=1 python benchmarks/training.py      # needs `pip install optax` besides the extra `study`

Adam's steps on two problems, float32: Lotka–Volterra with an unknown interaction (a network in place of it, one
trajectory at 31 times), and the spiral's network 2–50–2 on 30 times. All solve by a 5(4) pair at rtol 1e-3 and atol
1e-6 from the same weights; all losses are printed. A contender's time is the least of `--rounds`, in which they take
turns, of some hundred milliseconds or more each. diffrax does its steps in one `jax.lax.scan` within `jax.jit`;
torchdiffeq backpropagates through its operations.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import pynode
from pynode.fit import trainer

STEPS = 200  # in a call


@dataclass
class Case:
    """A field made afresh, its equal in JAX, and what it is fitted to."""

    name: str
    make: Callable[[], nn.Module]
    jax: Callable[[Any, Any, Any], Any]
    z0: Tensor
    t: Tensor
    target: Tensor

    def loss(self, z: Tensor) -> Tensor:
        return ((z - self.target) ** 2).mean()


class Unknown(nn.Module):
    """dx/dt = 1.3 x + n₁(x, y), dy/dt = -1.8 y + n₂(x, y)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2))
        self.register_buffer("known", torch.tensor([1.3, -1.8]))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.known * z + self.net(z)


class Spiral(nn.Module):
    """dz/dt = W₂ tanh(W₁ z³ + b₁) + b₂."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))
        for p in self.net.parameters():
            nn.init.normal_(p, std=0.1)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.net(z**3)


def network(p: Sequence[Any], z: Any) -> Any:
    import jax.numpy as jnp

    for i in range(0, len(p), 2):
        z = z @ p[i].T + p[i + 1]
        z = jnp.tanh(z) if i < len(p) - 2 else z
    return z


def cases() -> list[Case]:
    def predator_prey(t: Tensor, z: Tensor) -> Tensor:
        x, y = z[:, 0], z[:, 1]
        return torch.stack([1.3 * x - 0.9 * x * y, 0.8 * x * y - 1.8 * y], 1)

    def unknown(t: Any, z: Any, p: Any) -> Any:
        import jax.numpy as jnp

        return jnp.asarray([1.3, -1.8], z.dtype) * z + network(p, z)

    def spiral(t: Any, z: Any, p: Any) -> Any:
        return network(p, z**3)

    a = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])
    found = []
    for name, make, jax, z0, end, n, truth in (
        ("Lotka–Volterra, unknown interaction", Unknown, unknown, [[0.44, 4.6]], 3.0, 31, predator_prey),
        ("spiral 2–50–2", Spiral, spiral, [[2.0, 0.0]], 1.5, 30, lambda t, z: z**3 @ a),
    ):
        t, start = torch.linspace(0.0, end, n), torch.tensor(z0)
        with torch.no_grad():
            target = pynode.solve(truth, start, t, rtol=1e-6, atol=1e-8, engine="torch").z
        found.append(Case(name, make, jax, start, t, target))
    return found


Run = Callable[[int], Any]  # so many steps; returns the losses


def in_one_call(case: Case) -> Run:
    return trainer(case.make(), case.loss, case.z0, case.t, "adam", lr=1e-3, solver="tsit5", engine="julia")


def loop(case: Case, solve: Callable[[nn.Module], Tensor]) -> Run:
    field = case.make()
    optimizer = torch.optim.Adam(field.parameters(), lr=1e-3)

    def run(steps: int) -> Tensor:
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = case.loss(solve(field))
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    return run


def in_a_loop(case: Case) -> Run:
    return loop(case, lambda field: pynode.solve(field, case.z0, case.t, solver="tsit5", engine="julia").z)


def torchdiffeq(case: Case) -> Run:
    from torchdiffeq import odeint

    how = {"method": "dopri5", "rtol": 1e-3, "atol": 1e-6}
    return loop(case, lambda field: odeint(field, case.z0, case.t, **how))


def diffrax(case: Case) -> Run:
    import diffrax as dfx
    import jax
    import jax.numpy as jnp
    import optax

    p = [jnp.asarray(x.detach().numpy()) for x in case.make().parameters()]
    z0, ts, target = (jnp.asarray(x.numpy()) for x in (case.z0, case.t, case.target))
    adam, term = optax.adam(1e-3), dfx.ODETerm(case.jax)

    def loss(p: Any) -> Any:
        found = dfx.diffeqsolve(
            term,
            dfx.Tsit5(),
            ts[0],
            ts[-1],
            None,
            z0,
            p,
            saveat=dfx.SaveAt(ts=ts),
            stepsize_controller=dfx.PIDController(rtol=1e-3, atol=1e-6),
            max_steps=256,
        )
        return ((found.ys - target) ** 2).mean()

    def step(carry: Any, _: Any) -> Any:
        p, state = carry
        value, g = jax.value_and_grad(loss)(p)
        change, state = adam.update(g, state, p)
        return (optax.apply_updates(p, change), state), value

    many = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=STEPS))
    carry = (p, adam.init(p))

    def run(steps: int) -> Tensor:
        nonlocal carry
        losses = []
        for _ in range(steps // STEPS):
            carry, values = many(carry)
            losses.append(values.block_until_ready())
        return torch.cat([torch.tensor(jax.device_get(x)) for x in losses])

    return run


CONTENDERS = {
    "pynode, one call": (in_one_call, 2000),
    "pynode, loop": (in_a_loop, 400),
    "diffrax + optax": (diffrax, 1000),
    "torchdiffeq": (torchdiffeq, 20),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print("| ms a training step | " + " | ".join(CONTENDERS) + " |")
    print("| --- |" + " ---: |" * len(CONTENDERS))
    for case in cases():
        runs, first = {}, {}
        for name, (make, _) in CONTENDERS.items():
            runs[name] = make(case)
            first[name] = runs[name](20 if name == "torchdiffeq" else STEPS)
        best = dict.fromkeys(CONTENDERS, float("inf"))
        for _ in range(rounds):
            for name, (_, steps) in CONTENDERS.items():
                started = time.perf_counter()
                runs[name](steps)
                best[name] = min(best[name], 1e3 * (time.perf_counter() - started) / steps)
        print(f"| {case.name} | " + " | ".join(f"{best[name]:.3g}" for name in CONTENDERS) + " |")
        for name, losses in first.items():
            print(f"<!-- {name}: loss {losses[0]:.6f}, after 19 steps {losses[19]:.6f} -->")


if __name__ == "__main__":
    main()
