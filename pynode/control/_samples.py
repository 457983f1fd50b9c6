"""Observations, checked: each sample at times of its own, some values missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pynode.errors import EngineUnavailable, InputError
from pynode.numeric import dense, real_tensor
from pynode.transforms import is_mapped

__all__ = ["Samples", "check_samples"]

_DTYPES = (torch.float32, torch.float64)
# A dtype holds times if it moves none by more than these parts of the mean distance between them, or of their span,
# which it does to times that begin near zero too.
_HELD, _HELD_OF_SPAN = 1e-3, 1e-6


@dataclass(frozen=True)
class Samples:
    """Observations.

    Attributes:
        times: `(1 or batch, time)`, increasing, in the dtype of the values; those behind a sample's last one are made
            up.
        known: `(1 or batch, time)`, whether a time is a sample's own.
        values: `(1 or batch, time, channels)`, 0 where they are missing.
        observed: the same shape, whether they are there.
    """

    times: Tensor
    known: Tensor
    values: Tensor
    observed: Tensor

    @property
    def steps(self) -> Tensor:
        """Between the times, `(1 or batch, time - 1, 1)`, in the dtype of the values."""
        return self.times.diff(dim=1).to(self.values.dtype).unsqueeze(-1)

    def is_end(self) -> Tensor:
        """Whether a time is a sample's first or last one, `(1 or batch, time)`."""
        edge = self.known.new_zeros(len(self.known), 1)
        last = self.known & ~torch.cat([self.known[:, 1:], edge], 1)
        return last | torch.cat([~edge, torch.zeros_like(self.known[:, 1:])], 1)

    def latest(self) -> Tensor:
        """For each time and channel the position of the latest observation, -1 before the first."""
        position = torch.arange(self.values.shape[1], device=self.values.device)[:, None]
        return torch.where(self.observed, position, -1).cummax(1).values

    def next(self) -> Tensor:
        """For each time and channel the position of the next observation, the number of times after the last."""
        n = self.values.shape[1]
        position = torch.arange(n, device=self.values.device)[:, None]
        return torch.where(self.observed, position, n).flip(1).cummin(1).values.flip(1)

    def carried(self) -> Tensor:
        """The values, the latest in the place of a missing one; before the first of them that one."""
        n = self.values.shape[1]
        latest, following = self.latest(), self.next()
        at = torch.where(latest >= 0, latest, following.clamp(max=n - 1))
        return self.values.gather(1, at)

    def filled(self) -> Tensor:
        """The values, on the straight line between the ones around a missing one; beyond those the nearest."""
        n = self.values.shape[1]
        latest, following = self.latest(), self.next()
        low = torch.where(latest >= 0, latest, following.clamp(max=n - 1))
        high = torch.where(following < n, following, low)
        times = (self.times - self.times[:, :1]).to(self.values.dtype).unsqueeze(-1).expand_as(self.values)
        t0, t1 = times.gather(1, low), times.gather(1, high)
        x0, x1 = self.values.gather(1, low), self.values.gather(1, high)
        apart = high > low
        part = torch.where(apart, (times - t0) / torch.where(apart, t1 - t0, 1.0), 0.0)
        return torch.where(self.observed, self.values, x0 + part * (x1 - x0))


def check_samples(times: Tensor | Sequence[float], values: Tensor) -> Samples:
    """The observations of a path.

    Raises:
        InputError: see `Control`.
        EngineUnavailable: `torch.vmap` maps over them.
    """
    if not isinstance(values, Tensor) or values.dtype not in _DTYPES:
        got = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise InputError(f"values must be a tensor of dtype torch.float32 or torch.float64, got {got}. Convert it")
    if not isinstance(times, Tensor) or times.dtype in _DTYPES:
        try:
            times = dense(times).to(values.device) if isinstance(times, Tensor) else real_tensor(times, values.device)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise InputError(
                f"times must be a tensor, or numbers that make one, got {type(times).__name__}: {error}"
            ) from None
    if times.dtype not in _DTYPES:
        raise InputError(f"times must be of dtype torch.float32 or torch.float64, got {times.dtype}. Convert them")
    if is_mapped(values) or is_mapped(times):
        raise EngineUnavailable(
            "torch.vmap maps over no values or times of a control: make one control of them all, with values (batch, "
            "time, channels), and solve once"
        )
    per_sample = times.dim() == 2
    expected = (3,) if per_sample else (1, 2, 3)
    if times.dim() not in (1, 2) or values.dim() not in expected:
        raise InputError(
            f"times must be (time,) or (batch, time), got shape {tuple(times.shape)}, and values (batch, time, "
            f"channels), or for times (time,) also (time, channels) or (time,), got shape {tuple(values.shape)}"
        )
    if values.numel() == 0:
        raise InputError(f"values must not be empty, got shape {tuple(values.shape)}")
    whole = values if values.dim() == 3 else values.reshape(1, len(values), -1)
    rows = times if per_sample else times[None]
    if whole.shape[1] != rows.shape[1] or (per_sample and len(whole) != len(rows)):
        raise InputError(
            f"values must have a row for each time: expected {tuple(times.shape)} times and as many values, got values "
            f"of shape {tuple(values.shape)}, which are (batch, time, channels), (time, channels) or (time,)"
        )
    known = ~rows.detach().isnan()
    _check_times(rows, known, values.dtype)
    if bool(whole.detach().isinf().any()):
        raise InputError("values must be finite, or NaN where they are missing, got an infinite one. Replace it")
    observed = ~whole.detach().isnan() & known.unsqueeze(-1)
    rows = rows.to(values.dtype)  # so that the pieces meet at the knots as they are kept
    return Samples(_padded(rows, known), known, torch.where(observed, whole, 0.0), observed)


def _check_times(rows: Tensor, known: Tensor, dtype: torch.dtype) -> None:
    if rows.shape[1] < 2 or bool((known.sum(1) < 2).any()):
        raise InputError("times must have at least 2 entries for each sample: a path has a first and a last one")
    if bool((known[:, 1:] & ~known[:, :-1]).any()):
        raise InputError("times may be NaN behind the last one of a sample only. Sort them to the front")
    both = known[:, 1:]
    values = rows.detach()
    if bool(values[known].isinf().any()) or not bool((values.diff(dim=1) > 0)[both].all()):
        raise InputError("times must be finite and strictly increasing. Sort them, and drop what repeats")
    held = values.to(dtype)
    if not bool((held.diff(dim=1) > 0)[both].all()):
        raise InputError(
            f"times must be told apart in the dtype of the values, {dtype}. Subtract the first one, or pass values in "
            "torch.float64"
        )
    first, last = values[:, 0], torch.where(known, values, -torch.inf).amax(1)
    gap, rounding = (last - first) / (known.sum(1) - 1), torch.where(known, (held - values).abs(), 0.0).amax(1)
    far = (rounding > _HELD * gap) & (rounding > _HELD_OF_SPAN * (last.max() - first.min()))
    if bool(far.any()):
        raise InputError(
            f"times must be held by the dtype of the values, {dtype}, and it moves some by "
            f"{float(rounding[far][0]):.2g} where they are {float(gap[far][0]):.2g} apart. Subtract a reference, from "
            "the times of the solve too, or pass values in torch.float64"
        )


def _padded(rows: Tensor, known: Tensor) -> Tensor:
    """The times, with made-up ones in the place of NaN, at the distance of a sample's times."""
    if bool(known.all()):
        return rows
    count = known.sum(1, keepdim=True)
    first, last = rows[:, :1], rows.gather(1, count - 1)
    position = torch.arange(rows.shape[1], device=rows.device)
    beyond = last + (position - count + 1) * ((last - first) / (count - 1))
    return torch.where(known, rows.nan_to_num(0.0), beyond.detach())
