import copy
import io
import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pynode import data
from pynode.errors import InputError
from pynode.models import NODE
from pynode.nn import TimeConcat, TimeSequential

on_every_engine = pytest.mark.usefixtures("engine")


class Linear(nn.Module):
    """ż = z Aᵀ, whose solution is z(0) exp(A t)ᵀ."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = nn.Parameter(torch.as_tensor(matrix, dtype=torch.float64))

    def forward(self, t, z):
        return z @ self.matrix.T


ROTATION = [[0.0, 1.0], [-1.0, 0.0]]
TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def mlp(features=2, width=8):
    return TimeSequential(TimeConcat(nn.Linear(features + 1, width)), nn.Tanh(), nn.Linear(width, features))


def points(n=5, features=2):
    return torch.randn(n, features, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@on_every_engine
def test_forward_is_the_flow_at_the_end_of_the_depth_interval():
    x = points()
    exact = x @ torch.matrix_exp(2.0 * torch.tensor(ROTATION, dtype=torch.float64)).T
    torch.testing.assert_close(NODE(Linear(ROTATION), t=(1.0, 3.0), **TIGHT)(x), exact, atol=1e-7, rtol=0)


def test_depth_may_run_backwards():
    x = points()
    there = NODE(Linear(ROTATION), t=(0.0, 2.0), **TIGHT)(x)
    torch.testing.assert_close(NODE(Linear(ROTATION), t=(2.0, 0.0), **TIGHT)(there), x, atol=1e-7, rtol=0)


@on_every_engine
def test_complete_formulation():
    """z(0) = h_x(x), ŷ = h_y(z(T))."""
    torch.manual_seed(0)
    h_x, h_y = nn.Linear(3, 2).double(), nn.Linear(2, 4).double()
    x = points(features=3)
    node = NODE(Linear(ROTATION), input_network=h_x, output_network=h_y, **TIGHT)
    exact = h_y(h_x(x) @ torch.matrix_exp(torch.tensor(ROTATION, dtype=torch.float64)).T)
    torch.testing.assert_close(node(x), exact, atol=1e-7, rtol=0)
    node(x).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in node.parameters())


@pytest.mark.parametrize("first", [0.0, 0.25])
def test_trajectory_starts_at_the_models_first_depth_whatever_is_reported(first):
    x, h_y = points(), nn.Linear(2, 1).double()
    t = torch.tensor([first, 0.5, 2.0], dtype=torch.float64)
    out = NODE(Linear(ROTATION), output_network=h_y, **TIGHT).trajectory(x, t)
    assert out.shape == (3, 5, 1)
    flow = torch.matrix_exp(t[:, None, None] * torch.tensor(ROTATION, dtype=torch.float64))
    torch.testing.assert_close(out, h_y(x @ flow.mT), atol=1e-7, rtol=0)


def test_trajectory_at_the_first_depth_alone():
    x = points()
    assert torch.equal(NODE(Linear(ROTATION)).trajectory(x, torch.tensor([0.0]))[0], x)


@on_every_engine
@pytest.mark.parametrize("first", [0.0, 0.25])
def test_trajectory_has_derivatives_to_its_depths(first):
    """Each state to its own depth alone, also where that is the model's first one, from which the solve begins."""
    x, a = points(), torch.tensor(ROTATION, dtype=torch.float64)
    node = NODE(Linear(ROTATION), **TIGHT)
    t = torch.tensor([first, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
    out = node.trajectory(x, t)
    for i in range(3):
        (found,) = torch.autograd.grad(out[i].sum(), t, retain_graph=True)
        expected = torch.zeros(3, dtype=torch.float64)
        expected[i] = (out[i].detach() @ a.T).sum()
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    alone = node.trajectory(x, t[:1])[0]
    (found,) = torch.autograd.grad(alone.sum(), t)
    assert found[0].item() == pytest.approx((alone.detach() @ a.T).sum().item(), abs=1e-6)


def test_trajectory_has_second_derivatives_to_its_first_depth():
    """Of ż = t z, whose solution is z(0) exp(t² / 2)."""
    x = points()
    node = NODE(lambda t, z: t * z, t=(1.0, 2.0), **TIGHT)

    def first(t):
        return node.trajectory(x, torch.stack([t, torch.full_like(t, 2.0)]))[0].sum()

    t = torch.tensor(1.0, dtype=torch.float64)
    exact = x.sum()
    torch.testing.assert_close(torch.autograd.functional.hessian(first, t), 2 * exact)  # z + t² z at t = 1
    torch.testing.assert_close(torch.func.grad(first)(t), exact)
    torch.testing.assert_close(torch.func.jvp(first, (t,), (torch.ones_like(t),))[1], exact)


@pytest.mark.parametrize("t", [torch.tensor(0.5), torch.zeros(0), torch.zeros(2, 2)])
def test_trajectory_refuses_depths_that_are_no_list(t):
    with pytest.raises(InputError, match="t must be 1-d and hold at least one depth"):
        NODE(Linear(ROTATION)).trajectory(points(), t)


def test_trajectory_refuses_depths_on_both_sides_of_the_start():
    with pytest.raises(InputError, match="strictly monotone"):
        NODE(Linear(ROTATION)).trajectory(points(), torch.tensor([-1.0, 1.0]))


@on_every_engine
def test_running_cost_is_the_integral_and_is_differentiable():
    """∫₀² |z|² ds of ż = a z is |z(0)|² (e^{4a} - 1) / 2a."""
    a = -0.3
    node = NODE(
        Linear([[a, 0.0], [0.0, a]]),
        t=(0.0, 2.0),
        running_cost=lambda t, z: (z**2).sum(1),
        sensitivity="discrete",
        **TIGHT,
    )
    assert node.running_cost is None
    x = points()
    node(x)
    torch.testing.assert_close(node.running_cost, (x**2).sum(1) * (math.exp(4 * a) - 1) / (2 * a), atol=1e-7, rtol=0)
    node.running_cost.sum().backward()
    slope = (4 * math.exp(4 * a) * a - math.exp(4 * a) + 1) / (2 * a * a)  # d/da of (e^{4a} - 1) / 2a
    grad = node.field.matrix.grad
    assert torch.trace(grad).item() == pytest.approx((x**2).sum().item() * slope, rel=1e-5)


def test_stats_are_those_of_the_last_call():
    torch.manual_seed(0)
    node = NODE(mlp(), solver="rk4", dt=0.25)
    assert node.stats is None
    node(points().float()).sum().backward()
    first = node.stats
    assert first.nfe == 16
    assert first.nfe_backward > 0
    node.trajectory(points().float(), torch.tensor([0.0, 0.25]))
    assert node.stats is not first
    assert node.stats.nfe == 4


@pytest.mark.slow
@on_every_engine
def test_training_fits_the_cubic():
    """A flow on the line can fit y = x³ + 0.1 x, which increases."""
    torch.manual_seed(0)
    x, y = data.cubic().tensors
    node = NODE(mlp(1, 25))
    optimizer = torch.optim.Adam(node.parameters(), 2e-2)
    first = None
    for _ in range(200):
        optimizer.zero_grad()
        loss = ((node(x) - y) ** 2).mean()
        first = first or loss.item()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 < first  # over seeds 0.02 to 0.03; the best straight line leaves 2.4


def test_gradcheck():
    torch.manual_seed(0)
    node = NODE(
        mlp(2, 3).double(), input_network=nn.Linear(3, 2).double(), output_network=nn.Linear(2, 1).double(), **TIGHT
    )
    names, parameters = zip(*node.named_parameters(), strict=True)

    def call(x, *values):
        return torch.func.functional_call(node, dict(zip(names, values, strict=True)), (x,))

    x = points(2, 3).requires_grad_()
    with torch.no_grad():
        expected = node(x)
    torch.testing.assert_close(call(x, *parameters), expected)
    assert torch.autograd.gradcheck(call, (x, *(p.detach().requires_grad_() for p in parameters)), atol=1e-5)


# -- control and order ---------------------------------------------------------------------------------------


@on_every_engine
def test_control_gives_the_field_the_input():
    """ż = x from z(0) = 0: z(s) = s x, and dz/dx = s."""
    node = NODE(lambda t, z, x: x, input_network=torch.zeros_like, control=True, t=(0.0, 3.0), **TIGHT)
    x = points().requires_grad_()
    z = node(x)
    torch.testing.assert_close(z, 3 * x, atol=1e-7, rtol=0)
    z.sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 3.0), atol=1e-7, rtol=0)


@on_every_engine
def test_control_reaches_the_running_cost():
    node = NODE(lambda t, z, x: 0 * z, control=True, t=(0.0, 2.0), running_cost=lambda t, z, x: (x * z).sum(1), **TIGHT)
    x = points()
    node(x)
    torch.testing.assert_close(node.running_cost, 2 * (x**2).sum(1))


@on_every_engine
def test_second_order_from_rest_is_the_oscillator():
    """z̈ = -z, z(0) = x, ż(0) = 0: z = x cos s, ż = -x sin s."""
    x = points(features=1)
    node = NODE(lambda t, z: -z[:, :1], order=2, t=(0.0, 1.5), **TIGHT)
    exact = torch.cat([x * math.cos(1.5), -x * math.sin(1.5)], dim=1)
    torch.testing.assert_close(node(x), exact, atol=1e-7, rtol=0)


def test_third_order_with_initial_derivatives_from_the_input_network():
    """z⁗ = 6: z = z₀ + v s + a s²/2 + s³."""
    x = points(features=3)
    node = NODE(
        lambda t, z: torch.full_like(z[:, :1], 6.0), order=3, input_network=nn.Identity(), t=(0.0, 2.0), **TIGHT
    )
    z, v, a = x[:, :1], x[:, 1:2], x[:, 2:]
    exact = torch.cat([z + 2 * v + 2 * a + 8, v + 2 * a + 12, a + 12], dim=1)
    torch.testing.assert_close(node(x), exact, atol=1e-7, rtol=0)


def test_second_order_for_images():
    """Channels hold position and velocity: z̈ = 2 from rest."""
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    node = NODE(lambda t, z: torch.full_like(z[:, :3], 2.0), order=2, **TIGHT)
    torch.testing.assert_close(node(x), torch.cat([x + 1, torch.full_like(x, 2.0)], dim=1), atol=1e-7, rtol=0)


# -- life of a module ----------------------------------------------------------------------------------------


def used(order=1):
    torch.manual_seed(0)
    field = nn.Linear(4, 2) if order == 2 else nn.Linear(2, 2)
    node = NODE(_Autonomous(field), order=order, running_cost=_square)
    node(points().float()).sum().backward()
    return node


class _Autonomous(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, t, z):
        return torch.tanh(self.layer(z))


def _square(t, z):
    return (z**2).sum(1)


def _saved(node):
    buffer = io.BytesIO()
    torch.save(node, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("again", [copy.deepcopy, _saved])
def test_a_used_model_copies_and_saves(again, order):
    node = used(order)
    twin = again(node)
    x = points().float()
    assert torch.equal(twin(x), node(x))
    assert torch.equal(twin.running_cost, node.running_cost)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(0.1)
    assert not torch.equal(twin(x), node(x))


def test_state_dict_round_trip():
    node = used()
    torch.manual_seed(1)
    other = NODE(_Autonomous(nn.Linear(2, 2)), running_cost=_square)
    x = points().float()
    assert not torch.equal(other(x), node(x))
    other.load_state_dict(node.state_dict())
    assert torch.equal(other(x), node(x))
    assert list(node.state_dict()) == ["field.layer.weight", "field.layer.bias"]


@on_every_engine
def test_double():
    node, x = used(), points()
    z = node.double()(x)
    assert z.dtype == torch.float64
    torch.testing.assert_close(z, node.float()(x.float()).double(), atol=1e-5, rtol=0)


@on_every_engine
def test_a_kept_output_can_be_differentiated_after_the_next_call():
    node, x = used(), points().float()
    node.zero_grad()
    kept = node(x)
    node(2 * x)
    kept.sum().backward()
    late = node.field.layer.weight.grad.clone()
    node.zero_grad()
    node(x).sum().backward()
    torch.testing.assert_close(late, node.field.layer.weight.grad)


@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve", "forward"])
def test_checkpoints_of_a_model(engine, sensitivity):
    """A model's first call looks at more than the later ones, of which a checkpoint is not to learn."""
    torch.manual_seed(0)
    model = NODE(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)), engine=engine, sensitivity=sensitivity)
    x = torch.randn(3, 2, requires_grad=True)
    inputs = [x, *model.parameters()]
    y = checkpoint(model, checkpoint(model, x, use_reentrant=False), use_reentrant=False)
    found = torch.autograd.grad(y.square().sum(), inputs)
    expected = torch.autograd.grad(model(model(x)).square().sum(), inputs)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
