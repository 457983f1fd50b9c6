"""Fields that no trace can hold, which Julia solves by calling them, and what a trace says of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.special
import torch
import torch.nn.functional as F
from modules import Case, linear, normal, parameter
from torch import Tensor, nn

__all__ = ["UNTRACED"]

# The field, and a part of the refusal's text: the reason.
UNTRACED: dict[str, tuple[Callable[[], Case], str]] = {}

_ON_VALUES = "control flow or a Python number depends on the values"


def untraced(reason: str) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    def register(make: Callable[[], Case]) -> Callable[[], Case]:
        UNTRACED[make.__name__] = (make, reason)
        return make

    return register


@untraced(_ON_VALUES)
def branch_on_a_value() -> Case:
    inner, outer = linear(3, 3), linear(3, 3)

    def f(t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(inner(z)) if z.square().sum() < 1e6 else outer(z)

    return Case(f, (3,))


@untraced(_ON_VALUES)
def equilibrium_to_a_tolerance() -> Case:
    """Rounds until nothing changes, then one that autograd follows (a one-step gradient)."""
    w, u = nn.Parameter(0.2 * normal(3, 3)), linear(3, 3)

    def f(t: Tensor, z: Tensor) -> Tensor:
        with torch.no_grad():
            h, change = torch.zeros_like(z), torch.inf
            while change > 1e-13:
                new = torch.tanh(h @ w + u(z))
                h, change = new, (new - h).abs().max().item()
        return torch.tanh(h @ w + u(z)) - z

    return Case(f, (3,))


@untraced(_ON_VALUES)
def table_by_a_python_number() -> Case:
    table = parameter(5, 3)
    return Case(lambda t, z: z * table[int(4 * t.clamp(0, 1).item())], (3,))


@untraced("the operation aten.nonzero")
def neighbours_within_a_radius() -> Case:
    """Edges that are found anew at each evaluation."""
    net = linear(2, 2)

    def f(t: Tensor, z: Tensor) -> Tensor:
        near = (z[:, :, None] - z[:, None]).square().sum(-1) < 2.0
        b, i, j = near.detach().nonzero(as_tuple=True)
        flat = torch.zeros_like(z).flatten(0, 1)
        return flat.index_add(0, b * z.shape[1] + i, torch.tanh(net(z[b, j] - z[b, i]))).view_as(z)

    return Case(f, (4, 2))


class Bessel(torch.autograd.Function):
    """SciPy's J₀, which only knows NumPy's arrays; its derivative is -J₁."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.from_numpy(np.asarray(scipy.special.j0(x.detach().numpy())))

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return -cotangent * torch.from_numpy(np.asarray(scipy.special.j1(x.numpy())))


@untraced("the field cannot be traced")
def scipy_inside() -> Case:
    net = linear(3, 3)
    return Case(lambda t, z: Bessel.apply(net(z)), (3,))


@untraced("the operation aten.linalg_eig")
def eigenvalues_that_are_complex() -> Case:
    matrix = parameter(3, 3)
    return Case(lambda t, z: z * torch.linalg.eigvals(matrix + z.mean(0)).abs(), (3,), tolerance=1e-11)


@untraced("the operation aten.grid_sampler_2d")
def semi_lagrangian_advection() -> Case:
    """An image sampled where its flow has come from."""
    flow = nn.Parameter(0.1 * normal(4, 4, 2))

    def f(t: Tensor, z: Tensor) -> Tensor:
        unit = torch.eye(2, 3, dtype=z.dtype).expand(z.shape[0], 2, 3)
        grid = F.affine_grid(unit, list(z.shape), align_corners=False) - flow
        return F.grid_sample(z, grid, align_corners=False, padding_mode="border") - z

    return Case(f, (1, 4, 4))


@untraced("numbers of type torch.float32 beside a state of type torch.float64")
def network_of_single_precision() -> Case:
    net = nn.Linear(3, 3)
    return Case(lambda t, z: torch.tanh(net(z.float()).double()) - z, (3,), tolerance=1e-6)


@untraced("the operation aten.mode")
def most_frequent_value() -> Case:
    weight = parameter(5)
    return Case(lambda t, z: weight * z - z.round().mode(-1, keepdim=True)[0], (5,))
