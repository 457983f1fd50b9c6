"""The mass matrix of a differential-algebraic equation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pynode.errors import InputError, unknown_name

__all__ = ["INITIALS", "MassMatrix"]

INITIALS = ("given", "consistent")


@dataclass(frozen=True, eq=False)
class MassMatrix:
    """The constant matrix M of an equation M dz/dt = f(t, z), for `solve(mass=…)`.

    Where M is singular some of the equations are algebraic: with N a basis of the null space of Mᵀ, Nᵀ f(t, z) = 0.
    They have to determine what M z leaves open of z, so that the equation is of index 1. A tensor that is passed to
    `solve` in its place stands for `MassMatrix(tensor)`.

    Args:
        matrix: `(n, n)`, or the diagonal `(n,)`, over the n numbers of a sample: those of its features, for a state of
            several tensors one after the other, in the order of `z0`. The same for all samples.
        initial: `"given"`: a `z0` that violates the algebraic equations by more than the tolerances is refused.
            `"consistent"`: the solve starts at the consistent state with the same M z, which Newton's method finds from
            `z0`; `Solution.z[0]` is that state, differentiable once in what it depends on.

    Raises:
        InputError: `matrix` is no tensor, or the name is unknown.
    """

    matrix: Tensor
    initial: str = "given"

    def __post_init__(self) -> None:
        if not isinstance(self.matrix, Tensor):
            raise InputError(
                f"the matrix of MassMatrix must be a tensor, got {type(self.matrix).__name__}. Convert arrays and "
                "lists with torch.as_tensor"
            )
        if self.initial not in INITIALS:
            raise unknown_name("initial", self.initial, INITIALS)
