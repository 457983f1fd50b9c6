"""torchdiffeq's dense output, mended: backwards in time, and refused where it would be wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pynode.compat.choice import CALLBACKS
from pynode.engine.torch import torchdiffeq
from pynode.errors import InputError

__all__ = ["dense_solution"]


def dense_solution(
    func: Callable[..., Any], y0: Tensor, t0: Tensor, t1: Tensor, options: Mapping[str, Any] | None, **keywords: Any
) -> Callable[[Tensor], Tensor]:
    """`torchdiffeq.odeint_dense`, of the mirrored problem where the times decrease.

    torchdiffeq itself solves backwards, but then looks for a time among the negated ones.

    Raises:
        InputError: `t0` requires a gradient, which torchdiffeq would leave out.
    """
    if t0.requires_grad:
        raise InputError(
            "odeint_dense has no gradient with respect to t0, which requires one: pass t0.detach(), or put the times "
            "that you need into odeint(t=…)"
        )
    start, end = t0.item(), t1.item()
    if end < start:
        options = dict(options or {})
        options |= {key: -options[key] for key in ("step_t", "jump_t") if options.get(key) is not None}
        field: Callable[..., Any] = _Mirrored(func)
        first, last, sign = -t0, -t1.detach(), -1
    else:
        field, first, last, sign = func, t0, t1.detach(), 1
    found = torchdiffeq.odeint_dense(field, y0, first, last, options=options, **keywords)

    def solution(t: Tensor) -> Tensor:
        time = sign * torch.as_tensor(t)
        if time.dim() != 0:
            raise InputError(
                f"the solution takes one time, 0-d, got shape {tuple(t.shape)}: use torch.stack([z(s) for s in t])"
            )
        try:
            if time.item() >= first.item():
                z: Tensor = found(time)
                return z
        except IndexError:  # torchdiffeq's, after the end of its last step
            pass
        raise InputError(f"the solution spans the times from {start:g} to {end:g}, got {sign * time.item():g}")

    return solution


class _Mirrored:
    """The field of the solution backwards in time."""

    def __init__(self, func: Callable[..., Any]) -> None:
        self.func = func
        for name in CALLBACKS:
            if hasattr(func, name):
                setattr(self, name, _mirrored(getattr(func, name)))

    def __call__(self, t: Tensor, y: Tensor) -> Any:
        return -self.func(-t, y)


def _mirrored(callback: Callable[..., Any]) -> Callable[..., Any]:
    return lambda t, y, dt: callback(-t, y, dt)
