"""Forward and second derivatives of a continuous sensitivity: the variational equation, solved to the tolerances.

With s = dz/dw, w the direction in which the inputs move, ds/dt is the field's derivative along (s, w). A reported state
moves with its own time along the field, and with the first time against it, at the start. The gradient of <v, s> is
that of this solve, by the same sensitivity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pynode.engine.protocol import Gradients, Integration, Problem, Retcode
from pynode.engine.scale import exponent_of_directions, multiplied
from pynode.errors import EngineUnavailable, FieldError, SolveError
from pynode.field._direction import DirectionField

__all__ = ["ContinuousDerivatives", "Unchanged", "direction_problem"]


def direction_problem(problem: Problem, directions: Gradients, time: bool) -> Problem:
    """The problem together with its derivative in one direction.

    Args:
        problem: the problem.
        directions: how its inputs move.
        time: whether `t` within the field moves, see `DirectionField`.

    Raises:
        EngineUnavailable: the field is, or contains, a `JuliaField`.
    """
    if problem.field.facts.runs_on is not None:
        raise EngineUnavailable(
            "forward and second derivatives differentiate products with the field's Jacobian once more, and the field "
            "is, or contains, a JuliaField, whose products have no derivative: write the field in PyTorch"
        )
    z0, n = problem.z0, len(problem.z0)
    of_args = [d is not None for d in directions.args]
    of_parameters = [d is not None for d in directions.parameters]
    tangents = [torch.zeros_like(z) if d is None else d for z, d in zip(z0, directions.z0, strict=True)]
    further = [z0[0].new_zeros(z0[0].shape[0])] if time else []
    moving = [d for d in directions.args if d is not None] + [d[None] for d in directions.parameters if d is not None]
    args = (*problem.args, *(d.detach() for d in moving))
    wants = {
        "z0": (True,) * 2 * n + (False,) * len(further),
        "t": problem.wants["t"],
        "args": (*problem.wants["args"], *[False] * len(moving)),
        "parameters": problem.wants["parameters"],
    }
    return replace(
        problem,
        field=DirectionField(problem.field.as_made(), n, of_args, of_parameters, time),
        z0=(*z0, *(s.detach() for s in tangents), *further),
        args=args,
        wants=wants,
        dense=False,
        split=None,
    )


class Unchanged:
    """That a field is as it was when this was made, at a solve that is to be followed by others.

    Args:
        problem: what was solved.
        read: tensors that the field reads.
    """

    def __init__(self, problem: Problem, read: Sequence[Tensor]) -> None:
        self.field = problem.field
        self.versions = [(x, x._version) for x in read if not x.is_inference()]

    def check(self) -> None:
        """Refuse to go on where it is another.

        Raises:
            FieldError: names what has changed.
        """
        self.field.check_same()
        for x, version in self.versions:
            if x._version != version:
                raise FieldError(
                    f"a tensor of shape {tuple(x.shape)} that the field reads was changed in place between the solve "
                    "and a second derivative, which solves again: change it afterwards, or pass it in solve(args=(…,))"
                )


class ContinuousDerivatives:
    """The derivatives of a solve, see `Derivatives`.

    Args:
        solve: solves a problem.
        problem: what was solved, with a continuous sensitivity.
        read: the tensors that the field reads, as far as they are not known to be held otherwise.
    """

    def __init__(self, solve: Callable[[Problem], Integration], problem: Problem, read: Sequence[Tensor]) -> None:
        self.solve, self.solved, self.unchanged = solve, problem, Unchanged(problem, read)

    @property
    def problem(self) -> Problem:
        """What was solved, with a field that reads what it read then."""
        return replace(self.solved, field=self.solved.field.as_made())

    def _solve(self, directions: Gradients, tracked: bool) -> Integration:
        problem = self.problem
        self.unchanged.check()
        z0 = list(directions.z0)
        if directions.t is not None:
            with torch.no_grad():
                rates = problem.field(problem.field_time(problem.t[0]), problem.z0, problem.args)
            for i, rate in enumerate(rates):
                own = z0[i]
                change = -rate * directions.t[0]
                z0[i] = change if own is None else own + change
        moved = direction_problem(problem, replace(directions, z0=z0), time=False)
        done = self.solve(moved if tracked else replace(moved, sensitivity=None))
        if done.retcode is not Retcode.SUCCESS:
            raise SolveError(
                f"the solve of the derivatives stopped at t={done.t_end:.6g}: {done.retcode.value}", done.retcode
            )
        return done

    def tangent(self, directions: Gradients) -> tuple[Tensor, ...]:
        """As `Derivatives.tangent`."""
        problem, n = self.problem, len(self.problem.z0)
        power = exponent_of_directions(problem, directions)
        directions = multiplied(directions, power)
        done = self._solve(directions, tracked=False)
        z, s = done.z[:n], [x.clone() for x in done.z[n:]]
        for x, d in zip(s, directions.z0, strict=True):  # the first state is z0 itself, whatever the time
            x[0] = 0 if d is None else d
        if directions.t is not None:
            with torch.no_grad():
                for i in range(1, len(problem.t)):
                    rates = problem.field(problem.field_time(problem.t[i]), [x[i] for x in z], problem.args)
                    for x, rate in zip(s, rates, strict=True):
                        x[i] += rate * directions.t[i]
        return tuple(x * 2.0**-power for x in s)

    def second(self, cotangents: Sequence[Tensor | None], directions: Gradients) -> Gradients:
        """As `Derivatives.second`."""
        problem, n = self.problem, len(self.problem.z0)
        power = exponent_of_directions(problem, directions)
        directions = multiplied(directions, power)
        done = self._solve(directions, tracked=True)
        z = done.z[:n]
        # The first state's derivative is the direction itself: it depends on nothing.
        given = [None if v is None else torch.cat([torch.zeros_like(v[:1]), v[1:]]) for v in cotangents]
        of_states: list[Tensor | None] = [None] * n
        explicit = _Explicit(problem)
        if directions.t is not None:
            for i in range(1, len(problem.t)):
                weights = [None if v is None else v[i] * directions.t[i] for v in given]
                for k, g in enumerate(explicit.add(i, [x[i] for x in z], weights)):
                    if g is not None:
                        if of_states[k] is None:
                            of_states[k] = torch.zeros_like(z[k])
                        of_states[k][i] += g  # type: ignore[index]
        assert done.pullback is not None
        found = done.pullback([*of_states, *given])
        z0 = list(found.z0[:n])
        if directions.t is not None:  # the initial tangent moves against the field
            weights = [None if g is None else -g * directions.t[0] for g in found.z0[n:]]
            for k, g in enumerate(explicit.add(0, problem.z0, weights)):
                if g is not None:
                    own = z0[k]
                    z0[k] = g if own is None else own + g
        solved = [*z0, found.t, *found.args[: len(problem.args)], *found.parameters]
        direct = [*[None] * n, explicit.t, *explicit.args, *explicit.parameters]
        total = [_sum(a, b) for a, b in zip(solved, direct, strict=True)]
        found = Gradients.of(problem, [x if w else None for x, w in zip(total, problem.wanted, strict=True)])
        return multiplied(found, -power)


class _Explicit:
    """Cotangents from the field's values at reported times."""

    def __init__(self, problem: Problem) -> None:
        field = problem.field.on_leaves(problem.wants["parameters"])
        self.problem = replace(problem, field=field, parameters=field.parameters)
        self.t: Tensor | None = None
        self.args: list[Tensor | None] = [None] * len(problem.args)
        self.parameters: list[Tensor | None] = [None] * len(problem.parameters)

    def add(self, i: int, z: Sequence[Tensor], weights: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Add the cotangents of the field's value at the `i`-th time, given weights; those of `z` come back."""
        problem = self.problem
        with torch.enable_grad():
            t = problem.t[i].detach().clone().requires_grad_()
            states = [x.detach().clone().requires_grad_() for x in z]
            args = [a.detach().clone().requires_grad_(a.is_floating_point()) for a in problem.args]
            rates = problem.field(problem.field_time(t), states, args)
            pairs = [(r, w) for r, w in zip(rates, weights, strict=True) if w is not None and r.requires_grad]
            if not pairs:
                return [None] * len(states)
            wrt = [
                t,
                *states,
                *(a for a in args if a.requires_grad),
                *(p for p in problem.parameters if p.requires_grad),
            ]
            found = iter(torch.autograd.grad([r for r, _ in pairs], wrt, [w for _, w in pairs], allow_unused=True))
        of_t = next(found)
        if of_t is not None:
            whole = torch.zeros_like(problem.t)
            whole[i] = of_t
            self.t = _sum(self.t, whole)
        of_states: list[Tensor | None] = [next(found) for _ in states]
        self.args = [_sum(x, next(found)) if a.requires_grad else x for a, x in zip(args, self.args, strict=True)]
        self.parameters = [
            _sum(x, next(found)) if p.requires_grad else x
            for p, x in zip(problem.parameters, self.parameters, strict=True)
        ]
        return of_states


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b
