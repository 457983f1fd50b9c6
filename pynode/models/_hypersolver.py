"""Hypersolvers: fixed steps with a learned correction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pynode.engine.protocol import Stats
from pynode.errors import FieldError, InputError, unknown_name
from pynode.models._node import NODE
from pynode.nn._signature import with_time
from pynode.problem.inputs import as_times, check_number
from pynode.solve import solve

__all__ = ["Hypersolver"]

# Of each base method: order, evaluations of the field a step.
_METHODS = {"euler": (1, 1), "midpoint": (2, 2), "rk4": (4, 4)}
_OWN = ("batching", "running_cost", "step_control", "tstops")  # what a correction of whole steps rules out
_ROUNDING = 1e-4  # of a step: how far times may be from whole steps


class Hypersolver(NODE):
    """A neural ODE that is solved by few large steps, the error of which a network corrects.

    A step of the hypersolver is z(s + h) = z + h ψ(s, z) + hᵖ⁺¹ g(h, s, z, ż), with ψ the increment of the base method,
    p its order, and g the correction. It is computed as a step of Euler's method for the field ψ + hᵖ g, which the
    engine traces and differentiates as any other. A step that is cut short would not be a step of the hypersolver:
    therefore depths have to be whole steps apart.

    Args:
        field: f, as `NODE` takes; usually that of a trained model.
        correction: g, a callable `g(h, t, z, dz)` that gets the signed step and the depth, 0-d, the state and the
            field's value there, `(batch, …)`, and returns a tensor of their shape. A last layer of zeros makes the
            base method of it before a training.
        solver: the base method: `"euler"`, `"midpoint"` or `"rk4"` (the classical one).
        dt: the step h, positive; it may be set anew before any call.
        node_keywords: as `NODE` takes, but for `running_cost`, `batching`, `step_control` and `tstops`. The gradient
            that is exact for the steps is `sensitivity="discrete"`, the default.

    Attributes:
        field: ψ + hᵖ g; its `field` and `correction` are f and g.
        dt: h.
        stats: the `Stats` of the last call, which count evaluations of f; `None` before it.

    Raises:
        InputError: an argument is not usable; at a call, depths are not whole steps apart, or require a gradient.
        FieldError: at a call, the correction returns another shape.

    Source:
        M. Poli et al., "Hypersolvers: Toward Fast Continuous-Depth Models", NeurIPS 2020, eq. 4 and section 3.
    """

    def __init__(
        self,
        field: Callable[..., Any],
        correction: Callable[..., Tensor],
        *,
        solver: str = "euler",
        dt: float,
        **node_keywords: Any,
    ) -> None:
        if solver not in _METHODS:
            raise unknown_name("base method of a hypersolver", solver, tuple(_METHODS))
        for name in _OWN:
            if name in node_keywords:
                raise InputError(f"{name} is no keyword of Hypersolver, which takes whole steps of dt only")
        if not callable(correction):
            raise InputError(f"correction must be an nn.Module or a callable, got {type(correction).__name__}")
        check_number("dt", dt)
        super().__init__(field, **node_keywords)
        self.field = _Corrected(self.field, correction, solver)
        self.dt = dt

    def _solve(self, z0: Tensor, t: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        self._forget()
        h = self._step(z0, t)
        # Where f jumps in the course of a step, the base method does not notice, and the correction makes up for it.
        keywords = {**self.solver_keywords, "solver": "euler", "dt": self.dt, "tstops": None}
        solution = solve(self.field, z0, t, args=(h, *args), **keywords)
        self.stats = _OfStages(solution.stats, _METHODS[self.field.method][1])
        return solution.z

    def _step(self, z0: Tensor, t: Tensor) -> Tensor:
        """The signed step, 0-d, for a solve at the depths `t`."""
        if t.requires_grad:
            raise InputError(
                "a hypersolver has no gradient to the depths, which would change the size of the step: pass t.detach()"
            )
        steps = t.double().diff() / self.dt
        whole = steps.round()
        if bool(((steps - whole).abs() > _ROUNDING).any() or (whole == 0).any()):
            raise InputError(
                f"the depths of a hypersolver must be whole steps of dt={self.dt:g} apart, got {t.tolist()}, which are "
                f"{steps.tolist()} steps apart. Choose dt so that it divides all distances"
            )
        return z0.new_tensor(self.dt if bool(t[-1] > t[0]) else -self.dt)

    def grid(self, x: Tensor) -> Tensor:
        """The depths after each step over the depth interval, and its start, `(steps + 1,)`."""
        ends = as_times("t", self.t, x)
        self._step(x, ends)
        steps = round(abs(self.t[1] - self.t[0]) / self.dt)
        return torch.linspace(self.t[0], self.t[1], steps + 1, dtype=ends.dtype, device=ends.device)

    @torch.no_grad()
    def reference(self, x: Tensor, **solver_keywords: Any) -> Tensor:
        """The states of f after each step, by an adaptive solver: what the losses compare with.

        Args:
            x: the input, `(batch, …)`.
            solver_keywords: as `pynode.solve` takes; by default `rtol=1e-6`, `atol=1e-7`, on the model's engine.

        Returns:
            `(steps + 1, batch, …)`, without a gradient.
        """
        z0 = self._initial_state(x)
        engine = self.solver_keywords.get("engine", "auto")
        keywords = {"rtol": 1e-6, "atol": 1e-7, "engine": engine, **solver_keywords}
        states: Tensor = solve(self.field.field, z0, self.grid(z0), args=self._arguments(x, z0), **keywords).z
        return states

    def residual_loss(self, x: Tensor, reference: Tensor | None = None) -> Tensor:
        """Residual fitting: how far g is from what a step of the base method lacks, from each reference state.

        In float32 a residual is known to about 1e-7 / hᵖ⁺¹: take float64 for rk4.

        Args:
            x: the input, `(batch, …)`.
            reference: as `reference` returns it for `x`; computed where `None`.

        Returns:
            The mean of ‖R - g‖₂ over samples and steps, 0-d, with R = (z(s + h) - z(s) - h ψ(s, z(s))) / hᵖ⁺¹.

        Source:
            M. Poli et al., "Hypersolvers", NeurIPS 2020, section 3.2, "residual fitting".
        """
        z = self.reference(x) if reference is None else reference
        depths = self.grid(z[0])
        h, order = self._step(z[0], depths), _METHODS[self.field.method][0]
        args = (h, *self._arguments(x, z[0]))
        rates = torch.stack([self.field(s.to(z.dtype), now, *args) for s, now in zip(depths, z[:-1], strict=False)])
        lacking = (z.diff(dim=0) / h - rates) / h**order
        return lacking.flatten(2).norm(dim=2).mean()

    def trajectory_loss(self, x: Tensor, reference: Tensor | None = None) -> Tensor:
        """Trajectory fitting: the error of the hypersolver's own states after each step.

        Args:
            x: the input, `(batch, …)`.
            reference: as `reference` returns it for `x`; computed where `None`.

        Returns:
            The mean of ‖z(s) - z_s‖₂ over samples and steps, 0-d.

        Source:
            M. Poli et al., "Hypersolvers", NeurIPS 2020, section 3.2, "trajectory fitting".
        """
        z0 = self._initial_state(x)
        z = self.reference(x) if reference is None else reference
        own = self._solve(z0, self.grid(z0), self._arguments(x, z0))
        return (own - z)[1:].flatten(2).norm(dim=2).mean()

    def extra_repr(self) -> str:
        """The arguments that are not modules."""
        return f"{super().extra_repr()}, solver={self.field.method!r}, dt={self.dt}"


class _Corrected(nn.Module):
    """The field ψ + hᵖ g, of which a step h of Euler's method is one of the hypersolver's; h is its first argument."""

    def __init__(self, field: Callable[..., Any], correction: Callable[..., Tensor], method: str) -> None:
        super().__init__()
        self.field = field
        self.correction = correction
        self.method = method

    @property
    def time_dtype(self) -> torch.dtype | None:
        """In which it wants the time: as its field."""
        return getattr(self.field, "time_dtype", None)

    def forward(self, t: Tensor, z: Tensor, h: Tensor, *args: Tensor) -> Tensor:
        f = with_time(self.field, len(args))
        first = f(t, z, *args)
        if self.method == "euler":
            increment = first
        elif self.method == "midpoint":
            increment = f(t + h / 2, z + h / 2 * first, *args)
        else:
            second = f(t + h / 2, z + h / 2 * first, *args)
            third = f(t + h / 2, z + h / 2 * second, *args)
            last = f(t + h, z + h * third, *args)
            increment = (first + 2 * second + 2 * third + last) / 6
        correction = self.correction(h, t, z, first)
        if not isinstance(correction, Tensor) or correction.shape != z.shape:
            got = tuple(correction.shape) if isinstance(correction, Tensor) else type(correction).__name__
            raise FieldError(f"correction must return a tensor of the state's shape, {tuple(z.shape)}, got {got}")
        return increment + h ** _METHODS[self.method][0] * correction


class _OfStages(Stats):
    """The counts of a solve whose field evaluates another one several times."""

    def __init__(self, whole: Stats, stages: int) -> None:
        self.whole, self.stages = whole, stages
        super().__init__(whole.nfe * stages, None, whole.n_accepted, whole.n_rejected, whole.seconds)

    def __repr__(self) -> str:
        return super().__repr__().replace(type(self).__qualname__, Stats.__qualname__, 1)

    @property
    def nfe_backward(self) -> int | None:
        """See `Stats`."""
        count = self.whole.nfe_backward
        return None if count is None else count * self.stages

    @nfe_backward.setter
    def nfe_backward(self, value: int | None) -> None:
        pass  # it is that of the solve
