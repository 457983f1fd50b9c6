"""The functions, under torchdiffeq's signatures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torchdiffeq
from torch import Tensor

from pynode.compat.call import Call
from pynode.engine.choose import named_engine
from pynode.errors import EngineUnavailable
from pynode.sensitivity import Backsolve, Sensitivity

__all__ = ["odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]


def odeint(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: Callable[..., Tensor] | None = None,
    engine: str = "auto",
) -> Any:
    """Solve dy/dt = func(t, y), differentiably, as `torchdiffeq.odeint` does.

    Args:
        func: `func(t, y) -> dy/dt`.
        y0: a tensor of any shape, or a tuple of tensors.
        t: `(time,)`, strictly monotone.
        rtol: relative tolerance.
        atol: absolute tolerance.
        method: torchdiffeq's name of the solver; default `"dopri5"`.
        options: torchdiffeq's options of the solver.
        event_fn: ends the solve where it is zero (torch engine).
        engine: `"auto"`, `"torch"` or `"julia"`.

    Returns:
        `(time, *y0.shape)`, or a tuple of such; with `event_fn`, the time of the event and the states.

    Raises:
        InputError: the method or the engine is unknown.
        EngineUnavailable: the engine is not available, or cannot express the call: names the option.
    """
    call = Call(func, y0, t, rtol, atol, method, options)
    if call.runs_on_julia(engine, "auto", {"event_fn": event_fn is not None}):
        return call.solve("auto")
    return torchdiffeq.odeint(func, y0, t, rtol=rtol, atol=atol, method=method, options=options, event_fn=event_fn)


def odeint_adjoint(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: Callable[..., Tensor] | None = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: str | None = None,
    adjoint_options: Mapping[str, Any] | None = None,
    adjoint_params: Any = None,
    engine: str = "auto",
) -> Any:
    """Solve dy/dt = func(t, y) with the continuous adjoint as gradient, as `torchdiffeq.odeint_adjoint` does.

    The state is integrated backwards along with its adjoint (Chen et al. 2018, algorithm 1): the sensitivity
    `"backsolve"` of either engine.

    Args:
        func: `func(t, y) -> dy/dt`.
        y0: a tensor of any shape, or a tuple of tensors.
        t: `(time,)`, strictly monotone.
        rtol: relative tolerance.
        atol: absolute tolerance.
        method: torchdiffeq's name of the solver; default `"dopri5"`.
        options: torchdiffeq's options of the solver.
        event_fn: ends the solve where it is zero (torch engine).
        adjoint_rtol: relative tolerance of the backward solve; default `rtol`.
        adjoint_atol: absolute tolerance of the backward solve; default `atol`.
        adjoint_method: solver of the backward solve; default `method`.
        adjoint_options: options of the backward solve; default those in `options`.
        adjoint_params: the tensors to differentiate by besides `y0` and `t`; default the parameters of `func`.
        engine: `"auto"`, `"torch"` or `"julia"`.

    Returns:
        As `odeint`.

    Raises:
        InputError: a method or the engine is unknown, or `func` is no module and `adjoint_params` is missing.
        EngineUnavailable: the engine is not available, or cannot express the call: names the option.
    """
    call = Call(func, y0, t, rtol, atol, method, options)
    backward = (adjoint_rtol, adjoint_atol, adjoint_method, adjoint_options, adjoint_params)
    only_torch = {"event_fn": event_fn is not None, **call.obstacles_of_adjoint(*backward)}
    if call.runs_on_julia(engine, "backsolve", only_torch):
        return call.solve(Backsolve(rtol=adjoint_rtol, atol=adjoint_atol))
    return torchdiffeq.odeint_adjoint(
        func,
        y0,
        t,
        rtol=rtol,
        atol=atol,
        method=method,
        options=options,
        event_fn=event_fn,
        adjoint_rtol=adjoint_rtol,
        adjoint_atol=adjoint_atol,
        adjoint_method=adjoint_method,
        adjoint_options=adjoint_options,
        adjoint_params=None if adjoint_params is None else tuple(adjoint_params),
    )


def odeint_event(
    func: Callable[..., Any],
    y0: Any,
    t0: Tensor,
    *,
    event_fn: Callable[..., Tensor],
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    engine: str = "auto",
    **kwargs: Any,
) -> Any:
    """Solve until `event_fn(t, y)` is zero, with the gradient of the event's time, as `torchdiffeq.odeint_event`.

    Args:
        func: `func(t, y) -> dy/dt`.
        y0: a tensor, or a tuple of tensors.
        t0: the first time, 0-d.
        event_fn: `event_fn(t, y)`, a tensor; the solve ends where one of its entries changes sign.
        reverse_time: whether to integrate towards earlier times.
        odeint_interface: `odeint` or `odeint_adjoint`, of this module or torchdiffeq's.
        engine: `"auto"`, `"torch"` or `"julia"`. On julia an entry that is zero at `t0` counts from when it has
            left zero, and the search is given up after `options["max_num_steps"]` steps, by default a million.
        **kwargs: passed on to `odeint_interface`.

    Returns:
        The time of the event and the states at `t0` and at the event.

    Raises:
        EngineUnavailable: the engine is not available, or cannot express the call: names the option.
        SolveError: the julia engine gave up the search.
    """
    is_adjoint = odeint_interface is odeint_adjoint
    call, sensitivity, only_torch = _event_call(func, y0, t0, is_adjoint, **kwargs)
    only_torch["odeint_interface"] = odeint_interface not in (odeint, odeint_adjoint)
    if call.runs_on_julia(engine, sensitivity.name if isinstance(sensitivity, Sensitivity) else "auto", only_torch):
        return call.solve_event(event_fn, reverse_time, sensitivity)
    if odeint_interface in (odeint, odeint_adjoint):
        kwargs["engine"] = "torch"
    return torchdiffeq.odeint_event(
        func, y0, t0, event_fn=event_fn, reverse_time=reverse_time, odeint_interface=odeint_interface, **kwargs
    )


def _event_call(
    func: Callable[..., Any],
    y0: Any,
    t0: Tensor,
    is_adjoint: bool,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: str | None = None,
    adjoint_options: Mapping[str, Any] | None = None,
    adjoint_params: Any = None,
) -> tuple[Call, str | Sensitivity, dict[str, bool]]:
    """The call that `odeint_event` makes with these keywords, its sensitivity, and its obstacles."""
    call = Call(func, y0, torch.stack([t0.reshape(()), t0.detach().reshape(()) + 1]), rtol, atol, method, options)
    if not is_adjoint:
        return call, "auto", {}
    backward = (adjoint_rtol, adjoint_atol, adjoint_method, adjoint_options, adjoint_params)
    return call, Backsolve(rtol=adjoint_rtol, atol=adjoint_atol), call.obstacles_of_adjoint(*backward)


def odeint_dense(
    func: Callable[..., Any],
    y0: Tensor,
    t0: Tensor,
    t1: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    engine: str = "auto",
) -> Callable[[Tensor], Tensor]:
    """Solve from `t0` to `t1` and return an interpolant that gradients pass, as `torchdiffeq.odeint_dense`.

    Args:
        func: `func(t, y) -> dy/dt`.
        y0: a tensor.
        t0: the first time, 0-d.
        t1: the last time, 0-d.
        rtol: relative tolerance.
        atol: absolute tolerance.
        method: `"dopri5"` or `None`.
        options: torchdiffeq's options of the solver.
        engine: `"auto"` or `"torch"`; `pynode.solve(dense=True)` interpolates on either, without a gradient.

    Returns:
        The function that maps a 0-d time to the state.

    Raises:
        EngineUnavailable: the julia engine was asked for.
    """
    _only_torch(engine, "odeint_dense")
    return torchdiffeq.odeint_dense(func, y0, t0, t1, rtol=rtol, atol=atol, method=method, options=options)


def _only_torch(engine: str, what: str) -> None:
    if named_engine(engine) == "julia":
        raise EngineUnavailable(f'the julia engine has no counterpart of torchdiffeq\'s {what}: pass engine="torch"')
