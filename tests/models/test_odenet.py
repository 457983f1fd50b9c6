import copy
import io

import pytest
import torch
from torch import nn

from pynode import data, solve
from pynode.errors import InputError
from pynode.models import NODE, ODENet, ResNet, RKNet
from pynode.nn import ConvField

JULIA = pytest.mark.julia
# The continuous adjoint on julia takes a minute to load.
on_every_engine = pytest.mark.parametrize(
    ("engine", "kind"),
    [
        ("torch", ODENet),
        ("torch", RKNet),
        pytest.param("julia", RKNet, marks=JULIA),
        pytest.param("julia", ODENet, marks=[JULIA, pytest.mark.slow]),
    ],
)


def images(n=3, channels=1, size=8):
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(0))


def small(kind=ODENet, **keywords):
    torch.manual_seed(0)
    return kind(1, 10, channels=4, downsamplings=1, **keywords)


def test_size_of_the_papers_network():
    """Two convolutions of 65 to 64 channels in the block; the paper counts 0.22 million parameters in all."""
    net = ODENet(1, 10)
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in net.named_children()}
    assert parameters["field"] == 2 * (9 * 65 * 64 + 64) + 3 * 128
    assert 0.205e6 < sum(parameters.values()) < 0.225e6
    assert net(images(2, size=28)).shape == (2, 10)


def test_a_classifier_is_stem_block_head():
    net, x = small(rtol=1e-6, atol=1e-6), images()
    z = solve(net.field, net.input_network(x), [0.0, 1.0], rtol=1e-6, atol=1e-6).z[-1]
    torch.testing.assert_close(net(x), net.output_network(z), rtol=1e-4, atol=1e-5)
    assert net.trajectory(x, torch.linspace(0, 1, 3)).shape == (3, 3, 10)


@on_every_engine
def test_gradient(engine, kind):
    """The gradient along one direction of all parameters, against central differences."""
    smooth = {
        "input_network": nn.Conv2d(1, 4, 3),
        "field": ConvField(4, activation=nn.Softplus),
        "output_network": nn.Sequential(nn.Flatten(), nn.Linear(144, 10)),
    }
    net = small(kind, rtol=1e-9, atol=1e-9, **smooth).double()
    x, y = images().double(), torch.tensor([1, 5, 9])
    parameters = list(net.parameters())
    direction = [torch.randn_like(p) for p in parameters]

    def loss():
        return nn.functional.cross_entropy(net(x), y)

    gradient = torch.autograd.grad(loss(), parameters)
    assert net.stats.nfe_backward > 0
    along = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True)).item()
    values, step = [], 1e-4
    with torch.no_grad():
        for sign in (1, -2):
            for p, d in zip(parameters, direction, strict=True):
                p += sign * step * d
            values.append(loss().item())
    assert along == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)


def kept_for_backward(net, x):
    """Bytes of the tensors that the graph of a call keeps."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = net(x)
    return sum(kept.values()), out


def test_memory_of_the_adjoint_does_not_grow_with_the_depth():
    def at(kind, steps):
        return kept_for_backward(small(kind, solver="rk4", dt=1 / steps), images())[0]

    assert at(ODENet, 16) <= 1.1 * at(ODENet, 2)
    grown = [at(RKNet, steps) for steps in (4, 8, 16)]
    assert (grown[2] - grown[1]) / (grown[1] - grown[0]) == pytest.approx(2, rel=0.05)
    assert grown[0] > 3 * at(ODENet, 4)


def test_residual_network_of_the_same_parts():
    net, x = small(solver="euler", dt=0.25), images()
    parts = {"input_network": net.input_network, "output_network": net.output_network}
    torch.testing.assert_close(ResNet(net.field, 4, **parts)(x), net(x))
    own = ResNet(net.field, 6, shared=False, **parts)
    n = [sum(p.numel() for p in part.parameters()) for part in (own, net, net.field)]
    assert n[0] == n[1] + 5 * n[2]


@pytest.mark.slow
@on_every_engine
def test_learns_digits(engine, kind):
    train, test = data.digits(generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    net = kind(1, 10, channels=16, downsamplings=1, rtol=1e-2, atol=1e-2, engine=engine)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-2)
    x, y = train[:512]
    for start in [0, 128, 256, 384] * 10:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x[start : start + 128]), y[start : start + 128])
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        accuracy = (net(test.tensors[0]).argmax(1) == test.tensors[1]).float().mean()
    assert accuracy > 0.65  # over seeds 0.76 to 0.93, by guessing 0.1


def test_life_of_a_classifier():
    net, x = small(), images()
    net(x).sum().backward()
    expected = net(x).detach()
    other = small()
    other.load_state_dict(net.state_dict())
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for twin in (copy.deepcopy(net), other, torch.load(file, weights_only=False)):
        torch.testing.assert_close(twin(x), expected)
    torch.testing.assert_close(net.double()(x.double()).float(), expected, atol=1e-3, rtol=1e-3)


def test_own_parts():
    head = nn.Flatten()
    net = ODENet(1, 10, field=lambda t, z: -z, input_network=nn.Identity(), output_network=head)
    torch.testing.assert_close(net(images()), images().flatten(1) / torch.e, rtol=1e-3, atol=1e-4)
    assert isinstance(net, NODE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RKNet(1, 10, sensitivity="backsolve"), "for another sensitivity use ODENet"),
        (lambda: ODENet(1, 0), "classes must be an integer of at least 1, got 0"),
        (lambda: ODENet(1, 10, rtoll=1), "unknown solver keyword 'rtoll'"),
        (lambda: ODENet(1, 10)(images(size=5)), r"h and w of at least 6, got \(3, 1, 5, 5\)"),
    ],
)
def test_wrong_use(make, message):
    with pytest.raises(InputError, match=message):
        make()
