"""The proof that a field is separable, which symplectic solvers need: its graph shows what each derivative reads."""

from __future__ import annotations

from pynode.engine.solvers import SolverInfo
from pynode.errors import FieldError
from pynode.field._graph import FieldGraph

__all__ = ["check_called", "check_separable"]


def check_separable(graph: FieldGraph, solver: SolverInfo) -> None:
    """Refuse a field whose dq/dt reads q, or whose dp/dt reads p.

    Raises:
        FieldError: it is one.
    """
    for name, number, value in (("q", "0", graph.value[0]), ("p", "1", graph.value[1])):
        for i in graph.live([value]):
            if i < len(graph.inputs) and (graph.inputs[i].kind, graph.inputs[i].name) == ("z", number):
                raise FieldError(
                    f"the symplectic solver {solver.name!r} needs a separable field of (q, p), dq/dt = g(t, p) and "
                    f"dp/dt = f(t, q), but d{name}/dt reads {name}: write it without (each derivative in a function of "
                    "its own), or use a solver for any field, e.g. 'vern9'"
                )


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
