"""Second derivatives of every explicit solver of the julia engine, against its own steps, operation by operation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from eager_steps import Eager, Field, close, inputs, loss
from torch import Tensor
from torch.autograd import functional as A

import pynode
from pynode.engine import SolverInfo

pytestmark = pytest.mark.julia

LOOSE: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-5, "dt": 0.07, "engine": "julia"}


def explicit() -> list[Any]:
    others = ("stiff", "opaque", "of_pairs")
    solvers = [s for s in pynode.solvers() if s.julia is not None and not any(getattr(s, name) for name in others)]
    return [pytest.param(info, id=info.name) for info in solvers]


@pytest.mark.parametrize("backwards", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("info", explicit())
def test_second_derivatives(info: SolverInfo, backwards: bool) -> None:
    """Of z0, times, args and parameters; the products with directions of each by itself, the times' above all."""
    field = Field()
    z0, t, u = inputs()
    t = t.flip(0) if backwards else t
    x = [y.requires_grad_() for y in (z0, t, u)] + list(field.parameters())

    def call(z0: Tensor, t: Tensor, u: Tensor) -> Tensor:
        return pynode.solve(field, z0, t, args=(u,), solver=info.name, **LOOSE).z

    z = call(*x[:3])
    eager = Eager.of(field, info)
    found = []
    for values in (z, eager(*x[:3])):
        g = torch.autograd.grad(loss(lambda y: y)(values), x, create_graph=True)
        found.append([g, *(torch.autograd.grad((y * y.detach().cos()).sum(), x, retain_graph=True) for y in g)])
    close(found[0], found[1], 1e-10)
    plain = (z0.detach(), t.detach(), u.detach())
    v = tuple(y.cos() for y in plain)
    close(torch.func.jvp(call, plain, v), A.jvp(eager, plain, v), 1e-10)


@pytest.mark.parametrize("memory", ["1KiB", None])
def test_steps_made_again(memory: str | None) -> None:
    """Where the steps of the derivative do not fit the memory that is allowed, they are made again."""
    field = Field()
    x = [y.requires_grad_() for y in inputs()] + list(field.parameters())
    how = pynode.Discrete(memory=memory) if memory else "discrete"
    keywords = LOOSE | {"rtol": 1e-9, "atol": 1e-11}
    z = pynode.solve(field, x[0], x[1], args=(x[2],), solver="dopri5", sensitivity=how, **keywords).z
    info = next(s for s in pynode.solvers() if s.name == "dopri5")
    found = []
    for values in (z, Eager.of(field, info)(*x[:3])):
        g = torch.autograd.grad(loss(lambda y: y)(values), x, create_graph=True)
        found.append((g, torch.autograd.grad(sum((y * y.detach().cos()).sum() for y in g), x)))
    close(found[0], found[1], 1e-10)


def test_a_first_step_that_is_given() -> None:
    """Every solve begins with it, whatever was solved before; a time at which it ends has its gradient."""
    field = Field()
    z0, _, u = inputs()
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    keywords = LOOSE | {"dt": 0.5, "rtol": 0.1, "atol": 0.1}
    first, again = (pynode.solve(field, z0, t, args=(u,), solver="tsit5", **keywords) for _ in range(2))
    assert torch.equal(first.z, again.z)
    assert first.stats.n_accepted == again.stats.n_accepted == 2
    (g,) = torch.autograd.grad(first.z[1].sum(), t)
    rate = field(t[1], first.z[1], u).sum()
    torch.testing.assert_close(g[1], rate, rtol=1e-2, atol=0)
