"""Complex states as pairs of real numbers: torchdiffeq's adjoint has no gradient of a real parameter of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from pynode.compat.call import Call
from pynode.compat.choice import CALLBACKS

__all__ = ["needs_pairs", "on_pairs", "without_pairs"]


def needs_pairs(call: Call, params: Iterable[Tensor]) -> bool:
    """Whether a state is complex and a parameter real; not where the call has something to say about the state."""
    states = call.y0 if isinstance(call.y0, tuple) else (call.y0,)
    spoken_of = "norm" in call.options or any(hasattr(call.func, name) for name in CALLBACKS)
    return (
        not spoken_of
        and all(isinstance(x, Tensor) for x in states)
        and any(x.is_complex() for x in states)
        and any(p.requires_grad and not p.is_complex() for p in params)
    )


def on_pairs(func: Callable[..., Any], y0: Any) -> tuple[Callable[..., Any], Any]:
    """The field of pairs, and the state as pairs."""

    def field(t: Tensor, y: Any) -> Any:
        z = without_pairs(y, y0)
        rates = func(t, z)
        pairs = zip(_parts(rates), _parts(z), strict=True)
        return _like(y0, [_pairs(rate.to(x.dtype)) for rate, x in pairs])

    return field, _like(y0, map(_pairs, _parts(y0)))


def without_pairs(y: Any, y0: Any) -> Any:
    """States as the user's are, of those that are solved; they may have more dimensions at the front."""
    pairs = zip(_parts(y), _parts(y0), strict=True)
    return _like(y0, [torch.complex(x[..., 0], x[..., 1]) if like.is_complex() else x for x, like in pairs])


def _pairs(x: Tensor) -> Tensor:
    return torch.stack([x.real, x.imag], -1) if x.is_complex() else x


def _parts(y: Any) -> tuple[Tensor, ...]:
    return y if isinstance(y, tuple) else (y,)


def _like(y0: Any, parts: Iterable[Tensor]) -> Any:
    return tuple(parts) if isinstance(y0, tuple) else next(iter(parts))
