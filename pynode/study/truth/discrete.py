"""States and gradient by torchdiffeq's explicit pairs, differentiated step by step: for fields with many parameters."""

from __future__ import annotations

import itertools

import torch
import torchdiffeq
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pynode.errors import StudyError
from pynode.study.truth.flat import Flat
from pynode.study.truth.variational import Found

__all__ = ["solve_discrete"]

_TOLERANCE = 1e-12
_PIECES = 64  # of the span between two times, of which one at a time is kept in memory


def solve_discrete(flat: Flat, method: str, gradient: bool = True) -> Found:
    """The states, and the gradient by backpropagation through the steps, at tolerances of 1e-12.

    Args:
        flat: the problem.
        method: `"dopri8"` or `"dopri5"`.
        gradient: whether it is wanted.

    Raises:
        StudyError: the solver gave up.
    """
    given = {name: p.clone().requires_grad_(gradient) for name, p in flat.parameters.items()}
    z0 = flat.z0.clone().requires_grad_(gradient)

    def piece(start: Tensor, end: Tensor, z: Tensor) -> Tensor:
        span = torch.stack([start, end])
        states = torchdiffeq.odeint(
            lambda t, y: flat.field(t, y, given),
            z,
            span,
            rtol=_TOLERANCE,
            atol=_TOLERANCE,
            method=method,
            options={"step_t": span[1:]},  # ends there exactly, and does not interpolate
        )
        return states[-1]

    states = [z0]
    try:
        with torch.set_grad_enabled(gradient):
            for start, end in itertools.pairwise(flat.t):
                z, times = states[-1], torch.linspace(0, 1, _PIECES + 1, dtype=torch.float64) * (end - start) + start
                times[-1] = end
                for a, b in itertools.pairwise(times):
                    z = checkpoint(piece, a, b, z, use_reentrant=True) if gradient else piece(a, b, z)
                states.append(z)
            z = torch.stack(states)
            loss = flat.problem.loss_of(z)
        if gradient:  # a field may differentiate within itself, which only checkpoints that accumulate allow
            loss.backward()
    except AssertionError as error:  # what torchdiffeq raises
        raise StudyError(f"torchdiffeq's {method} gave up: {error}. Give the problem's own reference") from error
    wanted = {**given, "z0": z0} if gradient else {}
    gradients = {name: (torch.zeros_like(x) if x.grad is None else x.grad).numpy() for name, x in wanted.items()}
    return Found(
        z.detach().reshape(len(states), -1).numpy(), gradients, float(loss.detach()), f"torchdiffeq's {method}"
    )
