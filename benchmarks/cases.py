"""The problems of the studies here that pynode's own library does not have, each as a function of its sizes."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

import pynode
from pynode.nn import TimeConcat, TimeSequential
from pynode.study import Problem, Reference, Setting

PARTS = (slice(0, 2), slice(2, 8))  # of the oscillators' states and their derivatives
_SINGLE = (Setting(1e-1), Setting(1e-2), Setting(1e-3), Setting(1e-4))


class Spiral(nn.Module):
    """W2 tanh(W1 z³ + b1) + b2."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.net(z**3)


class MLP(nn.Module):
    """A tanh network of the given widths."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.Tanh())]
        self.net = nn.Sequential(*layers[:-1])

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.net(z)


class Conv(nn.Module):
    """Two 3×3 convolutions with the time as a channel, group norm between."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = TimeSequential(
            TimeConcat(nn.Conv2d(channels + 1, channels, 3, padding=1)),
            nn.GroupNorm(4, channels),
            nn.Tanh(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.net(t, z)


class Density(nn.Module):
    """FFJORD's dynamics of a point in the plane and of its log-density, with Hutchinson's trace: a state (batch, 3)."""

    def __init__(self, width: int, batch: int) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, width), nn.Linear(width + 1, width), nn.Linear(width + 1, 2)
        self.register_buffer("noise", torch.randn(batch, 2).sign())

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            z = y[:, :2] if y.requires_grad else y[:, :2].detach().requires_grad_()
            time = t.expand(z.shape[0], 1)
            hidden = torch.tanh(self.first(torch.cat([z, time], 1)))
            hidden = torch.tanh(self.second(torch.cat([hidden, time], 1)))
            dz = self.last(torch.cat([hidden, time], 1))
            (row,) = torch.autograd.grad(dz, z, self.noise, create_graph=True)
        return torch.cat([dz, (row * self.noise).sum(1, keepdim=True)], 1)


class VanDerPol(nn.Module):
    """Van der Pol's oscillator, μ a parameter."""

    def __init__(self, mu: float) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.tensor(mu, dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        x, y = z.unbind(-1)
        return torch.stack([y, self.mu * (1 - x**2) * y - x], -1)


def network_in_jax(cubed: bool) -> Callable[..., Any]:
    """`Spiral` and `MLP`; parameters in the order of `nn.Module.parameters`."""

    def field(t: Any, z: Any, p: list[Any]) -> Any:
        import jax.numpy as jnp

        z = z**3 if cubed else z
        for i in range(0, len(p), 2):
            z = z @ p[i].T + p[i + 1]
            z = jnp.tanh(z) if i < len(p) - 2 else z
        return z

    return field


def density_in_jax(noise: Tensor) -> Callable[..., Any]:
    """`Density` with this noise."""

    def field(t: Any, y: Any, p: list[Any]) -> Any:
        import jax
        import jax.numpy as jnp

        epsilon = jnp.asarray(noise.numpy(), y.dtype)

        def dynamics(z: Any) -> Any:
            time, out = jnp.full((len(z), 1), t, z.dtype), z
            for i in range(0, 6, 2):
                out = jnp.concatenate([out, time], 1) @ p[i].T + p[i + 1]
                out = jnp.tanh(out) if i < 4 else out
            return out

        dz, pull = jax.vjp(dynamics, y[:, :2])
        return jnp.concatenate([dz, (pull(epsilon)[0] * epsilon).sum(1, keepdims=True)], 1)

    return field


def spiral() -> Problem:
    """The spiral's network with a state of one sample, and many times."""
    torch.manual_seed(0)
    t = torch.linspace(0, 1.5, 30)
    named = {"name": "spiral 2-50-2, 30 times", "settings": _SINGLE, "jax": network_in_jax(True)}
    return Problem(Spiral(), torch.tensor([[2.0, 0.0]]), t, **named)


def mlp(features: int = 32, width: int = 128, batch: int = 256) -> Problem:
    """A network with two hidden layers."""
    torch.manual_seed(0)
    field, z0 = MLP(features, width, width, features), torch.randn(batch, features)
    name = f"MLP {features}-{width}-{width}-{features}, batch {batch}"
    return Problem(field, z0, torch.tensor([0.0, 1.0]), name=name, settings=_SINGLE, jax=network_in_jax(False))


def density(width: int = 64, batch: int = 512) -> Problem:
    """A point of FFJORD's flow and its density."""
    torch.manual_seed(0)
    field = Density(width, batch)
    z0 = torch.cat([torch.randn(batch, 2), torch.zeros(batch, 1)], 1)
    named = {"name": f"FFJORD 2-{width}-{width}-2, batch {batch}", "settings": _SINGLE}
    return Problem(field, z0, torch.tensor([0.0, 1.0]), jax=density_in_jax(field.noise), **named)


def convolutions(channels: int = 16, size: int = 8, batch: int = 128) -> Problem:
    """Images."""
    torch.manual_seed(0)
    z0, name = torch.randn(batch, channels, size, size), f"convolutions {size}×{size}×{channels}, batch {batch}"
    return Problem(Conv(channels), z0, torch.tensor([0.0, 1.0]), name=name, settings=_SINGLE)


def span(length: int = 1) -> Problem:
    """A state of 1 MB over a span of that length, for memory."""
    torch.manual_seed(0)
    field = TimeSequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32)).double()
    return for_memory(field, torch.randn(4096, 32, dtype=torch.float64), length, f"{length}×")


def wide_span(length: int = 1) -> Problem:
    """The same of a network with two hidden layers, four times as wide as its state, in single precision."""
    torch.manual_seed(0)
    name = f"MLP 64-256-256-64 × 1024, {length}×"
    return for_memory(MLP(64, 256, 256, 64), torch.randn(1024, 64), length, name)


def for_memory(field: nn.Module, z0: Tensor, length: int, name: str) -> Problem:
    """A problem whose reference is cheap: what steps of rk4 make of it in double precision, and their gradient.

    It tells a gradient that is wrong from one that is right, not how exact a solver is.
    """
    dt, double = 0.1, copy.deepcopy(field).double()
    start = z0.double().requires_grad_()
    z, zero = start, torch.zeros(())
    for _ in range(10 * length):
        k1 = double(zero, z)
        k2 = double(zero, z + dt / 2 * k1)
        k3 = double(zero, z + dt / 2 * k2)
        k4 = double(zero, z + dt * k3)
        z = z + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    states = torch.stack([start, z])
    loss = last_sum(states)
    inputs = {"z0": start, **dict(double.named_parameters())}
    found = {name: g.numpy() for name, g in zip(inputs, torch.autograd.grad(loss, list(inputs.values())), strict=True)}
    right = Reference(states.detach().numpy(), found, loss.item(), 0.0, 0.0, "the same steps of rk4, by autograd")
    t = torch.tensor([0.0, float(length)], dtype=z0.dtype)
    named = {"name": name, "settings": (Setting(dt=dt),), "jax": network_in_jax(False), "reference": right}
    return Problem(field, z0, t, loss=last_sum, **named)


def last_sum(z: Tensor) -> Tensor:
    """The sum of the last state."""
    return z[-1].sum()


def oscillators(batch: int = 8, mu: float = 10.0) -> Problem:
    """Van der Pol's oscillators, each at another place of the limit cycle, over one period.

    Each has its moments of small steps; of a joint solve all have them all.
    """
    field = VanDerPol(mu)
    period = (3 - 2 * math.log(2)) * mu + 7.014 * mu ** (-1 / 3)  # Hairer, Nørsett, Wanner I, section I.16
    phases = period * (3 + torch.arange(batch, dtype=torch.float64) / batch)
    times, start = torch.cat([torch.zeros(1, dtype=torch.float64), phases]), torch.tensor([[2.0, 0.0]]).double()
    with torch.no_grad():
        z = pynode.solve(field, start, times, engine="torch", solver="lsoda", rtol=1e-8, atol=1e-10).z[1:, 0]
    t = torch.tensor([0.0, period], dtype=torch.float64)
    named = {"name": f"Van der Pol μ={mu:g} × {batch}", "settings": (Setting(1e-5, 1e-5),)}
    return Problem(field, z.contiguous(), t, reference=of_oscillators(z.numpy(), mu, period), **named)


def of_oscillators(z0: np.ndarray, mu: float, end: float) -> Reference:
    """The oscillators at the end with their derivatives, by the variational equations, in two ways."""
    n = len(z0)

    def rates(_: float, flat: np.ndarray) -> np.ndarray:
        x, y, *tangents = flat.reshape(8, n)  # the derivatives of x and y, to their start and to μ
        of_x, of_y = np.stack(tangents[:3]), np.stack(tangents[3:])
        change = (-2 * mu * x * y - 1) * of_x + mu * (1 - x**2) * of_y
        change[2] += (1 - x**2) * y
        return np.concatenate([[y, mu * (1 - x**2) * y - x], of_y, change]).ravel()

    ones, zeros = np.ones(n), np.zeros(n)
    start = np.stack([*z0.T, ones, zeros, zeros, zeros, ones, zeros]).ravel()
    ends = [
        solve_ivp(rates, (0, end), start, method=method, rtol=1e-12, atol=1e-13).y[:, -1].reshape(8, n)
        for method in ("DOP853", "LSODA")
    ]
    x, y, x_x, x_y, x_mu, y_x, y_y, y_mu = ends[0]
    states = np.stack([z0, np.stack([x, y], 1)])
    of_z0 = 2 * np.stack([z0[:, 0] + x * x_x + y * y_x, z0[:, 1] + x * x_y + y * y_y], 1) / states.size
    of_mu = 2 * np.array((x * x_mu + y * y_mu).sum()) / states.size
    apart = [float(np.linalg.norm(ends[0][rows] - ends[1][rows]) / np.linalg.norm(ends[0][rows])) for rows in PARTS]
    return Reference(states, {"z0": of_z0, "mu": of_mu}, float((states**2).mean()), *apart, "DOP853 and LSODA at 1e-12")


def own_steps(steps: int = 10) -> Problem:
    """A network whose reference is what that many midpoint steps make of it, and the gradient of just that.

    A discrete adjoint differentiates these steps; one of the continuous equation differentiates something else.
    """
    torch.manual_seed(0)
    field = MLP(16, 32, 32, 16).double()
    with torch.no_grad():
        for p in field.parameters():
            p *= 2
    z0, t = torch.randn(64, 16, dtype=torch.float64), torch.tensor([0.0, 5.0], dtype=torch.float64)
    start, dt = z0.clone().requires_grad_(), 5 / steps
    z = start
    for _ in range(steps):
        z = z + dt * field(t[0], z + dt / 2 * field(t[0], z))
    states = torch.stack([start, z])
    loss = states.square().mean()
    inputs = {"z0": start, **dict(field.named_parameters())}
    gradients = torch.autograd.grad(loss, list(inputs.values()))
    found = {name: g.numpy() for name, g in zip(inputs, gradients, strict=True)}
    right = Reference(states.detach().numpy(), found, loss.item(), 0.0, 0.0, "the same steps, by autograd")
    return Problem(field, z0, t, name=f"{steps} midpoint steps", settings=(Setting(dt=dt),), reference=right)
