"""Arithmetic on known numbers, zeros and repeated entries leaves a graph; values and products stay what they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from kinds import CASES
from modules import Case
from reference import check
from torch import Tensor

from pynode.field import Field, FieldGraph, _fingerprint, trace
from pynode.field._bindings import captured_by

W = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
V = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()


def ops(graph: FieldGraph, what: str = "value") -> Counter[str]:
    """How many operations of each kind the value, or the products, have, but for views and inputs."""
    views = ("input", "reshape", "expand", "permute", "slice", "full", "const")
    names = Counter(graph.nodes[i].op for i in graph.live(getattr(graph, what)))
    return Counter({name: n for name, n in names.items() if name not in views})


def column(t: Tensor, z: Tensor) -> Tensor:
    """The time for each sample."""
    return t.expand(z.shape[0], 1)


def one_hot(z: Tensor) -> Tensor:
    return torch.zeros_like(z).index_fill(1, torch.tensor([1]), 1.0)


FIELDS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], dict[str, int]]] = {
    "a sum with zeros": (lambda t, z: torch.zeros_like(z) + z.sin() - torch.zeros_like(z), {"sin": 1}),
    "a difference from zeros": (lambda t, z: torch.zeros_like(z) - z.sin(), {"sin": 1, "neg": 1}),
    "a product with ones": (lambda t, z: torch.ones_like(z) * z.sin() / torch.ones_like(z), {"sin": 1}),
    "a product with zeros": (lambda t, z: z.cos() + torch.zeros_like(z) * z.exp() @ W, {"cos": 1}),
    "a matrix of zeros": (lambda t, z: z.cos() + z @ torch.zeros_like(W) + torch.zeros_like(z) @ W, {"cos": 1}),
    "a row that is known": (lambda t, z: z.sin() * one_hot(z).cumsum(1), {"mul": 1, "sin": 1}),
    "a choice that is known": (lambda t, z: torch.where(one_hot(z).sum(1, keepdim=True) > 0, z.sin(), z), {"sin": 1}),
    "equal branches": (lambda t, z: torch.where(z > 0, z.sin(), torch.sin(z)), {"sin": 1}),
    "a column of ones": (lambda t, z: z.sin() * (torch.ones_like(z)[:, :1] @ W[:1]), {"sin": 1, "mul": 1}),
    "a matrix of ones": (lambda t, z: z @ torch.ones_like(W) + torch.ones_like(z) @ W, {"sum": 2, "add": 1}),
    "a function in two shapes": (
        lambda t, z: (z.exp()[:, None] * z[:, :, None]).sum(2) + z.exp()[:, :, None].amax(2),
        {"exp": 1, "mul": 1, "sum": 1, "add": 1},  # the greatest of one is that one
    ),
    "halves side by side": (
        lambda t, z: torch.nn.functional.pad(z[:, :1], (0, 2)) + torch.nn.functional.pad(z[:, 1:], (1, 0)),
        {},
    ),
    "halves put together": (lambda t, z: torch.cat([z[:, :1], z[:, 1:2], z[:, 2:]], 1).sin(), {"sin": 1}),
    "sums either way": (lambda t, z: (z + z.sin()) * (z.sin() + z), {"sin": 1, "add": 1, "mul": 1}),
    "factors of a smaller shape": (
        lambda t, z: ((z.sin()[:, None] * z[:, :, None] * z[:, :1, None].exp()) / z[:, 1:2, None].cosh()).sum(1),
        {"sin": 1, "exp": 1, "cosh": 1, "div": 1, "mul": 2, "sum": 1},
    ),
    "one layer twice": (lambda t, z: z.sin() @ W + z.cos() @ W, {"sin": 1, "cos": 1, "add": 1, "mm": 1}),
    "two layers twice": (
        lambda t, z: ((z.sin() @ W) * z) @ V + ((z.cos() @ W) * z) @ V - z.exp(),
        {"sin": 1, "cos": 1, "exp": 1, "add": 1, "mm": 2, "mul": 1, "sub": 1},
    ),
    "sums of sums": (
        lambda t, z: z.sin().sum(1, keepdim=True) + z.cos().sum(1, keepdim=True) + z,
        {"sin": 1, "cos": 1, "add": 2, "sum": 1},
    ),
    "a number of the code": (lambda t, z: z.sin() + 0.0 * z, {"sin": 1, "mul": 1, "add": 1}),
}


@pytest.mark.parametrize("name", FIELDS)
def test_operations_that_are_left(name: str) -> None:
    field, expected = FIELDS[name]
    case = Case(field, (3,))
    for batch in (4, 1):
        graph = check(case, batch).graph
    assert ops(graph) == Counter(expected), graph


def test_what_is_the_same_for_all_samples_is_computed_once() -> None:
    field = Case(lambda t, z: z * column(t, z).sin().exp().repeat(1, 3) + W[0].expand_as(z).tanh(), (3,))
    graph = check(field, 4).graph
    shapes = {n.op: n.shape for n in graph.nodes}
    assert shapes["sin"] in ((), (1, 1))
    assert shapes["exp"] in ((), (1, 1))
    assert shapes["tanh"] == (3,)


def test_literal_zero_keeps_what_is_no_number() -> None:
    graph = trace(lambda t, z: z + 0.0 * z.log(), torch.ones(2, 3))
    assert ops(graph)["log"] == 1


@pytest.mark.slow
def test_derivatives_of_derivatives() -> None:
    """A Lagrangian network: a Hessian and a Jacobian of a gradient, solved for the acceleration, and products of it."""
    graph = check(CASES["lagrangian"](), 3).graph
    # Two layers: forwards, back, and each in two directions; the products go through each at most twice more.
    assert ops(graph)["mm"] <= 9
    assert ops(graph, "vjp")["mm"] <= 30


def test_a_sum_that_would_be_more_work_stays() -> None:
    """Each product is needed by itself too."""

    def field(t: Tensor, z: Tensor) -> Tensor:
        a, b = z.sin() @ W, z.cos() @ W
        return a.exp() + b.exp() + (a + b)

    assert ops(check(Case(field, (3,)), 4).graph)["mm"] == 2


def test_functions_of_libraries_are_not_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fingerprint goes through the user's functions, not through all of torch."""
    looked_at: list[object] = []

    def counted(function: object) -> object:
        looked_at.append(function)
        return captured_by(function)  # type: ignore[arg-type]

    monkeypatch.setattr(_fingerprint, "captured_by", counted)
    case = CASES["lagrangian"]()
    t, z, _ = case.draw(3)
    assert Field(case.field, z, t, (), False).key
    assert 0 < len(looked_at) < 20
