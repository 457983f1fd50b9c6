import math

import pytest
import torch
from torch import nn

from pynode.errors import InputError
from pynode.models import NODE, StackedNODE

TIGHT = {"rtol": 1e-9, "atol": 1e-9}


class Rate(nn.Module):
    """ż = a z, with solution z(0) e^{a s}."""

    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def forward(self, t, z, *args):
        return self.a * z


def points(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def rates(*values):
    return [Rate(a) for a in values]


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("knots", [[0.0, 0.5, 2.0], [0.5]])
def test_each_field_holds_on_its_interval(knots):
    x = points(4, 2)
    node = StackedNODE(rates(1.0, -2.0), knots=knots, t=(0.0, 2.0), **TIGHT)
    torch.testing.assert_close(node(x), x * math.exp(0.5 - 3.0), atol=1e-7, rtol=0)
    node(x).sum().backward()
    for field, length in zip(node.field, (0.5, 1.5), strict=True):
        assert field.a.grad.item() == pytest.approx(x.sum().item() * length * math.exp(-2.5), abs=1e-6)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("depths", [[0.0, 0.5, 1.0], [0.2, 0.5, 0.7, 2.0], [0.5]])
def test_each_state_moves_with_its_own_depth_alone(depths):
    """Also where that is a knot, at which the next interval begins: there with the field that ends."""
    x = points(4, 2)
    node = StackedNODE(rates(1.0, -2.0), knots=[0.5], t=(0.0, 2.0), running_cost=lambda t, z: z[:, 0] * 0 + t, **TIGHT)
    t = torch.tensor(depths, dtype=torch.float64, requires_grad=True)
    out = node.trajectory(x, t)
    for i, depth in enumerate(depths):
        (found,) = torch.autograd.grad(out[i].sum(), t, retain_graph=True)
        expected = torch.zeros(len(depths), dtype=torch.float64)
        expected[i] = (1.0 if depth <= 0.5 else -2.0) * out[i].sum().item()
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    (found,) = torch.autograd.grad(node.running_cost.sum(), t)
    expected = torch.zeros(len(depths), dtype=torch.float64)
    expected[-1] = 4 * depths[-1]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_equal_intervals_by_default():
    assert StackedNODE(rates(1.0, 2.0, 3.0, 4.0), t=(1.0, 3.0)).knots == (1.0, 1.5, 2.0, 2.5, 3.0)


def test_one_field_of_one_interval_is_a_node():
    x, field = points(4, 2), Rate(0.3)
    assert torch.equal(StackedNODE([field])(x), NODE(field)(x))


def test_a_field_that_comes_twice_has_one_name():
    x, (shared, other) = points(4, 2), rates(1.0, -2.0)
    keywords = {"t": (0.0, 3.0), "knots": [1.0, 2.0], **TIGHT}
    node = StackedNODE([shared, other, shared], **keywords)
    apart = StackedNODE([shared, other, Rate(1.0)], **keywords)
    assert torch.equal(node(x), apart(x))
    before = {name: p.detach().clone() for name, p in node.named_parameters()}
    assert list(node.state_dict()) == list(before)
    torch.func.functional_call(node, {name: 0.5 * p for name, p in before.items()}, (x,))
    assert all(torch.equal(p, before[name]) for name, p in node.named_parameters())


def test_backwards():
    x = points(4, 2)
    there = StackedNODE(rates(1.0, -2.0), knots=[0.5], t=(0.0, 2.0), **TIGHT)(x)
    back = StackedNODE(rates(-2.0, 1.0), knots=[2.0, 0.5, 0.0], t=(2.0, 0.0), **TIGHT)(there)
    torch.testing.assert_close(back, x, atol=1e-7, rtol=0)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    "t", [[0.0, 0.25, 0.5, 1.0, 1.5, 2.0], [0.75], [0.5], [0.1, 0.2], [1.75, 2.0], [0.0], [0.5, 1.5]]
)
def test_trajectory_at_any_depths(t):
    x, t = points(4, 2), torch.tensor(t, dtype=torch.float64)
    node = StackedNODE(rates(1.0, -2.0, 0.5), knots=[0.5, 1.5], t=(0.0, 2.0), **TIGHT)
    s = t.reshape(-1, 1, 1)
    exponent = s.clamp(max=0.5) - 2 * (s.clamp(0.5, 1.5) - 0.5) + 0.5 * (s.clamp(min=1.5) - 1.5)
    torch.testing.assert_close(node.trajectory(x, t), x * exponent.exp(), atol=1e-7, rtol=0)


def test_gradient_of_the_depths_of_a_trajectory():
    x = points(4, 2)
    node = StackedNODE(rates(1.0, -2.0), t=(0.0, 1.0), **TIGHT)
    t = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64, requires_grad=True)
    node.trajectory(x, t)[-1].sum().backward()
    torch.testing.assert_close(t.grad[-1], -2 * (x * math.exp(0.0)).sum(), atol=1e-6, rtol=0)


@pytest.mark.usefixtures("engine")
def test_running_cost_and_stats_are_sums_over_the_intervals(engine):
    x = points(4, 2)
    keywords = {"running_cost": lambda t, z: (z**2).sum(1), "engine": engine, "sensitivity": "discrete", **TIGHT}
    node = StackedNODE(rates(1.0, -2.0), **keywords)
    y = node(x)
    cost = (x**2).sum(1) * ((math.e - 1) / 2 + math.e * (1 - math.exp(-2)) / 4)
    torch.testing.assert_close(node.running_cost, cost, atol=1e-6, rtol=0)
    assert node.stats.nfe_backward is None
    (node.running_cost.sum() + y.sum()).backward()
    first, second = NODE(node.field[0], t=(0.0, 0.5), **keywords), NODE(node.field[1], t=(0.5, 1.0), **keywords)
    middle = first(x)
    second(middle)
    (first.running_cost + second.running_cost).sum().backward()
    for name in ("nfe", "nfe_backward", "n_accepted", "n_rejected"):
        assert getattr(node.stats, name) == getattr(first.stats, name) + getattr(second.stats, name)
    assert node.stats.seconds > 0
    assert f"nfe={node.stats.nfe}" in repr(node.stats)


def test_control_and_order():
    """z̈ = x on the first half, z̈ = 0 on the second, from rest at 0."""

    class Push(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, t, z, x):
            return self.factor * x[:, :1]

    x = points(4, 2)
    node = StackedNODE([Push(1.0), Push(0.0)], control=True, order=2, input_network=torch.zeros_like, **TIGHT)
    u = x[:, :1]
    torch.testing.assert_close(node(x), torch.cat([u / 8 + u / 4, u / 2], 1), atol=1e-7, rtol=0)


def test_a_failed_interval_ends_the_solve():
    node = StackedNODE([Rate(1.0), Rate(1e6), Rate(1.0)], max_steps=20, throw=False)
    z = node.trajectory(points(4, 2), torch.tensor([0.0, 0.2, 0.5, 1.0], dtype=torch.float64))
    assert torch.isfinite(z[:2]).all()
    assert z[2:].isnan().all()


def test_depths_outside_of_the_intervals_are_refused():
    node = StackedNODE(rates(1.0, -2.0))
    for t in ([0.5, 1.5], [-0.5], [0.75, 0.5]):
        with pytest.raises(InputError, match=r"depths from 0 to 1 only|strictly monotone"):
            node.trajectory(points(4, 2), torch.tensor(t))


@pytest.mark.parametrize(
    ("fields", "keywords", "message"),
    [
        ([], {}, "fields must hold at least one vector field, got none"),
        ([lambda t, z: z], {}, r"fields must be a list of nn\.Modules, got function at position 0"),
        (rates(1.0, 2.0), {"knots": [0.5, 0.2]}, "knots must be the 3 depths .* or the 1 inner ones of these, got 2"),
        (
            rates(1.0, 2.0),
            {"knots": [0.0, 1.5, 1.0]},
            r"finite and strictly increasing.*got \[0\.0, 1\.5",
        ),
        (rates(1.0, 2.0), {"knots": [0.0]}, "knots must be finite and strictly increasing"),
        (rates(1.0, 2.0), {"knots": [math.nan]}, "knots must be finite"),
        (rates(1.0, 2.0, 3.0), {"knots": [0.6, 0.4]}, r"strictly increasing.*got \[0\.6, 0\.4\]"),
        (rates(1.0, 2.0), {"knots": [0.0, 0.5, 2.0]}, r"knots must begin and end with.*Pass t=\(0, 2\)"),
        (rates(1.0, 2.0), {"knots": 0.5}, r"knots must be a sequence of numbers, got 0\.5"),
        (rates(1.0, 2.0), {"knots": [1.5, 1.0], "t": (2.0, 1.0)}, "the 3 depths"),
        (rates(1.0, 2.0), {"knots": [2.0, 2.5, 1.0], "t": (2.0, 1.0)}, "strictly decreasing"),
        (rates(1.0), {"rtoll": 1e-3}, "unknown solver keyword 'rtoll'"),
        (rates(1.0), {"save": "steps"}, "unknown solver keyword 'save'"),
    ],
)
def test_wrong_arguments(fields, keywords, message):
    with pytest.raises(InputError, match=message):
        StackedNODE(fields, **keywords)


def test_a_depth_interval_that_was_turned_round_is_refused():
    """The last field held on all of it."""
    model = StackedNODE(rates(1.0, 2.0), engine="torch")
    model.t = (1.0, 0.0)
    with pytest.raises(InputError, match=r"must go the way of its knots, \(0\.0, 0\.5, 1\.0\), got \[1\.0, 0\.0\]"):
        model(torch.ones(2, 1, dtype=torch.float64))


def test_a_sample_that_fails_leaves_the_others_alone():
    """They kept the state of the knot after which it failed."""

    class Explodes(nn.Module):
        def forward(self, t, z):
            return 1e4 * torch.where(z > 0.5, z**3, 0.0 * z)

    fields = [*rates(-1.0), Explodes(), *rates(-1.0)]
    x = torch.tensor([[0.1], [3.0], [-0.3]], dtype=torch.float64)
    more = {"batching": "independent", "throw": False, "max_steps": 60, "engine": "torch", "knots": [1.0, 2.0]}
    model = StackedNODE(fields, t=(0.0, 3.0), running_cost=lambda t, z: z.sum(1), **more)
    z = model.trajectory(x, torch.tensor([0.5, 1.5, 2.0, 3.0], dtype=torch.float64))
    exact = x * torch.tensor([-0.5, -1.0, -1.0, -2.0], dtype=torch.float64).exp()[:, None, None]
    torch.testing.assert_close(z[:, ::2], exact[:, ::2], rtol=1e-3, atol=1e-4)
    assert z[1:, 1].isnan().all()
    assert model.running_cost.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(model(x)[::2], exact[-1, ::2], rtol=1e-3, atol=1e-4)
