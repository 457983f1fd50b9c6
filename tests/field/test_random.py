"""A field that draws random numbers is refused whatever the engine, and before any solve."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode import TraceError
from pynode.field import Field

Z = torch.ones(3, 2)


class Noisy(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.layer(z)


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.AlphaDropout(0.5), nn.RReLU()])
def test_stochastic_layers_in_training(layer: nn.Module) -> None:
    field = Noisy(nn.Sequential(nn.Linear(2, 2), layer))
    with pytest.raises(TraceError, match=r"the field draws random numbers \(aten\..*field\.eval\(\)"):
        pynode.solve(field, Z, [0.0, 1.0], engine="torch")
    assert pynode.solve(field.eval(), Z, [0.0, 1.0], engine="torch").z.shape == (2, 3, 2)


@pytest.mark.parametrize("draw", [torch.randn_like, torch.rand_like, torch.bernoulli])
def test_functions_that_draw(draw: object) -> None:
    with pytest.raises(TraceError, match="draws random numbers"):
        pynode.solve(lambda t, z: z * draw(z.abs().clamp(max=1)), Z, [0.0, 1.0], engine="torch")  # type: ignore[operator]


@pytest.mark.parametrize("layer", [nn.Dropout(0.0), nn.TransformerEncoderLayer(2, 1, 4, 0.0, batch_first=True)])
def test_layers_that_could_draw_and_do_not(layer: nn.Module) -> None:
    field = Field(Noisy(layer), (Z[:, None],), torch.tensor(0.0))
    assert len(field.parameters) == len(list(layer.parameters()))


def test_the_users_line_is_named() -> None:
    def field(t: Tensor, z: Tensor) -> Tensor:
        return z + torch.randn_like(z)

    with pytest.raises(TraceError, match=r"test_random\.py:\d+: `return z \+ torch\.randn_like\(z\)`: a vector field"):
        pynode.solve(field, Z, [0.0, 1.0], engine="torch")


def test_a_generator_of_ones_own() -> None:
    generator = torch.Generator()
    with pytest.raises(TraceError, match="draws random numbers"):
        pynode.solve(lambda t, z: z + torch.randn(2, generator=generator), Z, [0.0, 1.0], engine="torch")
