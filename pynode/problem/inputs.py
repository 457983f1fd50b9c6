"""The checks of what a user passes to `solve`, all made before any solve.

Each refusal says what was expected, what came, and what to do instead.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from operator import gt, lt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.errors import EngineUnavailable, InputError, unknown_name
from pynode.field._outside import lacks_values, outside_of_compile
from pynode.field._whole import check_whole
from pynode.numeric import dense, of_array, real_number, real_tensor, tensors_in
from pynode.problem.state import State
from pynode.transforms import example

__all__ = [
    "DTYPES",
    "as_times",
    "check_args",
    "check_count",
    "check_finite",
    "check_integer",
    "check_lowering",
    "check_number",
    "check_state",
    "check_times",
]

DTYPES = (torch.float32, torch.float64)
_LOWERINGS = ("trace", "callback", "auto")
_HELD = 1e-3  # A dtype holds times if it changes no difference between them by more than this part of it.


def check_state(form: State, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The tensors that are solved, `(batch, *features)`: of one floating dtype, device and batch size."""
    if lacks_values():
        raise EngineUnavailable(
            "a solve takes its steps by the values of tensors, and what records operations whatever these are "
            "(torch.func.linearize, make_fx, torch.export) has none: call solve outside of it. torch.func.jvp and vjp "
            "give derivatives, and torch.jit.trace records solves of fixed steps"
        )
    first = state[0]
    for i, z in enumerate(state):
        check_whole(form.names[i], z)
        if z.is_meta or (type(z) is not Tensor and hasattr(z, "fake_mode")):
            kind = "tensor on meta" if z.is_meta else "FakeTensor"
            raise InputError(f"{form.names[i]} must have numbers, got a {kind}. Make it on a device that has them")
        if z.dtype not in DTYPES:
            raise InputError(
                f"{form.names[i]} must be of dtype torch.float32 or torch.float64, or of their complex counterparts, "
                f"got {z.dtype}. Convert it, and the field's parameters, with .float() or .double()"
            )
        if z is not first and (z.dtype != first.dtype or z.device != first.device):
            raise InputError(
                f"the tensors of z0 must share dtype and device: expected {first.dtype} on {first.device}, as "
                f"{form.names[0]}, got {z.dtype} on {z.device} in {form.names[i]}. Convert them with .to()"
            )
        if z.shape[0] != first.shape[0]:
            raise InputError(
                f"the tensors of z0 must have one batch size: expected {first.shape[0]}, as {form.names[0]}, got "
                f"{'a 0-d tensor' if form.scalar[i] else z.shape[0]} in {form.names[i]}. Give each the batch as its "
                "first dimension, e.g. with x.expand(batch, …), or, of a single sample, with x.unsqueeze(0)"
            )
        if z.numel() == 0 and z.shape[0]:
            raise InputError(
                f"{form.names[i]} must not be empty, got shape {tuple(z.shape)}. Only the batch size may be 0, in all "
                "of z0"
            )
    return tuple([tracked(z) for z in state])


def tracked(x: Tensor) -> Tensor:
    """A tensor that autograd may save: a copy of one that was made in inference mode."""
    return x.clone() if x.is_inference() and not torch.is_inference_mode_enabled() else x


def check_times(t: Any, like: Tensor) -> tuple[Tensor, list[Any]]:
    """The times, and the numbers in them.

    They are `(time,)`, or `(batch, time)`, strictly monotone, in their own dtype and on the state's device.
    """
    if not isinstance(t, Tensor):
        times = as_times("t", t, like)
    elif t.dtype in DTYPES:
        check_whole("t", t)
        if t.device.type == "meta":
            raise InputError("t must have numbers, got a tensor on meta. Make it on the state's device")
        times = t.to(like.device)
    else:
        raise InputError(
            f"t must be of dtype torch.float32 or torch.float64, got {t.dtype}. Convert it with t.double()"
        )
    if times.dim() == 2 and times.shape[1] > 1:
        return times, _check_rows(times)
    if times.dim() != 1:
        raise InputError(
            f"t must be 1-d, got shape {tuple(times.shape)}. Flatten it, or pass [t0, t1], or, for times of each "
            "sample's own, shape (batch, time)"
        )
    values = example(times).tolist()
    rest = values[1:]
    if rest and math.isfinite(sum(values)) and (all(map(lt, values, rest)) or all(map(gt, values, rest))):
        return times, values
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
                f"{values[i]} at position {i} ({times.dtype}). Sort it and drop what repeats, e.g. torch.unique(t); "
                "times that differ by less than their dtype tells apart need torch.float64"
            )
    return times, values


def _check_rows(times: Tensor) -> list[list[float]]:
    """The numbers in times `(batch, time)`: each row monotone, with NaN behind its last entry where it has fewer."""
    numbers = example(times)
    rows: list[list[float]] = numbers.tolist()
    counts = (~numbers.isnan()).sum(1)
    within = torch.arange(numbers.shape[1], device=numbers.device) < counts[:, None]
    right = (counts >= 2) & (numbers.isfinite() | ~within).all(1)
    if not bool(right.all()):
        b = int(right.int().argmin())
        raise InputError(
            f"each row of t must start with at least 2 finite times, and NaN may follow them, got {rows[b]} in row {b}"
        )
    steps = numbers.diff(dim=1)
    right = (steps * steps[:, :1].sign() > 0).logical_or(~within[:, 1:]).all(1)
    if not bool(right.all()):
        b = int(right.int().argmin())
        raise InputError(
            f"each row of t must be strictly monotone, got {rows[b]} in row {b}. Sort it, drop what repeats"
        )
    return rows


@outside_of_compile
def as_times(name: str, t: Any, like: Tensor) -> Tensor:
    """Times as a tensor on the state's device: of a tensor or an array in its dtype, if that is float32 or float64.

    Others, lists of numbers above all (or of 0-d tensors: a learned last time, say), get the state's dtype, or that of
    a tensor among them where that is wider, unless it cannot hold the differences between them: then they are float64.

    Raises:
        InputError: they are no times.
    """
    dtype = torch.promote_types(like.dtype.to_real(), torch.float32)  # a half state is solved in float32
    try:
        is_array = hasattr(t, "__array__") and not isinstance(t, Tensor | np.generic)
        held = of_array(np.asanyarray(t)) if is_array else t
        if isinstance(held, Tensor) and held.dtype in DTYPES:
            return dense(held).to(like.device)
        times = real_tensor(held, like.device)
        if times.dim() == 0:
            raise TypeError("a number")
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(
            f"{name} must be a 1-d tensor or a sequence of real numbers, got {_describe(t)}. Pass e.g. "
            "torch.linspace(0, 1, 10)"
        ) from None
    if not isinstance(held, Tensor):
        given = [x.dtype for x in tensors_in(t) if x.is_floating_point()]
        dtype = functools.reduce(torch.promote_types, given, dtype)
    narrow = times.to(dtype)
    return narrow if dtype == torch.float64 or _holds(narrow.detach(), times.detach()) else times


def _holds(narrow: Tensor, times: Tensor) -> bool:
    """Whether rounded times differ from one to the next as the times do."""
    gaps = times.diff(dim=-1)
    close = (narrow.double().diff(dim=-1) - gaps).abs() <= _HELD * gaps.abs()
    return bool((close | gaps.isnan()).all())


def check_args(args: Any) -> tuple[Tensor, ...]:
    """The conditioning tensors as a tuple."""
    if not isinstance(args, (tuple, list)) or not all([isinstance(a, Tensor) for a in args]):
        raise InputError(
            f"args must be a tuple of tensors, got {_describe(args)}. Pass one tensor as args=(x,), arrays through "
            "torch.as_tensor, and constants of another kind as attributes of the field"
        )
    for i, a in enumerate(args):
        check_whole(f"args[{i}]", a)
    return tuple(map(tracked, args))


def check_lowering(lowering: Any) -> None:
    """Refuse another name than those of `solve`'s lowering.

    Raises:
        InputError: lists them.
    """
    if lowering not in _LOWERINGS:
        raise unknown_name("lowering", lowering, _LOWERINGS)


def check_number(name: str, value: Any) -> float:
    """A positive, finite number."""
    number = _number(name, value, "a positive number", "1e-3")
    if not 0 < number < math.inf:
        raise InputError(f"{name} must be positive and finite, got {value!r}. Pass e.g. 1e-3")
    return number


def check_finite(name: str, value: Any) -> float:
    """A finite number of any sign."""
    number = _number(name, value, "a finite number", "0.0")
    if not math.isfinite(number):
        raise InputError(f"{name} must be finite, got {value!r}. Pass e.g. 0.0")
    return number


def check_integer(name: str, value: Any) -> int:
    """A whole number of any sign."""
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise InputError(f"{name} must be an int of at most 64 bits, got {value!r}. Pass e.g. 10")
    return value


def _number(name: str, value: Any, expected: str, example: str) -> float:
    if isinstance(value, bool | str):  # of which Python makes numbers
        raise InputError(f"{name} must be {expected}, got {value!r}. Pass e.g. {example}")
    try:
        return real_number(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        why = f" ({error})" if isinstance(value, Tensor) else ""
        raise InputError(f"{name} must be {expected}, got {value!r}{why}. Pass e.g. {example}") from None


def check_count(name: str, value: Any, example: str = "1") -> int:
    """A positive whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be a positive int, got {value!r}. Pass e.g. {example}")
    if value >= 2**63:
        raise InputError(f"{name} must be an int below 2**63, got {value!r}. Pass e.g. {example}")
    return value


def _describe(value: Any, depth: int = 3) -> str:
    """Its type, and the types of what is in it; not all the way down, since a list may hold itself."""
    kind = type(value).__name__
    if isinstance(value, Sequence) and not isinstance(value, str) and depth:
        return f"{kind} of {', '.join(sorted({_describe(v, depth - 1) for v in value})) or 'nothing'}"
    is_complex = isinstance(value, Tensor | np.ndarray) and "complex" in str(value.dtype)
    return f"{kind} of {value.dtype}" if is_complex else kind
