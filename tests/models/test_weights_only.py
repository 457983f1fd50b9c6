"""State dicts of every model go through a file that may hold nothing but tensors and plain containers."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal

from pynode import models
from pynode.nn import ConvField, Graph, GraphConv


def net(n_in: int = 2, n_out: int = 2) -> nn.Module:
    return nn.Sequential(nn.Linear(n_in, 4), nn.Tanh(), nn.Linear(4, n_out))


class Correction(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 2)

    def forward(self, h: torch.Tensor, t: torch.Tensor, z: torch.Tensor, dz: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.cat([z, dz], 1))


def whitened() -> nn.Module:
    model = models.Dequantised(models.FFJORD(2, hidden=(4,)), 9)
    model.whiten(torch.randint(9, (50, 2)) / 8)
    return model


def ring() -> Graph:
    return Graph(torch.tensor([[0, 1, 2], [1, 2, 0]]), normalise="row")


MODELS: dict[str, Callable[[], nn.Module]] = {
    "ANODE": lambda: models.ANODE(net(3, 3), 1, output_network=nn.Linear(3, 1)),
    "CNF": lambda: models.CNF(net(), Independent(Normal(torch.zeros(2), torch.ones(2)), 1)),
    "FFJORD": lambda: models.FFJORD(2, hidden=(4,)),
    "NODE": lambda: models.NODE(net()),
    "ODERNN": lambda: models.ODERNN(2, 3, 1),
    "RNN": lambda: models.RNN(2, hidden=4),
    "AdaptiveDepthNODE": lambda: models.AdaptiveDepthNODE(net(), nn.Linear(2, 1)),
    "CGNN": lambda: models.CGNN(ring(), 2, mixed=True, output_network=nn.Linear(2, 1)),
    "Dequantised": whitened,
    "GRUODEBayes": lambda: models.GRUODEBayes(2, 3),
    "JumpODE": lambda: models.JumpODE(2, 3),
    "GraphODE": lambda: models.GraphODE(GraphConv(ring(), 2, 2)),
    "HamiltonianNN": lambda: models.HamiltonianNN(net(2, 1), dissipation=net(2, 1)),
    "Hypersolver": lambda: models.Hypersolver(net(), Correction(), dt=0.5),
    "LagrangianNN": lambda: models.LagrangianNN(net(2, 1), forcing=net(2, 1)),
    "LatentODE": lambda: models.LatentODE(2, 3, hidden=4),
    "LatentSDE": lambda: models.LatentSDE(2, 3, hidden=4, dt=0.1),
    "NeuralCDE": lambda: models.NeuralCDE(2, 3, 1),
    "NeuralSDE": lambda: models.NeuralSDE(net(), net(), dt=0.1),
    "ODENet": lambda: models.ODENet(1, 3, channels=2, downsamplings=1, field=ConvField(2)),
    "RKNet": lambda: models.RKNet(1, 3, channels=2),
    "ResNet": lambda: models.ResNet(net(), 3, shared=False),
    "StackedNODE": lambda: models.StackedNODE([net(), net()], knots=[0.3]),
}


@pytest.mark.parametrize("name", [name for name in models.__all__ if name[0].isupper()])
def test_state_dict_through_a_file_of_weights(name: str) -> None:
    model, other, file = MODELS[name](), MODELS[name](), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert not same(other.state_dict(), loaded)
    other.load_state_dict(loaded)
    assert same(other.state_dict(), model.state_dict())


def same(a: dict[str, object], b: dict[str, object]) -> bool:
    def equal(x: object, y: object) -> bool:
        if isinstance(x, dict):
            return isinstance(y, dict) and same(x, y)
        assert isinstance(x, torch.Tensor)
        return torch.equal(x, y)  # type: ignore[arg-type]

    return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
