"""Products of what is put together or cut become products of the parts; values and products stay what they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from modules import Case, conv, linear
from reference import check
from torch import Tensor, nn

from pynode.field import FieldGraph, trace
from pynode.nn import TimeConcat, TimeSequential


class Timed(nn.Module):
    """Two layers that take the time as a further input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = linear(4, 8), linear(9, 3)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        hidden = torch.cat([z, t.expand(z.shape[0], 1)], 1)
        hidden = self.first(hidden).tanh()
        return self.second(torch.cat([t.expand(z.shape[0], 1), hidden], 1))


class Conditioned(nn.Module):
    """A layer that takes conditioning tensors and the time as further inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = linear(3 + 2 + 1, 8), linear(8, 3)

    def forward(self, t: Tensor, z: Tensor, x: Tensor) -> Tensor:
        return self.last(self.layer(torch.cat([z, x, t.expand(z.shape[0], 1)], 1)).tanh())


class Halves(nn.Module):
    """A product that is cut into two, one of them a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = linear(3, 6, bias=False)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        value, gate = self.layer(z).chunk(2, 1)
        return value * gate.sigmoid()


class Rows(nn.Module):
    """A factor put together from parameters and constants, from the left and from the right."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(2, 3, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(1, 3, dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        wide = z @ torch.cat([self.a, self.b.expand(4, 3)]).T
        return wide @ torch.cat([self.b, self.a, self.b.expand(3, 3)]) + (z.T @ z).sum(0)


class Padded(nn.Module):
    """States padded with zeros, and every second column."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other = linear(5, 6), linear(3, 3)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.other(self.layer(nn.functional.pad(z, (1, 1)))[:, ::2]) + self.other(z)[:1]


class Shared(nn.Module):
    """Sums of what all samples share and of what each has, in several orders."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(3, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(3, dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor, x: Tensor) -> Tensor:
        shared = z.mean(0) + self.a
        return (shared + x + self.b) + (self.a + (x + z) + t) + (z.sum(1, keepdim=True) + self.a + x)


class Images(nn.Module):
    """Convolutions of the state beside the time, as torchdyn and as Chen et al. put it, and beside a known image."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        self.first, self.second, self.third = conv(4, 3, 3, **keywords), conv(4, 3, 3, padding=1), conv(5, 3, 1)
        self.known = nn.Parameter(torch.randn(2, 4, 5, dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        batch, _, height, width = z.shape
        z = torch.cat([z, t.expand(batch, 1, height, width)], 1)
        z = self.first(z).tanh()
        z = self.second(torch.cat([torch.ones_like(z[:, :1]) * t, z], 1)).tanh()
        return self.third(torch.cat([z, self.known.expand(batch, 2, 4, 5)], 1))


class Strided(nn.Module):
    """A convolution with strides of the state beside the time and a constant, and its transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.down = conv(5, 4, 3, stride=2, dilation=(1, 2), padding=(1, 2))
        self.up = nn.ConvTranspose2d(5, 3, 2, stride=2, dtype=torch.float64)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        batch = z.shape[0]
        z = torch.cat([t.expand(batch, 1, 4, 6), z, torch.full((batch, 1, 4, 6), 0.5, dtype=z.dtype)], 1)
        z = self.down(z).tanh()
        return self.up(torch.cat([z, t.expand(batch, 1, 2, 3)], 1))


FIELDS: dict[str, Callable[[], Case]] = {
    "timed": lambda: Case(Timed(), (3,)),
    "conditioned": lambda: Case(Conditioned(), (3,), args=[(2,)]),
    "halves": lambda: Case(Halves(), (3,)),
    "rows": lambda: Case(Rows(), (3,)),
    "shared": lambda: Case(Shared(), (3,), args=[(3,)]),
    "padded": lambda: Case(Padded(), (3,)),
    "images": lambda: Case(Images(padding=1), (3, 4, 5)),
    "images, dilated": lambda: Case(Images(padding=2, dilation=2), (3, 4, 5)),
    "strided": lambda: Case(Strided(), (3, 4, 6)),
}


@pytest.mark.parametrize("name", FIELDS)
def test_value_and_products(name: str) -> None:
    case = FIELDS[name]()
    found = [check(case, batch) for batch in (3, 1, 5)]
    assert found[0] is found[1] is found[2]


def put_together(graph: FieldGraph) -> set[str]:
    """The operations that put together or cut what has a row for each sample."""
    moved = (n for n in graph.nodes if n.op in ("cat", "embed", "slice"))
    return {n.op for n in moved if any(not isinstance(d, int) for d in n.shape)}


@pytest.mark.parametrize("name", ["timed", "conditioned", "halves", "images"])
def test_nothing_as_large_as_the_batch_is_put_together(name: str) -> None:
    case = FIELDS[name]()
    _, (z,), args = case.draw(3)
    graph = trace(case.field, z, args)
    expected = {"cat"} if name == "halves" else set()  # of the cotangents of both halves
    assert put_together(graph) <= expected


def test_a_bias_that_depends_on_the_time_is_one_row() -> None:
    """So that the product can start from it."""
    graph = trace(Timed(), torch.randn(3, 3, dtype=torch.float64))
    (value,) = graph.value
    product, bias = (graph.nodes[i] for i in graph.nodes[value].inputs)  # type: ignore[index]
    assert (product.op, bias.shape) == ("mm", (3,))


def test_the_convolution_of_the_time_does_not_depend_on_it() -> None:
    """So that it is computed once for a whole solve."""
    graph = trace(Images(padding=1), torch.randn(3, 3, 4, 5, dtype=torch.float64))
    shapes = [n.shape for n in graph.nodes if n.op == "conv"]
    assert [s for s in shapes if s[0] == 1] == [(1, 3, 4, 5)] * 3
    ones = [n.inputs[0] for n in graph.nodes if n.op == "conv" and n.shape[0] == 1]
    assert [graph.nodes[i].op for i in ones[:2]] == ["full", "full"]  # type: ignore[index]


def test_the_same_of_a_single_image() -> None:
    graph = trace(TimeSequential(TimeConcat(conv(4, 3, 3, padding=1))), torch.randn(1, 3, 4, 5, dtype=torch.float64))
    assert not put_together(graph)
    assert [n.op for n in graph.nodes if n.shape[:2] == (1, 4)] == []
    check(Case(Images(padding=1), (3, 4, 5)), 1)


def test_many_parts_stay_together() -> None:
    """More products would cost more."""

    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = linear(6, 6)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return self.layer(torch.stack([x.sin() for x in z.unbind(1)], 1))

    graph = trace(Many(), torch.randn(3, 6, dtype=torch.float64))
    assert sum(n.op == "mm" for n in graph.nodes) == 3
