"""What figures of the plane are made of: projections, and functions on grids."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pynode.errors import InputError

__all__ = ["density_on_grid", "on_grid", "principal_plane"]

_AT_ONCE = 10_000  # points at which a density is asked for


def principal_plane(z: Tensor) -> Tensor:
    """Project trajectories on the two principal directions of all their states together.

    Args:
        z: `(time, batch, features)`, with at least two features.

    Returns:
        `(time, batch, 2)`, centred.
    """
    if z.ndim != 3 or z.shape[2] < 2:
        raise InputError(f"z must be (time, batch, features) with 2 features or more, got {tuple(z.shape)}")
    points = z.reshape(-1, z.shape[2]).double()
    points = points - points.mean(0)
    directions = torch.linalg.svd(points, full_matrices=False).Vh[:2]
    return (points @ directions.T).reshape(*z.shape[:2], 2).to(z)


def on_grid(model: Callable[[Tensor], Tensor], half: float, n: int = 121) -> tuple[Tensor, Tensor]:
    """A function of the plane on a square grid, for `surface`.

    Args:
        model: from points `(batch, 2)` to values `(batch, 1)`.
        half: the grid is [-half, half]².
        n: points per side.

    Returns:
        The coordinates of a side, `(n,)`, and the values, `(n, n)`, the second coordinate first.
    """
    side = torch.linspace(-half, half, n)
    second, first = torch.meshgrid(side, side, indexing="ij")
    return side, model(torch.stack([first.flatten(), second.flatten()], dim=1)).reshape(n, n)


def density_on_grid(log_prob: Callable[[Tensor], Tensor], half: float, n: int = 240) -> tuple[Tensor, float]:
    """A density of the plane in the middle of the cells of a square grid, for `densities`, and its integral.

    Args:
        log_prob: from points `(batch, 2)` to the logarithm of the density there, `(batch,)`.
        half: the grid covers [-half, half]².
        n: cells per side.

    Returns:
        The density `(n, n)`, without a gradient, at [first coordinate, second coordinate] (the transpose of what
        matplotlib's `imshow` expects), and its integral over the grid, by the midpoint rule.
    """
    side = 2 * half / n
    middles = torch.linspace(-half + side / 2, half - side / 2, n)
    parts = torch.cartesian_prod(middles, middles).split(_AT_ONCE)
    with torch.no_grad():
        density = torch.cat([log_prob(part).exp() for part in parts]).reshape(n, n)
    return density, density.double().sum().item() * side**2
