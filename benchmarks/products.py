"""A contender that integrates nothing: a network's matrix products and tanh, and their adjoints, as often as asked."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pynode.errors import NotComparable
from pynode.study import Counts, Gradient, Problem, Setting, Solved

__all__ = ["Products"]


class Products:
    """What no solver can do without, in PyTorch, into memory that is there already: `nfe` times each.

    Each evaluation is of the initial state, so that the errors say nothing.
    """

    def prepare(self, problem: Problem, setting: Setting, nfe: int = 15) -> None:
        """Take memory for all evaluations."""
        linear = [m for m in problem.field.modules() if isinstance(m, nn.Linear)]
        if not linear or any(m.bias is None for m in linear):
            raise NotComparable("only of a network of linear layers with bias and tanh")
        self.problem, self.nfe = problem, nfe
        self.weights, self.biases = ([getattr(m, name).detach() for m in linear] for name in ("weight", "bias"))
        sizes = [w.shape[0] for w in self.weights]
        z = problem.z0
        self.kept = [[z.new_empty(len(z), n) for n in sizes] for _ in range(nfe)]
        self.back = [torch.empty_like(z), *(z.new_empty(len(z), n) for n in sizes)]
        self.gradients = [torch.zeros_like(x) for pair in zip(self.weights, self.biases, strict=True) for x in pair]

    def solve(self) -> Solved:
        """The products of the forward pass."""
        for values in self.kept:
            x = self.problem.z0
            for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
                torch.addmm(b, x, w.T, out=values[i])
                x = torch.tanh(values[i], out=values[i]) if i + 1 < len(self.weights) else values[i]
        return Solved(self.problem.z0.expand(len(self.problem.t), *self.problem.z0.shape), Counts(self.nfe))

    def gradient(self) -> Gradient:
        """Those and their adjoints."""
        self.solve()
        for values in reversed(self.kept):
            self.back[-1].copy_(values[-1])
            self._pull_back(values)
        names = ["z0", *self.problem.parameters]
        return Gradient(0.0, dict(zip(names, [self.back[0], *self.gradients], strict=True)), Counts(self.nfe, self.nfe))

    def _pull_back(self, values: list[Tensor]) -> None:
        for i in reversed(range(len(self.weights))):
            if i + 1 < len(self.weights):
                torch.ops.aten.tanh_backward(self.back[i + 1], values[i], grad_input=self.back[i + 1])
            self.gradients[2 * i].addmm_(self.back[i + 1].T, values[i - 1] if i else self.problem.z0)
            self.gradients[2 * i + 1].add_(self.back[i + 1].sum(0))
            torch.mm(self.back[i + 1], self.weights[i], out=self.back[i])
