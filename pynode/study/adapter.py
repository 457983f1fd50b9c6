"""What a package has to do in a study: three methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pynode.study.problem import Problem
from pynode.study.setting import Setting

__all__ = ["Adapter", "Counts", "Gradient", "Solved"]


@dataclass
class Counts:
    """What a solve, or a gradient, cost; `None` where the package does not tell.

    Attributes:
        nfe: evaluations of the field in the forward solve.
        nfe_backward: evaluations of the field or of its products in the backward pass.
        n_accepted: accepted steps.
        n_rejected: rejected steps.
        jacobians: Jacobians of the field.
    """

    nfe: int | None = None
    nfe_backward: int | None = None
    n_accepted: int | None = None
    n_rejected: int | None = None
    jacobians: int | None = None


@dataclass
class Solved:
    """The states at the problem's times, `(time, *z0.shape)`: a tensor or an array, there when `solve` returns."""

    z: Any
    counts: Counts = field(default_factory=Counts)


@dataclass
class Gradient:
    """The loss, and its gradient by the names of the field's parameters and `"z0"`: tensors or arrays."""

    loss: Any
    gradient: Mapping[str, Any]
    counts: Counts = field(default_factory=Counts)


class Adapter(Protocol):
    """A package in a study. One is made for each cell, in the cell's own process.

    `solve` and `gradient` are called again and again, and each call is a whole one: nothing is kept from call to call
    that a user's program would compute anew.
    """

    def prepare(self, problem: Problem, setting: Setting, **options: Any) -> None:
        """Import the package, bring the problem into its terms, and keep what `solve` and `gradient` need.

        Raises:
            NotComparable: it cannot take part: it is not installed, say, or the problem has no field in its language.
        """

    def solve(self) -> Solved:
        """Solve the problem."""

    def gradient(self) -> Gradient:
        """Solve it, and differentiate its loss.

        Raises:
            NotComparable: it has no gradient.
        """
