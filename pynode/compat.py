"""torchdiffeq's functions under torchdiffeq's signatures: replacing the import line is the whole migration.

Each function takes one keyword more, `engine`. On the torch engine a call is torchdiffeq's own. On the julia
engine `pynode.solve` makes it; the numbers then agree to the tolerances (torchdiffeq's `rk4` is the 3/8 rule,
Julia's the classical one). `engine="auto"` takes julia where it is available and can express the call, and
torch otherwise. Events and `odeint_dense` are always torchdiffeq's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torchdiffeq
from torch import Tensor, nn

from pynode._derived import derived_field
from pynode.engine._grid import substeps
from pynode.engine._solvers import SOLVERS, SolverInfo
from pynode.engine.choose import choose, named_engine
from pynode.errors import EngineUnavailable, InputError, unknown_name
from pynode.field._bindings import Reads
from pynode.sensitivity import Backsolve, Sensitivity
from pynode.solve import solve

__all__ = ["odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]

_SOLVERS = {s.torch: s for s in SOLVERS.values() if s.torch is not None and s.name not in ("lsoda", "bdf", "radau")}
_METHODS = (*_SOLVERS, "explicit_adams", "fixed_adams", "scipy_solver")


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
    call = _Call(func, y0, t, rtol, atol, method, options)
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
    if adjoint_params is None and not isinstance(func, nn.Module):
        raise InputError(
            f"func must be an nn.Module, got {type(func).__name__}: pass its parameters as adjoint_params=(…), "
            "or adjoint_params=() if it has none"
        )
    params = None if adjoint_params is None else tuple(adjoint_params)
    call = _Call(func, y0, t, rtol, atol, method, options)
    only_torch = {
        "event_fn": event_fn is not None,
        "adjoint_rtol": not _is_number(adjoint_rtol or rtol),
        "adjoint_atol": not _is_number(adjoint_atol or atol),
        "adjoint_method": adjoint_method not in (None, method),
        "adjoint_options": bool(adjoint_options),
        "adjoint_params": params is not None and not _are_all(params, func),
    }
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
        adjoint_params=params,
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
        engine: `"auto"` or `"torch"`; the julia engine has no events yet.
        **kwargs: passed on to `odeint_interface`.

    Returns:
        The time of the event and the states at `t0` and at the event.

    Raises:
        EngineUnavailable: the julia engine was asked for.
    """
    _only_torch(engine, "odeint_event")
    return torchdiffeq.odeint_event(
        func, y0, t0, event_fn=event_fn, reverse_time=reverse_time, odeint_interface=odeint_interface, **kwargs
    )


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


class _Call:
    """A call in torchdiffeq's terms, and what it is in pynode's."""

    def __init__(
        self,
        func: Callable[..., Any],
        y0: Any,
        t: Tensor,
        rtol: Any,
        atol: Any,
        method: str | None,
        options: Mapping[str, Any] | None,
    ) -> None:
        self.method = method or "dopri5"
        if self.method not in _METHODS:
            raise unknown_name("method", method, _METHODS)
        self.func, self.y0, self.t, self.rtol, self.atol = func, y0, t, rtol, atol
        self.solver: SolverInfo | None = _SOLVERS.get(self.method)
        self.options = dict(options or {})

    def runs_on_julia(self, engine: str, sensitivity: str, only_torch: Mapping[str, bool]) -> bool:
        """Whether the julia engine makes the call.

        Args:
            engine: the engine that the user names.
            sensitivity: the sensitivity that the call means.
            only_torch: for arguments of the call, whether only torchdiffeq knows what they ask for.

        Raises:
            EngineUnavailable: the julia engine is asked for by name and cannot make it.
        """
        name = named_engine(engine)
        if name == "torch":
            return False
        obstacles = [key for key, is_one in only_torch.items() if is_one] + self._obstacles()
        if obstacles and name == "julia":
            raise EngineUnavailable(
                f"the julia engine has no counterpart of torchdiffeq's {', '.join(obstacles)}: leave that out, or "
                'pass engine="torch"'
            )
        if obstacles or self.solver is None:
            return False
        try:
            choose("julia", self.solver.name, sensitivity)
        except EngineUnavailable:
            if name == "julia":
                raise
            return False
        return True

    def _obstacles(self) -> list[str]:
        """What of the call only torchdiffeq can express."""
        states = self.y0 if isinstance(self.y0, tuple) else (self.y0,)
        if self.solver is None or "julia" not in self.solver.engines:
            return [f"method={self.method!r}"]
        known = {"first_step", "max_num_steps"} if self.solver.adaptive else {"step_size", "interp"}
        found = [f"options[{key!r}]" for key in self.options if key not in known]
        if self.options.get("interp", "linear") != "linear":
            found.append("options['interp']")
        if not (_is_number(self.rtol) and _is_number(self.atol)):
            found.append("tolerances per component")
        if len(self.t) < 2:
            found.append("solve for a single time")
        if any(not isinstance(y, Tensor) or y.dtype not in (torch.float32, torch.float64) for y in states):
            found.append("state of this type")
        return found

    def solve(self, sensitivity: str | Sensitivity) -> Any:
        """Make the call through `pynode.solve` on the julia engine."""
        assert self.solver is not None
        is_tuple = isinstance(self.y0, tuple)
        states = self.y0 if is_tuple else (self.y0,)
        shapes = tuple(y.shape for y in states)
        field, z0 = self.func, self.y0
        if any(y.dim() == 0 for y in states):
            field = derived_field(_with_scalars, self.func, shapes, is_tuple)
            z0 = tuple(y.reshape(y.shape or (1,)) for y in states)
        times, dt = self.t, self.options.get("first_step")
        if not self.solver.adaptive:
            times, dt = self._grid()
        steps = self.options.get("max_num_steps", 2**31 - 1)
        solution = solve(
            field,
            z0,
            times,
            solver=self.solver.name,
            rtol=float(self.rtol),
            atol=float(self.atol),
            dt=None if dt is None else float(dt),
            sensitivity=sensitivity,
            max_steps=min(int(steps) * (len(times) - 1), 2**31 - 1),  # torchdiffeq's bound is per interval
            engine="julia",
        )
        z = solution.z if isinstance(solution.z, tuple) else (solution.z,)
        if times is not self.t:
            z = tuple(_interpolate(times, x, self.t) for x in z)
        z = tuple(x.reshape(len(self.t), *shape) for x, shape in zip(z, shapes, strict=True))
        return z if is_tuple else z[0]

    def _grid(self) -> tuple[Tensor, float]:
        """The times where torchdiffeq's fixed-step solvers step, and a step that is none too short for them."""
        t, step = self.t, self.options.get("step_size")
        if step is None:
            return t, t.diff().abs().max().item()
        (count,) = substeps((t[0].item(), t[-1].item()), float(step))
        offset = torch.arange(count, dtype=t.dtype, device=t.device) * float(step)
        return torch.cat([t[0] + (offset if t[-1] > t[0] else -offset), t[-1:]]), 2 * float(step)


def _only_torch(engine: str, what: str) -> None:
    if named_engine(engine) == "julia":
        raise EngineUnavailable(f'the julia engine has no counterpart of torchdiffeq\'s {what}: pass engine="torch"')


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) or (isinstance(x, Tensor) and x.dim() == 0)


def _are_all(params: tuple[Tensor, ...], func: Callable[..., Any]) -> bool:
    """Whether these are leaves, and all of those of `func` that require a gradient: what `solve` differentiates by."""
    given = {id(p) for p in params}
    return all(p.is_leaf for p in params) and all(id(x) in given for x in Reads(func).leaves())


def _interpolate(knots: Tensor, values: Tensor, t: Tensor) -> Tensor:
    """Linear interpolation, `(knots, …)` to `(t, …)`; differentiable in all three."""
    sign = 1 if knots[-1] > knots[0] else -1
    after = torch.searchsorted(sign * knots.detach(), sign * t.detach()).clamp(1, len(knots) - 1)
    weight = (t - knots[after - 1]) / (knots[after] - knots[after - 1])
    return torch.lerp(values[after - 1], values[after], weight.to(values).reshape(-1, *[1] * (values.dim() - 1)))


def _with_scalars(
    func: Any, shapes: Any, is_tuple: bool, owner: Any, t: Tensor, z: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """A field of 0-d states as one of states of shape `(1,)`."""
    states = tuple(x.reshape(shape) for x, shape in zip(z, shapes, strict=True))
    rates = func(t, states if is_tuple else states[0])
    return tuple(dy.reshape(x.shape) for dy, x in zip(rates if is_tuple else (rates,), z, strict=True))
