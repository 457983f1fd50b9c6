"""The problems of the plane and the line that no flow of their own dimension solves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from pynode.errors import InputError

__all__ = ["annuli", "in_slices", "reflection"]


def reflection(
    n: int = 100, *, low: float = -1.0, high: float = 1.0, generator: torch.Generator | None = None
) -> TensorDataset:
    """The reflection φ(x) = -x of the line, which no flow on the line can express: its paths would cross.

    Args:
        n: number of points, one drawn at random from each of n equal parts of [low, high].
        low: the lower end.
        high: the upper end.
        generator: seeds the points; torch's default generator where `None`.

    Returns:
        Inputs `(n, 1)`, increasing, and targets `(n, 1)`, float32.

    Raises:
        InputError: there is no point, or `low` is not below `high`.

    Source:
        S. Massaroli et al., "Dissecting Neural ODEs", NeurIPS 2020, section 4; E. Dupont, A. Doucet,
        Y. W. Teh, "Augmented Neural ODEs", NeurIPS 2019, section 2 (the map g_1d).
    """
    _check_count(n)
    if not -math.inf < low < high < math.inf:
        raise InputError(f"low must lie below high, both finite, got {low!r} and {high!r}")
    x = low + (high - low) * (torch.arange(n) + torch.rand(n, generator=generator)) / n
    x = x.unsqueeze(1)
    return TensorDataset(x, -x)


def annuli(
    n: int = 1000,
    r: tuple[float, float, float] = (0.5, 1.0, 1.5),
    dim: int = 2,
    *,
    slices: Sequence[tuple[float, float]] = (),
    generator: torch.Generator | None = None,
) -> TensorDataset:
    """A ball and an annulus around it, as a regression of their signs: a flow of the same space cannot part them.

    A third of the points are uniform in the ball |x| ≤ r₁, with target -1; the others are uniform in
    r₂ ≤ |x| ≤ r₃, with target 1.

    Args:
        n: number of points.
        r: r₁ < r₂ < r₃.
        dim: dimension of the space.
        slices: angles (from, to) in radians, counter-clockwise in the plane of the first two coordinates,
            between which there is no point; see `in_slices` for those of a test set.
        generator: seeds the points; torch's default generator where `None`.

    Returns:
        Points `(n, dim)` and targets `(n, 1)`, float32, in random order.

    Raises:
        InputError: there is no point, `r` does not increase from above 0, `dim` is below 1, or `slices` leave
            nothing.

    Source:
        E. Dupont, A. Doucet, Y. W. Teh, "Augmented Neural ODEs", NeurIPS 2019, section 3 (the map g).
    """
    _check_count(n)
    try:
        r1, r2, r3 = map(float, r)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"r must be three radii r1 < r2 < r3, got {r!r}") from None
    if not 0 < r1 < r2 < r3 < math.inf:
        raise InputError(f"r must be three radii with 0 < r1 < r2 < r3, got {r!r}")
    if not isinstance(dim, int) or dim < 1:
        raise InputError(f"dim must be an integer of at least 1, got {dim!r}")
    direction = _directions(n, dim, slices, generator)
    inner = torch.arange(n) < n // 3
    low, high = torch.where(inner, 0.0, r2**dim), torch.where(inner, r1**dim, r3**dim)
    radius = (low + (high - low) * torch.rand(n, generator=generator)) ** (1 / dim)
    y = torch.where(inner, -1.0, 1.0).unsqueeze(1)
    order = torch.randperm(n, generator=generator)
    return TensorDataset((radius.unsqueeze(1) * direction)[order], y[order])


def in_slices(x: Tensor, slices: Sequence[tuple[float, float]]) -> Tensor:
    """Which points lie at the angles of one of the slices.

    Args:
        x: `(n, dim)` with `dim` at least 2.
        slices: as `annuli` takes.

    Returns:
        `(n,)`, booleans.

    Raises:
        InputError: `x` or `slices` is of another shape.
    """
    if x.ndim != 2 or x.shape[1] < 2:
        raise InputError(f"slices need points (n, dim) with dim of at least 2, got shape {tuple(x.shape)}")
    angle = torch.atan2(x[:, 1], x[:, 0])
    found = torch.zeros(len(x), dtype=torch.bool)
    for pair in slices:
        try:
            first, last = map(float, pair)
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"slices must be pairs of angles (from, to), got {pair!r}") from None
        whole = last - first >= 2 * math.pi * (1 - 1e-12)
        found |= whole or (angle - first) % (2 * math.pi) <= (last - first) % (2 * math.pi)
    return found


def _directions(n: int, dim: int, slices: Sequence[tuple[float, float]], generator: torch.Generator | None) -> Tensor:
    """Unit vectors `(n, dim)`, uniform on the part of the sphere outside of the slices."""
    kept = torch.empty(0, dim)
    for _ in range(1000):
        drawn = torch.nn.functional.normalize(torch.randn(n, dim, generator=generator), dim=1)
        kept = torch.cat([kept, drawn[~in_slices(drawn, slices)] if slices else drawn])
        if len(kept) >= n:
            return kept[:n]
    raise InputError(f"slices must leave some of the circle, got {slices!r}")


def _check_count(n: int) -> None:
    if not isinstance(n, int) or n < 1:
        raise InputError(f"n must be an integer of at least 1, got {n!r}")
