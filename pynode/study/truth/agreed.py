"""The reference of a problem: what two independent ways agree on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pynode.errors import StudyError
from pynode.study.accuracy import relative
from pynode.study.problem import Problem
from pynode.study.reference import Reference
from pynode.study.truth.differences import solve_differences
from pynode.study.truth.discrete import solve_discrete
from pynode.study.truth.flat import Flat
from pynode.study.truth.segments import solve
from pynode.study.truth.variational import Found, solve_variational

__all__ = ["reference"]

_BOUND, _GRADIENT_BOUND = 1e-8, 1e-7

_LARGE = 20_000  # numbers of state and sensitivities, above which the variational equations are too many
_LARGE_STIFF = 2_000  # the same of a stiff field, where equations are solved of as many unknowns


def reference(
    problem: Problem, *, gradient: bool = True, jitted: bool = False, ways: tuple[str, str] | None = None
) -> Reference:
    """What the results of a problem are held against, in double precision.

    The states are the exact solution where the problem has one, and otherwise those of the first of two independent
    solvers, to some 1e-12 a step. The gradient is none of those that a study compares:

    - The variational equations are solved forward with the state, by SciPy's DOP853 (Dormand and Prince's 8(5,3) pair)
      and LSODA (Adams' and backward differentiation formulas), or for a stiff field by Radau (order 5) and LSODA.
    - Where state and sensitivities are more than 20000 numbers and the field is not stiff: backpropagation through the
      steps of torchdiffeq's dopri8 and of its dopri5; and the states of both are held against SciPy's DOP853.

    Args:
        problem: the problem. A reference of its own is given back, unless the field, the state, the times, the
            arguments or the loss have changed since it was made.
        gradient: whether its gradient is wanted.
        jitted: whether `problem.jax`, compiled, stands for the field in the variational equations, which takes less
            time; it is held against the field first.
        ways: two of `"DOP853"`, `"LSODA"`, `"Radau"`, `"dopri8"`, `"dopri5"`, in place of those above; the first three
            with `" by differences"` behind it take the gradient by central differences of the states.

    Returns:
        The reference, with the relative root mean square of the difference of the two ways, of the states and of the
        gradient; its gradient is empty if it is not wanted.

    Raises:
        StudyError: the two ways differ, relatively, by more than 1e-8 in the states or 1e-7 in the gradient; a solver
            gave up; or the field is stiff and too large for a gradient.
    """
    own = problem.own_reference
    if own is not None and (own.gradient or not gradient):
        return own
    flat = _jitted(problem) if jitted else Flat(problem)
    if ways is None:
        first, second = _both_ways(flat, problem, gradient)
    else:
        first, second = (_by(way, flat, gradient) for way in ways)
    agreement, how = relative(second.z, first.z), f"{first.how}, and {second.how}"
    if problem.exact is not None:
        exact = np.asarray(problem.exact(flat.t).detach().double().numpy()).reshape(len(flat.t), -1)
        agreement = max(relative(found.z, exact) for found in (first, second))
        first, how = replace(first, z=exact), f"the exact solution; {how}"
    _check("states", agreement, _BOUND, problem, how)
    gradient_agreement = 0.0
    if gradient:
        a, b = (np.concatenate([g.ravel() for g in found.gradient.values()]) for found in (second, first))
        gradient_agreement = relative(a, b)
        _check("gradients", gradient_agreement, _GRADIENT_BOUND, problem, how)
    return Reference(
        z=first.z.reshape(len(flat.t), *flat.z0.shape),
        gradient=first.gradient,
        loss=first.loss,
        agreement=agreement,
        gradient_agreement=gradient_agreement,
        how=how,
        of=problem.equations,
    )


def _both_ways(flat: Flat, problem: Problem, gradient: bool) -> tuple[Found, Found]:
    columns = flat.m if gradient else 0
    if flat.n * (1 + columns) <= (_LARGE_STIFF if problem.stiff else _LARGE):
        first = "Radau" if problem.stiff else "DOP853"
        return _by(first, flat, gradient), _by("LSODA", flat, gradient)
    if problem.stiff:
        raise StudyError(
            f"{problem.name} is stiff, and {flat.n} numbers with {columns} derivatives of each are too many for a "
            "reference. Pass the problem's own, Problem(…, reference=Reference(…)), or study the states alone"
        )
    first_way, second_way = (_by(way, flat, gradient) for way in ("dopri8", "dopri5"))
    times = flat.t.numpy()
    z = solve("DOP853", flat.value, flat.z0.reshape(-1).numpy(), times, 1e-12, 1e-15)
    apart = relative(first_way.z, z)
    _check("states", apart, _BOUND, problem, "torchdiffeq's dopri8, and SciPy's DOP853")
    return replace(first_way, z=z, how=f"SciPy's DOP853, {first_way.how}"), second_way


def _jitted(problem: Problem) -> Flat:
    from pynode.study.truth.jitted import Jitted  # here, so that JAX is not imported without being asked for

    return Jitted(problem)


def _by(way: str, flat: Flat, gradient: bool) -> Found:
    method, _, differences = way.partition(" by ")
    if differences:
        return solve_differences(flat, method, gradient)
    return (solve_discrete if way.startswith("dopri") else solve_variational)(flat, way, gradient)


def _check(what: str, apart: float, bound: float, problem: Problem, how: str) -> None:
    if not apart <= bound:
        raise StudyError(
            f"there is no reference for {problem.name}: its {what} by {how} differ by {apart:.1e}, relatively, and at "
            f"most {bound:g} is allowed. A chaotic field needs a shorter span, one that is stiff "
            "Problem(…, stiff=True), one that jumps times at its jumps; the states alone are studied by "
            'Study(…, measures=["state"])'
        )
