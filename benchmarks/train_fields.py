"""Trains the networks of `pynode.study`'s problems `digits`, `ffjord` and `latent_ode`, and writes their files.

    python benchmarks/train_fields.py [digits ffjord latent_ode] [--out pynode/study/library/data]

Float32 on one thread from seed 0. A file has the weights, the initial states of the problem, and notes on how it was
trained; it is read by `pynode.study.library.network.load`. Training again on another machine gives other weights in
the last digits, so that the references are to be made anew: `python -m pynode.study.library.make_references`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import trange

import pynode
from pynode import data
from pynode.models import LatentODE
from pynode.study.library.network import Network

SPAN = torch.tensor([0.0, 1.0])


def down_a_cosine(loss, parameters, iterations, lr):
    """Adam; `loss()` draws its own batch."""
    parameters = list(parameters)
    optimizer = torch.optim.Adam(parameters, lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in (bar := trange(iterations)):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{value.item():.4f}", refresh=False)


def digits() -> tuple[nn.Module, Tensor, dict[str, object]]:
    """A neural ODE between two linear layers that tells handwritten digits apart."""
    train, test = (subset.tensors for subset in data.digits(generator=torch.Generator().manual_seed(0)))
    stem, field, head = nn.Linear(64, 32), Network(32, 64, 64, 32), nn.Linear(32, 10)

    def logits(images):
        solution = pynode.solve(field, stem(images.flatten(1)), SPAN, solver="rk4", dt=0.1, engine="torch")
        return head(solution.z[-1])

    def loss():
        batch = torch.randint(len(train[0]), (128,))
        return nn.functional.cross_entropy(logits(train[0][batch]), train[1][batch])

    parameters = [*stem.parameters(), *field.parameters(), *head.parameters()]
    down_a_cosine(loss, parameters, iterations := 1500, 3e-3)
    with torch.no_grad():
        accuracy = (logits(test[0]).argmax(1) == test[1]).double().mean().item()
        z0 = stem(test[0].flatten(1)[:256])
    return field, z0, {"iterations": iterations, "test accuracy": f"{accuracy:.3f}"}


def ffjord() -> tuple[nn.Module, Tensor, dict[str, object]]:
    """A flow from two moons to a normal distribution, the trace exact in training."""
    field, draw = Network(2, 64, 64, 2, time=True), torch.Generator().manual_seed(0)

    def dynamics(t, state):
        with torch.enable_grad():
            z = state[:, :2].requires_grad_() if not state.requires_grad else state[:, :2]
            dz = field(t, z)
            rows = [torch.autograd.grad(dz[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(2)]
        return torch.cat([dz, torch.stack(rows, 1).sum(1, keepdim=True)], 1)

    def nll(x):
        state = torch.cat([x, torch.zeros(len(x), 1)], 1)
        end = state
        for k in range(10):
            end = rk4(dynamics, k / 10, end, 0.1)
        base = torch.distributions.Normal(0.0, 1.0).log_prob(end[:, :2]).sum(1)
        return -(base + end[:, 2]).mean()

    down_a_cosine(lambda: nll(data.density("moons", 256, generator=draw)), field.parameters(), iterations := 2500, 5e-3)
    score = nll(data.density("moons", 4096, generator=draw)).item()
    z0 = torch.cat([data.density("moons", 256, generator=draw), torch.zeros(256, 1)], 1)
    return field, z0, {"iterations": iterations, "test negative log-likelihood in nats": f"{score:.3f}"}


def rk4(f, t, z, h):
    """A step of the classical Runge-Kutta method."""
    at = [torch.tensor(s) for s in (t, t + h / 2, t + h)]
    a = f(at[0], z)
    b = f(at[1], z + h / 2 * a)
    c = f(at[1], z + h / 2 * b)
    return z + h / 6 * (a + 2 * b + 2 * c + f(at[2], z + h * c))


def latent_ode() -> tuple[nn.Module, Tensor, dict[str, object]]:
    """The dynamics of a latent ODE that reads noisy spirals and draws them on."""
    draw, scale = torch.Generator().manual_seed(0), 4.0
    train, test = (data.spirals(n, 50, 0.3, generator=draw).tensors for n in (1000, 200))
    field = Network(4, 32, 32, 4)
    options = {"solver": "rk4", "dt": 0.1, "engine": "torch"}
    model = LatentODE(2, 4, field=field, hidden=32, noise_std=0.3 / scale, **options)
    x, t, done = train[0] / scale, train[1], iter(range(10**6))

    def loss():
        batch = torch.randint(len(x), (100,))
        return -model.elbo(x[batch], t[batch], kl_weight=min(1.0, next(done) / 300)).mean()

    down_a_cosine(loss, model.parameters(), iterations := 1500, 1e-2)
    x, t, path, times = test
    with torch.no_grad():
        error = (model.predict(x / scale, t, times[0], n_samples=10).mean(0) * scale - path).pow(2).mean().sqrt().item()
        z0 = model.posterior(x[:64] / scale, t[:64]).mean
    return field, z0, {"iterations": iterations, "test RMSE": f"{error:.3f}"}


def main() -> None:
    makers = {maker.__name__: maker for maker in (digits, ffjord, latent_ode)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *makers], help="which; all by default")
    parser.add_argument("--out", type=Path, default=Path("pynode/study/library/data"), help="folder of the files")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.names or makers:
        torch.manual_seed(0)
        field, z0, notes = makers[name]()
        notes = {"script": "benchmarks/train_fields.py", "torch": torch.__version__, **notes}
        arrays = {key: value.detach().numpy() for key, value in field.state_dict().items()}
        arguments.out.mkdir(parents=True, exist_ok=True)
        path = arguments.out / f"{name}.npz"
        np.savez_compressed(
            path, z0=z0.detach().numpy(), **arrays, **{f"note.{key}": str(value) for key, value in notes.items()}
        )
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB, {notes}")


if __name__ == "__main__":
    main()
