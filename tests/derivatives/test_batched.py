"""Several cotangents or directions at once, by the vmap of `torch.autograd`, beside one after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pynode

A = torch.autograd.functional
T = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)


def inputs() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double(), torch.randn(2, 2, dtype=torch.float64)


@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve"])
def test_batched_cotangents(engine: str, sensitivity: str) -> None:
    net, z0 = inputs()
    x = [z0.requires_grad_(), *net.parameters()]
    y = pynode.solve(net, z0, T, engine=engine, sensitivity=sensitivity).z[-1].flatten()
    rows = torch.eye(4, dtype=torch.float64)
    found = torch.autograd.grad(y, x, rows, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(y, x, row, retain_graph=True) for row in rows]
    for a, parts in zip(found, zip(*each, strict=True), strict=True):
        torch.testing.assert_close(a, torch.stack(parts), rtol=1e-12, atol=1e-12)


def test_vectorised_jacobians(engine: str) -> None:
    net, z0 = inputs()

    def last(z0: Tensor, t: Tensor) -> Tensor:
        return pynode.solve(net, z0, t, engine=engine, solver="rk4", dt=0.25).z[-1]

    def loss(z0: Tensor) -> Tensor:
        return last(z0, T).square().sum()

    expected = A.jacobian(last, (z0, T))
    for strategy in ("reverse-mode", "forward-mode"):
        for a, b in zip(A.jacobian(last, (z0, T), vectorize=True, strategy=strategy), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    hessian = A.hessian(loss, z0)
    assert hessian.abs().max() > 1e-3
    for strategy in ("reverse-mode", "forward-mode"):
        found = A.hessian(loss, z0, vectorize=True, outer_jacobian_strategy=strategy)
        torch.testing.assert_close(found, hessian, rtol=1e-11, atol=1e-11)
