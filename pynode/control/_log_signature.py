"""Log-signatures of a path over windows, as a path of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pynode.control._linear import Linear
from pynode.control._samples import check_samples
from pynode.errors import InputError

__all__ = ["log_signature_channels", "log_signatures"]


def log_signatures(times: Tensor | Sequence[float], values: Tensor, window: int, depth: int = 2) -> Linear:
    """The path whose increment over each window is the log-signature of the data there: the log-ODE method.

    A controlled differential equation on it takes steps of whole windows, however many observations these have. The
    data are joined by straight lines, with missing ones left out, and the log-signature of a window is: to depth 1 the
    increments of the channels; to depth 2 also the Lévy areas between each two of them,
    A_ij = ½ ∫ (x_i - x_i(start)) dx_j - (x_j - x_j(start)) dx_i for i < j, in the order (0, 1), (0, 2), …, (1, 2), ….

    Args:
        times: as `Control` takes.
        values: as `Control` takes, with a dimension of channels: `(batch, time, channels)` or `(time, channels)`.
        window: observations from one window's end to the next; the last window may be shorter.
        depth: 1 or 2.

    Returns:
        The path, at first the first observation beside areas of zero, with `log_signature_channels(channels, depth)`
        channels.

    Raises:
        InputError: times, values, window or depth are not as above.

    Source:
        J. Morrill, C. Salvi, P. Kidger, J. Foster, T. Lyons, "Neural Rough Differential Equations for Long Time
        Series", ICML 2021, sections 2.2 and 3.
    """
    if not isinstance(window, int) or isinstance(window, bool) or window < 1:
        raise InputError(f"window must be a positive int, the observations of a window, got {window!r}")
    samples = check_samples(times, values)
    if values.dim() == 1:
        raise InputError("values must have a dimension of channels: pass values.unsqueeze(-1)")
    log_signature_channels(values.shape[-1], depth)
    x = samples.filled()
    count = samples.known.sum(1, keepdim=True)
    ends = torch.arange(0, x.shape[1] - 1 + window, window, device=x.device).clamp(max=x.shape[1] - 1)
    ends = ends.unique().expand(len(count), -1)
    over = torch.cat([torch.zeros_like(ends[:, :1], dtype=torch.bool), ends[:, :-1] >= count - 1], 1)
    at = torch.minimum(ends, count - 1)
    knots = samples.times.gather(1, at)
    if bool(over.any()):
        knots = knots.masked_fill(over, torch.nan)
    at = at.expand(len(x), -1).unsqueeze(-1)
    path = x.gather(1, at.expand(-1, -1, x.shape[2]))
    if depth == 2:
        path = torch.cat([path, _areas(x, path, ends[0])], -1)
    return Linear(knots if len(knots) > 1 else knots[0], path.reshape(*values.shape[:-2], *path.shape[-2:]))


def log_signature_channels(channels: int, depth: int) -> int:
    """How many channels the path of `log_signatures` has.

    Raises:
        InputError: the depth is neither 1 nor 2.
    """
    if depth not in (1, 2) or isinstance(depth, bool):
        raise InputError(f"depth must be 1 (increments) or 2 (and areas), got {depth!r}")
    return channels if depth == 1 else channels * (channels + 1) // 2


def _areas(x: Tensor, at_ends: Tensor, ends: Tensor) -> Tensor:
    """The areas from the start, the sum of those of the windows, at each window's end.

    Args:
        x: `(batch, time, channels)`.
        at_ends: `(batch, ends, channels)`.
        ends: `(ends,)`, the first of which is 0.
    """
    i, j = torch.triu_indices(x.shape[2], x.shape[2], 1, device=x.device)
    window = torch.bucketize(torch.arange(x.shape[1] - 1, device=x.device), ends[1:], right=True)
    step = x.diff(dim=1)
    offset = x[:, :-1] - at_ends[:, window]
    area = 0.5 * (offset[..., i] * step[..., j] - offset[..., j] * step[..., i])
    total = torch.cat([torch.zeros_like(area[:, :1]), area.cumsum(1)], 1)
    return total[:, ends]
