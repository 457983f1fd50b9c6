from collections import OrderedDict

import pytest
import torch
from torch import nn

from pynode.errors import InputError
from pynode.nn import HigherOrder, TimeConcat, TimeSequential


def test_time_concat_appends_t_to_the_features():
    layer = nn.Linear(3, 4)
    z, t = torch.randn(5, 2), torch.tensor(0.7)
    expected = z @ layer.weight[:, :2].T + 0.7 * layer.weight[:, 2] + layer.bias
    torch.testing.assert_close(TimeConcat(layer)(t, z), expected)


def test_time_concat_appends_a_channel_to_images():
    z = torch.randn(5, 2, 4, 3)
    out = TimeConcat(nn.Identity())(torch.tensor(0.7), z)
    assert out.shape == (5, 3, 4, 3)
    assert torch.equal(out[:, :2], z)
    assert (out[:, 2] == torch.tensor(0.7)).all()


def test_time_sequential_passes_t_to_the_layers_that_take_it():
    class Scale(nn.Module):
        def forward(self, t, z):
            return t * z

    z = torch.randn(5, 2)
    linear = nn.Linear(2, 2)
    field = TimeSequential(Scale(), linear, TimeConcat(nn.Identity()), Scale())
    inner = linear(3 * z)
    expected = 3 * torch.cat([inner, torch.full((5, 1), 3.0)], dim=1)
    torch.testing.assert_close(field(torch.tensor(3.0), z), expected)


def test_time_sequential_takes_named_layers():
    field = TimeSequential(OrderedDict(first=nn.Linear(2, 2), second=nn.Tanh()))
    z = torch.randn(5, 2)
    torch.testing.assert_close(field(torch.tensor(0.0), z), torch.tanh(field.first(z)))


def test_higher_order_is_the_companion_form():
    z = torch.randn(4, 6)
    out = HigherOrder(lambda t, z: t * z[:, :2], 3)(torch.tensor(2.0), z)
    torch.testing.assert_close(out, torch.cat([z[:, 2:], 2 * z[:, :2]], dim=1))


@pytest.mark.parametrize("order", [1, 0, 2.0])
def test_higher_order_needs_an_order(order):
    with pytest.raises(InputError, match=f"order of HigherOrder must be an integer of at least 2, got {order}"):
        HigherOrder(nn.Identity(), order)
