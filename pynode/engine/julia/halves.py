"""The proof that a field of two halves has the form that its solver needs: its graph shows what each rate reads."""

from __future__ import annotations

from pynode.engine.solvers import SolverInfo
from pynode.errors import FieldError
from pynode.field._graph import FieldGraph

__all__ = ["check_called", "check_halves"]


def check_halves(graph: FieldGraph, solver: SolverInfo) -> None:
    """Refuse a field of another form than a symplectic or a Nyström solver needs; nothing of other solvers.

    Raises:
        FieldError: by a symplectic solver, dq/dt reads q, or dp/dt reads p; by a Nyström solver, dq/dt is not v, or
            dv/dt reads v and must not.
    """
    if solver.separable:
        for name, number, value in (("q", "0", graph.value[0]), ("p", "1", graph.value[1])):
            if _reads(graph, value, number):
                raise FieldError(
                    f"the symplectic solver {solver.name!r} needs a separable field of (q, p), dq/dt = g(t, p) and "
                    f"dp/dt = f(t, q), but d{name}/dt reads {name}: write it without (each derivative in a function of "
                    "its own), or use a solver for any field, e.g. 'vern9'"
                )
    if solver.second_order:
        if not _is_input(graph, graph.value[0], "1"):
            raise FieldError(
                f"the Nyström solver {solver.name!r} needs dq/dt = v of a state (q, v): let the field return "
                "(v, dv/dt), v as it is, or use a solver for any field, e.g. 'vern7'"
            )
        if solver.velocity_free and _reads(graph, graph.value[1], "1"):
            raise FieldError(
                f"the Nyström solver {solver.name!r} needs dv/dt = f(t, q), but dv/dt reads v: use 'fine_rkn5' or "
                "'nystrom4', or a solver for any field, e.g. 'vern7'"
            )


def _reads(graph: FieldGraph, value: int, number: str) -> bool:
    return any(_is_input(graph, i, number) for i in graph.live([value]))


def _is_input(graph: FieldGraph, i: int, number: str) -> bool:
    return i < len(graph.inputs) and (graph.inputs[i].kind, graph.inputs[i].name) == ("z", number)


def check_called(solver: SolverInfo) -> None:
    """Refuse a field without a graph.

    Raises:
        FieldError: the solver needs one.
    """
    if solver.separable:
        raise FieldError(
            f"the symplectic solver {solver.name!r} needs a separable field, which the field's graph shows: pass "
            "lowering='trace', and write the field so that it can be traced"
        )
    if solver.second_order:
        raise FieldError(
            f"the Nyström solver {solver.name!r} needs a field of second order, which the field's graph shows: pass "
            "lowering='trace', and write the field so that it can be traced"
        )
