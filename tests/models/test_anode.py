import copy
import io

import pytest
import torch
from torch import nn

from pynode import data
from pynode.errors import FieldError, InputError
from pynode.models import ANODE
from pynode.nn import TimeConcat, TimeSequential

TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def still(t, z):
    return 0 * z


def points(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(5, 2), (5, 2, 3, 4)])
def test_zeros_are_appended(shape):
    x = points(*shape)
    z = ANODE(still, 3)(x)
    torch.testing.assert_close(z[:, :2], x, atol=1e-14, rtol=0)
    assert z.shape == (5, 5, *shape[2:])
    assert not z[:, 2:].any()


@pytest.mark.parametrize("shape", [(5, 2), (5, 2, 3, 4)])
def test_linear_input_layer(shape):
    torch.manual_seed(0)
    node, x = ANODE(still, 3, input_network="linear").double(), points(*shape)
    z = node(x)
    weight, bias = node.input_network.weight, node.input_network.bias
    assert weight.shape == (5, 2)
    torch.testing.assert_close(z, torch.einsum("oi,bi...->bo...", weight, x) + bias.reshape(1, -1, *[1] * (x.ndim - 2)))
    assert weight.std() > 0
    (z**2).sum().backward()
    assert weight.grad.abs().min() > 0


def test_linear_input_layer_before_and_after_its_first_input():
    torch.manual_seed(0)
    node = ANODE(still, 1, input_network="linear")
    optimizer = torch.optim.Adam(node.parameters(), 0.1)
    twin = copy.deepcopy(node)
    x = torch.randn(4, 2)
    before = node(x).detach()
    node(x).sum().backward()
    optimizer.step()
    assert not torch.equal(node(x), before)
    twin.load_state_dict(node.state_dict())
    buffer = io.BytesIO()
    torch.save(node, buffer)
    buffer.seek(0)
    for other in (twin, copy.deepcopy(node), torch.load(buffer, weights_only=False)):
        assert torch.equal(other(x), node(x))


def test_any_input_network():
    h_x, x = nn.Sequential(nn.Linear(2, 7), nn.Tanh(), nn.Linear(7, 4)).double(), points(5, 2)
    torch.testing.assert_close(ANODE(still, 2, input_network=h_x)(x), h_x(x))


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("shape", [(5, 2), (5, 2, 3, 4)])
def test_second_order_begins_at_rest(shape, engine):
    """z̈ = 2: position [x, 0] + 1, velocity 2."""
    x = points(*shape)
    z = ANODE(lambda t, z: torch.full_like(z[:, :3], 2.0), 1, order=2, engine=engine, **TIGHT)(x)
    torch.testing.assert_close(z, torch.cat([x + 1, *[torch.full_like(x[:, :1], v) for v in (1.0, 2, 2, 2)]], 1))


def test_second_order_with_and_without_initial_velocity_from_the_input_network():
    x, acceleration = points(5, 2), lambda t, z: 0 * z[:, :3]
    position = nn.Linear(2, 3).double()
    z = ANODE(acceleration, 1, order=2, input_network=position, **TIGHT)(x)
    torch.testing.assert_close(z, torch.cat([position(x), torch.zeros(5, 3, dtype=torch.float64)], 1))
    both = nn.Linear(2, 6).double()
    z = ANODE(acceleration, 1, order=2, input_network=both, **TIGHT)(x)
    start, velocity = both(x).chunk(2, 1)
    torch.testing.assert_close(z, torch.cat([start + velocity, velocity], 1), atol=1e-7, rtol=0)


@pytest.mark.slow
@pytest.mark.usefixtures("engine")
def test_learns_the_reflection():
    torch.manual_seed(0)
    x, y = data.reflection(32).tensors
    field = TimeSequential(TimeConcat(nn.Linear(3, 16)), nn.Tanh(), nn.Linear(16, 2))
    node = ANODE(field, 1, output_network=lambda z: z[:, :1])
    optimizer = torch.optim.Adam(node.parameters(), 3e-2)
    for _ in range(100):
        optimizer.zero_grad()
        loss = ((node(x) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
    assert loss < 1e-2


@pytest.mark.parametrize("augment_dim", [0, -1, 1.0, None])
def test_augmenting_by_nothing_is_refused(augment_dim):
    with pytest.raises(InputError, match=r"augment_dim must be an integer of at least 1.*got .*use NODE"):
        ANODE(still, augment_dim)


def test_an_input_network_by_another_name_is_refused():
    with pytest.raises(InputError, match="a callable, None or 'linear', got 'zeros'"):
        ANODE(still, 1, input_network="zeros")


@pytest.mark.parametrize("width", [2, 4])
def test_an_input_network_of_another_width_is_refused(width):
    with pytest.raises(InputError, match=rf"expected 3 along dimension 1, got shape \(5, {width}\)"):
        ANODE(still, 1, input_network=nn.Linear(2, width).double())(points(5, 2))


def test_a_field_of_another_width_than_the_augmented_state_is_refused():
    with pytest.raises(
        FieldError, match=r"expected \(5, 3\), got \(5, 2\).*augmented: 2 features of the input and augment_dim=1"
    ):
        ANODE(lambda t, z: z[:, :2], 1)(points(5, 2))


def test_repr():
    assert "augment_dim=2, t=(0.0, 1.0), rtol=0.01" in repr(ANODE(still, 2, rtol=0.01))
