"""A call in torchdiffeq's terms, and what it is in pynode's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pynode.engine import Retcode
from pynode.engine.choose import choose, named_engine
from pynode.engine.grid import substeps
from pynode.engine.solvers import SOLVERS, SolverInfo
from pynode.errors import EngineUnavailable, InputError, SolveError, unknown_name
from pynode.field._bindings import Reads
from pynode.field._derived import derived_field
from pynode.sensitivity import Sensitivity
from pynode.solve import solve

__all__ = ["Call"]

_SOLVERS = {s.torch: s for s in SOLVERS.values() if s.torch is not None and s.name not in ("lsoda", "bdf", "radau")}
_METHODS = (*_SOLVERS, "explicit_adams", "fixed_adams", "scipy_solver")
_SPANS = 30  # each four times as long as the one before


class Call:
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

    def obstacles_of_adjoint(
        self,
        rtol: Any,
        atol: Any,
        method: str | None,
        options: Mapping[str, Any] | None,
        params: Any,
    ) -> dict[str, bool]:
        """For the arguments of the backward solve, whether only torchdiffeq knows what they ask for.

        Raises:
            InputError: `func` is no module and `params` is missing.
        """
        if params is None and not isinstance(self.func, nn.Module):
            raise InputError(
                f"func must be an nn.Module, got {type(self.func).__name__}: pass its parameters as "
                "adjoint_params=(…), or adjoint_params=() if it has none"
            )
        return {
            "adjoint_rtol": not _is_number(rtol or self.rtol),
            "adjoint_atol": not _is_number(atol or self.atol),
            "adjoint_method": method not in (None, self.method),
            "adjoint_options": bool(options),
            "adjoint_params": params is not None and not _are_all(tuple(params), self.func),
        }

    def _states(self) -> tuple[Callable[..., Any], Any, tuple[torch.Size, ...]]:
        """The field and the state with a batch dimension, and the shapes of the user's state."""
        is_tuple = isinstance(self.y0, tuple)
        states = self.y0 if is_tuple else (self.y0,)
        shapes = tuple(y.shape for y in states)
        if all(shapes):
            return self.func, self.y0, shapes
        z0 = tuple(y.reshape(y.shape or (1,)) for y in states)
        return derived_field(_with_scalars, self.func, shapes, is_tuple), z0, shapes

    def solve(self, sensitivity: str | Sensitivity) -> Any:
        """Make the call through `pynode.solve` on the julia engine."""
        assert self.solver is not None
        field, z0, shapes = self._states()
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
        z = _tuple(solution.z)
        if times is not self.t:
            z = tuple(_interpolate(times, x, self.t) for x in z)
        z = tuple(x.reshape(len(self.t), *shape) for x, shape in zip(z, shapes, strict=True))
        return z if isinstance(self.y0, tuple) else z[0]

    def solve_event(self, event_fn: Callable[..., Tensor], reverse: bool, sensitivity: str | Sensitivity) -> Any:
        """Solve to the event through `pynode.solve` on the julia engine, over ever longer spans until it is met."""
        assert self.solver is not None
        field, z0, shapes = self._states()
        event = derived_field(_flat_event, event_fn, shapes, isinstance(self.y0, tuple))
        dt = self.options.get("first_step" if self.solver.adaptive else "step_size")
        for k in range(_SPANS):
            end = self.t[0].detach() + (-1.0 if reverse else 1.0) * 4.0**k
            solution = solve(
                field,
                z0,
                torch.stack([self.t[0], end]),
                solver=self.solver.name,
                rtol=float(self.rtol),
                atol=float(self.atol),
                dt=None if dt is None else float(dt),
                sensitivity=sensitivity,
                event=event,
                max_steps=int(self.options.get("max_num_steps", 1_000_000)),
                engine="julia",
            )
            if solution.event_t is not None:
                break
        else:
            raise SolveError(f"no event was met before t={float(end):g}: look at event_fn", Retcode.SUCCESS)
        pairs = zip(_tuple(solution.z), _tuple(solution.event_z), shapes, strict=True)
        z = tuple(torch.stack([x[0].reshape(shape), y.reshape(shape)]) for x, y, shape in pairs)
        return solution.event_t, z if isinstance(self.y0, tuple) else z[0]

    def _grid(self) -> tuple[Tensor, float]:
        """The times where torchdiffeq's fixed-step solvers step, and a step that is none too short for them."""
        t, step = self.t, self.options.get("step_size")
        if step is None:
            return t, t.diff().abs().max().item()
        (count,) = substeps((t[0].item(), t[-1].item()), float(step))
        offset = torch.arange(count, dtype=t.dtype, device=t.device) * float(step)
        return torch.cat([t[0] + (offset if t[-1] > t[0] else -offset), t[-1:]]), 2 * float(step)


def _tuple(z: Any) -> tuple[Tensor, ...]:
    return z if isinstance(z, tuple) else (z,)


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


def _flat_event(event_fn: Any, shapes: Any, is_tuple: bool, owner: Any, t: Tensor, z: Any) -> Tensor:
    """An event function of the user's state as a vector."""
    states = tuple(x.reshape(shape) for x, shape in zip(_tuple(z), shapes, strict=True))
    values: Tensor = event_fn(t, states if is_tuple else states[0])
    return values.reshape(-1)
