"""Writes the graphs of typical fields, with which PyNODE compiles what most fields use when it is installed.

    python julia/src/workload/write.py

They have to be written again when a field is traced to another graph; a test tells.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pynode.field import Field
from pynode.field._derived import derived_field
from pynode.field._trace import trace_field
from pynode.models._dynamics import density_dynamics
from pynode.nn import ConcatSquash, TimeConcat, TimeSequential


class Species(nn.Module):
    """Lotka and Volterra's equations, whose rates are parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.ones(4))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        a, b, c, d = self.rates
        x, y = z.unbind(-1)
        return torch.stack([a * x - b * x * y, d * x * y - c * y], -1)


class Network(nn.Module):
    """A network of the state alone."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.layers(z)


Tensors = tuple[Tensor, ...]


def fields() -> dict[str, tuple[Callable[..., Any], Tensors, Tensors]]:
    """The fields by name, each with a state and the tensors that condition it."""
    z, zeros = torch.ones(4, 2), torch.zeros(4)
    mlp = Network(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))
    kinds = (nn.Tanh(), nn.ReLU(), nn.Softplus(), nn.SiLU(), nn.Sigmoid())
    layers = [layer for kind in kinds for layer in (TimeConcat(nn.Linear(9, 8)), kind)]
    controlled = TimeSequential(TimeConcat(nn.Linear(3, 8)), nn.ELU(), *layers, TimeConcat(nn.Linear(9, 2)))
    small = TimeSequential(TimeConcat(nn.Linear(3, 16)), nn.Tanh(), nn.Linear(16, 2))
    squashed = TimeSequential(ConcatSquash(nn.Linear(2, 16)), nn.Tanh(), ConcatSquash(nn.Linear(16, 2)))
    return {
        "mlp": (mlp, (z,), ()),
        "controlled": (controlled, (z,), ()),
        "flow": (derived_field(density_dynamics, small, "exact", False, False), (z, zeros), ()),
        "ffjord": (derived_field(density_dynamics, squashed, "hutchinson", False, False), (z, zeros), (z,)),
        "species": (Species(), (z,), ()),
    }


def graphs() -> dict[str, str]:
    """Their graphs as Julia reads them, by name."""
    t, found = torch.linspace(0, 1, 3), {}
    for name, (field, z, args) in fields().items():
        trace = trace_field(Field(field, z, t, args, is_tuple=len(z) > 1), z, t, args)
        found[name] = json.dumps(trace.graph.to_dict()) + "\n"
    return found


if __name__ == "__main__":
    for name, text in graphs().items():
        Path(__file__).with_name(f"{name}.json").write_text(text)
