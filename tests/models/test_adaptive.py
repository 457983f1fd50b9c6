import math

import pytest
import torch
from torch import nn

from pynode import data
from pynode.errors import FieldError, InputError
from pynode.models import NODE, AdaptiveDepthNODE
from pynode.nn import (
    Chebyshev,
    ConcatSquash,
    DataControl,
    GalerkinConv2d,
    GalerkinLinear,
    Hypernetwork,
    TimeConcat,
    TimeSequential,
)

TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def points(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def first_feature(x):
    return x[:, :1]


@pytest.mark.usefixtures("engine")
def test_each_sample_has_its_own_depth_backwards_too():
    """ż = z: z(g) = x e^g, with gradient x e^g to the depth."""
    x = torch.tensor([[1.0, 1.0], [-1.5, 2.0], [0.0, 3.0]], dtype=torch.float64, requires_grad=True)
    z = AdaptiveDepthNODE(lambda t, z: z, first_feature, **TIGHT)(x)
    torch.testing.assert_close(z, x * x[:, :1].exp(), atol=1e-6, rtol=0)
    z[:, 1].sum().backward()
    grow = x[:, 0].exp().detach()
    torch.testing.assert_close(x.grad, torch.stack([x[:, 1].detach() * grow, grow], 1), atol=1e-5, rtol=0)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("interval", [(0.0, 1.0), (1.0, 3.0), (2.0, 1.5)])
def test_the_field_sees_the_samples_own_depth(interval):
    """ż = s: z = x + (s² - s₀²) / 2 at s = s₀ + g (S - s₀)."""
    x, start = points(5, 2), interval[0]
    z = AdaptiveDepthNODE(lambda t, z: t + 0 * z, first_feature, t=interval, **TIGHT)(x)
    s = start + x[:, :1] * (interval[1] - start)
    torch.testing.assert_close(z, x + (s**2 - start**2) / 2, atol=1e-7, rtol=0)


def time_concat():
    return TimeSequential(TimeConcat(nn.Linear(3, 6)), nn.Tanh(), nn.Linear(6, 2)), (4, 2)


def concat_squash():
    return TimeSequential(ConcatSquash(nn.Linear(2, 6)), nn.Tanh(), ConcatSquash(nn.Linear(6, 2))), (4, 2)


def galerkin():
    return TimeSequential(GalerkinLinear(2, 6, Chebyshev(3)), nn.Tanh(), GalerkinLinear(6, 2, Chebyshev(3))), (4, 2)


def hypernetwork():
    return TimeSequential(Hypernetwork(nn.Linear(2, 2)), nn.Tanh()), (4, 2)


def image():
    convolution = GalerkinConv2d(3, 2, 3, Chebyshev(3), padding=1)
    return TimeSequential(TimeConcat(nn.Identity()), convolution, nn.Tanh()), (4, 2, 3, 3)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("make", [time_concat, concat_squash, galerkin, hypernetwork, image])
def test_one_batched_solve_is_one_solve_per_sample(make):
    torch.manual_seed(0)
    field, shape = make()
    field.double()
    x, depths = points(*shape), torch.tensor([[0.7], [-1.2], [0.1], [1.6]], dtype=torch.float64)
    node = AdaptiveDepthNODE(field, lambda x: depths, **TIGHT)
    got = node(x)
    assert node.stats.n_accepted > 0
    got.square().sum().backward()
    gradients = [p.grad.clone() for p in field.parameters()]
    field.zero_grad()
    alone = torch.cat(
        [NODE(field, t=(0.0, depths[i].item()), engine="torch", **TIGHT)(x[i : i + 1]) for i in range(4)]
        if make in (time_concat, concat_squash, hypernetwork)  # without bases, which would span each of these depths
        else [
            AdaptiveDepthNODE(field, lambda x, i=i: depths[i : i + 1], engine="torch", **TIGHT)(x[i : i + 1])
            for i in range(4)
        ]
    )
    alone.square().sum().backward()
    torch.testing.assert_close(got, alone, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradients, [p.grad for p in field.parameters()], atol=1e-5, rtol=1e-5)


def test_trajectory_is_over_the_depth_that_all_share():
    x, tau = points(4, 2), torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    out = AdaptiveDepthNODE(lambda t, z: z, first_feature, **TIGHT).trajectory(x, tau)
    torch.testing.assert_close(out, x * (tau[:, None, None] * x[:, :1]).exp(), atol=1e-6, rtol=0)


@pytest.mark.usefixtures("engine")
def test_running_cost_is_over_the_samples_own_depths():
    """∫₀^g s ds = g² / 2 and ∫₀^g 1 ds = g, which is differentiable."""
    x = points(4, 2).requires_grad_()
    node = AdaptiveDepthNODE(
        lambda t, z: 0 * z, first_feature, running_cost=lambda t, z: (t + 1 + 0 * z[:, :1]).sum(1), **TIGHT
    )
    node(x)
    g = x[:, 0]
    torch.testing.assert_close(node.running_cost, g**2 / 2 + g, atol=1e-7, rtol=0)
    node.running_cost.sum().backward()
    torch.testing.assert_close(x.grad[:, 0], (g + 1).detach(), atol=1e-7, rtol=0)


def test_a_running_cost_that_is_one_number_is_refused():
    with pytest.raises(FieldError, match=r"running_cost must return one number per batch entry"):
        AdaptiveDepthNODE(lambda t, z: z, first_feature, running_cost=lambda t, z: z.sum())(points(4, 2))


def test_positive_and_depth():
    x = points(4, 2)
    node = AdaptiveDepthNODE(lambda t, z: z, first_feature, positive=True, **TIGHT)
    torch.testing.assert_close(node.depth(x), (1 + x[:, :1].exp()).log())
    torch.testing.assert_close(node(x), x * (1 + x[:, :1].exp()), atol=1e-6, rtol=0)
    assert torch.equal(AdaptiveDepthNODE(lambda t, z: z, first_feature).depth(x), x[:, :1])


def test_control_order_and_input_network():
    """z̈ = x from rest: z = x + x g² / 2."""
    x = points(4, 1)
    node = AdaptiveDepthNODE(lambda t, z, x: x, lambda x: x, control=True, order=2, **TIGHT)
    torch.testing.assert_close(node(x), torch.cat([x + x**3 / 2, x**2], 1), atol=1e-7, rtol=0)
    field = TimeSequential(DataControl(TimeConcat(nn.Linear(4, 2))), nn.Tanh()).double()
    h_x = nn.Linear(1, 2).double()
    assert AdaptiveDepthNODE(field, lambda x: x, control=True, input_network=h_x)(x).shape == (4, 2)


@pytest.mark.usefixtures("engine")
def test_learns_the_reflection_and_trains_the_depth_network():
    torch.manual_seed(0)
    x, y = data.reflection(32).tensors
    depth, field = nn.Linear(1, 1), TimeSequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    # From depth 0, by a field without a zero: else the field may first learn to pull all points into one, and stay.
    nn.init.zeros_(depth.weight)
    nn.init.zeros_(depth.bias)
    nn.init.constant_(field[-1].bias, 2.0)
    node = AdaptiveDepthNODE(field, depth)
    optimizer, before = torch.optim.Adam(node.parameters(), 3e-2), depth.weight.detach().clone()
    for _ in range(80):
        optimizer.zero_grad()
        loss = ((node(x) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
    assert loss < 1e-2
    assert depth.weight < before - 0.1


@pytest.mark.parametrize(
    ("depths", "message"),
    [
        (torch.tensor([[1.0], [math.nan], [math.inf], [0.0]]), "finite depths, got nan for 2 of 4 samples"),
        (torch.ones(4), r"one depth per sample: expected \(4, 1\), got \(4,\)"),
        (torch.ones(3, 1), r"one depth per sample: expected \(4, 1\), got \(3, 1\)"),
        (1.0, r"one depth per sample: expected \(4, 1\), got float"),
    ],
)
def test_depths_that_are_not_usable_are_refused(depths, message):
    with pytest.raises(InputError, match=message):
        AdaptiveDepthNODE(lambda t, z: z, lambda x: depths)(torch.ones(4, 2))


@pytest.mark.parametrize("network", [None, 3])
def test_a_depth_network_is_needed(network):
    with pytest.raises(InputError, match=r"depth_network must be an nn\.Module or a callable"):
        AdaptiveDepthNODE(lambda t, z: z, network)


def test_a_depth_interval_that_is_changed():
    """The field went on to begin at the old one."""
    x = points(3, 2)
    model = AdaptiveDepthNODE(lambda t, z: t * z, first_feature, t=(1.0, 2.0), engine="torch", **TIGHT)
    model(x)
    model.t = (0.0, 1.0)
    again = AdaptiveDepthNODE(lambda t, z: t * z, first_feature, engine="torch", **TIGHT)
    torch.testing.assert_close(model(x), again(x))
    torch.testing.assert_close(model.trajectory(x, [0.5, 1.0]), again.trajectory(x, [0.5, 1.0]))
