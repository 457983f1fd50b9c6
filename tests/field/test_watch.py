"""What a look at a module's places tells of it, beside a walk through all of it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pynode.field._bindings import Reads
from pynode.field._watch import Watch


class Tied(nn.Module):
    """Two layers that share a weight, a buffer, a tensor attribute, and a layer without tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.nothing = nn.Linear(2, 2), nn.Linear(2, 2), nn.Sequential()
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.ones(2))
        self.register_parameter("missing", None)
        self.shift, self.rate = torch.zeros(2), 0.5

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.second(self.nothing(self.first(z))) * self.scale + self.shift


KEPT_IN_CLASS = torch.ones(2)


class InClass(nn.Module):
    """A module whose class keeps a tensor."""

    kept = KEPT_IN_CLASS

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.kept * z


@pytest.mark.parametrize("make", [Tied, lambda: nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 2))])
def test_a_module_that_has_not_changed_is_known_without_a_walk(make: Callable[[], nn.Module]) -> None:
    module = make()
    watch = Watch.of(module, Reads(module), torch.float32, set())
    assert watch is not None
    known, walked = watch.reads(), Reads(module)
    assert known is not None
    assert watch.unchanged()
    assert list(known.owners) == list(walked.owners)
    assert all(known.owners[prefix] is owner for prefix, owner in walked.owners.items())
    assert list(known.tensors) == list(walked.tensors)
    assert all(known.tensors[name] is x for name, x in walked.tensors.items())
    assert known.touched == walked.touched
    assert (known.parts, known.captured, known.arrays, known.parametrized) == ({}, {}, {}, {})
    assert (known.fixed, known.opaque) == (walked.fixed, walked.opaque) == (set(), False)
    assert list(map(id, known.leaves())) == list(map(id, walked.leaves()))


def test_a_module_with_more_than_its_own_attributes_is_walked_through() -> None:
    module = InClass()
    watch = Watch.of(module, Reads(module), torch.float32, set())
    assert watch is None or watch.reads() is None


@pytest.mark.parametrize("kind", ["modules", "parameters"])
def test_the_same_things_by_other_names(kind: str) -> None:
    module = nn.Sequential(OrderedDict(a=nn.Linear(2, 2), b=nn.Tanh(), c=nn.Linear(2, 2)))
    module.register_parameter("x", nn.Parameter(torch.ones(2)))
    module.register_parameter("y", nn.Parameter(torch.zeros(2)))
    watch = Watch.of(module, Reads(module), torch.float32, set())
    assert watch is not None
    one, other = ("a", "c") if kind == "modules" else ("x", "y")
    a, b = getattr(module, one), getattr(module, other)
    delattr(module, one)
    delattr(module, other)
    setattr(module, other, a)
    setattr(module, one, b)
    assert not watch.unchanged()
