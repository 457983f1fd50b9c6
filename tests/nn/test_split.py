"""`Split`: the sum of its parts, a part alone, forms of state, and what it refuses; no Julia."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode.errors import FieldError, InputError
from pynode.field import Field
from pynode.field._part import PartField
from pynode.field._trace import trace_field
from pynode.nn._split import PARTS, part_alone
from pynode.problem.event import events_of
from pynode.problem.split import check_split

DOUBLE = torch.float64


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


def parts() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return nn.Linear(2, 2).double(), nn.Sequential(nn.Linear(2, 2), nn.Tanh()).double()


def test_the_sum_is_solved_by_other_solvers_and_on_torch() -> None:
    stiff, nonstiff = parts()
    z0 = torch.tensor([[0.3, -0.2], [0.1, 0.5]], dtype=DOUBLE)
    found = []
    for field in (pynode.Split(stiff, nonstiff), lambda t, z: stiff(z) + nonstiff(z)):
        z = pynode.solve(field, z0, [0.0, 0.5, 1.0], solver="dopri5", engine="torch").z
        found.append((z, *torch.autograd.grad(z.square().sum(), [*stiff.parameters(), *nonstiff.parameters()])))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)
    assert len(list(pynode.Split(stiff, nonstiff).parameters())) == 4


def test_forms_of_state() -> None:
    """Parts of time, state and args, or of the state alone; tuples, named tuples and dictionaries."""
    t, x, y = torch.tensor(2.0), torch.ones(3, 2), torch.full((3, 1), 2.0)
    assert torch.equal(pynode.Split(lambda z: -z, lambda t, z, a: t * a * z)(t, x, torch.tensor(3.0)), 5 * x)
    both = pynode.Split(lambda t, z: (-z[0], z[1]), lambda t, z: [t * z[0], z[1]])(t, (x, y))
    assert isinstance(both, tuple)
    assert torch.equal(both[0], x)
    assert torch.equal(both[1], 2 * y)
    named = pynode.Split(lambda t, z: Pair(-z.x, z.y), lambda t, z: Pair(z.x, z.y))(t, Pair(x, y))
    assert isinstance(named, Pair)
    assert torch.equal(named.y, 2 * y)
    mapped = pynode.Split(lambda t, z: {"a": -z["a"]}, lambda t, z: {"a": 3 * z["a"]})(t, {"a": x})
    assert torch.equal(mapped["a"], 2 * x)


def test_a_part_alone() -> None:
    """The first `Split` that is evaluated returns it; those within it, and later ones, are sums."""
    inner = pynode.Split(lambda t, z: z, lambda t, z: 10 * z)
    outer = pynode.Split(inner, lambda t, z: 100 * z)
    t, z = torch.tensor(0.0), torch.ones(1, 1)
    for part, value in zip(PARTS, (11.0, 100.0), strict=True):
        with part_alone(part):
            assert outer(t, z).item() == value
            assert outer(t, z).item() == 111.0
    assert outer(t, z).item() == 111.0
    with pytest.raises(FieldError, match="evaluates no Split"), part_alone("stiff"):
        pass


def test_traces_of_the_parts() -> None:
    """Each has a graph of its own, in the values of the whole field's parameters; integrals are in the other part."""
    split = pynode.Split(*parts())
    z, cost = torch.tensor([[0.3, -0.2]], dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE)

    def with_cost(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return split(t, state[0]), split(t, state[0]).square().sum(-1)

    t = torch.zeros((), dtype=DOUBLE)
    field = Field(with_cost, (z, cost), t, (), is_tuple=True)
    whole = field(t, (z, cost))
    stiff, nonstiff = (PartField(field, part, 1) for part in PARTS)
    torch.testing.assert_close(stiff(t, (z, cost))[0], split.stiff(z))
    torch.testing.assert_close(nonstiff(t, (z, cost))[0], split.nonstiff(z))
    torch.testing.assert_close(whole[0], split.stiff(z) + split.nonstiff(z))
    assert stiff(t, (z, cost))[1].item() == 0
    torch.testing.assert_close(nonstiff(t, (z, cost))[1], whole[1])
    graphs = [trace_field(x, (z, cost), t, ()).graph for x in (field, stiff, nonstiff)]
    assert len({g.key for g in graphs}) == 3
    assert "tanh" not in {node.op for node in graphs[1].nodes}


@pytest.mark.parametrize(
    ("stiff", "nonstiff", "match"),
    [
        (3, lambda t, z: z, "stiff part of a Split must be an nn.Module or a callable"),
        (lambda t, z: z, None, "nonstiff part of a Split must be"),
        (lambda t, z: z, lambda t, z: z[:1], r"one form and shape: .* shape \(2, 1\), the other .* shape \(1, 1\)"),
        (lambda t, z: z, lambda t, z: (z,), "one form and shape: .* the other tuple"),
    ],
)
def test_refused(stiff: Any, nonstiff: Any, match: str) -> None:
    with pytest.raises(FieldError, match=match):
        pynode.solve(pynode.Split(stiff, nonstiff), torch.ones(2, 1), [0.0, 1.0], engine="torch")


def test_what_cannot_be_had_where_the_parts_are_taken_apart() -> None:
    info = {s.name: s for s in pynode.solvers()}
    state = (torch.ones(1, 1),)
    assert [s.name for s in pynode.solvers() if s.splits] == ["kencarp3", "kencarp4", "kencarp5"]
    assert check_split(True, info["kencarp4"], state, "trace", None) == 1
    assert check_split(True, info["fbdf"], state, "callback", None) is None
    assert check_split(False, info["kencarp4"], state, "callback", None) is None
    with pytest.raises(InputError, match="expected lowering='trace'"):
        check_split(True, info["kencarp4"], state, "auto", None)
    with pytest.raises(InputError, match="finds no events"):
        check_split(True, info["kencarp4"], state, "trace", events_of(lambda t, z: z.sum()))
    assert check_split(True, info["kencarp4"], state, "trace", events_of(pynode.At([0.5], lambda t, z: z))) == 1
