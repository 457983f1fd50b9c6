"""The checks of what a user passes to `solve`, all made before any solve.

Each refusal says what was expected, what came, and what to do instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.errors import InputError

__all__ = ["check_args", "check_finite", "check_number", "check_state", "check_times"]

_DTYPES = (torch.float32, torch.float64)


def check_state(z0: Any) -> tuple[Tensor, ...]:
    """The state as a tuple of tensors `(batch, *features)` of one floating dtype, device and batch size."""
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
        name = "z0" if len(state) == 1 else f"z0[{i}]"
        if z.dtype not in _DTYPES:
            raise InputError(
                f"{name} must be of dtype torch.float32 or torch.float64, got {z.dtype}. "
                "Convert it, and the field's parameters, with .float() or .double()"
            )
        if z.dim() == 0:
            raise InputError(
                f"{name} must have shape (batch, *features), got a 0-d tensor. Add the batch dimension: z0.reshape(1)"
            )
        if z.dtype != first.dtype or z.device != first.device or z.shape[0] != first.shape[0]:
            raise InputError(
                f"the tensors of z0 must share dtype, device and batch size: expected {first.dtype}, "
                f"{first.device}, {first.shape[0]} as z0[0], got {z.dtype}, {z.device}, {z.shape[0]} in {name}. "
                "Convert them, or repeat along the first dimension"
            )
        if z.numel() == 0 and z.shape[0] != 0:
            raise InputError(
                f"{name} must not be empty: expected at least one feature, got shape {tuple(z.shape)}. "
                "Only the batch size may be 0"
            )
        check_finite(name, z)
    return state


def check_times(t: Any, like: Tensor) -> Tensor:
    """The times `(time,)`, strictly monotone, in the state's dtype and on its device."""
    if isinstance(t, Tensor):
        if t.dtype not in _DTYPES:
            raise InputError(
                f"t must be of dtype torch.float32 or torch.float64, got {t.dtype}. Convert it with t.to(z0.dtype)"
            )
        times = t if t.dtype == like.dtype and t.device == like.device else t.to(like)
    else:
        try:
            times = torch.as_tensor(t, dtype=like.dtype, device=like.device)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(
                f"t must be a 1-d tensor or a sequence of numbers, got {_describe(t)}. "
                "Pass e.g. torch.linspace(0, 1, 10)"
            ) from None
    if times.dim() != 1:
        raise InputError(f"t must be 1-d, got shape {tuple(times.shape)}. Flatten it, or pass [t0, t1]")
    values = times.tolist()
    if len(values) < 2:
        raise InputError(
            f"t must have at least 2 entries, got {len(values)}. Pass the first and the last time"
        )
    if not math.isfinite(sum(values)):
        bad = [i for i, v in enumerate(values) if not math.isfinite(v)]
        raise InputError(f"t must be finite, got {values[bad[0]]} at position {bad[0]}. Remove or replace it")
    rising = values[1] > values[0]
    for i in range(len(values) - 1):
        if values[i] == values[i + 1] or (values[i + 1] > values[i]) != rising:
            raise InputError(
                f"t must be strictly monotone, increasing or decreasing, got {values[i]} followed by "
                f"{values[i + 1]} at position {i + 1}. Sort it and drop what repeats, e.g. torch.unique(t)"
            )
    return times


def check_args(args: Any) -> tuple[Tensor, ...]:
    """The conditioning tensors as a tuple."""
    if isinstance(args, list):
        args = tuple(args)
    if not isinstance(args, tuple) or not all(isinstance(a, Tensor) for a in args):
        raise InputError(
            f"args must be a tuple of tensors, got {_describe(args)}. Pass one tensor as args=(x,), and constants "
            "of another kind as attributes of the field"
        )
    for i, a in enumerate(args):
        if a.dtype.is_floating_point:
            check_finite(f"args[{i}]", a)
    return args


def check_number(name: str, value: Any) -> float:
    """A positive, finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be a positive number, got {value!r}. Pass e.g. 1e-3") from None
    if not 0 < number < math.inf:
        raise InputError(f"{name} must be positive and finite, got {value!r}. Pass e.g. 1e-3")
    return number


def check_finite(name: str, x: Tensor) -> None:
    """Refuse a tensor with an infinite or NaN entry; one reduction and one synchronisation where it is fine."""
    if not math.isfinite(x.detach().sum()) and not bool(
        torch.isfinite(x).all()
    ):  # a finite tensor's sum may overflow
        bad = x.detach()[~torch.isfinite(x)]
        raise InputError(
            f"{name} must be finite, got {len(bad)} of {x.numel()} entries infinite or NaN (the first: "
            f"{float(bad[0])}). Look at what computed it"
        )


def check_parameters(names: Iterable[str], parameters: Sequence[Tensor]) -> None:
    """Refuse parameters of the field that are not finite, by name."""
    for name, parameter in zip(names, parameters, strict=True):
        check_finite(f"the field's parameter {name}", parameter)


def _describe(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of " + (
            ", ".join(sorted({type(v).__name__ for v in value})) or "nothing"
        )
    return type(value).__name__
