"""The embedded engine: torchdiffeq integrates and differentiates, in PyTorch alone.

torchdiffeq (Chen, 2018, https://github.com/rtqichen/torchdiffeq) does all the integration; this module
translates a `Problem` into its calls, and its ways to fail into a `Retcode`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torchdiffeq
from torch import Tensor

from pynode.engine._grid import substeps
from pynode.engine._protocol import Availability, Gradients, Integration, Problem, Retcode, Stats
from pynode.engine._solvers import SolverInfo
from pynode.errors import EngineUnavailable, SolveError

__all__ = ["TorchEngine"]

_SCIPY = ("lsoda", "bdf", "radau")
_CELLS = 4  # torchdiffeq interpolates by a quartic in each step: five values determine it


class TorchEngine:
    """Runs the vector field as it is through torchdiffeq (its SciPy solvers for stiff fields)."""

    name = "torch"

    def available(self) -> Availability:
        """Always: torchdiffeq is a dependency of pynode."""
        return Availability(True)

    def sensitivities(self, solver: SolverInfo) -> tuple[str, ...]:
        """`discrete` and `backsolve`; autograd cannot see through SciPy's solvers, which have `backsolve` only."""
        return ("backsolve",) if solver.name in _SCIPY else ("discrete", "backsolve")

    def solve(self, problem: Problem) -> Integration:
        """Integrate with torchdiffeq.

        `discrete` keeps the autograd graph of the forward solve, as long as the pullback lives;
        `backsolve` is `torchdiffeq.odeint_adjoint` (Chen et al. 2018, algorithm 1) with respect to `z0`, `t`,
        `args` and the parameters.
        """
        started = time.perf_counter()
        _refuse(problem)
        tracked = problem if problem.sensitivity is None else _leaves(problem)
        rhs = _Rhs(tracked)
        try:
            _check_steps(problem)
            with torch.set_grad_enabled(problem.sensitivity is not None):
                z = _odeint(tracked, rhs, tracked.t)
            stop = _find_non_finite(problem, z)
        except (_Stop, AssertionError) as error:
            stop = error if isinstance(error, _Stop) else rhs.diagnose(error, problem)
        stats = rhs.stats()
        if stop is not None:
            z = _reached(problem, stop.t_end)
            stats.seconds = time.perf_counter() - started
            return Integration(z, stats, stop.retcode, stop.t_end)
        interpolant = _interpolant(problem, rhs) if problem.dense else None
        stats.seconds = time.perf_counter() - started
        return Integration(
            tuple(x.detach() for x in z),
            stats,
            Retcode.SUCCESS,
            float(problem.t[-1]),
            None if problem.sensitivity is None else _Pullback(tracked, z, rhs, stats),
            interpolant,
        )


class _Stop(Exception):
    """An integration that cannot go on."""

    def __init__(self, retcode: Retcode, t_end: float) -> None:
        super().__init__(retcode.value)
        self.retcode = retcode
        self.t_end = t_end


class _Rhs:
    """The right-hand side that torchdiffeq calls: counts evaluations and steps, and bounds the latter."""

    def __init__(self, problem: Problem) -> None:
        self.field, self.args, self.max_steps = problem.field, problem.args, problem.max_steps
        self.nfe = 0
        self.steps = self.accepted = self.rejected = 0
        self.wasted = 0  # evaluations in rejected steps, which no gradient passes
        self.last: tuple[Tensor, Any, Tensor] | None = None  # t, z and dt of the step under way
        self.times: list[tuple[float, float]] = []  # start and length of the accepted steps
        self.dense = problem.dense
        self.solver = problem.solver
        self._nfe_at_step = 0
        if problem.solver.name not in _SCIPY:
            self.callback_step = self.callback_step_adjoint = self._on_step
            if problem.solver.adaptive:
                self.callback_accept_step = self._on_accept
                self.callback_reject_step = self._on_reject

    def __call__(self, t: Tensor, z: Any) -> Any:
        self.nfe += 1
        dz = self.field(t, z if self.field.is_tuple else (z,), self.args)
        if self.solver.name in _SCIPY:
            self._watch(t, dz)
        return dz if self.field.is_tuple else dz[0]

    def _watch(self, t: Tensor, dz: Sequence[Tensor]) -> None:
        # SciPy neither bounds its steps nor, in LSODA's case, minds a NaN. It takes some evaluations per step.
        if self.last is None or float(t) != float(self.last[0]):
            self.steps += 1
            if self.steps > 10 * self.max_steps:
                raise _Stop(Retcode.MAX_STEPS, float(t))
        self.last = (t, None, t)
        if not all(bool(torch.isfinite(x).all()) for x in dz):
            raise _Stop(Retcode.NON_FINITE, float(t))

    def _on_step(self, t: Tensor, z: Any, dt: Tensor) -> None:
        self.last = (t, z, dt)
        self._nfe_at_step = self.nfe
        self.steps += 1
        if self.steps > self.max_steps and self.solver.adaptive:
            raise _Stop(Retcode.MAX_STEPS, float(t))

    def _on_accept(self, t: Tensor, z: Any, dt: Tensor) -> None:
        self.accepted += 1
        if self.dense:
            self.times.append((float(t), float(dt)))

    def _on_reject(self, t: Tensor, z: Any, dt: Tensor) -> None:
        self.rejected += 1
        self.wasted += self.nfe - self._nfe_at_step

    def stats(self) -> Stats:
        """The counts of the forward solve."""
        if self.solver.name in _SCIPY:
            return Stats(self.nfe)
        if self.solver.adaptive:
            return Stats(self.nfe, n_accepted=self.accepted, n_rejected=self.rejected)
        return Stats(self.nfe, n_accepted=self.steps, n_rejected=0)

    def diagnose(self, error: AssertionError, problem: Problem) -> _Stop:
        """What torchdiffeq's assertion before a step means, from the step that it refused.

        Raises:
            AssertionError: it was the user's own.
        """
        if self.last is None:
            raise error
        t, z, dt = self.last
        finite = all(bool(torch.isfinite(x).all()) for x in (z if self.field.is_tuple else (z,)))
        if not finite or not dt > 0:  # torchdiffeq replaces a step that is NaN by zero
            return _Stop(Retcode.NON_FINITE, float(t))
        if t + dt == t:
            return _Stop(Retcode.STEP_UNDERFLOW, float(t))
        raise error


def _refuse(problem: Problem) -> None:
    if problem.solver.name in _SCIPY:
        for name, given in (("dt", problem.dt is not None), ("dense=True", problem.dense)):
            if given:
                raise EngineUnavailable(
                    f"the torch engine's {problem.solver.name!r} (SciPy's, through torchdiffeq) takes no {name}: "
                    f"leave it out, or use a solver of another kind, e.g. 'dopri5'"
                )


def _leaves(problem: Problem) -> Problem:
    """The problem on leaf tensors that autograd tracks where a gradient is wanted."""
    wants = problem.wants
    return replace(
        problem,
        z0=tuple(x.detach().requires_grad_(w) for x, w in zip(problem.z0, wants["z0"], strict=True)),
        t=problem.t.detach().requires_grad_(wants["t"][0]),
        args=tuple(x.detach().requires_grad_(w) for x, w in zip(problem.args, wants["args"], strict=True)),
    )


def _check_steps(problem: Problem) -> None:
    """Refuse a fixed-step solve that would exceed `max_steps`, before it starts."""
    if problem.solver.adaptive:
        return
    assert problem.dt is not None
    if sum(substeps(problem.t.tolist(), problem.dt)) > problem.max_steps:
        raise _Stop(Retcode.MAX_STEPS, float(problem.t[0]))


def _options(problem: Problem) -> dict[str, Any]:
    """torchdiffeq's options of the problem."""
    solver, dt = problem.solver, problem.dt
    if solver.name in _SCIPY:
        return {"solver": solver.torch}
    if solver.adaptive:
        return {} if dt is None else {"first_step": dt}
    assert dt is not None
    if solver.name == "adams":  # multistep: its coefficients hold for equal steps only
        return {"grid_constructor": lambda func, y0, t: _even_grid(t, dt), "interp": "cubic"}
    return {"grid_constructor": lambda func, y0, t: _grid(t, dt)}


def _grid(t: Tensor, dt: float) -> Tensor:
    """Steps of `dt` from every entry of `t`, the last before each next entry cut short; differentiable in `t`."""
    counts = torch.tensor(substeps(t.tolist(), dt), device=t.device)
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    offset = (torch.arange(len(first), device=t.device) - first).to(t.dtype) * dt
    signed = offset if t[1] > t[0] else -offset
    return torch.cat([t[:-1].repeat_interleave(counts) + signed, t[-1:]])


def _even_grid(t: Tensor, dt: float) -> Tensor:
    """Equal steps of at most `dt` from the first to the last entry of `t`; differentiable in both."""
    (count,) = substeps([float(t[0]), float(t[-1])], dt)
    fraction = torch.arange(count, dtype=t.dtype, device=t.device) / count
    return torch.cat([t[0] + (t[-1] - t[0]) * fraction, t[-1:]])


def _odeint(
    problem: Problem, rhs: _Rhs, t: Tensor, options: dict[str, Any] | None = None
) -> tuple[Tensor, ...]:
    """Call torchdiffeq; the result has one `(time, batch, *features)` tensor per state tensor."""
    method = "scipy_solver" if problem.solver.name in _SCIPY else problem.solver.torch
    z0 = problem.z0 if problem.field.is_tuple else problem.z0[0]
    call: dict[str, Any] = {
        "rtol": problem.rtol,
        "atol": problem.atol,
        "method": method,
        "options": _options(problem) if options is None else options,
    }
    odeint: Callable[..., Any] = torchdiffeq.odeint
    if (
        torch.is_grad_enabled()
        and problem.sensitivity is not None
        and problem.sensitivity.name == "backsolve"
    ):
        odeint = torchdiffeq.odeint_adjoint
        chosen = problem.sensitivity.options()
        call |= {f"adjoint_{key}": chosen[key] for key in ("rtol", "atol") if key in chosen}
        call["adjoint_params"] = (*problem.args, *problem.parameters)
    with warnings.catch_warnings():
        if method == "scipy_solver":  # torchdiffeq passes min_step to solvers that have none
            warnings.filterwarnings("ignore", message="The following arguments have no relevance")
        z = odeint(rhs, z0, t, **call)
    z = z if problem.field.is_tuple else (z,)
    if len(z[0]) < len(t):  # SciPy gave up on the way
        raise _Stop(Retcode.FAILURE, float(t[max(len(z[0]) - 1, 0)]))
    return tuple(z)


def _find_non_finite(problem: Problem, z: Sequence[Tensor]) -> _Stop | None:
    """Whether the result of a finished solve is infinite or NaN, and from which time on.

    The adaptive solvers look at each step themselves. In a fixed-step solve what is not finite stays so.
    """
    if all(bool(torch.isfinite(x[-1]).all()) for x in z):
        return None
    bad = torch.stack([~torch.isfinite(x.detach().flatten(1)).all(1) for x in z]).any(0)
    return _Stop(Retcode.NON_FINITE, float(problem.t[int(bad.nonzero()[0]) - 1]))


def _reached(problem: Problem, t_end: float) -> tuple[Tensor, ...]:
    """The states at the times up to `t_end`, NaN after it.

    torchdiffeq keeps nothing of a failed solve: what was reached is integrated once more.
    """
    t = problem.t
    count = int(((t - t[0]).abs() <= abs(t_end - float(t[0]))).sum())
    z = [x.new_full((len(t), *x.shape), float("nan")) for x in problem.z0]
    for whole, start in zip(z, problem.z0, strict=True):
        whole[0] = start
    if count > 1:
        with torch.no_grad():
            try:
                part = _odeint(problem, _Rhs(problem), t[:count])
            except (_Stop, AssertionError):
                return tuple(z)
        for whole, some in zip(z, part, strict=True):
            whole[:count] = some
    return tuple(z)


@dataclass
class _Pullback:
    """Cotangents of the states to `Gradients`, through the autograd graph of the solve."""

    problem: Problem
    z: tuple[Tensor, ...]
    rhs: _Rhs
    stats: Stats

    def __call__(self, cotangents: Sequence[Tensor | None]) -> Gradients:
        problem, rhs = self.problem, self.rhs
        groups = (problem.z0, (problem.t,), problem.args, problem.parameters)
        wants = [problem.wants[key] for key in ("z0", "t", "args", "parameters")]
        inputs = [
            x
            for group, want in zip(groups, wants, strict=True)
            for x, w in zip(group, want, strict=True)
            if w
        ]
        pairs = [(z, g) for z, g in zip(self.z, cotangents, strict=True) if g is not None and z.requires_grad]
        before, rhs.steps = rhs.nfe, 0
        found: Sequence[Tensor | None] = [None] * len(inputs)
        if pairs:
            try:
                found = torch.autograd.grad(
                    [z for z, _ in pairs], inputs, [g for _, g in pairs], retain_graph=True, allow_unused=True
                )
            except (_Stop, AssertionError) as error:
                stop = error if isinstance(error, _Stop) else rhs.diagnose(error, problem)
                raise SolveError(
                    f"the backward solve stopped at t={stop.t_end:.6g}: {stop.retcode.value}", stop.retcode
                ) from None
        backsolved = problem.sensitivity is not None and problem.sensitivity.name == "backsolve"
        self.stats.nfe_backward = rhs.nfe - before if backsolved else self.stats.nfe - rhs.wasted
        rest = iter([torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)])
        z0, t, args, parameters = ([next(rest) if w else None for w in want] for want in wants)
        return Gradients(z0, t[0], args, parameters)


def _interpolant(problem: Problem, rhs: _Rhs) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """torchdiffeq's own interpolation of each step, read off at five points of it by a second solve."""
    options = _options(problem)
    sign = 1.0 if problem.t[-1] > problem.t[0] else -1.0
    if problem.solver.adaptive:
        start, length = torch.tensor(rhs.times, dtype=torch.float64).unbind(1)
        knots = torch.cat([start, (start + sign * length)[-1:]])
    else:
        grid = options["grid_constructor"](None, None, problem.t)
        options |= {"grid_constructor": lambda func, y0, t: grid, "interp": "cubic"}
        knots = grid.double().cpu()
    cell = torch.arange(_CELLS, dtype=torch.float64) / _CELLS
    fine = torch.cat([(knots[:-1, None] + (knots[1:] - knots[:-1])[:, None] * cell).flatten(), knots[-1:]])
    plain = replace(problem, dense=False, sensitivity=None)
    with torch.no_grad():
        values = _odeint(plain, _Rhs(plain), fine.to(problem.t.device), options)

    # Lagrange's basis on 0, 1/4, …, 1, as coefficients of 1, x, …, x⁴.
    nodes = torch.linspace(0, 1, _CELLS + 1, dtype=torch.float64)
    basis = torch.linalg.inv(nodes[:, None] ** torch.arange(_CELLS + 1))

    def interpolate(times: Tensor) -> tuple[Tensor, ...]:
        s = times.detach().double().cpu()
        index = torch.searchsorted(sign * knots, sign * s).clamp(1, len(knots) - 1) - 1
        x = (s - knots[index]) / (knots[index + 1] - knots[index])
        weights = (x[:, None] ** torch.arange(_CELLS + 1)) @ basis
        at = _CELLS * index[:, None] + torch.arange(_CELLS + 1)
        return tuple(torch.einsum("nk,nk...->n...", weights.to(v), v[at.to(v.device)]) for v in values)

    return interpolate
