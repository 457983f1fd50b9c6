"""A field that changes its inputs in place is refused: the solver goes on with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode import FieldError

Z = torch.tensor([[1.0, -1.0], [-0.5, 0.7]])
FIRST = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(2, 2))


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    ("field", "keywords"),
    [
        (FIRST, {}),
        (FIRST, {"sensitivity": "backsolve"}),
        (FIRST, {"batching": "independent"}),
        (lambda t, z: z.mul_(0.5), {}),
        (lambda t, z: -z * t.add_(1), {}),
        (lambda t, z, rate: -z * rate.add_(0.1), {"args": (torch.ones(2, 1),)}),
        (lambda t, z: -z, {"running_cost": lambda t, z: z.relu_().sum(-1)}),
    ],
)
def test_it_is_refused(engine: str, field: Callable[..., Tensor], keywords: dict[str, Any], mode: Any) -> None:
    """Before anything is solved, and the state stays the user's."""
    z0 = Z.clone()
    with mode(), pytest.raises(FieldError, match=r"changes its input .* in place.*compute a new tensor"):
        pynode.solve(field, z0, [0.0, 1.0], engine=engine, **keywords)
    assert torch.equal(z0, Z)


def test_later_in_a_solve() -> None:
    """A write at times that the first evaluation is not at."""
    with pytest.raises(FieldError, match="changes its input z in place"):
        pynode.solve(lambda t, z: z.mul_(-1) if t > 0.5 else -z, Z.clone(), [0.0, 1.0], engine="torch")


def test_its_line_is_named() -> None:
    with pytest.raises(FieldError, match=r"in place at .*test_writes\.py:\d+: `.*z\.mul_\(3\)"):
        pynode.solve(lambda t, z: z.mul_(3), Z.clone(), [0.0, 1.0], engine="torch")


def test_of_a_stochastic_equation(engine: str) -> None:
    with pytest.raises(FieldError, match="changes its input z in place"):
        pynode.solve_sde(FIRST, lambda t, z: 0.1 + 0 * z, Z.clone(), torch.tensor([0.0, 1.0]), dt=0.1, engine=engine)


def test_layers_within_may_be_in_place(engine: str) -> None:
    """What they change is the field's own."""
    torch.manual_seed(0)
    one, other = (nn.Sequential(nn.Linear(2, 4), nn.ReLU(inplace=x), nn.Linear(4, 2)) for x in (True, False))
    other.load_state_dict(one.state_dict())
    results = []
    for field in (one, other):
        z = pynode.solve(field, Z, [0.0, 1.0], engine=engine).z[-1]
        results.append((z.detach(), *torch.autograd.grad(z.square().sum(), list(field.parameters()))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
