"""Doses: samples with twenty doses each, and the gradients to doses, rates and their times, beside torchdiffeq.

    OMP_NUM_THREADS=1 python benchmarks/doses.py --samples 10000

One-compartment absorption with rates of each sample's own, to a relative tolerance of 1e-6. With a schedule that all
samples share, torchdiffeq starts afresh at each dose for all of them at once. With schedules of their own it has to for
one sample after the other, of which `--alone` are timed and the time is scaled to all; or all at once in a time of each
sample's own, s = (t - t_i) / (t_{i+1} - t_i), which takes a program that is written for it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torchdiffeq
from torch import Tensor, nn

import pynode

DOUBLE = torch.float64
TOLERANCE = {"rtol": 1e-6, "atol": 1e-8}


class Patients:
    """Rates, doses and when these are given, `(samples, doses)`; the last interval ends at `end`."""

    def __init__(self, samples: int, doses: int, shared: bool) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, dtype=DOUBLE)

        self.ka, self.k = (0.8 + 0.4 * random(samples)).requires_grad_(), (0.2 + 0.2 * random(samples)).requires_grad_()
        self.doses = (0.5 + random(samples, doses)).requires_grad_()
        delays = 0.0 if shared else random(samples, doses)
        times = torch.arange(doses, dtype=DOUBLE) + 0.5 * delays + 0.1
        self.times = times.requires_grad_()
        self.end = float(doses + 1)

    @property
    def inputs(self) -> list[Tensor]:
        """What gradients are asked for."""
        return [self.ka, self.k, self.doses, self.times]

    def part(self, rows: slice) -> Patients:
        """Some of them."""
        other = object.__new__(Patients)
        other.ka, other.k = self.ka[rows].detach().requires_grad_(), self.k[rows].detach().requires_grad_()
        other.doses, other.times = (x[rows].detach().requires_grad_() for x in (self.doses, self.times))
        other.end = self.end
        return other


def rates(z: Tensor, ka: Tensor, k: Tensor) -> Tensor:
    """What leaves the depot comes to the blood, which is cleared."""
    absorbed = ka * z[:, 0]
    return torch.stack([-absorbed, absorbed - k * z[:, 1]], 1)


def by_pynode(patients: Patients, batching: str) -> Tensor:
    """The amounts at the end, on the julia engine."""
    joint = batching == "joint"

    def jump(t: Tensor, z: Tensor, ka: Tensor, k: Tensor, *doses: Tensor, index: Tensor) -> Tensor:
        given = patients.doses if joint else doses[0]
        return z + nn.functional.pad(given.index_select(1, index.reshape(1)), (0, 1))

    def field(t: Tensor, z: Tensor, ka: Tensor, k: Tensor, *doses: Tensor) -> Tensor:
        return rates(z, ka, k)

    args = (patients.ka, patients.k) if joint else (patients.ka, patients.k, patients.doses)
    z0 = torch.zeros(len(patients.ka), 2, dtype=DOUBLE)
    event = pynode.At(patients.times, jump)
    sol = pynode.solve(
        field, z0, [0.0, patients.end], args=args, event=event, batching=batching, engine="julia", **TOLERANCE
    )
    return sol.z[-1]


def by_torchdiffeq(patients: Patients) -> Tensor:
    """The same, started afresh at each dose, in the time of each interval where samples have their own."""
    z = torch.zeros(len(patients.ka), 2, dtype=DOUBLE)
    end = torch.full_like(patients.times[..., :1], patients.end)
    lengths = torch.cat([patients.times, end], -1).diff(dim=-1)
    for i in range(patients.doses.shape[1]):
        z = z + nn.functional.pad(patients.doses[:, i : i + 1], (0, 1))
        length = lengths[..., i]
        scale = length if length.dim() == 0 else length[:, None]

        def field(s: Tensor, z: Tensor, scale: Tensor = scale) -> Tensor:
            return scale * rates(z, patients.ka, patients.k)

        z = torchdiffeq.odeint(field, z, torch.tensor([0.0, 1.0], dtype=DOUBLE), method="dopri5", **TOLERANCE)[-1]
    return z


def measured(solve: Callable[[Patients], Tensor], patients: Patients, repeats: int = 3) -> tuple[float, list[Tensor]]:
    """The least seconds of a solve and its gradient, and the gradient."""
    best, found = float("inf"), []
    for _ in range(repeats):
        start = time.perf_counter()
        found = list(torch.autograd.grad(solve(patients).pow(2).sum(), patients.inputs))
        best = min(best, time.perf_counter() - start)
    return best, found


def distance(a: list[Tensor], b: list[Tensor]) -> float:
    """The greatest relative distance of gradients."""
    return max(float((x - y).abs().max() / y.abs().max()) for x, y in zip(a, b, strict=True))


def main(samples: int, doses: int, alone: int) -> None:
    """Measure, and print a table."""
    print(f"{samples} samples, {doses} doses, {torch.get_num_threads()} threads of torch")
    for shared in (True, False):
        patients = Patients(samples, doses, shared)
        print("one schedule" if shared else "schedules of their own")
        batching = "joint" if shared else "independent"
        measured(lambda p, b=batching: by_pynode(p, b), patients, 1)  # compiles
        ours, gradient = measured(lambda p, b=batching: by_pynode(p, b), patients)
        print(f"  pynode julia, {batching:<32} {ours:9.3f} s")
        theirs, other = measured(by_torchdiffeq, patients, 2)
        name = "torchdiffeq, all at once" if shared else "torchdiffeq, in scaled time"
        apart = distance(gradient, other)
        print(f"  {name:<46} {theirs:9.3f} s   ratio {theirs / ours:7.1f}   gradients {apart:.1e} apart")
        if not shared:
            one = sum(measured(by_torchdiffeq, patients.part(slice(b, b + 1)), 1)[0] for b in range(alone))
            scaled = one * samples / alone
            print(f"  {'torchdiffeq, one after the other (scaled)':<46} {scaled:9.1f} s   ratio {scaled / ours:7.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--doses", type=int, default=20)
    parser.add_argument("--alone", type=int, default=10, help="samples that torchdiffeq solves one after the other")
    given = parser.parse_args()
    main(given.samples, given.doses, given.alone)
