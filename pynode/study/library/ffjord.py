"""The field of FFJORD: points of a flow, and what it does to their density."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pynode.study.library.network import Network, julia_layers, load, network_in_jax
from pynode.study.problem import Problem
from pynode.study.setting import Setting

__all__ = ["Flow", "ffjord"]

_ROOTS = (2**0.5, 3**0.5)


class Flow(nn.Module):
    """(f(t, z), εᵀ (∂f/∂z) ε) of a state (z, log-density) in the plane, with Hutchinson's estimate of the trace.

    Args:
        network: f, a `Network` that depends on t.
        batch: the number of points, of which each has an ε of its own, kept in the course of a solve.
    """

    noise: Tensor

    def __init__(self, network: nn.Module, batch: int) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("noise", signs(batch))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dz/dt."""
        with torch.enable_grad():
            z = y[:, :2] if y.requires_grad else y[:, :2].detach().requires_grad_()
            dz = self.network(t, z)
            (row,) = torch.autograd.grad(dz, z, self.noise, create_graph=True)
        return torch.cat([dz, (row * self.noise).sum(1, keepdim=True)], 1)


def signs(batch: int) -> Tensor:
    """+1 where the fraction of i √2, or of i √3, is less than a half, else -1: `(batch, 2)`, everywhere the same."""
    i = torch.arange(1, batch + 1, dtype=torch.float64)
    return torch.stack([torch.where((i * root) % 1 < 0.5, 1.0, -1.0) for root in _ROOTS], 1).double()


def in_jax(t: Any, y: Any, p: list[Any]) -> Any:
    """`Flow`."""
    import jax
    import jax.numpy as jnp

    noise = jnp.asarray(signs(len(y)).numpy(), y.dtype)
    dz, pull = jax.vjp(lambda z: network_in_jax(t, z, p, time=True), y[:, :2])
    return jnp.concatenate([dz, (pull(noise)[0] * noise).sum(1, keepdims=True)], 1)


def _julia(widths: tuple[int, ...], batch: int) -> str:
    return f"""\
let noise = [mod(i * root, 1) < 0.5 ? 1.0 : -1.0 for root in (sqrt(2.0), sqrt(3.0)), i in 1:{batch}]
function (du, u, p, t)
    {julia_layers(widths, True)}
    time = fill!(similar(u, 1, size(u, 2)), t)
    a = tanh.(W1' * vcat(u[1:2, :], time) .+ b1)
    b = tanh.(W2' * vcat(a, time) .+ b2)
    dz = W3' * vcat(b, time) .+ b3
    pulled = (W3[1:end - 1, :] * noise) .* (1 .- b .^ 2)
    pulled = (W2[1:end - 1, :] * pulled) .* (1 .- a .^ 2)
    du[1:2, :] .= dz
    du[3:3, :] .= sum((W1[1:2, :] * pulled) .* noise; dims = 1)
    return nothing
end
end"""


def ffjord() -> Problem:
    """A trained FFJORD 2-64-64-2 with tanh and the time in each layer × 256: points and their log-density, t to 1.

    z' = f(t, z), and l' = εᵀ (∂f/∂z) ε with a fixed ε of signs for each point: log p(z(0)) = log p(z(1)) + l(1). The
    flow takes two moons, which the initial states are drawn from, to a normal distribution.

    Source:
        benchmarks/train_fields.py; W. Grathwohl, R. T. Q. Chen, J. Bettencourt, I. Sutskever, D. Duvenaud, "FFJORD:
        Free-form Continuous Dynamics for Scalable Reversible Generative Models", ICLR 2019, equations (4) and (8).
    """
    weights, z0, _ = load("ffjord")
    network = Network(2, 64, 64, 2, time=True)
    network.load_state_dict(weights)
    return Problem(
        Flow(network, len(z0)).double(),
        z0.double(),
        torch.tensor([0.0, 1.0], dtype=torch.float64),
        settings=tuple(map(Setting, (1e-3, 1e-5, 1e-7))),
        jax=in_jax,
        julia=_julia(network.widths, len(z0)),
    )
