"""What every model has to survive, and what both engines have to agree on."""

import copy
import io

import pytest
import torch
from torch import nn

from pynode.errors import InputError
from pynode.models import ANODE, NODE, AdaptiveDepthNODE, ODENet, StackedNODE
from pynode.nn import (
    ConvField,
    DataControl,
    Fourier,
    GalerkinConv2d,
    GalerkinLinear,
    Hypernetwork,
    Legendre,
    TimeConcat,
    TimeSequential,
)


def energy(t, z, *args):
    return (z**2).flatten(1).sum(1)


def mlp(n_in=2, n_out=2):
    return TimeSequential(TimeConcat(nn.Linear(n_in + 1, 4)), nn.Tanh(), nn.Linear(4, n_out))


def galerkin():
    return TimeSequential(GalerkinLinear(2, 4, Fourier(3)), nn.Tanh(), GalerkinLinear(4, 2, Legendre(2)))


def conv():
    return TimeSequential(GalerkinConv2d(3, 4, 3, Fourier(3), padding=1), nn.Tanh(), nn.Conv2d(4, 3, 1))


MODELS = {
    "ANODE": (lambda **k: ANODE(mlp(3, 3), 1, output_network=nn.Linear(3, 1), **k), (3, 2)),
    "IL-NODE": (lambda **k: ANODE(mlp(3, 3), 1, input_network=nn.Linear(2, 3), **k), (3, 2)),
    "second order": (lambda **k: ANODE(mlp(6, 3), 1, order=2, **k), (3, 2)),
    "image ANODE": (lambda **k: ANODE(conv(), 1, **k), (2, 2, 4, 4)),
    "Galerkin": (lambda **k: NODE(galerkin(), t=(0.0, 2.0), **k), (3, 2)),
    "Hypernetwork": (lambda **k: NODE(TimeSequential(Hypernetwork(mlp_of_state(), width=2)), **k), (3, 2)),
    "StackedNODE": (lambda **k: StackedNODE([mlp(), galerkin()], knots=[0.3], **k), (3, 2)),
    "control": (lambda **k: NODE(TimeSequential(DataControl(nn.Linear(4, 2)), nn.Tanh()), control=True, **k), (3, 2)),
    "AdaptiveDepthNODE": (lambda **k: AdaptiveDepthNODE(galerkin(), nn.Linear(2, 1), **k), (3, 2)),
    "ODENet": (lambda **k: classifier(**k), (2, 1, 6, 6)),
}


def classifier(sensitivity="discrete", **keywords):
    smooth = ConvField(2, activation=nn.Softplus)
    return ODENet(1, 3, channels=2, downsamplings=1, field=smooth, sensitivity=sensitivity, **keywords)


def mlp_of_state():
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))


@pytest.fixture(params=list(MODELS))
def make(request):
    build, shape = MODELS[request.param]

    def made(seed=0, **keywords):
        torch.manual_seed(seed)
        keywords.setdefault("running_cost", energy)
        return build(**keywords)

    made.x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return made


def used(model, x):
    (model(x).sum() + model.running_cost.sum()).backward()
    return model


def _saved(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("again", [copy.deepcopy, _saved])
def test_a_used_model_copies_and_saves(make, again):
    model, x = used(make(), make.x), make.x
    twin = again(model)
    assert torch.equal(twin(x), model(x))
    assert torch.equal(twin.running_cost, model.running_cost)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(0.1)
    assert not torch.equal(twin(x), model(x))


def test_state_dict_round_trip(make):
    model, other, x = make(), make(seed=1), make.x
    assert not torch.equal(other(x), model(x))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))
    assert set(model.state_dict()) == set(dict(model.named_parameters()))


def test_double_and_back(make):
    model, x = make(), make.x
    single = model(x)
    double = model.double()(x.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, atol=1e-3, rtol=1e-3)
    assert torch.equal(model.float()(x), single)


def test_all_of_it_follows_to_another_device(make):
    model = make().to("meta")
    assert all(x.is_meta for x in (*model.parameters(), *model.buffers()))


def test_trajectory_ends_in_the_output(make):
    model, x = make(rtol=1e-6, atol=1e-6), make.x
    t = torch.linspace(*model.t, 5)
    out = model.trajectory(x, t)
    torch.testing.assert_close(out[-1], model(x), atol=1e-4, rtol=1e-4)
    assert len(out) == 5


def test_gradcheck(make):
    model = make(solver="rk4", dt=0.5, running_cost=None).double()
    names, parameters = zip(*model.named_parameters(), strict=True)

    def call(x, *values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))

    inputs = [make.x.double().requires_grad_(), *(p.detach().requires_grad_() for p in parameters)]
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)


@pytest.mark.julia
def test_engines_agree_on_values_and_gradients(make):
    found = []
    for engine in ("torch", "julia"):
        model = make(engine=engine, rtol=1e-8, atol=1e-8, sensitivity="discrete").double()
        x = make.x.double().requires_grad_()
        y = model(x)
        (y.square().sum() + model.running_cost.sum()).backward()
        found.append([y.detach(), model.running_cost.detach(), x.grad, *(p.grad for p in model.parameters())])
        assert model.stats.nfe > 0
        assert model.stats.nfe_backward > 0
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


@pytest.mark.julia
def test_engines_train_to_the_same_loss(make):
    losses = []
    for engine in ("torch", "julia"):
        model, x = make(engine=engine, sensitivity="discrete", rtol=1e-5, atol=1e-6), make.x
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        first = None
        for _ in range(30):
            optimizer.zero_grad()
            loss = (model(x) - 0.5).square().mean() + 0.01 * model.running_cost.mean()
            first = first or loss.item()
            loss.backward()
            optimizer.step()
        assert loss.item() < 0.9 * first
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_a_control_of_another_batch_size_is_refused():
    model = NODE(mlp(), control=True, input_network=lambda x: x[:2])
    with pytest.raises(InputError, match=r"batch size of the state: expected 2 rows, got"):
        model(torch.randn(3, 2))
