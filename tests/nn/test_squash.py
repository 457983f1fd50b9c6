import pytest
import torch
from torch import nn

from pynode.errors import InputError
from pynode.nn import ConcatSquash

T = torch.tensor(0.7)


def test_gate_and_shift():
    layer = ConcatSquash(nn.Linear(2, 3), context=1)
    z, x = torch.randn(4, 2), torch.randn(4, 1)
    c = torch.cat([torch.full((4, 1), 0.7), x], 1)
    expected = layer.layer(z) * torch.sigmoid(layer.gate(c)) + layer.shift(c)
    torch.testing.assert_close(layer(T, z, x), expected)
    without = ConcatSquash(nn.Linear(2, 3), shift=False)
    torch.testing.assert_close(without(T, z), without.layer(z) * torch.sigmoid(without.gate(T.reshape(1, 1))))


def test_channels_of_images_are_gated():
    layer = ConcatSquash(nn.Conv2d(2, 3, 3, padding=1), context=1)
    z, x = torch.randn(4, 2, 5, 6), torch.randn(4, 1)
    y = layer(T, z, x)
    c = torch.cat([torch.full((4, 1), 0.7), x], 1)
    gate, shift = torch.sigmoid(layer.gate(c)), layer.shift(c)
    expected = torch.einsum("ncxy,nc->ncxy", layer.layer(z), gate) + shift[:, :, None, None]
    torch.testing.assert_close(y, expected)


def test_the_last_dimension_of_a_linear_layer_is_gated():
    """It was the one behind the batch, also where that has as many entries."""
    layer = ConcatSquash(nn.Linear(4, 4), context=1)
    z, x = torch.randn(6, 4, 4), torch.randn(6, 1)
    c = torch.cat([torch.full((6, 1), 0.7), x], 1)
    expected = layer.layer(z) * torch.sigmoid(layer.gate(c))[:, None] + layer.shift(c)[:, None]
    torch.testing.assert_close(layer(T, z, x), expected)
    wide = ConcatSquash(nn.Linear(4, 3), shift=False)
    assert wide(T, z).shape == (6, 4, 3)


def test_a_layer_without_width():
    with pytest.raises(InputError, match=r"out_features or out_channels.*got Tanh"):
        ConcatSquash(nn.Tanh())
