"""Initial states of differential-algebraic equations, which have to satisfy the algebraic ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pynode.engine.protocol import Mass
from pynode.engine.refused import once_differentiable
from pynode.errors import EngineUnavailable, InputError
from pynode.field import Field
from pynode.field._time import first_time
from pynode.problem.independent import check_unmixed
from pynode.problem.tolerances import Tolerance
from pynode.transforms import example, is_wrapped, moves, untransformed

__all__ = ["consistent_state"]

_ITERATIONS = 50


def consistent_state(
    mass: Mass | None,
    field: Field,
    state: tuple[Tensor, ...],
    times: Tensor,
    args: Sequence[Tensor],
    rtol: Tolerance,
    atol: Tolerance,
) -> tuple[Tensor, ...]:
    """The state from which a solve with a mass matrix starts: the one that was given, or a consistent one.

    Args:
        mass: the mass matrix; `None` without one, and nothing is done.
        field: the field.
        state: the tensors that are solved.
        times: `(time,)` or `(batch, time)`.
        args: conditioning tensors.
        rtol: relative tolerance, which bounds how far a given state may be from a consistent one.
        atol: absolute tolerance, which does so too.

    Raises:
        InputError: the state is not consistent, or no consistent one was found from it; or the equation is not of index
            1 there.
        FieldError: the field combines samples.
        EngineUnavailable: a consistent state is asked for within a transform.
    """
    if mass is None or not state[0].shape[0]:
        return state
    newton = _Newton(mass, field, state, times, args, rtol, atol)
    if not mass.left.shape[1]:
        return state
    if mass.initial == "given":
        newton.check_given()
        return state
    if any(is_wrapped(x) or moves(x) for x in (*state, times, *args, *field.parameters)):
        raise EngineUnavailable(
            "MassMatrix(initial='consistent') has no derivatives within torch.func's transforms, nor forward ones: use "
            "autograd, or pass a consistent z0 and initial='given'"
        )
    return newton.solve(field, state, times, args)


class _Newton:
    """Newton's method for the part of a state that a mass matrix leaves to the algebraic equations."""

    def __init__(
        self,
        mass: Mass,
        field: Field,
        state: tuple[Tensor, ...],
        times: Tensor,
        args: Sequence[Tensor],
        rtol: Tolerance,
        atol: Tolerance,
    ) -> None:
        self.shapes = [z.shape for z in state]
        self.t0 = example(first_time(times))
        self.args = tuple(example(a).clone() for a in args)
        self.z = tuple(example(z).clone() for z in state)
        with untransformed():
            if times.dim() == 2 and bool((example(times)[:, 0] != self.t0).any()):
                raise InputError(
                    "independent samples with a mass matrix must start at one time: solve them by themselves"
                )
            if any(map(is_wrapped, field.parameters)):
                field = field.replaced({n: example(p) for n, p in zip(field.names, field.parameters, strict=True)})
            self.field = field.on_leaves([False] * len(field.parameters))
            check_unmixed(
                self.field, self.z, self.t0[None], self.args, "The mass matrix is that of each sample by itself: take"
            )
        dtype = state[0].dtype
        self.left, self.right = mass.left.to(dtype), mass.right.to(dtype)
        self.rtol, self.atol = (self._of_each(x) for x in (rtol, atol))

    def _of_each(self, x: Tolerance) -> Tensor | float:
        if not x.each:
            return x.least
        each = [*x.each, *(z.new_full(z.shape, x.least) for z in self.z[len(x.each) :])]  # with that of a running cost
        return _flat(each)

    def check_given(self) -> None:
        """Refuse the state if it is not consistent."""
        with untransformed():
            residual, change, _ = self.step(self.z)
            size = self.size(change)
        if not size.max() <= 1:
            b, i = divmod(int(size.nan_to_num(math.inf).argmax()), size.shape[1])
            raise InputError(
                f"z0 does not satisfy the algebraic equations of the mass matrix: their residual in sample {b} is up "
                f"to {residual[b].abs().max().item():.3g}, and number {i} of that sample is "
                f"{change[b, i].abs().item():.3g} from where Newton's method takes it, beyond rtol and atol. "
                "Pass a consistent z0, or mass=pynode.MassMatrix(M, initial='consistent') to start at the consistent "
                "state with the same M z"
            )

    def solve(
        self, field: Field, state: tuple[Tensor, ...], times: Tensor, args: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """The consistent state, with its gradient."""
        last = math.inf
        for _ in range(_ITERATIONS):
            _, change, inverse = self.step(self.z)
            self.z = tuple(z + d for z, d in zip(self.z, self.parts(change), strict=True))
            size = self.size(change).max().item()
            if not math.isfinite(size) or size == 0 or (size < 1 and size >= last / 2):
                break
            last = size
        if not size < 1:
            raise InputError(
                "no consistent state was found: Newton's method does not converge from z0. Pass a z0 that is closer to "
                "satisfying the algebraic equations of the mass matrix"
            )
        if not torch.is_grad_enabled():
            return self.z
        # By the theorem of implicit functions: one more step, of which the matrix is held.
        start = tuple(z + (there - z.detach()) for z, there in zip(state, self.z, strict=True))
        change = _change(_flat(field(first_time(times), start, args)) @ self.left, inverse, self.right)
        found = tuple(z + d for z, d in zip(start, self.parts(change), strict=True))
        return once_differentiable(
            "the initial state of MassMatrix(initial='consistent')", "pass a consistent z0 and initial='given'", found
        )

    def step(self, z: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The residual of the algebraic equations, `(batch, m)`, and what Newton's method makes of it.

        That is the change of the state, `(batch, n)`, and the inverse of the Jacobian of the algebraic equations in
        what M leaves to them, `(batch, m, m)`.
        """
        with torch.inference_mode(False), torch.enable_grad():
            leaves = [x.detach().clone().requires_grad_() for x in z]
            residual = _flat(self.field(self.t0, leaves, self.args)) @ self.left
            rows = [
                _flat(
                    torch.autograd.grad(r.sum(), leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
                )
                if r.requires_grad
                else torch.zeros_like(_flat(leaves))
                for r in residual.unbind(1)
            ]
        residual = residual.detach()
        matrix = torch.stack(rows, 1).detach() @ self.right
        self.check_index(matrix)
        inverse = torch.linalg.inv(matrix)
        return residual, _change(residual, inverse, self.right), inverse

    def check_index(self, matrix: Tensor) -> None:
        """Refuse a state at which the algebraic equations do not determine the rest."""
        if not bool(matrix.isfinite().all()):
            raise InputError("the field, or its derivative, is not finite at z0. Correct z0 or the field")
        rows = matrix.double()
        rows = rows / rows.abs().amax(2, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        values = torch.linalg.svdvals(rows)
        singular = values[:, -1] <= 10 * torch.finfo(matrix.dtype).eps * values[:, 0].clamp_min(1e-300)
        if bool(singular.any()):
            raise InputError(
                f"the equation with this mass matrix is not of index 1 at z0 (sample {int(singular.int().argmax())}): "
                "the algebraic equations do not determine what M leaves open of the state, since their Jacobian in it "
                "is singular. Differentiate the constraint by t until it does (index reduction), or correct mass"
            )

    def size(self, change: Tensor) -> Tensor:
        """A change of the state, in units of the tolerances."""
        return change.abs() / (self.atol + self.rtol * _flat(self.z).abs())

    def parts(self, flat: Tensor) -> list[Tensor]:
        """The tensors of a state."""
        sizes = [math.prod(s[1:]) for s in self.shapes]
        return [x.reshape(s) for x, s in zip(flat.split(sizes, 1), self.shapes, strict=True)]


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """The numbers of each sample, `(batch, n)`."""
    return torch.cat([x.reshape(len(x), -1) for x in tensors], 1)


def _change(residual: Tensor, inverse: Tensor, right: Tensor) -> Tensor:
    return -(inverse @ residual[:, :, None])[:, :, 0] @ right.T
