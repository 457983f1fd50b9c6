"""Series of observations at irregular times, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pynode.errors import InputError
from pynode.problem.inputs import as_times
from pynode.transforms import differentiated

__all__ = ["Series", "check_series", "check_series_times", "pack"]


@dataclass(frozen=True, eq=False)
class Series:
    """A batch of series.

    Attributes:
        x: `(batch, time, obs_dim)`, zero where nothing was observed.
        t: `(batch, time)`, each row non-decreasing, in its own dtype.
        mask: `(batch, time, obs_dim)`, True where something was observed.
    """

    x: Tensor
    t: Tensor
    mask: Tensor

    @property
    def last(self) -> Tensor:
        """`(batch, 1)`, the time of each last observation."""
        return self._of_observed(-torch.inf).amax(1, keepdim=True)

    @property
    def first(self) -> Tensor:
        """`(batch, 1)`, the time of each first observation."""
        return self._of_observed(torch.inf).amin(1, keepdim=True)

    def _of_observed(self, otherwise: float) -> Tensor:
        return self.t.masked_fill(~self.mask.any(2), otherwise)


def check_series(
    x: Any, t: Any, mask: Any, obs_dim: int, t0: float, dtype: torch.dtype, *, may_be_empty: bool = False
) -> Series:
    """The series that a user passes, or the refusal of what is not one.

    Args:
        x: `(batch, time, obs_dim)`; what the mask leaves out may be anything, NaN too.
        t: `(time,)`, shared, or `(batch, time)`; non-decreasing, none before `t0`.
        mask: bool, True where x was observed: `(batch, time, obs_dim)`, or `(batch, time)` for all channels;
            `None` where all was.
        obs_dim: the channels of the model.
        t0: the model's first time.
        dtype: the model's.
        may_be_empty: whether series may be without an observation.

    Raises:
        InputError: a shape, dtype or value is not usable, or a series has no observation and needs one.
    """
    if not isinstance(x, Tensor) or x.dtype != dtype:
        raise InputError(
            f"x must be a tensor of the model's dtype, {dtype}, got {getattr(x, 'dtype', type(x).__name__)}. "
            f"Convert it with torch.as_tensor(x, dtype={dtype}), or the model"
        )
    if x.ndim != 3 or x.shape[2] != obs_dim or x.shape[1] == 0:
        raise InputError(
            f"x must have shape (batch, time, obs_dim) = (batch, time, {obs_dim}) with at least one time, got "
            f"{tuple(x.shape)}. Add the batch dimension of a single series with x[None]"
        )
    times = check_series_times("t", t, x, t0)
    if times.shape[1] != x.shape[1]:
        raise InputError(f"t must have one time per entry of x: expected {x.shape[1]}, got {times.shape[1]}")
    observed = _check_mask(mask, x)
    bad = observed & ~x.isfinite()
    if bool(bad.any()):
        i, j, k = bad.nonzero()[0].tolist()
        raise InputError(
            f"x must be finite where it was observed, got {x[i, j, k].item()} at series {i}, entry {j}, channel {k} "
            f"({int(bad.sum())} such in all). Say that it is missing with mask=x.isfinite()"
        )
    empty = (~observed.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty and not may_be_empty:
        raise InputError(
            f"each series needs at least one observation, and the mask leaves none to series {_some(empty)}. "
            "Leave these series out"
        )
    return Series(x.masked_fill(~observed, 0), times, observed)


def check_series_times(name: str, t: Any, x: Tensor, t0: float) -> Tensor:
    """Times `(batch, time)` from `(time,)` or `(batch, time)`, in their own dtype.

    Raises:
        InputError: the shape does not fit the batch of x; a time is not finite, decreases, or lies before `t0`; they
            require a gradient.
    """
    times = as_times(name, t, x)
    if differentiated(times):
        raise InputError(
            f"{name} requires a gradient, and models of series have none to their times: pass {name}.detach(). "
            "pynode.solve has gradients to its times"
        )
    if times.ndim not in (1, 2) or times.shape[-1] == 0 or (times.ndim == 2 and len(times) != len(x)):
        raise InputError(
            f"{name} must have shape (time,) or (batch, time) = ({len(x)}, time) with at least one time, got "
            f"{tuple(times.shape)}"
        )
    times = times.expand(len(x), -1)
    for what, bad in (
        ("finite", ~times.isfinite()),
        ("non-decreasing within each series", torch.nn.functional.pad(times.diff(dim=1) < 0, (1, 0))),
        (f"within the model's span, from t0 = {t0:g} on", times < t0),
    ):
        if bool(bad.any()):
            i, j = bad.nonzero()[0].tolist()
            before = f" after {times[i, j - 1].item():g}" if what.startswith("non-d") else ""
            remedy = {
                "f": "Missing observations are told by the mask, their times are needed all the same",
                "n": "Sort each series by time, and pad with its last time",
                "w": "Shift the times, or build the model with an earlier t0",
            }[what[0]]
            raise InputError(
                f"{name} must be {what}, got {times[i, j].item():g}{before} at series {i}, entry {j}. {remedy}"
            )
    return times


def _check_mask(mask: Any, x: Tensor) -> Tensor:
    if mask is None:
        return torch.ones_like(x, dtype=torch.bool)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise InputError(
            f"mask must be a tensor of dtype bool, True where x was observed, got "
            f"{getattr(mask, 'dtype', type(mask).__name__)}. Convert it with mask.bool()"
        )
    if mask.shape not in (x.shape, x.shape[:2]):
        raise InputError(
            f"mask must have the shape of x, {tuple(x.shape)}, or that of its times, {tuple(x.shape[:2])}, got "
            f"{tuple(mask.shape)}"
        )
    return (mask if mask.ndim == 3 else mask.unsqueeze(2)).expand_as(x)


def _some(indices: list[int]) -> str:
    return ", ".join(map(str, indices[:5])) + (f" and {len(indices) - 5} more" if len(indices) > 5 else "")


def pack(series: Series) -> tuple[Series, Tensor]:
    """The series without the times at which nothing was observed, each moved to the left.

    Returns:
        The series, as long as the longest of them and of one entry at least, the rest of the shorter ones unobserved at
        the last times at which they were observed, or else at their first;
        and the number of entries of each, `(batch,)`.
    """
    observed = series.mask.any(2)
    counts = observed.sum(1)
    longest = max(int(counts.max()), 1) if len(counts) else observed.shape[1]
    order = (~observed).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
    place = torch.minimum(torch.arange(longest, device=order.device), counts[:, None] - 1)
    order = order.gather(1, place.clamp(min=0))
    wide = order.unsqueeze(2).expand(-1, -1, series.x.shape[2])
    valid = torch.arange(longest, device=order.device) < counts[:, None]
    mask = series.mask.gather(1, wide) & valid.unsqueeze(2)
    return Series(series.x.gather(1, wide).masked_fill(~mask, 0), series.t.gather(1, order), mask), counts
