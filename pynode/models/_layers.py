"""The networks that models make where they are given none."""

from __future__ import annotations

import itertools

from torch import nn

__all__ = ["layers"]


def layers(*widths: int) -> list[nn.Module]:
    """The layers of a multilayer perceptron."""
    found: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        found += [nn.Linear(a, b), nn.Tanh()]
    return found[:-1]
