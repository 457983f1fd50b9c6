"""The checks of what a user passes to `solve`, all made before any solve.

Each refusal says what was expected, what came, and what to do instead.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.errors import InputError

__all__ = ["check_args", "check_count", "check_number", "check_state", "check_times"]

_DTYPES = (torch.float32, torch.float64)


def check_state(z0: Any) -> tuple[Tensor, ...]:
    """The state as a tuple of tensors `(batch, *features)` of one floating dtype and device."""
    if isinstance(z0, Tensor):
        state: tuple[Tensor, ...] = (z0,)
    elif isinstance(z0, tuple) and z0 and all(isinstance(z, Tensor) for z in z0):
        state = z0
    else:
        raise InputError(
            f"z0 must be a tensor or a non-empty tuple of tensors, got {_describe(z0)}. "
            "Convert arrays with torch.as_tensor"
        )
    first = state[0]
    for i, z in enumerate(state):
        name = f"z0[{i}]" if isinstance(z0, tuple) else "z0"
        if z.dtype not in _DTYPES:
            raise InputError(
                f"{name} must be of dtype torch.float32 or torch.float64, got {z.dtype}. "
                "Convert it, and the field's parameters, with .float() or .double()"
            )
        if z.dim() == 0:
            raise InputError(
                f"{name} must have shape (batch, *features), got a 0-d tensor. "
                "Add the batch dimension with z0.reshape(1)"
            )
        if z.dtype != first.dtype or z.device != first.device:
            raise InputError(
                f"the tensors of z0 must share dtype and device: expected {first.dtype} on {first.device}, as z0[0], "
                f"got {z.dtype} on {z.device} in {name}. Convert them with .to(z0[0])"
            )
        if z.numel() == 0 and (z.shape[0] or first.shape[0]):
            raise InputError(
                f"{name} must not be empty, got shape {tuple(z.shape)}. Only the batch size may be 0, in all of z0"
            )
    return tuple(map(tracked, state))


def tracked(x: Tensor) -> Tensor:
    """A tensor that autograd may save: a copy of one that was made in inference mode."""
    return x.clone() if x.is_inference() and not torch.is_inference_mode_enabled() else x


def check_times(t: Any, like: Tensor) -> Tensor:
    """The times `(time,)`, or `(batch, time)`, strictly monotone, in the state's dtype and on its device."""
    if isinstance(t, Tensor):
        if t.dtype not in _DTYPES:
            raise InputError(
                f"t must be of dtype torch.float32 or torch.float64, got {t.dtype}. Convert it with t.to(z0.dtype)"
            )
        times = t.to(like)
    else:
        times = _stack_times(t, like)
    if times.dim() == 2 and times.shape[1] > 1:
        return _check_rows(times)
    if times.dim() != 1:
        raise InputError(
            f"t must be 1-d, got shape {tuple(times.shape)}. Flatten it, or pass [t0, t1], or, for times of each "
            "sample's own, shape (batch, time)"
        )
    values = times.tolist()
    if len(values) > 1 and math.isfinite(sum(values)):
        ordered = sorted(set(values))
        if values == ordered or values == ordered[::-1]:
            return times
    if len(values) < 2:
        raise InputError(f"t must have at least 2 entries, got {len(values)}. Pass the first and the last time")
    for i, value in enumerate(values):
        if not math.isfinite(value):
            raise InputError(f"t must be finite, got {value} at position {i}. Remove or replace it")
    sign = 1 if values[1] > values[0] else -1
    for i in range(1, len(values)):
        if not sign * values[i] > sign * values[i - 1]:
            raise InputError(
                f"t must be strictly monotone, increasing or decreasing, got {values[i - 1]} followed by "
                f"{values[i]} at position {i} ({times.dtype}). Sort it and drop what repeats, e.g. torch.unique(t)"
            )
    return times


def _check_rows(times: Tensor) -> Tensor:
    """Times `(batch, time)`: each row strictly monotone, with NaN behind its last entry where it has fewer."""
    for b, row in enumerate(times.tolist()):
        count = sum(not math.isnan(x) for x in row)
        values = row[:count]
        if count < 2 or not all(map(math.isfinite, values)):
            raise InputError(
                f"each row of t must start with at least 2 finite times, and NaN may follow them, got {row} in row {b}"
            )
        sign = 1 if values[1] > values[0] else -1
        if not all(sign * y > sign * x for x, y in itertools.pairwise(values)):
            raise InputError(
                f"each row of t must be strictly monotone, got {row} in row {b}. Sort it, drop what repeats"
            )
    return times


def _stack_times(t: Any, like: Tensor) -> Tensor:
    """A sequence of numbers or of 0-d tensors (a learned last time, say), as one tensor."""
    try:
        if any(isinstance(x, Tensor) for x in t):
            return torch.stack([torch.as_tensor(x, dtype=like.dtype, device=like.device) for x in t])
        return torch.as_tensor(t, dtype=like.dtype, device=like.device)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"t must be a 1-d tensor or a sequence of numbers, got {_describe(t)}. Pass e.g. torch.linspace(0, 1, 10)"
        ) from None


def check_args(args: Any) -> tuple[Tensor, ...]:
    """The conditioning tensors as a tuple."""
    if not isinstance(args, tuple | list) or not all(isinstance(a, Tensor) for a in args):
        raise InputError(
            f"args must be a tuple of tensors, got {_describe(args)}. Pass one tensor as args=(x,), and "
            "constants of another kind as attributes of the field"
        )
    return tuple(map(tracked, args))


def check_number(name: str, value: Any) -> float:
    """A positive, finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be a positive number, got {value!r}. Pass e.g. 1e-3") from None
    if not 0 < number < math.inf:
        raise InputError(f"{name} must be positive and finite, got {value!r}. Pass e.g. 1e-3")
    return number


def check_count(name: str, value: Any) -> int:
    """A positive whole number."""
    if not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be a positive int, got {value!r}. Pass e.g. 10_000")
    return value


def _describe(value: Any) -> str:
    kind = type(value).__name__
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"{kind} of {', '.join(sorted({type(v).__name__ for v in value})) or 'nothing'}"
    return kind
