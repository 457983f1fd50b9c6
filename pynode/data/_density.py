"""Densities in the plane, for flows."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from pynode.errors import InputError, unknown_name

__all__ = ["density"]

_Draw = Callable[[int, torch.Generator | None], Tensor]


def density(name: str, n: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Independent samples of a density in the plane, within about [-4, 4]².

    Args:
        name: `"moons"`, `"pinwheel"`, `"8gaussians"`, `"checkerboard"`, `"swissroll"` or `"2spirals"`.
        n: number of samples.
        generator: what they are drawn from; torch's default generator where `None`.

    Returns:
        `(n, 2)`, float32.

    Raises:
        InputError: the name is unknown, or n is no whole number of at least 0.

    Source:
        The toy densities of W. Grathwohl et al., "FFJORD", ICLR 2019, figures 2 and 5; the pinwheel of M. Johnson
        et al., "Composing graphical models with neural networks", NeurIPS 2016.
    """
    if name not in _DENSITIES:
        raise unknown_name("density", name, _DENSITIES)
    if not isinstance(n, int) or n < 0:
        raise InputError(f"n must be a whole number of samples, got {n!r}")
    return _DENSITIES[name](n, generator)


def _moons(n: int, generator: torch.Generator | None) -> Tensor:
    """Two half circles of radius 2 that interlock, with normal noise."""
    curve = _moon_curves()
    points = curve[torch.randint(len(curve), (n,), generator=generator)]
    return points + 0.2 * torch.randn(n, 2, generator=generator)


@functools.cache
def _moon_curves() -> Tensor:
    """The half circles as points, much closer than the noise is wide; `make_moons` itself draws no angles."""
    from sklearn.datasets import make_moons

    points, _ = make_moons(4096, shuffle=False)
    return torch.as_tensor(2 * points - (1, 0.5), dtype=torch.float32)


def _pinwheel(n: int, generator: torch.Generator | None) -> Tensor:
    """Five arms, normal along and across, twisted at a rate that falls with the radius."""
    radius = 1 + 0.3 * torch.randn(n, generator=generator)
    across = 0.1 * torch.randn(n, generator=generator)
    arm = torch.randint(0, 5, (n,), generator=generator)
    angle = 2 * math.pi / 5 * arm + 0.25 * radius.exp()
    c, s = angle.cos(), angle.sin()
    return 2 * torch.stack([radius * c - across * s, radius * s + across * c], 1)


def _eight_gaussians(n: int, generator: torch.Generator | None) -> Tensor:
    """Eight normal distributions on a circle."""
    angle = math.pi / 4 * torch.randint(0, 8, (n,), generator=generator)
    centre = torch.stack([angle.cos(), angle.sin()], 1)
    return math.sqrt(2) * (2 * centre + 0.25 * torch.randn(n, 2, generator=generator))


def _checkerboard(n: int, generator: torch.Generator | None) -> Tensor:
    """Uniform on the dark squares of a board of 4 × 4 squares of side 2."""
    x = 4 * torch.rand(n, generator=generator) - 2
    row = 2 * torch.randint(0, 2, (n,), generator=generator) - 2
    y = torch.rand(n, generator=generator) + row + x.floor() % 2
    return 2 * torch.stack([x, y], 1)


def _swissroll(n: int, generator: torch.Generator | None) -> Tensor:
    """A spiral of one and a half turns, with normal noise."""
    from sklearn.datasets import make_swiss_roll

    seed = int(torch.randint(2**31, (), generator=generator))
    points, _ = make_swiss_roll(max(n, 1), noise=1.0, random_state=seed)
    return torch.as_tensor(points[:n, [0, 2]] / 5, dtype=torch.float32)


def _two_spirals(n: int, generator: torch.Generator | None) -> Tensor:
    """Two spirals of one and a half turns, one the other's image in the origin, with normal noise."""
    angle = 3 * math.pi * torch.rand(n, generator=generator).sqrt()
    sign = torch.randint(0, 2, (n,), generator=generator) * 2.0 - 1
    x = torch.stack([-angle * angle.cos(), angle * angle.sin()], 1) * sign.unsqueeze(1)
    return x / 3 + 0.1 * torch.randn(n, 2, generator=generator)


_DENSITIES: dict[str, _Draw] = {
    "moons": _moons,
    "pinwheel": _pinwheel,
    "8gaussians": _eight_gaussians,
    "checkerboard": _checkerboard,
    "swissroll": _swissroll,
    "2spirals": _two_spirals,
}
