"""Drift and diffusion of a stochastic differential equation as fields, and checks of what the noise is said to be."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.engine.stochastic import CALCULI, NOISES
from pynode.errors import FieldError, InputError, TraceError, unknown_name
from pynode.field import Field
from pynode.field._derived import derived_field
from pynode.field._elsewhere import arbitrary, outputs_elsewhere
from pynode.field._substitution import LateRead
from pynode.field._time import time_as_asked
from pynode.nn._signature import with_time

__all__ = ["check_kind", "check_noise", "diffusion_field", "drift_field"]


def check_kind(noise: Any, calculus: Any) -> None:
    """Refuse other names than those of noises and calculi.

    Raises:
        InputError: lists them.
    """
    if noise not in NOISES:
        raise unknown_name("noise", noise, NOISES)
    if calculus not in CALCULI:
        raise unknown_name("calculus", calculus, CALCULI)


def drift_field(
    drift: Callable[..., Any], cost: Callable[..., Tensor] | None, z: Tensor, t: Tensor, args: Sequence[Tensor]
) -> Field:
    """The drift; with a running cost beside it, the rate of a second state tensor, `(batch,)`.

    Raises:
        FieldError: the drift or the running cost returns another shape, dtype or device than it should.
    """
    if cost is not None and not callable(cost):
        raise InputError(f"running_cost must be a callable l(t, z, *args) -> (batch,), got {type(cost).__name__}")
    with _named("drift"):
        function = with_time(drift, len(args)) if callable(drift) else drift
        if cost is None:
            return Field(function, (z,), t, args)
        return Field(derived_field(_with_cost, function, cost), (z, z.new_zeros(len(z))), t, args, is_tuple=True)


def _with_cost(
    drift: Callable[..., Any], cost: Callable[..., Tensor], owner: object, t: Tensor, state: Any, *args: Tensor
) -> Any:
    z, integral = state
    rate = cost(time_as_asked(cost, t, z.dtype), z, *args)
    if not isinstance(rate, Tensor) or rate.shape != integral.shape:
        got = tuple(rate.shape) if isinstance(rate, Tensor) else type(rate).__name__
        raise FieldError(
            f"running_cost must return one number per batch entry: expected shape {tuple(integral.shape)}, got {got}. "
            "Sum or average over the features, e.g. (z ** 2).sum(-1)"
        )
    return drift(time_as_asked(drift, t, z.dtype), z, *args), rate


def diffusion_field(
    diffusion: Callable[..., Any], noise: str, z: Tensor, t: Tensor, args: Sequence[Tensor]
) -> tuple[Field, int | None]:
    """The diffusion, and how many Brownian motions a sample has; `None` where each number of z has its own.

    Raises:
        FieldError: it returns another shape, dtype or device than it should.
    """
    with _named("diffusion"):
        if not callable(diffusion):
            raise FieldError(f"expected an nn.Module or a callable g(t, z, *args), got {type(diffusion).__name__}")
        function = with_time(diffusion, len(args))
        with torch.no_grad():
            g = function(time_as_asked(function, t[0], z.dtype), z, *args)
        channels = _channels(g, noise, z)
        if channels is None:
            return Field(function, (z,), t, args), None
        state = z, z.new_zeros(*z.shape, channels)
        return Field(derived_field(_of_second, function), state, t, args, is_tuple=True), channels


def _of_second(diffusion: Callable[..., Any], owner: object, t: Tensor, state: Any, *args: Tensor) -> Any:
    """The diffusion as the rate of the second state tensor."""
    z, _ = state
    return torch.zeros_like(z), diffusion(time_as_asked(diffusion, t, z.dtype), z, *args)


def _channels(g: Any, noise: str, z: Tensor) -> int | None:
    shape = tuple(z.shape)
    if not isinstance(g, Tensor):
        raise FieldError(f"it must return a tensor, got {type(g).__name__}")
    matrix = g.dim() == z.dim() + 1 and g.shape[:-1] == z.shape and g.shape[-1] > 0
    right = {
        "diagonal": g.shape == z.shape,
        "additive": g.shape == z.shape or matrix,
        "scalar": matrix and g.shape[-1] == 1,
        "general": matrix,
    }[noise]
    if not right:
        names = ", ".join(map(str, shape))
        expected = {
            "diagonal": f"({names}), that of the state, one Brownian motion for each of its numbers",
            "additive": f"({names}), one Brownian motion for each number of the state, or ({names}, channels)",
            "scalar": f"({names}, 1)",
            "general": f"({names}, channels)",
        }[noise]
        raise FieldError(f'noise="{noise}" has it return the shape {expected}; got {tuple(g.shape)}')
    if g.dtype != z.dtype or g.device != z.device:
        raise FieldError(
            f"it must return the dtype and device of the state, {z.dtype} on {z.device}, got {g.dtype} on {g.device}. "
            "Convert it, or z0, with .to()"
        )
    return None if g.shape == z.shape else int(g.shape[-1])


class _named:
    """What is refused within is this part of the equation."""

    def __init__(self, part: str) -> None:
        self.part = part

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, _: object) -> None:
        if isinstance(error, (FieldError, TraceError)) and not isinstance(error, LateRead):
            raise type(error)(f"{self.part}: {error}") from error


_CHECKED: weakref.WeakKeyDictionary[Any, set[tuple[str, bool]]] = weakref.WeakKeyDictionary()


def check_noise(
    field: Field, noise: str, entrywise: bool, state: Sequence[Tensor], t: Tensor, args: Sequence[Tensor], solver: str
) -> None:
    """Refuse a diffusion that depends on the state as its noise must not.

    It is looked at once for each structure of the diffusion, at the initial state and others around it, for parameters
    a little off theirs.

    Args:
        field: the diffusion.
        noise: kind of noise. Additive noise depends on the time and `args` alone.
        entrywise: whether entry i of a diagonal diffusion may depend on entry i of the state alone.
        state: tensors like those of the diffusion's state.
        t: the times.
        args: conditioning tensors.
        solver: which needs it.

    Raises:
        InputError: it does.
    """
    if noise != "additive" and not (entrywise and noise == "diagonal"):
        return
    known = _CHECKED.setdefault(field.key, set())
    if (noise, entrywise) in known:
        return
    for _, (x, *_), outputs in outputs_elsewhere(field, t[0], state, [a.detach().clone() for a in args], tracked=True):
        g = outputs[-1]
        if not bool(torch.isfinite(g.detach()).all()):
            continue
        if noise == "additive":
            _check_additive(g, x)
        else:
            _check_entrywise(g, x, solver)
    known.add((noise, entrywise))


def _product(g: Tensor, x: Tensor, v: Tensor) -> Tensor:
    if not g.requires_grad:
        return torch.zeros_like(x)
    (found,) = torch.autograd.grad(g, x, v, retain_graph=True, allow_unused=True)
    return torch.zeros_like(x) if found is None else found


def _check_additive(g: Tensor, x: Tensor) -> None:
    if bool(_product(g, x, arbitrary(g, 0.3)).any()):
        raise InputError(
            'noise="additive" means that the diffusion does not depend on the state, and this one does: pass '
            'noise="diagonal", "scalar" or "general"'
        )


def _check_entrywise(g: Tensor, x: Tensor, solver: str) -> None:
    v, w = arbitrary(g, 0.3), arbitrary(g, 2.0).flip(0)
    one, two = w * _product(g, x, v), _product(g, x, v * w)
    tolerance = 1e3 * torch.finfo(x.dtype).eps * max(float(one.abs().max()), float(two.abs().max()))
    if bool(((one - two).abs() > tolerance).any()):
        raise InputError(
            f"the solver {solver!r} needs a diagonal diffusion whose entry i depends on entry i of the state alone, "
            'and here one depends on others: use solver="em" (of order 0.5), or in Stratonovich\'s sense "euler_heun"'
        )
