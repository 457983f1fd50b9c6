"""The problems of the benchmarks: a field in PyTorch and the same in JAX, a state, and times."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pynode.nn import TimeConcat, TimeSequential


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
        pairs = itertools.pairwise(widths)
        layers = [layer for a, b in pairs for layer in (nn.Linear(a, b), nn.Tanh())]
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


class Lorenz(nn.Module):
    """Lorenz's equations, with σ, ρ, β as parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.tensor([10.0, 28.0, 8.0 / 3.0]))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        (s, r, b), (x, y, w) = self.coefficients, z.unbind(-1)
        return torch.stack([s * (y - x), x * (r - w) - y, x * y - b * w], -1)


class LotkaVolterra(nn.Module):
    """Lotka and Volterra's equations, with their four rates as parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.tensor([1.5, 1.0, 3.0, 1.0]))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        (a, b, c, d), (x, y) = self.coefficients, z.unbind(-1)
        return torch.stack([a * x - b * x * y, d * x * y - c * y], -1)


class VanDerPol(nn.Module):
    """Van der Pol's oscillator, μ a parameter."""

    def __init__(self, mu: float) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.tensor(mu))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        x, y = z.unbind(-1)
        return torch.stack([y, self.mu * (1 - x**2) * y - x], -1)


def network_in_jax(parameters: list[Any], cubed: bool) -> Callable[..., Any]:
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

        epsilon = jnp.asarray(noise.numpy())

        def dynamics(z: Any) -> Any:
            time, out = jnp.full((len(z), 1), t, z.dtype), z
            for i in range(0, 6, 2):
                out = jnp.concatenate([out, time], 1) @ p[i].T + p[i + 1]
                out = jnp.tanh(out) if i < 4 else out
            return out

        dz, pull = jax.vjp(dynamics, y[:, :2])
        return jnp.concatenate([dz, (pull(epsilon)[0] * epsilon).sum(1, keepdims=True)], 1)

    return field


def lorenz_in_jax(t: Any, z: Any, p: list[Any]) -> Any:
    """`Lorenz`."""
    import jax.numpy as jnp

    (s, r, b), (x, y, w) = p[0], (z[..., i] for i in range(3))
    return jnp.stack([s * (y - x), x * (r - w) - y, x * y - b * w], -1)


def lotka_volterra_in_jax(t: Any, z: Any, p: list[Any]) -> Any:
    """`LotkaVolterra`."""
    import jax.numpy as jnp

    (a, b, c, d), (x, y) = p[0], (z[..., i] for i in range(2))
    return jnp.stack([a * x - b * x * y, d * x * y - c * y], -1)


def van_der_pol_in_jax(t: Any, z: Any, p: list[Any]) -> Any:
    """`VanDerPol`."""
    import jax.numpy as jnp

    x, y = z[..., 0], z[..., 1]
    return jnp.stack([y, p[0] * (1 - x**2) * y - x], -1)


@dataclass
class Case:
    """A field, a state and times.

    Attributes:
        tolerance: of torchdiffeq's dopri5; the error that it makes is what the others are asked for.
        jax: the field in JAX, `f(t, z, parameters)`; `None` where there is none.
        widths: of the layers, where the field is a tanh network, for DiffEqFlux.
        stiff: whether only solvers for stiff fields will do.
    """

    name: str
    field: nn.Module
    z0: Tensor
    t: Tensor
    tolerance: float = 1e-3
    jax: Callable[..., Any] | None = None
    widths: tuple[int, ...] = ()
    stiff: bool = False


def cases() -> Iterator[Case]:
    """Every case, made anew from the same seed."""
    torch.manual_seed(0)
    field: nn.Module = Spiral()
    jax = network_in_jax(list(field.parameters()), True)
    times = torch.linspace(0, 1.5, 30)
    yield Case("spiral 2-50-2, 30 times", field, torch.tensor([[2.0, 0.0]]), times, jax=jax, widths=(2, 50, 2))
    for widths, batch in (((32, 128, 128, 32), 256), ((64, 256, 256, 64), 1024)):
        field = MLP(*widths)
        name = f"MLP {'-'.join(map(str, widths))}, batch {batch}"
        jax = network_in_jax(list(field.parameters()), False)
        yield Case(name, field, torch.randn(batch, widths[0]), torch.tensor([0.0, 1.0]), jax=jax, widths=widths)
    density = Density(64, 512)
    state = torch.cat([torch.randn(512, 2), torch.zeros(512, 1)], 1)
    jax = density_in_jax(density.noise)
    yield Case("FFJORD 2-64-64-2, batch 512", density, state, torch.tensor([0.0, 1.0]), jax=jax)
    yield Case("convolutions 8×8×16, batch 128", Conv(16), torch.randn(128, 16, 8, 8), torch.tensor([0.0, 1.0]))
    yield Case(
        "Lorenz, t to 2",
        Lorenz().double(),
        torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64),
        torch.linspace(0, 2, 21, dtype=torch.float64),
        tolerance=1e-6,
        jax=lorenz_in_jax,
    )
    yield Case(
        "Lotka-Volterra, t to 10",
        LotkaVolterra().double(),
        torch.ones(1, 2, dtype=torch.float64),
        torch.linspace(0, 10, 101, dtype=torch.float64),
        tolerance=1e-6,
        jax=lotka_volterra_in_jax,
    )
    yield Case(
        "Van der Pol μ=1000, t to 1000",
        VanDerPol(1e3).double(),
        torch.tensor([[2.0, 0.0]], dtype=torch.float64),
        torch.linspace(0, 1000, 11, dtype=torch.float64),
        tolerance=1e-6,
        jax=van_der_pol_in_jax,
        stiff=True,
    )
