"""Fields that keep a tensor of one evaluation and compute from it in the next: no gradient but an error."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode import FieldError

Z0 = torch.ones(3, 2, dtype=torch.float64)
CACHE: dict[str, Tensor] = {}


class Scales(nn.Module):
    """dz/dt = 2 p z, by way of what a subclass keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([0.5, 0.3], dtype=torch.float64))
        self.w: Tensor | None = None
        self.own: dict[str, Tensor] = {}
        self.log: list[Tensor] = []

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return z * self.scale()

    def scale(self) -> Tensor:
        raise NotImplementedError


class Attribute(Scales):
    def scale(self) -> Tensor:
        if self.w is None:
            self.w = 2 * self.p
        return self.w


class Dictionary(Scales):
    def scale(self) -> Tensor:
        return self.own.setdefault("w", 2 * self.p)


class Global(Scales):
    def scale(self) -> Tensor:
        if "w" not in CACHE:
            CACHE["w"] = 2 * self.p
        return CACHE["w"]


class Log(Scales):
    def scale(self) -> Tensor:
        self.log.append(2 * self.p)
        return self.log[0]


class Property(Scales):
    @functools.cached_property
    def kept(self) -> Tensor:
        return 2 * self.p

    def scale(self) -> Tensor:
        return self.kept


class Function(Scales):
    """A closure that keeps it in a variable of the one around it."""

    def __init__(self) -> None:
        super().__init__()
        kept = None

        def scale() -> Tensor:
            nonlocal kept
            if kept is None:
                kept = 2 * self.p
            return kept

        self.__dict__["scale"] = scale


class Memoised(Scales):
    def __init__(self) -> None:
        super().__init__()
        self.__dict__["scale"] = functools.cache(lambda: 2 * self.p)


KINDS = [Attribute, Dictionary, Global, Log, Property, Function, Memoised]


@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve", "forward"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_gradient_through_a_cache(kind: type[Scales], sensitivity: str, engine: str) -> None:
    CACHE.clear()
    field = kind()
    for _ in range(2):  # it is refused however often it is tried
        with pytest.raises(FieldError, match="kept"):
            pynode.solve(field, Z0, [0.0, 1.0], engine=engine, sensitivity=sensitivity)


def test_values_without_a_gradient(engine: str) -> None:
    CACHE.clear()
    for kind in KINDS[:-2]:
        field = kind()
        with torch.no_grad():
            z = pynode.solve(field, Z0, [0.0, 1.0], engine=engine, rtol=1e-9, atol=1e-9).z[-1]
        torch.testing.assert_close(z, torch.exp(2 * field.p.detach()).expand(3, 2), rtol=1e-7, atol=1e-9)
        with pytest.raises(FieldError, match="kept"):
            pynode.solve(field, Z0, [0.0, 1.0], engine=engine)


def test_what_is_computed_before_the_solve_has_its_gradient(engine: str) -> None:
    field = Attribute()
    for _ in range(2):
        field.w = 2 * field.p
        z = pynode.solve(field, Z0, [0.0, 1.0], engine=engine, rtol=1e-9, atol=1e-9).z[-1]
        (g,) = torch.autograd.grad(z.sum(), field.p)
        torch.testing.assert_close(g, 6 * torch.exp(2 * field.p.detach()), rtol=1e-6, atol=1e-9)


class Notes(Scales):
    """Keeps what it does not compute from, or computes from what carries no gradient."""

    total: Any = 0.0
    previous: Tensor | None = None

    def scale(self) -> Tensor:
        start = 0.0 if self.previous is None else 0 * self.previous.detach()
        self.previous = 2 * self.p
        self.total = self.total + self.previous.sum()
        return 2 * self.p + start


def test_what_is_only_kept_is_no_cache() -> None:
    field = Notes()
    z = pynode.solve(field, Z0, [0.0, 1.0], engine="torch", rtol=1e-9, atol=1e-9).z[-1]
    (g,) = torch.autograd.grad(z.sum(), field.p)
    torch.testing.assert_close(g, 6 * torch.exp(2 * field.p.detach()), rtol=1e-6, atol=1e-9)
