"""Paths of cubic polynomials."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pynode.control._control import Control
from pynode.control._samples import Samples

__all__ = ["CubicHermite", "NaturalCubic"]


class CubicHermite(Control):
    """Cubic Hermite splines with backward differences.

    Between two observations it depends on these and the one before alone. Value and derivative are continuous. A
    missing observation is first filled in on the straight line between the ones around it, at the ends by the nearest.
    Its second derivative jumps at the knots. Of a step that goes over one a solver sees too little: errors of ten to
    several hundred times the tolerance are usual then, and gradients to the times may be off by a tenth. So an adaptive
    solver ends a step at each knot that all samples share; with `tstops=None` it does not, which on a smooth path of
    very many observations is cheaper. It does not at the knots of samples with times of their own either, of which
    there are too many, unless it is told to by `tstops="knots"`. See `Control` for the arguments.

    Source:
        J. Morrill, P. Kidger, L. Yang, T. Lyons, "On the choice of interpolation scheme for neural CDEs", TMLR 2022.
    """

    is_smooth = True

    powers = 4

    @staticmethod
    def _coefficients(samples: Samples) -> Sequence[Tensor]:
        values, h = samples.filled(), samples.steps
        slope = values.diff(dim=1) / h
        before = torch.cat([slope[:, :1], slope[:, :-1]], 1)
        return _held(samples, values[:, :-1], before, 2 * (slope - before) / h, (before - slope) / h**2)


class NaturalCubic(Control):
    """Natural cubic splines through the observations of each channel, whose missing ones are left out.

    Value, first and second derivative are continuous, the second is zero at the ends. The whole path depends on every
    observation. Where one is missing at the ends of a sample, the nearest is taken. Its third derivative jumps at the
    knots; see `CubicHermite` for how solvers step to them, and `Control` for the arguments.

    Source:
        P. Kidger, J. Morrill, J. Foster, T. Lyons, "Neural controlled differential equations for irregular time
        series", NeurIPS 2020.
    """

    is_smooth = True

    powers = 4

    @staticmethod
    def _coefficients(samples: Samples) -> Sequence[Tensor]:
        ends = samples.is_end().unsqueeze(-1)
        observed = (samples.observed | ends).transpose(1, 2)  # (1 or batch, channels, time), as all below
        values = torch.where(ends, samples.carried(), samples.values).transpose(1, 2)
        times = (samples.times - samples.times[:, :1]).to(values.dtype)[:, None].expand_as(values)
        # The knots of each channel to the front.
        order = torch.argsort((~observed).to(torch.int8), dim=-1, stable=True)
        x, t = values.gather(-1, order), times.gather(-1, order)
        count = observed.sum(-1, keepdim=True)
        position = torch.arange(x.shape[-1] - 1, device=x.device)
        h = torch.where(position < count - 1, t.diff(dim=-1), 1.0)
        slope = torch.where(position < count - 1, x.diff(dim=-1), 0.0) / h
        curvature = _curvatures(h, slope, count)
        low, high = curvature[..., :-1], curvature[..., 1:]
        pieces = (x[..., :-1], slope - h * (2 * low + high) / 6, low / 2, (high - low) / (6 * h))
        # The piece of each channel that holds between two times, from the first of these on.
        of = (observed.cumsum(-1)[..., :-1] - 1).minimum(count - 2)
        a, b, c, d = (p.gather(-1, of) for p in pieces)
        s = times[..., :-1] - t.gather(-1, of)
        moved = (a + s * (b + s * (c + s * d)), b + s * (2 * c + 3 * s * d), c + 3 * s * d, d)
        return _held(samples, *(p.transpose(1, 2) for p in moved))


def _held(samples: Samples, value: Tensor, *powers: Tensor) -> Sequence[Tensor]:
    """The coefficients, the path being constant behind a sample's last time."""
    known = samples.known[:, 1:].unsqueeze(-1)
    if bool(known.all()):
        return value, *powers
    last = samples.carried()[:, :-1]
    return torch.where(known, value, last), *(torch.where(known, p, 0.0) for p in powers)


def _curvatures(h: Tensor, slope: Tensor, count: Tensor) -> Tensor:
    """The second derivatives at the knots, by the elimination of a tridiagonal matrix; zero from the last one on."""
    n = h.shape[-1] + 1
    zero = torch.zeros_like(count[..., 0], dtype=h.dtype)
    ratios, parts = [zero], [zero]
    for i in range(1, n - 1):
        inside = i < count[..., 0] - 1
        pivot = torch.where(inside, 2 * (h[..., i - 1] + h[..., i]) - h[..., i - 1] * ratios[-1], 1.0)
        right = 6 * (slope[..., i] - slope[..., i - 1]) - h[..., i - 1] * parts[-1]
        ratios.append(torch.where(inside, h[..., i], 0.0) / pivot)
        parts.append(torch.where(inside, right, 0.0) / pivot)
    found = [zero]  # from the last one
    for ratio, part in zip(reversed(ratios), reversed(parts), strict=True):
        found.append(part - ratio * found[-1])
    return torch.stack(found[::-1], -1)
