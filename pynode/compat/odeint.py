"""The functions, under torchdiffeq's signatures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pynode.compat.call import Backward, Call
from pynode.compat.choice import no_counterpart, on_julia, only_in_event, transformed
from pynode.compat.dense import dense_solution
from pynode.compat.linked import linked_event, warn_of_no_gradient, without_second_derivatives
from pynode.compat.methods import check_method
from pynode.compat.pairs import needs_pairs, on_pairs, without_pairs
from pynode.engine.choose import named_engine
from pynode.engine.torch import torchdiffeq
from pynode.errors import InputError
from pynode.field._outside import outside_of_compile
from pynode.problem.state import as_tuple

__all__ = ["odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]


@outside_of_compile
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
        event_fn: ends the solve where it is zero (torch engine). The time has no gradient, and the states are those at
            that time held fixed, as in torchdiffeq; `odeint_event` has both.
        engine: `"auto"`, `"torch"` or `"julia"`.

    Returns:
        `(time, *y0.shape)`, or a tuple of such; with `event_fn`, the time of the event and the states.

    Raises:
        InputError: the method or the engine is unknown.
        EngineUnavailable: the engine is not available, or cannot express the call: names the option.
    """
    call = _call(func, y0, t, False, rtol=rtol, atol=atol, method=method, options=options)
    found = _made(call, engine, call.solve, lambda: [] if event_fn is None else ["event_fn"])
    if found is not None:
        return found
    if method == "scipy_solver":
        warn_of_no_gradient((*as_tuple(y0), t, *(func.parameters() if isinstance(func, nn.Module) else ())))
    return torchdiffeq.odeint(func, y0, t, rtol=rtol, atol=atol, method=method, options=options, event_fn=event_fn)


@outside_of_compile
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
    `"backsolve"` of either engine. On torch the gradient has no derivative, and says so.

    Args:
        func: `func(t, y) -> dy/dt`.
        y0: a tensor of any shape, or a tuple of tensors.
        t: `(time,)`, strictly monotone.
        rtol: relative tolerance.
        atol: absolute tolerance.
        method: torchdiffeq's name of the solver; default `"dopri5"`.
        options: torchdiffeq's options of the solver.
        event_fn: ends the solve where it is zero (torch engine). The time has no gradient, and the states are those at
            that time held fixed, as in torchdiffeq; `odeint_event` has both.
        adjoint_rtol: relative tolerance of the backward solve; default `rtol`.
        adjoint_atol: absolute tolerance of the backward solve; default `atol`.
        adjoint_method: solver of the backward solve; default `method`.
        adjoint_options: options of the backward solve; default those in `options`.
        adjoint_params: the tensors to differentiate by besides `y0` and `t`, or an iterator over them; default the
            parameters of `func`.
        engine: `"auto"`, `"torch"` or `"julia"`.

    Returns:
        As `odeint`.

    Raises:
        InputError: a method or the engine is unknown, or `func` is no module and `adjoint_params` is missing.
        EngineUnavailable: the engine is not available, or cannot express the call: names the option.
    """
    forward = {"rtol": rtol, "atol": atol, "method": method, "options": options}
    backward = {
        "adjoint_rtol": adjoint_rtol,
        "adjoint_atol": adjoint_atol,
        "adjoint_method": adjoint_method,
        "adjoint_options": adjoint_options,
        "adjoint_params": None if adjoint_params is None else tuple(adjoint_params),
    }
    call = _call(func, y0, t, True, **forward, **backward)
    found = _made(call, engine, call.solve, lambda: [] if event_fn is None else ["event_fn"])
    if found is not None:
        return found
    own = func.parameters() if isinstance(func, nn.Module) else ()
    params = tuple(own) if adjoint_params is None else backward["adjoint_params"]
    inputs = (*as_tuple(y0), t, *params)
    if event_fn is None and needs_pairs(call, params):
        backward["adjoint_params"] = params
        field, pairs = on_pairs(func, y0)
        solution = torchdiffeq.odeint_adjoint(field, pairs, t, **forward, **backward)
        return without_pairs(without_second_derivatives(solution, inputs), y0)
    solution = torchdiffeq.odeint_adjoint(func, y0, t, event_fn=event_fn, **forward, **backward)
    if event_fn is None:
        return without_second_derivatives(solution, inputs)
    stop, solution = solution
    return stop.detach(), without_second_derivatives(solution, inputs)  # torchdiffeq drops the time's gradient


@outside_of_compile
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

    What `event_fn` reads has its gradient too, which torchdiffeq leaves out; further derivatives raise.

    Args:
        func: `func(t, y) -> dy/dt`.
        y0: a tensor, or a tuple of tensors.
        t0: the first time, 0-d.
        event_fn: `event_fn(t, y)`, a tensor; the solve ends where one of its entries changes sign.
        reverse_time: whether to integrate towards earlier times.
        odeint_interface: `odeint` or `odeint_adjoint`, of this module or torchdiffeq's.
        engine: `"auto"`, `"torch"` or `"julia"`. On julia the search is given up after `options["max_num_steps"]`
            steps, by default a million.
        **kwargs: passed on to `odeint_interface`.

    Returns:
        The time of the event and the states at `t0` and at the event.

    Raises:
        EngineUnavailable: the engine is not available, or cannot express the call: names the option.
        SolveError: the julia engine gave up the search.
    """
    if odeint_interface in (odeint, odeint_adjoint):
        if kwargs.get("adjoint_params") is not None:
            kwargs["adjoint_params"] = tuple(kwargs["adjoint_params"])
        t = torch.stack([t0.reshape(()), t0.detach().reshape(()) + 1])
        call = _call(func, y0, t, odeint_interface is odeint_adjoint, **kwargs)
        found = _made(
            call,
            engine,
            functools.partial(call.solve_event, event_fn, reverse_time),
            lambda: only_in_event(call, event_fn),
        )
        if found is not None:
            return found
        kwargs["engine"] = "torch"
    elif named_engine(engine) == "julia":
        raise no_counterpart(["odeint_interface"])
    interface = functools.partial(odeint_interface, **kwargs)
    return linked_event(func, y0, t0, event_fn, reverse_time, interface)


def _made(call: Call, engine: str, make: Callable[..., Any], only_torch: Callable[[], Iterable[str]]) -> Any:
    """What the call returns, `None` where torchdiffeq is to make it; `make` takes the engine as keyword."""
    found = on_julia(call, engine, make, only_torch)
    if found is None:
        found = transformed(call, functools.partial(make, engine="torch"), only_torch)
    return found


def _call(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    is_adjoint: bool,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    **backward: Any,
) -> Call:
    """The call of `odeint`, or of `odeint_adjoint`, with these arguments.

    Raises:
        InputError: see `odeint_adjoint`.
    """
    check_method("method", method)
    if not is_adjoint:
        if backward:
            raise TypeError(f"odeint() got an unexpected keyword argument {next(iter(backward))!r}")
        return Call(func, y0, t, rtol, atol, method, options)
    how = Backward(**backward)
    check_method("adjoint_method", how.adjoint_method)
    if how.adjoint_params is None and not isinstance(func, nn.Module):
        raise InputError(
            f"func must be an nn.Module, got {type(func).__name__}: pass its parameters as adjoint_params=(…), or "
            "adjoint_params=() if it has none"
        )
    return Call(func, y0, t, rtol, atol, method, options, how)


@outside_of_compile
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

    Also backwards in time, where torchdiffeq's interpolant is wrong.

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
        The function that maps a 0-d time to the state; it refuses times outside of those that were solved.

    Raises:
        InputError: the method is another, or `t0` requires a gradient, which torchdiffeq would leave out.
        EngineUnavailable: the julia engine was asked for.
    """
    if named_engine(engine) == "julia":
        raise no_counterpart(["odeint_dense"])
    if method not in (None, "dopri5"):
        raise InputError(f"odeint_dense interpolates the steps of 'dopri5' only, got method={method!r}")
    return dense_solution(func, y0, t0, t1, options, rtol=rtol, atol=atol, method=method)
