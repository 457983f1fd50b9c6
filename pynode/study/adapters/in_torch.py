"""What the adapters of PyTorch packages share: the field with its calls counted, the loss and its gradient."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from pynode.nn._signature import with_time
from pynode.study.problem import Problem

__all__ = ["CountedField", "differentiate", "pulled_back"]


class CountedField(nn.Module):
    """The problem's field as `f(t, z)`, with the problem's `args`; it counts its calls."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.field = problem.field  # a module's parameters are this one's too
        self.args = tuple(problem.args)
        # In a tuple, so that it is no second submodule: functional_call would not put a parameter of two names back.
        self._calls = (with_time(problem.field, len(self.args)),)
        self.nfe = 0

    def rates(self, t: Tensor, z: Tensor) -> Tensor:
        """The rate of change, in the shape of `z`; not counted."""
        rates: Tensor = self._calls[0](t, z, *self.args)
        return rates

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """The same, counted."""
        self.nfe += 1
        return self.rates(t, z)

    def counted(self) -> int:
        """The calls since it was asked last."""
        nfe, self.nfe = self.nfe, 0
        return nfe


def differentiate(problem: Problem, solve: Callable[[Tensor], Tensor]) -> tuple[float, dict[str, Tensor]]:
    """The loss and its gradients, by the name of the parameter, and `"z0"`.

    Args:
        problem: what is solved.
        solve: from the initial state to the states `(time, *z0.shape)`, by means that autograd differentiates.
    """
    inputs = {"z0": problem.z0.detach().requires_grad_(), **problem.parameters}
    loss = problem.loss_of(solve(inputs["z0"]))
    found = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
    pairs = zip(inputs.items(), found, strict=True)
    return loss.item(), {name: torch.zeros_like(x) if g is None else g for (name, x), g in pairs}


def pulled_back(problem: Problem, z: np.ndarray) -> tuple[float, np.ndarray]:
    """The loss of states that another library has solved, and its gradient with respect to them."""
    states = torch.from_numpy(z).requires_grad_()
    loss = problem.loss_of(states)
    (gradient,) = torch.autograd.grad(loss, states)
    return loss.item(), gradient.numpy()
