import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pynode
from pynode.errors import InputError
from pynode.nn import (
    Chebyshev,
    Fourier,
    GalerkinConv2d,
    GalerkinLinear,
    GaussianRBF,
    Legendre,
    PiecewiseLinear,
    TimeSequential,
)

BASES = (Fourier, Chebyshev, Legendre, PiecewiseLinear, GaussianRBF)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_the_sum_over_the_basis(bias):
    layer, z = GalerkinLinear(3, 2, Legendre(4), bias), torch.randn(5, 7, 3)
    t = torch.tensor(0.3)
    phi = layer.basis(t)
    expected = sum(phi[k] * F.linear(z, layer.weight[..., k], layer.bias[:, k] if bias else None) for k in range(4))
    torch.testing.assert_close(layer(t, z), expected)
    assert set(layer.parameters_at(t)) == ({"weight", "bias"} if bias else {"weight"})
    torch.testing.assert_close(layer.parameters_at(t)["weight"], (layer.weight * phi).sum(-1))


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": (2, 1)}, {"groups": 2, "bias": False}]
)
def test_conv_is_the_sum_over_the_basis(options):
    layer, z = GalerkinConv2d(4, 6, (3, 2), Fourier(3), **options), torch.randn(2, 4, 8, 7)
    t = torch.tensor(0.3)
    phi = layer.basis(t)
    keywords = {k: v for k, v in options.items() if k != "bias"}
    biases = [None] * 3 if layer.bias is None else layer.bias.T
    expected = sum(phi[k] * F.conv2d(z, layer.weight[..., k], biases[k], **keywords) for k in range(3))
    torch.testing.assert_close(layer(t, z), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda basis: GalerkinLinear(3, 2, basis), (4, 3)),
        (lambda basis: GalerkinLinear(3, 2, basis, bias=False), (4, 5, 3)),
        (lambda basis: GalerkinConv2d(2, 3, 3, basis, padding=1), (4, 2, 5, 5)),
        (lambda basis: GalerkinConv2d(4, 4, 1, basis, groups=2), (4, 4, 3, 3)),
        (lambda basis: GalerkinConv2d(4, 4, 1, basis, groups=2, bias=False), (4, 4, 3, 3)),
    ],
)
def test_samples_at_depths_of_their_own(basis, make, shape):
    layer, z, t = make(basis(3)), torch.randn(shape), torch.rand(4)
    expected = torch.cat([layer(t[i], z[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(layer(t.reshape(4, *[1] * (len(shape) - 1)), z), expected, atol=1e-5, rtol=1e-5)


def test_parameters_are_drawn_as_large_as_pytorchs_own():
    layer = GalerkinLinear(100, 400, Fourier(5))
    weights = torch.stack([layer.parameters_at(t)["weight"] for t in torch.linspace(0, 1, 11)])
    assert weights.std().item() == pytest.approx(nn.Linear(100, 400).weight.std().item(), rel=0.25)
    first = layer.weight.clone()
    layer.reset_parameters()
    assert not torch.equal(layer.weight, first)


@pytest.mark.parametrize("basis", BASES)
def test_spectral_gradient_is_the_projection_of_the_gradient_in_the_space_of_functions(basis):
    """For ż = W(s) z + b(s), dℓ/dW_k = ∫ a(s) z(s)ᵀ φ_k(s) ds, here with z constant in s: W = 0 and b = 0."""
    layer = GalerkinLinear(2, 2, basis(4)).double()
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    z0 = torch.randn(3, 2, dtype=torch.float64)
    z = pynode.solve(layer, z0, [0.0, 1.0], solver="rk4", dt=1 / 300, engine="torch").z[-1]
    a = torch.randn_like(z)
    (z * a).sum().backward()
    s = torch.linspace(0, 1, 4001, dtype=torch.float64)
    integral = torch.trapezoid(layer.basis(s), s, dim=0)
    torch.testing.assert_close(layer.weight.grad, (a.T @ z0)[..., None] * integral, atol=1e-6, rtol=0)
    torch.testing.assert_close(layer.bias.grad, a.sum(0)[:, None] * integral, atol=1e-6, rtol=0)


@pytest.mark.julia
@pytest.mark.parametrize("basis", BASES)
def test_engines_agree(basis):
    torch.manual_seed(0)
    shared = basis(4)
    vector = TimeSequential(GalerkinLinear(2, 6, shared), nn.Tanh(), GalerkinLinear(6, 2, shared)).double()
    image = TimeSequential(GalerkinConv2d(2, 3, 3, shared, padding=1), nn.Tanh(), GalerkinConv2d(3, 2, 1, shared))
    tight = {"rtol": 1e-7, "atol": 1e-7, "sensitivity": "discrete"}
    for field, shape in ((vector, (5, 2)), (image.double(), (2, 2, 4, 4))):
        z0, found = torch.randn(shape, dtype=torch.float64), []
        for engine in ("torch", "julia"):
            field.zero_grad()
            z = pynode.solve(field, z0, [0.0, 1.0], engine=engine, **tight).z[-1]
            z.square().sum().backward()
            found.append([z.detach(), *(p.grad.clone() for p in field.parameters())])
        # The kinks of the hats are no place for a solver of high order.
        torch.testing.assert_close(*found, atol=1e-3 if basis is PiecewiseLinear else 1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GalerkinLinear(2, 2, 5), r"must be a basis such as pynode\.nn\.Fourier\(5\), got int"),
        (lambda: GalerkinLinear(0, 2, Fourier(3)), "the sizes of GalerkinLinear must be integers of at least 1, got 0"),
        (lambda: GalerkinConv2d(3, 4, 3, Fourier(3), groups=2), "must divide in_channels=3 and out_channels=4, got 2"),
        (lambda: GalerkinConv2d(2, 2, 0, Fourier(3)), "the sizes of GalerkinConv2d must be integers of at least 1"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(InputError, match=message):
        make()
