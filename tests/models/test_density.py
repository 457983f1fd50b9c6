import pytest
import torch
from scipy.integrate import simpson
from torch import nn

from pynode.errors import InputError
from pynode.models import ANODE, NODE, AdaptiveDepthNODE, StackedNODE, parameter_gradient_density
from pynode.nn import (
    Chebyshev,
    DataControl,
    Fourier,
    GalerkinLinear,
    GaussianRBF,
    Hypernetwork,
    Legendre,
    TimeConcat,
    TimeSequential,
)

FINE = {"solver": "rk4", "dt": 0.04}
# Two halves, since the density of a StackedNODE of two fields jumps in the middle.
S = torch.cat([torch.linspace(0, 0.5, 51, dtype=torch.float64), torch.linspace(0.5, 1, 51, dtype=torch.float64)])
S[50] -= 1e-9


def integral(values):
    """By Simpson's rule on each half."""
    return sum(torch.as_tensor(simpson(half.detach(), dx=0.01, axis=0)) for half in values.split(51))


def mlp(n_in=2, n_out=2):
    return TimeSequential(TimeConcat(nn.Linear(n_in + 1, 4)), nn.Tanh(), nn.Linear(4, n_out))


def energy(t, z, *args):
    return (z**2).sum(1)


def output_loss(y):
    return (y**2).mean()


def full_loss(y, cost):
    return (y**2).mean() + 0.3 * cost.sin().sum()


MODELS = {
    "NODE": (lambda **k: NODE(mlp(), output_network=nn.Linear(2, 1), **k)),
    "control": (lambda **k: NODE(TimeSequential(DataControl(nn.Linear(4, 2)), nn.Tanh()), control=True, **k)),
    "second order": (lambda **k: NODE(mlp(4), order=2, **k)),
    "ANODE": (lambda **k: ANODE(mlp(3, 3), 1, **k)),
    "StackedNODE": (lambda **k: StackedNODE([mlp(), mlp()], **k)),
    "AdaptiveDepthNODE": (lambda **k: AdaptiveDepthNODE(mlp(), nn.Linear(2, 1), **k)),
}


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("cost", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_its_integral_is_the_gradient_of_constant_parameters(name, cost, engine):
    if engine == "julia" and cost:
        pytest.skip("the engine plays no part in what the running cost adds")
    torch.manual_seed(0)
    model = MODELS[name](running_cost=energy if cost else None, **FINE).double()
    x = torch.randn(5, 2, dtype=torch.float64)
    y = model(x)
    (full_loss(y, model.running_cost) if cost else output_loss(y)).backward()
    stats = model.stats
    density = parameter_gradient_density(model, x, full_loss if cost else output_loss, S)
    assert model.stats is stats
    wanted = dict(model.field.named_parameters())
    assert set(density) == set(wanted)
    for key, p in wanted.items():
        assert density[key].shape == (102, *p.shape)
        got = integral(density[key])
        torch.testing.assert_close(got, p.grad, atol=1e-5 * p.grad.abs().max().item() + 1e-9, rtol=0)


@pytest.mark.parametrize("basis", [Fourier, Chebyshev, Legendre, GaussianRBF])
def test_its_projection_on_a_basis_is_the_gradient_of_the_coefficients(basis):
    """∫ δℓ/δθ(s) φₖ(s) ds = dℓ/dcₖ."""
    torch.manual_seed(0)
    layers = [GalerkinLinear(2, 4, basis(4)), nn.Tanh(), GalerkinLinear(4, 2, basis(3), bias=False)]
    model = NODE(TimeSequential(*layers), **FINE).double()
    x = torch.randn(5, 2, dtype=torch.float64)
    output_loss(model(x)).backward()
    density = parameter_gradient_density(model, x, output_loss, S)
    assert set(density) == {"0.weight", "0.bias", "2.weight"}
    assert density["0.weight"].shape == (102, 4, 2)
    for key, values in density.items():
        layer = model.field[int(key[0])]
        coefficients = getattr(layer, key[2:])
        phi = layer.basis(S).reshape(102, *[1] * (values.ndim - 1), -1)
        projection = integral(values.unsqueeze(-1) * phi)
        torch.testing.assert_close(projection, coefficients.grad, atol=1e-6, rtol=0)
    assert "parameters_at" not in layers[0].__dict__


def test_of_a_hypernetwork_it_is_what_the_network_is_pulled_back_from():
    """dℓ/dω = ∫ (∂θ(s)/∂ω)ᵀ δℓ/δθ(s) ds."""
    torch.manual_seed(0)
    model = NODE(TimeSequential(Hypernetwork(nn.Linear(2, 2), width=3), nn.Tanh()), **FINE).double()
    x = torch.randn(5, 2, dtype=torch.float64)
    output_loss(model(x)).backward()
    density = parameter_gradient_density(model, x, output_loss, S)
    assert set(density) == {"0.weight", "0.bias"}
    network = model.field[0].network
    theta = network(S[:, None])
    flat = torch.cat([density["0.weight"].flatten(1), density["0.bias"]], 1)
    weights = integral(torch.eye(102, dtype=torch.float64))
    got = torch.autograd.grad(weights @ (theta * flat).sum(1), list(network.parameters()))
    torch.testing.assert_close(list(got), [p.grad for p in network.parameters()], atol=1e-6, rtol=0)


def test_depths_may_run_backwards_and_be_few():
    torch.manual_seed(0)
    x = torch.randn(5, 2, dtype=torch.float64)
    model = NODE(mlp(), t=(1.0, 0.0), **FINE).double()
    all_of_it = parameter_gradient_density(model, x, output_loss, S.flip(0))
    some = parameter_gradient_density(model, x, output_loss, S.flip(0)[[3, 40]])
    torch.testing.assert_close(some["2.weight"], all_of_it["2.weight"][[3, 40]], atol=1e-6, rtol=0)


def test_a_field_without_parameters_has_none():
    assert parameter_gradient_density(NODE(lambda t, z: z), torch.randn(3, 2), output_loss, S[:2]) == {}


def test_wrong_arguments():
    model, x = NODE(mlp()), torch.randn(3, 2)
    for s, message in (
        ([0.5, 0.2], "strictly increasing"),
        ([], "hold at least one depth"),
        (0.5, "must be 1-d"),
        ([0.5, 1.5], r"within the model's depth interval \(0\.0, 1\.0\)"),
    ):
        with pytest.raises(InputError, match=message):
            parameter_gradient_density(model, x, output_loss, torch.tensor(s))
    with pytest.raises(InputError, match=r"loss must return a 0-d tensor, got \(3, 2\)"):
        parameter_gradient_density(model, x, lambda y: y, S[:2])
    layered = AdaptiveDepthNODE(TimeSequential(GalerkinLinear(2, 2, Fourier(3))), nn.Linear(2, 1))
    with pytest.raises(InputError, match=r"the layer 'function\.0' has no θ"):
        parameter_gradient_density(layered, x, output_loss, S[:2])
