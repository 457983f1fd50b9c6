import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

import pynode
from pynode.errors import InputError
from pynode.nn import Hypernetwork, TimeSequential


def mlp():
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))


def test_the_layers_parameters_are_the_networks_output():
    hyper, z, t = Hypernetwork(mlp()), torch.randn(5, 2), torch.tensor(0.3)
    theta = hyper.parameters_at(t)
    assert {n: tuple(p.shape) for n, p in theta.items()} == {n: tuple(p.shape) for n, p in mlp().named_parameters()}
    torch.testing.assert_close(torch.cat([p.flatten() for p in theta.values()]), hyper.network(t.reshape(1)))
    torch.testing.assert_close(hyper(t, z), functional_call(mlp(), theta, (z,)))
    assert not torch.allclose(hyper(t, z), hyper(t + 1, z))


def test_only_the_network_is_trained_and_it_starts_near_the_layer():
    layer = mlp()
    hyper, z = Hypernetwork(layer), torch.randn(5, 2)
    assert all(name.startswith("network.") for name, _ in hyper.named_parameters())
    assert all(name.startswith("network.") for name in hyper.state_dict())
    nn.init.zeros_(hyper.network[-1].weight)
    torch.testing.assert_close(hyper(torch.tensor(0.7), z), layer(z))
    assert all(p.requires_grad for p in layer.parameters())


@pytest.mark.parametrize("shape", [(4, 2), (4, 3, 2)])
def test_samples_at_depths_of_their_own(shape):
    hyper, z, t = Hypernetwork(mlp()), torch.randn(shape), torch.rand(4)
    expected = torch.cat([hyper(t[i], z[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(hyper(t.reshape(4, *[1] * (len(shape) - 1)), z), expected)


def test_a_network_of_ones_own_and_copies():
    hyper = Hypernetwork(nn.Linear(2, 2), nn.Linear(1, 6)).double()
    z, t = torch.randn(3, 2, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    torch.testing.assert_close(copy.deepcopy(hyper)(t, z), hyper(t, z))
    weight, bias = hyper.network(t.reshape(1)).split([4, 2])
    torch.testing.assert_close(hyper(t, z), z @ weight.reshape(2, 2).T + bias)


def shared_weight():
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second)


def layer_twice():
    layer = nn.Linear(2, 2, bias=False)
    return nn.Sequential(layer, nn.Tanh(), layer)


@pytest.mark.parametrize("shared", [shared_weight, layer_twice])
def test_layers_that_share_a_parameter_get_the_same(shared):
    hyper, z, t = Hypernetwork(shared()), torch.randn(5, 2), torch.tensor(0.3)
    weight = hyper.network(t.reshape(1)).reshape(2, 2)
    expected = torch.tanh(z @ weight.T) @ weight.T
    torch.testing.assert_close(hyper(t, z), expected)
    torch.testing.assert_close(copy.deepcopy(hyper)(t, z), expected)  # a call leaves nothing behind
    torch.testing.assert_close(hyper(t.expand(5, 1), z), expected)


@pytest.mark.julia
def test_engines_agree():
    torch.manual_seed(0)
    field, z0, found = TimeSequential(Hypernetwork(mlp())).double(), torch.randn(5, 2, dtype=torch.float64), []
    for engine in ("torch", "julia"):
        field.zero_grad()
        keywords = {"rtol": 1e-8, "atol": 1e-8, "sensitivity": "discrete", "engine": engine}
        z = pynode.solve(field, z0, [0.0, 1.0], **keywords).z[-1]
        z.square().sum().backward()
        found.append([z.detach(), *(p.grad.clone() for p in field.parameters())])
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Hypernetwork(nn.Tanh()), r"must be an nn\.Module that has parameters, got Tanh"),
        (lambda: Hypernetwork(3), r"must be an nn\.Module that has parameters, got int"),
        (lambda: Hypernetwork(nn.Linear(2, 2), width=0), "width of Hypernetwork must be an integer of at least 1"),
        (lambda: Hypernetwork(nn.Linear(2, 2), nn.Linear(1, 5)), r"to the 6 parameters of the layer, got shape \(5,\)"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(InputError, match=message):
        make()
