"""Which engine makes a call: what of it only torchdiffeq can express runs on torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from pynode.compat.call import STOPS, Backward, Call
from pynode.engine.choose import announce, choose, named_engine
from pynode.errors import EngineUnavailable, FieldError, TraceError
from pynode.field._bindings import Reads
from pynode.transforms import is_active

__all__ = ["CALLBACKS", "no_counterpart", "on_julia", "only_in_event", "transformed"]

CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")
_DTYPES = (torch.float32, torch.float64)


def on_julia(call: Call, engine: str, make: Callable[[], Any], only_torch: Callable[[], Iterable[str]]) -> Any:
    """What the call returns, made on the julia engine; `None` where torchdiffeq is to make it.

    `engine="auto"` says once, by logging, for which reason a call runs where it runs.

    Args:
        call: the call.
        engine: the engine that the user names.
        make: makes the call.
        only_torch: names what of the call, besides what `Call` has, only torchdiffeq can express.

    Raises:
        EngineUnavailable: the julia engine is asked for by name and cannot make the call.
    """
    name = named_engine(engine)
    if name == "torch":
        return None
    try:
        if name == "auto":
            choose("julia", "auto", "auto")
        obstacles = [*_only_torch(call), *only_torch()]
        if obstacles:
            raise no_counterpart(obstacles)
        result = make()
    except (EngineUnavailable, TraceError, FieldError) as error:
        if name == "julia":
            raise
        announce("torch", str(error))
        return None
    if name == "auto":
        announce("julia", "it is available, and preferred")
    return result


def transformed(call: Call, make: Callable[[], Any], only_torch: Callable[[], Iterable[str]]) -> Any:
    """What the call returns, made by `pynode.solve` on the torch engine; `None` where torchdiffeq is to make it.

    The transforms of `torch.func` and dual numbers do not pass torchdiffeq's own functions.

    Args:
        call: the call.
        make: makes the call.
        only_torch: names what of the call, besides what `Call` has, only torchdiffeq can express.
    """
    if not is_active() or [*_only_torch(call), *only_torch()]:
        return None
    assert call.solver is not None
    return make() if "torch" in call.solver.engines else None


def no_counterpart(obstacles: Iterable[str]) -> EngineUnavailable:
    """The error that the julia engine cannot express these."""
    return EngineUnavailable(
        f"the julia engine has no counterpart of torchdiffeq's {', '.join(obstacles)}: leave that out, or pass "
        'engine="torch"'
    )


def _only_torch(call: Call) -> list[str]:
    """What of a call only torchdiffeq can express, or is to refuse."""
    solver, y0, t = call.solver, call.y0, call.t
    if solver is None:
        return [f"method={call.method!r}"]
    numbers = ("first_step", "max_num_steps") if solver.adaptive else ("step_size",)
    known = {**dict.fromkeys(numbers, _is_positive), "interp": lambda x: not solver.adaptive and x == "linear"}
    if solver.adaptive:
        known |= dict.fromkeys(STOPS, _are_times)
    found = []
    for key, value in call.options.items():
        may_be_none = key in ("first_step", "step_size", *STOPS) and value is None
        if key not in known or not (may_be_none or known[key](value)):
            found.append(f"options[{key!r}]")
    for name, tolerance in (("rtol", call.rtol), ("atol", call.atol)):
        if not _is_number(tolerance):
            found.append("tolerances per component")
        elif not _is_positive(tolerance):
            found.append(f"{name}={float(tolerance):g}")
    states = y0 if isinstance(y0, tuple) else (y0,)
    if not all(isinstance(y, Tensor) and y.dtype in _DTYPES and y.numel() for y in states) or not _alike(states):
        found.append("state of this type")
    elif not isinstance(t, Tensor) or t.dtype not in _DTYPES or t.dim() != 1 or t.device != states[0].device:
        found.append("times of this type")
    elif len(t) < 2:
        found.append("solve for a single time")
    found += [f"func.{name}" for name in CALLBACKS if hasattr(call.func, name)]
    return found if call.backward is None else [*found, *_only_in_backward(call, call.backward)]


def _only_in_backward(call: Call, how: Backward) -> Iterator[str]:
    """What of the backward solve only torchdiffeq can express."""
    for name in ("adjoint_rtol", "adjoint_atol"):
        tolerance = getattr(how, name)
        if tolerance is not None and not _is_positive(tolerance):
            yield name
    if how.adjoint_method not in (None, call.method):
        yield "adjoint_method"
    if how.adjoint_options is not None and (how.adjoint_options or call.options):  # by default the forward solve's
        yield "adjoint_options"
    params = how.adjoint_params
    if params is not None and {id(p) for p in params if p.requires_grad} != set(map(id, Reads(call.func).leaves())):
        yield "adjoint_params"
    yield from (f"func.{name}_adjoint" for name in CALLBACKS if hasattr(call.func, f"{name}_adjoint"))


def only_in_event(call: Call, event_fn: Callable[..., Tensor]) -> Iterator[str]:
    """What only torchdiffeq can express of a call of `odeint_event`."""
    with torch.no_grad():
        if not bool((event_fn(call.t[0], call.y0) != 0).all()):
            yield "event_fn that is zero at t0, which ends the solve there"


def _is_number(x: Any) -> bool:
    """Whether it is one number, without a gradient."""
    return isinstance(x, int | float) or (isinstance(x, Tensor) and x.dim() == 0 and not x.requires_grad)


def _is_positive(x: Any) -> bool:
    """Whether it is one number, without a gradient, positive and finite."""
    return _is_number(x) and 0 < float(x) < math.inf


def _are_times(x: Any) -> bool:
    """Whether it is a vector of finite times."""
    return isinstance(x, Tensor) and x.dim() == 1 and x.is_floating_point() and bool(torch.isfinite(x).all())


def _alike(states: tuple[Tensor, ...]) -> bool:
    return len(states) > 0 and all(y.dtype == states[0].dtype and y.device == states[0].device for y in states)
