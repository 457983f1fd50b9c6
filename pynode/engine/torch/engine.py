"""The embedded engine: torchdiffeq integrates and differentiates, in PyTorch alone.

torchdiffeq (R. T. Q. Chen, 2018, https://github.com/rtqichen/torchdiffeq) does all the integration; this
module translates a `Problem` into its calls, and its ways to fail into a `Retcode`.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pynode.engine.continuous import ContinuousDerivatives
from pynode.engine.each import find_each, solve_each
from pynode.engine.forward import solve_forward
from pynode.engine.grid import step_grid, substeps
from pynode.engine.protocol import (
    Availability,
    Crossing,
    Derivatives,
    EventSearch,
    Gradients,
    Integration,
    Problem,
    Retcode,
    Stats,
)
from pynode.engine.scale import at_scale
from pynode.engine.solvers import SolverInfo
from pynode.engine.torch import torchdiffeq
from pynode.engine.torch.event_watch import Crossed, EventWatch
from pynode.engine.torch.origin import counts_from_zero, crossing_at, from_zero, integration_at, search_from_zero
from pynode.engine.torch.rhs import SCIPY, UNBOUNDED, AdaptiveRhs, Course, Rhs, Stop, all_finite, right_hand_side
from pynode.engine.torch.scipy_solvers import scipy_solver
from pynode.engine.torch.stacked import odeint_dopri5
from pynode.engine.torch.steps import step_options, step_tolerances
from pynode.errors import EngineUnavailable, SolveError
from pynode.sensitivity import Forward

__all__ = ["TorchEngine"]

_BLOCK = 64  # reported times for which a fixed-step solve is one call of torchdiffeq's
_QUARTIC = 4  # the degree of torchdiffeq's interpolant of a step
_LEAST = 16  # roundings of the time that a step has at least which is interpolated by itself
_SHORT = 64  # so many roundings of the time long, a step has no room for more points than a quartic needs


class TorchEngine:
    """Runs the vector field as it is through torchdiffeq (its SciPy solvers for stiff fields)."""

    name = "torch"

    def available(self) -> Availability:
        """Always: torchdiffeq is a dependency of pynode."""
        return Availability(True)

    def sensitivities(self, solver: SolverInfo) -> tuple[str, ...]:
        """`discrete`, `backsolve` and `forward`; autograd does not see through SciPy's solvers: no `discrete`."""
        return ("backsolve", "forward") if solver.name in SCIPY else ("discrete", "backsolve", "forward")

    def find_event(self, problem: Problem, search: EventSearch) -> Crossing:
        """Step until a value has changed its sign, then find the time within that step's interpolant.

        Raises:
            EngineUnavailable: the solver is one of SciPy's.
        """
        if problem.solver.name in SCIPY:
            raise EngineUnavailable(
                f"the torch engine's {problem.solver.name!r}, which is SciPy's, takes no event: use another solver"
            )
        if counts_from_zero(problem):
            origin = problem.t[0]
            return crossing_at(self.find_event(from_zero(problem), search_from_zero(search, origin)), origin)
        plain = replace(problem, sensitivity=None, dense=False)
        if _too_many_steps(plain) is not None:
            return Crossing(None, -1, 0, failed=True)
        rhs = right_hand_side(plain)
        watch = EventWatch(search, rhs, problem.args)
        failed = False
        with torch.no_grad():
            try:
                last = [x[-1] for x in _odeint(plain, rhs, plain.t)]
                failed = not all_finite(last)
                watch(plain.t[-1], tuple(last))
            except Crossed as step:
                end = torch.stack([step.start, step.end])
                dt = abs(float(end[1] - end[0])) * (1 + 4 * sys.float_info.epsilon)  # or the sum falls short of the end
                again = self.solve(replace(plain, z0=step.z, t=end, dt=dt, dense=True))
                if again.interpolant is not None:
                    t, index = step.locate(again.interpolant)
                    return Crossing(t, index, rhs.nfe + again.stats.nfe)
                failed = True
            except (Stop, AssertionError) as error:
                rhs.diagnose(error)  # which raises what is not the solver's
                failed = True
        return Crossing(None, -1, rhs.nfe, failed)

    def find_event_each(
        self, problem: Problem, search: EventSearch, signs: Sequence[tuple[float, ...]]
    ) -> Sequence[Crossing]:
        """As `find_event`, one sample after the other."""
        return find_each(self.find_event, problem, search, signs)

    def solve(self, problem: Problem) -> Integration:
        """Integrate with torchdiffeq.

        `discrete` keeps the autograd graph of the forward solve for as long as the pullback lives.
        `backsolve` is `torchdiffeq.odeint_adjoint` (Chen et al. 2018, algorithm 1) with respect to `z0`, `t`,
        `args` and the parameters.

        Raises:
            EngineUnavailable: `dt` or `dense` with one of SciPy's solvers.
        """
        if problem.t.dim() == 2:
            return solve_each(self.solve, problem)
        if isinstance(problem.sensitivity, Forward):
            # Further derivatives not by "discrete", whose states depend on the parameters: see `DirectionField`.
            return solve_forward(self.solve, problem, problem.solver.name in SCIPY, "backsolve")
        if counts_from_zero(problem):
            return integration_at(self.solve(from_zero(problem)), problem.t[0])
        started = time.perf_counter()
        if problem.field.facts.runs_on not in (None, self.name):
            raise EngineUnavailable(
                f"the field is, or contains, a JuliaField, which runs on the {problem.field.facts.runs_on} engine "
                'only: use engine="julia", and a solver and sensitivity that it has'
            )
        problem.field.check_finite(problem.z0, problem.args)
        _refuse_for_scipy(problem)
        tracked = _on_leaves(problem)
        rhs = right_hand_side(tracked)
        stop = _too_many_steps(problem)
        if stop is None:
            try:
                with torch.set_grad_enabled(problem.sensitivity is not None):
                    z = _odeint(tracked, rhs, tracked.t)
                stop = None if all_finite(x[-1] for x in z) else Stop(Retcode.NON_FINITE, rhs.t_last)
            except (Stop, AssertionError, ValueError) as error:
                stop = rhs.diagnose(error)
            finally:
                tracked.field.settle()
        if problem.watched is not None and problem.watched.steps is not None:
            problem.watched.steps += rhs.steps_taken()
        stats = rhs.stats()
        pullback = interpolant = z_end = None
        derivatives: Derivatives | None = None
        how = problem.sensitivity
        t_end = float(problem.t[-1])
        if stop is not None:
            t_end, z_end = rhs.reached()
            z = _reached(tracked, t_end)
        else:
            if how is not None:
                graph = _Graph(tracked, z, rhs, stats)
                pullback = graph.pull_back if how.name == "discrete" else at_scale(graph.pull_back, tracked, z)
                derivatives = graph
                if how.name != "discrete":
                    read = list(tracked.field.named_tensors().values())
                    derivatives = ContinuousDerivatives(self.solve, tracked, read)
            interpolant = _interpolant(tracked, rhs, stats) if problem.dense else None
        stats.seconds = time.perf_counter() - started
        # The user may change the states in place. torchdiffeq's backward solve starts from those that it returned, and
        # the tensors of a tuple are parts of one, of which autograd would take a change of one for a change of all.
        keeps = len(z) > 1 or (problem.sensitivity is not None and problem.sensitivity.name == "backsolve")
        return Integration(
            tuple(x.detach().clone() if keeps else x.detach() for x in z),
            stats,
            stop.retcode if stop else Retcode.SUCCESS,
            t_end,
            pullback,
            interpolant,
            z_end,
            derivatives,
        )


def _refuse_for_scipy(problem: Problem) -> None:
    name = problem.solver.name
    given = "dt" if problem.dt is not None else "dense=True" if problem.dense else None
    if name in SCIPY and given:
        raise EngineUnavailable(
            f"the torch engine's {name!r}, which is SciPy's, takes no {given}: leave it out, or use another solver"
        )


def _on_leaves(problem: Problem) -> Problem:
    """The problem on leaf tensors that autograd tracks where a gradient is wanted; its field is frozen as it is now."""

    def leaves(key: str, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(x.detach().requires_grad_(w) for x, w in zip(tensors, problem.wants[key], strict=True))

    if problem.sensitivity is None:
        problem.field.freeze()
        return problem
    (t,) = leaves("t", (problem.t,))
    field = problem.field.on_leaves(problem.wants["parameters"])
    field.freeze()
    return replace(
        problem,
        field=field,
        z0=leaves("z0", [z.clone() for z in problem.z0]),
        t=t,
        args=leaves("args", problem.args),
        parameters=field.parameters,
    )


def _too_many_steps(problem: Problem) -> Stop | None:
    """Refuse a fixed-step solve that would exceed `max_steps`, before it starts."""
    if problem.dt is None or problem.solver.adaptive:
        return None
    if sum(substeps(problem.t.tolist(), problem.dt)) <= problem.max_steps:
        return None
    return Stop(Retcode.MAX_STEPS, float(problem.t[0]))


def _options(problem: Problem, t: Tensor) -> dict[str, Any]:
    """The options of torchdiffeq for a solve that reports at `t`."""
    solver, dt = problem.solver, problem.dt
    if not solver.adaptive:
        assert dt is not None
        if solver.name == "adams":  # a multistep method: its coefficients hold for equal steps only
            return {"grid_constructor": lambda func, y0, t: _even_grid(t, dt), "interp": "cubic", **UNBOUNDED}
        return {"grid_constructor": lambda func, y0, t: step_grid(t, dt)}
    options: dict[str, Any] = {"step_t": t[-1:]}  # so that the field is not evaluated beyond the last time
    if problem.steps is not None:
        options |= step_options(problem.steps.control)
    return options if dt is None else options | {"first_step": dt}


def _even_grid(t: Tensor, dt: float) -> Tensor:
    """Equal steps of at most `dt` from the first to the last entry of `t`; differentiable in both."""
    (count,) = substeps((t[0].item(), t[-1].item()), dt)
    fraction = torch.arange(count, dtype=t.dtype, device=t.device) / count
    return torch.cat([t[0] + (t[-1] - t[0]) * fraction, t[-1:]])


def _odeint(problem: Problem, rhs: Rhs, t: Tensor, options: dict[str, Any] | None = None) -> tuple[Tensor, ...]:
    """Call torchdiffeq; one `(time, batch, *features)` tensor per state tensor."""
    solver, how = problem.solver, problem.sensitivity
    if isinstance(rhs, AdaptiveRhs):
        stops = problem.kinks_within(t)
        if solver.name != "dopri5":
            # torchdiffeq interpolates between steps as accurately as dopri5, but not as the others (bosh3 loses three
            # digits): these stop at each time.
            stops = torch.cat([stops, t[1:-1].detach()]).unique()
        if len(stops):
            return _odeint_over(stops, problem, rhs, t)
    tracked = how is not None and torch.is_grad_enabled()
    discrete = how is not None and tracked and how.name == "discrete"
    if discrete and not solver.adaptive and solver.name != "adams" and len(t) > _BLOCK + 1:
        # torchdiffeq's backward pass copies what it returns once for each reported time. These solvers keep nothing
        # from one time to the next.
        parts: list[tuple[Tensor, ...]] = []
        for i in range(0, len(t) - 1, _BLOCK):
            start = tuple(x[-1] for x in parts[-1]) if parts else problem.z0
            part = _odeint(replace(problem, z0=start), rhs, t[i : i + _BLOCK + 1])
            parts.append(part if i == 0 else tuple(x[1:] for x in part))
        return tuple(torch.cat(x) for x in zip(*parts, strict=True))
    if solver.name in SCIPY:
        options = {"solver": scipy_solver(solver.name, rhs.tell)}
    rtol, atol = step_tolerances(problem)
    call: dict[str, Any] = {"rtol": rtol, "atol": atol, "options": options or _options(problem, t)}
    odeint: Callable[..., Any] = torchdiffeq.odeint
    if discrete and solver.name == "dopri5":
        odeint = odeint_dopri5
    else:
        call["method"] = "scipy_solver" if solver.name in SCIPY else solver.torch
    if tracked and how is not None and how.name == "backsolve":
        odeint = torchdiffeq.odeint_adjoint
        call |= {"adjoint_rtol": problem.rtol, "adjoint_atol": problem.atol}
        call |= {f"adjoint_{key}": value for key, value in how.options.items()}
        call["adjoint_params"] = [x for x in (*problem.args, *problem.parameters) if x.numel()]
        if solver.name in SCIPY:
            call["adjoint_options"] = {"solver": scipy_solver(solver.name)}
        elif solver.adaptive:
            # torchdiffeq has taken -t for times that decrease when it makes these options those of its backward solve.
            call["adjoint_options"] = {"step_t": t.detach() if t[-1] > t[0] else -t.detach()}
    z = odeint(rhs, problem.z0 if problem.field.is_tuple else problem.z0[0], t, **call)
    z = tuple(z) if problem.field.is_tuple else (z,)
    if solver.name in SCIPY:  # LSODA interpolates at the first time too
        z = tuple(torch.cat([first[None], x[1:]]) for first, x in zip(problem.z0, z, strict=True))
    return z


def _odeint_over(stops: Tensor, problem: Problem, rhs: AdaptiveRhs, t: Tensor) -> tuple[Tensor, ...]:
    """As `_odeint`, from each of some times within the span to the next, with the step that there was.

    torchdiffeq's `step_t` would do for most, but where a step ends on one of these times by itself it loses the others.
    """
    sign = 1 if t[-1] > t[0] else -1
    ends = torch.cat([stops if sign > 0 else stops.flip(0), t[-1:].detach()])
    states: list[tuple[Tensor, ...]] = [tuple(x[None] for x in problem.z0)]
    z, start, done, dt = problem.z0, t[:1], 1, problem.dt
    for end in ends.split(1):
        stop = int((sign * t.detach() <= sign * end).sum())
        inside = t[done:stop]
        times = [start, inside]
        if stop == done or inside[-1] != end:
            times.append(end)
        part = _odeint(replace(problem, z0=z, dt=dt, kinks=None), rhs, torch.cat(times))
        states.append(tuple(x[1 : 1 + len(inside)] for x in part))
        z, start, done, dt = tuple(x[-1] for x in part), torch.cat(times)[-1:], stop, rhs.dt_last
    return tuple(torch.cat(x) for x in zip(*states, strict=True))


def _reached(problem: Problem, t_end: float) -> tuple[Tensor, ...]:
    """The states at the times up to `t_end`, NaN after it.

    torchdiffeq keeps nothing of a failed solve: what was reached is integrated once more.
    """
    t = problem.t
    count = int(((t - t[0]).abs() <= abs(t_end - float(t[0]))).sum())
    z = tuple(x.new_full((len(t), *x.shape), float("nan")) for x in problem.z0)
    part = [x.detach()[None] for x in problem.z0]
    if count > 1:
        with torch.no_grad(), contextlib.suppress(Stop, AssertionError):
            part = list(_odeint(problem, right_hand_side(problem), t[:count]))
    for whole, some in zip(z, part, strict=True):
        whole[: len(some)] = some
    return z


class _Graph:
    """The autograd graph of a solve, from the inputs that are wanted to the states."""

    def __init__(self, problem: Problem, z: tuple[Tensor, ...], rhs: Rhs, stats: Stats) -> None:
        self.problem, self.z, self.rhs, self.stats = problem, z, rhs, stats
        self.wanted = [i for i, w in enumerate(problem.wanted) if w]
        self.inputs = [problem.inputs[i] for i in self.wanted]
        how = problem.sensitivity
        self.evaluates = how is not None and how.name == "backsolve"
        self.state = problem.field.state() if self.evaluates else {}

    def _spread(self, found: Sequence[Tensor | None]) -> Gradients:
        flat: list[Tensor | None] = [None] * len(self.problem.inputs)
        for i, x, g in zip(self.wanted, self.inputs, found, strict=True):
            # Part of torchdiffeq's flat adjoint state, see `Rhs.__call__`; a complex parameter's is viewed as complex.
            part = g is not None and g.storage_offset() % 2 == 1
            flat[i] = torch.zeros_like(x) if g is None else g.clone() if part else g
        return Gradients.of(self.problem, flat)

    def _products(self, cotangents: Sequence[Tensor | None], create_graph: bool) -> Sequence[Tensor | None]:
        """The products of cotangents with the Jacobian in each of `inputs`."""
        pairs = [(z, g) for z, g in zip(self.z, cotangents, strict=True) if g is not None and z.requires_grad]
        if not pairs:
            return [None] * len(self.inputs)
        if self.evaluates:
            self.problem.field.check_unchanged(self.state)
        outputs, given = zip(*pairs, strict=True)
        with self.problem.field.recomputing():
            return torch.autograd.grad(
                outputs, self.inputs, given, retain_graph=True, create_graph=create_graph, allow_unused=True
            )

    def pull_back(self, cotangents: Sequence[Tensor | None]) -> Gradients:
        """From cotangents of the states to `Gradients`."""
        rhs = self.rhs
        before, rhs.steps = rhs.nfe, 0  # max_steps bounds the backward solve too
        rhs.course = course = Course(self.problem, self.z) if self.evaluates else None
        try:
            found = self._products(cotangents, create_graph=False)
            if course is not None:
                course.end()
        except (Stop, AssertionError, ValueError) as error:
            stop = rhs.diagnose(error)
            raise SolveError(
                f"the backward solve stopped at t={rhs.shown(stop.t_end):.6g}: {stop.retcode.value}", stop.retcode
            ) from None
        finally:
            rhs.course = None
            self.problem.field.settle()
        solved = rhs.nfe - before  # none, if the graph of the forward solve was walked
        self.stats.nfe_backward = solved or rhs.nfe_differentiated
        return self._spread(found)

    def tangent(self, directions: Gradients) -> tuple[Tensor, ...]:
        """As `Derivatives.tangent`: the derivative of the product with a cotangent, in that cotangent."""
        with torch.enable_grad():
            cotangents = [torch.zeros_like(z).requires_grad_() for z in self.z]
            pairs = self._moved(self._products(cotangents, create_graph=True), directions)
            if not pairs:
                return tuple(torch.zeros_like(z) for z in cotangents)
            products, given = zip(*pairs, strict=True)
            return torch.autograd.grad(
                products, cotangents, given, retain_graph=True, allow_unused=True, materialize_grads=True
            )

    def second(self, cotangents: Sequence[Tensor | None], directions: Gradients) -> Gradients:
        """As `Derivatives.second`."""
        with torch.enable_grad():
            pairs = self._moved(self._products(cotangents, create_graph=True), directions)
            found: Sequence[Tensor | None] = [None] * len(self.inputs)
            if pairs:
                products, given = zip(*pairs, strict=True)
                found = torch.autograd.grad(products, self.inputs, given, retain_graph=True, allow_unused=True)
        return self._spread(found)

    def _moved(self, products: Sequence[Tensor | None], directions: Gradients) -> list[tuple[Tensor, Tensor]]:
        """Of the products those that depend on something, with the directions of their inputs, where these move."""
        pairs = zip(products, (directions.flat[i] for i in self.wanted), strict=True)
        return [(g, d) for g, d in pairs if g is not None and d is not None and g.requires_grad]


def _interpolant(problem: Problem, rhs: Rhs, stats: Stats) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """A polynomial for each step, through points of it that a second solve computes: as exact as a solver's steps are.

    torchdiffeq interpolates at the times that it is asked for and keeps no interpolant.
    """
    sign = 1.0 if problem.t[-1] > problem.t[0] else -1.0
    options = None
    if isinstance(rhs, AdaptiveRhs):
        start, length = torch.tensor(rhs.accepted, dtype=torch.float64, device="cpu").unbind(1)
        knots = torch.cat([start, (start + sign * length)[-1:]])
    else:
        grid = _options(problem, problem.t)["grid_constructor"](None, None, problem.t)
        options = _options(problem, problem.t) | {"grid_constructor": lambda func, y0, t: grid, "interp": "cubic"}
        knots = grid.cpu()
    # A step of some roundings, which a solve has where a sum falls short of a time, is part of the one beside it.
    long = knots.diff().abs() > _LEAST * torch.finfo(knots.dtype).eps * knots[1:].abs()
    inner = long[1:]
    inner[:1] &= long[:1]
    knots = torch.cat([knots[:1], knots[1:-1][inner], knots[-1:]])
    short = knots.diff().abs() < _SHORT * torch.finfo(knots.dtype).eps * knots[1:].abs()
    degree = _QUARTIC if short.any() else max(_QUARTIC, problem.solver.order)
    nodes = torch.arange(degree + 1, dtype=torch.float64, device="cpu") / degree
    if degree > _QUARTIC:  # Chebyshev's points: equidistant ones magnify rounding
        nodes = (1 - (torch.pi * nodes).cos()) / 2
    points = (knots[:-1, None] + knots.diff()[:, None] * nodes[:-1]).flatten()
    plain = replace(problem, sensitivity=None)
    again = right_hand_side(plain)
    with torch.no_grad():
        values = _odeint(plain, again, torch.cat([points, knots[-1:]]).to(problem.t.device), options)
    stats.nfe += again.nfe
    degrees = torch.arange(degree + 1, device="cpu")

    def basis(x: Tensor) -> Tensor:
        return torch.special.chebyshev_polynomial_t(2 * x[:, None] - 1, degrees)

    lagrange = torch.linalg.inv(basis(nodes))  # column j: the coefficients of the j-th basis polynomial

    def interpolate(times: Tensor) -> tuple[Tensor, ...]:
        s = times.detach().double().cpu()
        step = torch.searchsorted(sign * knots, sign * s).clamp(1, len(knots) - 1) - 1
        x = (s - knots[step]) / (knots[step + 1] - knots[step])
        weights = basis(x) @ lagrange
        picked = degree * step[:, None] + degrees
        return tuple(torch.einsum("nk,nk...->n...", weights.to(v), v[picked.to(v.device)]) for v in values)

    return interpolate
