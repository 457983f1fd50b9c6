"""A linear system with an exact solution, for the tests of adapters."""

import numpy as np
import torch
from torch import nn

from pynode.study import Problem

JULIA = """
function (du, u, p, t)
    for j in axes(u, 2), i in 1:2
        du[i, j] = p[2i - 1] * u[1, j] + p[2i] * u[2, j]
    end
    return nothing
end
"""


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[-0.5, 2.0], [-1.0, -0.3]], dtype=torch.float64))

    def forward(self, t, z):
        return z @ self.matrix.T


def problem(**keywords):
    z0 = torch.tensor([[1.0, 0.0], [0.3, -2.0], [0.5, 0.1]], dtype=torch.float64)
    t = torch.linspace(0, 2, 4, dtype=torch.float64)
    if keywords.pop("backwards", False):
        t = t.flip(0)
    given = {"name": "linear", "jax": lambda t, z, p: z @ p[0].T, "julia": JULIA, **keywords}
    return Problem(Linear(), z0, t, **given)


def exact(problem):
    """States and the gradient of the loss, by matrix exponentials."""
    z0, matrix = problem.z0.clone().requires_grad_(), problem.field.matrix
    z = torch.stack([z0 @ torch.matrix_exp(matrix * (s - problem.t[0])).T for s in problem.t])
    gradient = torch.autograd.grad(problem.loss_of(z), [z0, matrix])
    return z.detach().numpy(), dict(zip(["z0", "matrix"], (g.numpy() for g in gradient), strict=True))


def distance(got, right):
    got = np.asarray(got.detach() if isinstance(got, torch.Tensor) else got)
    assert got.shape == right.shape
    return float(np.sqrt(np.mean((got - right) ** 2) / np.mean(right**2)))
