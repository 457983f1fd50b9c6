import copy

import pytest
import torch
from torch import nn

from pynode.errors import InputError
from pynode.models import NODE, ResNet
from pynode.nn import TimeConcat, TimeSequential


def mlp(features=2, width=8):
    return TimeSequential(TimeConcat(nn.Linear(features + 1, width)), nn.Tanh(), nn.Linear(width, features))


def points(n=5, features=2):
    return torch.randn(n, features, generator=torch.Generator().manual_seed(0))


def test_residual_layers_of_a_linear_field():
    """z_{k+1} = (1 + h) z_k gives (1 + h)^depth."""
    net = ResNet(lambda t, z: z, depth=10, t=(0.0, 2.0))
    x = points()
    torch.testing.assert_close(net(x), x * 1.2**10)
    assert net.stats.nfe == 10


def test_layers_see_their_depth():
    """z_{k+1} = z_k + h t_k with t_k = 1 + k/2: from 0, the sum 0.5 (1 + 1.5 + 2 + 2.5)."""
    net = ResNet(lambda t, z: t.expand_as(z), depth=4, t=(1.0, 3.0))
    torch.testing.assert_close(net(torch.zeros(2, 1)), torch.full((2, 1), 3.5))


def test_shared_layers_are_eulers_method(engine):
    torch.manual_seed(0)
    field, h_x, h_y = mlp(), nn.Linear(3, 2), nn.Linear(2, 4)
    parts = {"input_network": h_x, "output_network": h_y}
    x = points(features=3)
    net, node = ResNet(field, 8, **parts), NODE(field, solver="euler", dt=0.125, **parts)
    torch.testing.assert_close(net(x), node(x))
    torch.testing.assert_close(net.trajectory(x), node.trajectory(x, torch.linspace(0, 1, 9)))
    n_parameters = [sum(p.numel() for p in model.parameters()) for model in (net, node)]
    assert n_parameters[0] == n_parameters[1]


def test_layers_of_their_own_weights():
    torch.manual_seed(0)
    field = mlp()
    first = copy.deepcopy(field)
    net = ResNet(field, 3, shared=False)
    assert sum(p.numel() for p in net.parameters()) == 3 * sum(p.numel() for p in field.parameters())
    x = points()
    t = torch.tensor([0.0, 1 / 3, 2 / 3])
    z = x + first(t[0], x) / 3
    torch.testing.assert_close(net.trajectory(x)[1], z)
    for k in (1, 2):
        z = z + net.field[k](t[k], z) / 3
    torch.testing.assert_close(net(x), z)
    weights = [layer[2].weight for layer in net.field]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_trajectory_applies_the_output_network_to_every_layer():
    h_y = nn.Linear(2, 1)
    x = points()
    out = ResNet(lambda t, z: z, depth=2, output_network=h_y).trajectory(x)
    assert out.shape == (3, 5, 1)
    torch.testing.assert_close(out, torch.stack([h_y(x), h_y(1.5 * x), h_y(2.25 * x)]))


def test_double_and_copy():
    torch.manual_seed(0)
    net = ResNet(mlp(), 4, shared=False).double()
    x = points().double()
    assert net(x).dtype == torch.float64
    assert torch.equal(copy.deepcopy(net)(x), net(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((mlp(), 0), "depth must be an integer of at least 1, got 0"),
        ((mlp(), 2.0), "depth must be an integer of at least 1, got 2.0"),
        ((None, 2), "field must be an nn.Module or a callable, got None"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        ResNet(*arguments)


def test_copies_need_a_module():
    with pytest.raises(InputError, match=r"must be an nn\.Module, got function"):
        ResNet(lambda t, z: z, 2, shared=False)
