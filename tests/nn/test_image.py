import pytest
import torch
from torch import nn

from pynode.errors import InputError
from pynode.nn import ConvField, ConvHead, ConvStem, HigherOrder


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_field_is_its_layers_with_the_time_as_a_channel():
    field = ConvField(4, 6).double()
    norm1, _, conv1, norm2, _, conv2, norm3 = field
    t, z = torch.tensor(0.7, dtype=torch.float64), torch.randn(2, 4, 5, 3, dtype=torch.float64)

    def channel(x):
        return torch.cat([x, torch.full_like(x[:, :1], 0.7)], 1)

    expected = conv1.layer(channel(norm1(z).relu()))
    expected = norm3(conv2.layer(channel(norm2(expected).relu())))
    torch.testing.assert_close(field(t, z), expected)
    assert not torch.allclose(field(0 * t, z), expected)
    assert count(field) == 2 * (4 + 6 + 4) + 9 * (5 * 6 + 7 * 4) + 6 + 4


def test_field_without_time_and_norm():
    field = ConvField(3, time=False, group_norm=False, kernel_size=5, activation=nn.Softplus)
    assert [type(layer) for layer in field] == [nn.Conv2d, nn.Softplus, nn.Conv2d]
    z = torch.randn(2, 3, 6, 6)
    assert field(torch.tensor(0.0), z).shape == z.shape
    assert torch.equal(field(torch.tensor(0.0), z), field(torch.tensor(1.0), z))


def test_field_of_second_order():
    field = HigherOrder(ConvField(8, out_channels=4), 2)
    z = torch.randn(2, 8, 5, 5)
    out = field(torch.tensor(0.0), z)
    assert torch.equal(out[:, :4], z[:, 4:])
    assert out.shape == z.shape


@pytest.mark.parametrize(("downsamplings", "size"), [(0, 26), (1, 13), (2, 6)])
def test_stem(downsamplings, size):
    assert ConvStem(1, 8, downsamplings)(torch.randn(2, 1, 28, 28)).shape == (2, 8, size, size)


def test_stem_takes_the_smallest_images_that_it_says():
    stem = ConvStem(1, 4, 2)
    assert stem(torch.randn(2, 1, 6, 6)).shape == (2, 4, 1, 1)
    with pytest.raises(InputError, match=r"\(batch, 1, h, w\) with h and w of at least 6, got \(2, 1, 5, 6\)"):
        stem(torch.randn(2, 1, 5, 6))
    with pytest.raises(InputError, match=r"\(batch, 1, h, w\) .* got \(2, 3, 8, 8\)"):
        stem(torch.randn(2, 3, 8, 8))


def test_head_averages_the_pixels():
    head = ConvHead(4, 3)
    z = torch.randn(2, 4, 5, 5)
    expected = head[-1](head[0](z).relu().mean((2, 3)))
    torch.testing.assert_close(head(z), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvField(0), "channels must be an integer of at least 1, got 0"),
        (lambda: ConvField(4, 2.0), "hidden must be an integer of at least 1, got 2.0"),
        (lambda: ConvField(4, out_channels=-1), "out_channels must be an integer of at least 1, got -1"),
        (lambda: ConvField(4, kernel_size=2), "kernel_size must be odd.*got 2"),
        (lambda: ConvStem(1, 4, -1), "downsamplings must be an integer of at least 0, got -1"),
        (lambda: ConvHead(4, 0), "classes must be an integer of at least 1, got 0"),
    ],
)
def test_wrong_sizes(make, message):
    with pytest.raises(InputError, match=message):
        make()
