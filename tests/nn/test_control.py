import pytest
import torch
from torch import nn

from pynode.errors import InputError
from pynode.models import NODE
from pynode.nn import DataControl, TimeConcat, TimeSequential


def test_appends_the_control():
    z, x, layer = torch.randn(5, 2), torch.randn(5, 3), nn.Linear(5, 4)
    torch.testing.assert_close(DataControl(layer)(torch.tensor(0.0), z, x), layer(torch.cat([z, x], dim=1)))


def test_appends_channels_to_images_and_passes_the_time_on():
    z, x, t = torch.randn(5, 2, 4, 4), torch.randn(5, 1, 4, 4), torch.tensor(0.7)
    out = DataControl(TimeConcat(nn.Identity()))(t, z, x)
    assert torch.equal(out[:, :3], torch.cat([z, x], dim=1))
    assert (out[:, 3] == t).all()


def test_time_sequential_gives_the_control_to_the_layers_that_take_it():
    first, second = nn.Linear(4, 3), nn.Linear(5, 2)
    field = TimeSequential(DataControl(first), nn.Tanh(), DataControl(second))
    z, x = torch.randn(5, 2), torch.randn(5, 2)
    expected = second(torch.cat([torch.tanh(first(torch.cat([z, x], 1))), x], 1))
    torch.testing.assert_close(field(torch.tensor(0.0), z, x), expected)


@pytest.mark.usefixtures("engine")
def test_the_encoder_of_the_control_gets_its_gradient(engine):
    """ż = e(x), z(0) = x: z(1) = x + e(x), and what e gets is what it gets without a solve."""
    torch.manual_seed(0)
    encoder, x = nn.Linear(2, 2).double(), torch.randn(5, 2, dtype=torch.float64)

    class Drift(nn.Module):
        def forward(self, t, z, u):
            return u

    node = NODE(Drift(), input_network=torch.zeros_like, control=True, engine=engine, rtol=1e-9, atol=1e-9)
    (node(encoder(x)) ** 2).sum().backward()
    got = [p.grad.clone() for p in encoder.parameters()]
    encoder.zero_grad()
    (encoder(x) ** 2).sum().backward()
    torch.testing.assert_close(got, [p.grad for p in encoder.parameters()], atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("shape", [(4, 3), (5, 3, 1), (3,)])
def test_a_control_of_another_batch_size_or_rank_is_refused(shape):
    with pytest.raises(InputError, match=r"must agree with the state elsewhere.*state of shape \(5, 2\), got"):
        DataControl(nn.Linear(5, 2))(torch.tensor(0.0), torch.randn(5, 2), torch.randn(shape))
