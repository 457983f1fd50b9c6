"""Independent samples: `solve(batching="independent")`, and times of each sample's own."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from pynode.engine.each import is_per_sample
from pynode.errors import FieldError, InputError, unknown_name
from pynode.field import Field
from pynode.field._elsewhere import arbitrary, outputs_elsewhere
from pynode.field._time import first_time
from pynode.weak import WeakMap

__all__ = [
    "at_last_times",
    "check_apart",
    "check_batching",
    "check_has_batch",
    "check_unmixed",
    "is_apart",
    "last_times",
    "per_sample_times",
    "span",
]

_BATCHINGS = ("joint", "independent")
# Fields of which it has been seen that they treat each sample by itself.
_UNMIXED: WeakMap[object, bool] = WeakMap()
# And of which it has been seen that no sample's derivative changes with other samples.
_APART: WeakMap[object, bool] = WeakMap()


def check_batching(batching: str) -> None:
    """Refuse another name than one of the two."""
    if batching not in _BATCHINGS:
        raise unknown_name("batching", batching, _BATCHINGS)


def check_has_batch(times: Tensor, state: Sequence[Tensor], scalar: bool) -> None:
    """Refuse a state without features where nothing else says that its only dimension is the batch.

    Raises:
        InputError: all of the state is `(n,)`, or 0-d as `scalar` says, and the times are those of all samples.
    """
    if times.dim() == 1 and (scalar or all(z.dim() < 2 for z in state)):
        got = () if scalar else tuple(state[0].shape)
        raise InputError(
            f"batching='independent' needs z0 of shape (batch, *features), got {got}: pass "
            "z0.unsqueeze(0) if this is one sample, z0.unsqueeze(1) if these are samples of one feature each"
        )


def per_sample_times(times: Tensor, state: Tensor) -> Tensor:
    """The times as `(batch, time)`."""
    batch = state.shape[0]
    if times.dim() == 1:
        return times.expand(batch, -1)
    if times.shape[0] != batch:
        raise InputError(
            f"t of shape (batch, time) must have a row for each of the {batch} samples, got shape "
            f"{tuple(times.shape)}. Pass shape (time,) for times that all samples share"
        )
    return times


def check_unmixed(
    field: Field,
    z0: Sequence[Tensor],
    t: Tensor,
    args: Sequence[Tensor],
    remedy: str = "Use batching='joint', or take",
) -> None:
    """Refuse a field that gives a sample another derivative alone than among the others; looks once per field.

    Also at other states, and for other parameters, since weights of zero hide what combines samples.

    Args:
        field: the field.
        z0: the state tensors.
        t: the times.
        args: conditioning tensors.
        remedy: what the message says before "what combines samples out of the field".

    Raises:
        FieldError: it does, as with statistics over the batch.
    """
    batch = z0[0].shape[0]
    if batch < 2 or _UNMIXED.get(field.key):
        return
    t0 = first_time(t)
    for f, states, joint in outputs_elsewhere(field, t0, z0, args):
        for b in (0, batch - 1):
            own = tuple(a[b : b + 1] if is_per_sample(a, batch) else a for a in args)
            with torch.no_grad():
                alone = f(t0, tuple(z[b : b + 1] for z in states), own)
            for whole, x in zip(joint, alone, strict=True):
                tolerance = 1e-3 if x.dtype == torch.float32 else 1e-8
                scale = max(whole.abs().max().item(), 1.0)
                if x.shape != whole[b : b + 1].shape or not torch.allclose(
                    whole[b : b + 1], x, rtol=tolerance, atol=tolerance * scale, equal_nan=True
                ):
                    raise FieldError(
                        f"the field mixes samples: dz/dt of sample {b} is another when it is evaluated alone than in "
                        f"the batch. {remedy} what combines samples (batch statistics, attention "
                        "over the batch) out of the field. A tensor in args whose first dimension is the batch size "
                        "is taken to have a row for each sample"
                    )
    _UNMIXED.setdefault(field.key, True)


def is_apart(field: object) -> bool:
    """Whether a field is one that is right for samples alone that do not depend on one another: it says `is_apart`."""
    made = getattr(field, "__func__", None)
    return isinstance(made, functools.partial) and getattr(made.func, "is_apart", False)


def check_apart(field: Field, z0: Sequence[Tensor], t: Tensor, args: Sequence[Tensor]) -> None:
    """Refuse a field in which a sample's derivative changes with the states of others; looks once per field.

    Args:
        field: a field that differentiates another one sample by sample.
        z0: the state tensors.
        t: the times.
        args: conditioning tensors.

    Raises:
        FieldError: it does.
    """
    batch = z0[0].shape[0]
    if batch < 2 or _APART.get(field.key):
        return
    t0 = first_time(t)
    for f, states, rates in outputs_elsewhere(field, t0, z0, args):
        others = [z + 0.3 * (1 + z.abs()) * arbitrary(z, 0.4) for z in states]
        for b in (0, batch - 1):
            mixed = tuple(torch.cat([x[:b], z[b : b + 1], x[b + 1 :]]) for x, z in zip(others, states, strict=True))
            try:
                with torch.no_grad():
                    found = f(t0, mixed, args)
            except Exception:  # the function need not take such states
                continue
            for x, y in zip(found, rates, strict=True):
                tolerance = 1e-3 if x.dtype == torch.float32 else 1e-8
                scale = max(y[b].abs().max().item(), 1.0) if y[b].numel() else 1.0
                if bool(((x[b] - y[b]).abs() > tolerance * scale).any()):
                    raise FieldError(
                        f"the field mixes samples: dz/dt of sample {b} is another where the others have other states, "
                        "and the density of a sample takes the derivatives of that sample alone. Take what combines "
                        "samples (batch statistics, attention over the batch) out of the field"
                    )
    _APART.setdefault(field.key, True)


def last_times(t: Tensor) -> Tensor:
    """The last entry of each row that is not NaN."""
    count = (~t.isnan()).sum(1)
    return t.gather(1, count[:, None] - 1)[:, 0]


def at_last_times(x: Tensor, t: Tensor) -> Tensor:
    """The entries of `(time, batch, …)` numbers at the last time of each row of `t`, `(batch, …)`."""
    count = (~t.isnan()).sum(1)
    return x[count - 1, torch.arange(len(t), device=t.device)]


def span(t: Tensor, event_t: Tensor | None) -> tuple[float, float]:
    """The times within the span of every sample."""
    rows = t if t.dim() == 2 else t[None]
    first, last = rows[:, 0], last_times(rows)
    if event_t is not None:
        last = torch.where(event_t.isnan(), last, event_t.detach())
    return torch.minimum(first, last).max().item(), torch.maximum(first, last).min().item()
