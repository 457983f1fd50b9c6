"""A call in torchdiffeq's terms, made through `pynode.solve`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pynode.compat.methods import counterpart
from pynode.engine import Retcode
from pynode.engine.solvers import SolverInfo
from pynode.errors import SolveError
from pynode.field._derived import derived_field
from pynode.problem.state import as_tuple
from pynode.sensitivity import Backsolve, Sensitivity
from pynode.solve import solve

__all__ = ["STOPS", "Backward", "Call"]

STOPS = ("step_t", "jump_t")  # torchdiffeq's options

_SPANS = 30  # each four times as long as the one before


@dataclass(frozen=True)
class Backward:
    """What `odeint_adjoint` is told of its backward solve; `None`: as the forward one, or the parameters of `func`."""

    adjoint_rtol: Any = None
    adjoint_atol: Any = None
    adjoint_method: str | None = None
    adjoint_options: Mapping[str, Any] | None = None
    adjoint_params: tuple[Tensor, ...] | None = None


class Call:
    """A call in torchdiffeq's terms.

    Attributes:
        solver: pynode's counterpart of the method; `None` where there is none.
        backward: what the backward solve is to be; `None` for `odeint`, which has none.
    """

    def __init__(
        self,
        func: Callable[..., Any],
        y0: Any,
        t: Tensor,
        rtol: Any,
        atol: Any,
        method: str | None,
        options: Mapping[str, Any] | None = None,
        backward: Backward | None = None,
    ) -> None:
        self.func, self.y0, self.t, self.rtol, self.atol = func, y0, t, rtol, atol
        self.method = "dopri5" if method is None else method
        self.solver: SolverInfo | None = counterpart(self.method)
        self.options = dict(options or {})
        self.backward = backward

    @property
    def sensitivity(self) -> str | Sensitivity:
        """What computes the gradient."""
        how = self.backward
        if how is None:
            return "auto"
        rtol = None if how.adjoint_rtol is None else float(how.adjoint_rtol)
        atol = float(self.atol if how.adjoint_atol is None else how.adjoint_atol)
        return Backsolve(rtol=rtol, atol=atol or None)

    def solve(self, engine: str = "julia") -> Any:
        """What `odeint` returns."""
        assert self.solver is not None
        field, z0, shapes = self._states()
        times, dt = self.t, self.options.get("first_step")
        if not self.solver.adaptive:
            times, dt = self._grid()
        steps = int(self.options.get("max_num_steps", 2**31 - 1)) * (len(times) - 1)  # the bound is per interval
        solution = solve(
            field,
            z0,
            times,
            solver=self.solver.name,
            rtol=float(self.rtol),
            atol=float(self.atol),
            dt=None if dt is None else float(dt),
            sensitivity=self.sensitivity,
            tstops=self._stops(),
            max_steps=min(steps, 2**31 - 1),
            engine=engine,
        )
        z = as_tuple(solution.z)
        if times is not self.t:
            z = tuple(_interpolate(times, x, self.t) for x in z)
        z = tuple(x.reshape(len(self.t), *shape) for x, shape in zip(z, shapes, strict=True))
        return z if isinstance(self.y0, tuple) else z[0]

    def solve_event(self, event_fn: Callable[..., Tensor], reverse: bool, engine: str = "julia") -> Any:
        """What `odeint_event` returns; the spans that are solved grow until the event is met."""
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
                sensitivity=self.sensitivity,
                event=event,
                tstops=self._stops(),
                max_steps=int(self.options.get("max_num_steps", 1_000_000)),
                engine=engine,
            )
            if solution.event_t is not None:
                break
        else:
            raise SolveError(f"no event was met before t={float(end):g}: look at event_fn", Retcode.SUCCESS)
        pairs = zip(as_tuple(solution.z), as_tuple(solution.event_z), shapes, strict=True)
        z = tuple(torch.stack([x[0].reshape(shape), y.reshape(shape)]) for x, y, shape in pairs)
        return solution.event_t, z if isinstance(self.y0, tuple) else z[0]

    def _stops(self) -> Tensor | None:
        """Where torchdiffeq is told to step to, and to start afresh; it does not search."""
        given = [self.options[key] for key in STOPS if self.options.get(key) is not None]
        return torch.cat([torch.as_tensor(x).to(self.t) for x in given]) if given else None

    def _states(self) -> tuple[Callable[..., Any], Any, tuple[torch.Size, ...]]:
        """The field and the state with a batch dimension, and the shapes of the user's state.

        Where the parts of a state have no common first dimension, all of it is one sample.
        """
        is_tuple = isinstance(self.y0, tuple)
        states = as_tuple(self.y0)
        shapes = tuple(y.shape for y in states)
        if all(shapes) and len({shape[0] for shape in shapes}) == 1:
            return self.func, self.y0, shapes
        z0 = tuple(y.reshape(1, *y.shape) for y in states)
        return derived_field(_of_one_sample, self.func, shapes, is_tuple), z0, shapes

    def _grid(self) -> tuple[Tensor, float]:
        """The times where torchdiffeq's fixed-step solvers step, and a step that is none too short for them."""
        t, step = self.t, self.options.get("step_size")
        if step is None:
            return t, 2 * t.detach().diff().abs().max().item()
        size = float(step)
        sign = 1 if t[-1] > t[0] else -1
        count = int(torch.ceil((t[-1] - t[0]).detach().abs() / size + 1).item())
        grid = t[0] + sign * torch.arange(count - 1, dtype=t.dtype, device=t.device) * size
        # Rounding may leave a last step of no length.
        resolution = 8 * torch.finfo(t.dtype).eps * max(abs(t[0].item()), abs(t[-1].item()))
        grid = grid[sign * (t[-1] - grid).detach() > resolution]
        return torch.cat([grid, t[-1:]]), 2 * size


def _interpolate(knots: Tensor, values: Tensor, t: Tensor) -> Tensor:
    """Linear interpolation, `(knots, …)` to `(t, …)`; differentiable in all three."""
    sign = 1 if knots[-1] > knots[0] else -1
    after = torch.searchsorted(sign * knots.detach(), sign * t.detach()).clamp(1, len(knots) - 1)
    weight = (t - knots[after - 1]) / (knots[after] - knots[after - 1])
    return torch.lerp(values[after - 1], values[after], weight.to(values).reshape(-1, *[1] * (values.dim() - 1)))


def _of_one_sample(
    func: Any, shapes: Any, is_tuple: bool, owner: Any, t: Tensor, z: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """A field of states of any shapes as one of tensors with a batch dimension of 1."""
    states = tuple(x.reshape(shape) for x, shape in zip(z, shapes, strict=True))
    rates = func(t, states if is_tuple else states[0])
    return tuple(dy.reshape(x.shape) for dy, x in zip(rates if is_tuple else (rates,), z, strict=True))


def _flat_event(event_fn: Any, shapes: Any, is_tuple: bool, owner: Any, t: Tensor, z: Any) -> Tensor:
    """An event function of the user's state as a vector."""
    states = tuple(x.reshape(shape) for x, shape in zip(as_tuple(z), shapes, strict=True))
    values: Tensor = event_fn(t, states if is_tuple else states[0])
    return values.reshape(-1)
