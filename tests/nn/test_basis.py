import math

import numpy as np
import pytest
import torch
from scipy.special import eval_chebyt, eval_legendre
from torch import nn

from pynode.errors import InputError
from pynode.models import NODE, StackedNODE
from pynode.nn import Chebyshev, Fourier, GalerkinLinear, GaussianRBF, Legendre, PiecewiseLinear, TimeSequential

BASES = (Fourier, Chebyshev, Legendre, PiecewiseLinear, GaussianRBF)
U = torch.linspace(0, 1, 41, dtype=torch.float64)


def test_fourier():
    expected = torch.stack(
        [torch.cos(0 * U), *(f(2 * math.pi * k * U) for k in (1, 2) for f in (torch.cos, torch.sin))]
    )
    torch.testing.assert_close(Fourier(5)(U), expected.T, atol=1e-14, rtol=0)
    torch.testing.assert_close(Fourier(4)(U), expected.T[:, :4], atol=1e-14, rtol=0)


@pytest.mark.parametrize(("basis", "evaluate"), [(Chebyshev, eval_chebyt), (Legendre, eval_legendre)])
@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_polynomials(basis, evaluate, n):
    expected = np.stack([evaluate(k, 2 * U.numpy() - 1) for k in range(n)], axis=1)
    np.testing.assert_allclose(basis(n)(U), expected, atol=1e-13)


def test_piecewise_linear_interpolates_its_coefficients_and_goes_on_constant():
    values = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    u = torch.linspace(-0.5, 1.5, 81, dtype=torch.float64)
    expected = np.interp(u, np.linspace(0, 1, 4), values)
    np.testing.assert_allclose(PiecewiseLinear(4)(u) @ values, expected, atol=1e-14)
    assert torch.equal(PiecewiseLinear(1)(U), torch.ones(41, 1, dtype=torch.float64))


def test_gaussian_rbf():
    centres = torch.linspace(0, 1, 5, dtype=torch.float64)
    expected = torch.exp(-0.5 * ((U[:, None] - centres) / (0.25 * 1.5)) ** 2)
    torch.testing.assert_close(GaussianRBF(5, width=1.5)(U), expected)
    torch.testing.assert_close(GaussianRBF(1)(U)[:, 0], torch.exp(-0.5 * (U - 0.5) ** 2))


@pytest.mark.parametrize("basis", BASES)
def test_shapes_and_interval(basis):
    one = basis(4, (2.0, 6.0))
    assert one(torch.tensor(3.0)).shape == (4,)
    assert one(torch.rand(3, 1)).shape == (3, 1, 4)
    torch.testing.assert_close(one(2 + 4 * U), basis(4)(U))
    assert one.interval == basis(4, (6.0, 2.0)).interval
    assert "interval=(2.0, 6.0)" in repr(one)


@pytest.mark.parametrize("basis", BASES)
def test_bases_are_as_exact_in_double_after_single(basis):
    torch.testing.assert_close(basis(5).float().double()(U), basis(5).double()(U), atol=0, rtol=0)


def field(basis):
    return TimeSequential(GalerkinLinear(2, 2, basis))


def test_a_model_spreads_the_bases_of_its_field_over_its_depth():
    inside, own = Legendre(3), Legendre(3, (0.0, 1.0))
    NODE(TimeSequential(GalerkinLinear(2, 2, inside), GalerkinLinear(2, 2, own)), t=(3.0, 1.0))
    assert inside.interval == (1.0, 3.0)
    assert own.interval == (0.0, 1.0)
    stacked = Legendre(3)
    StackedNODE([field(stacked), nn.Linear(2, 2)], t=(0.0, 4.0))
    assert stacked.interval == (0.0, 4.0)


def test_a_basis_in_models_of_one_interval_is_shared_and_of_two_refused():
    basis = Fourier(3)
    NODE(field(basis), t=(0.0, 2.0))
    NODE(field(basis), t=(2.0, 0.0))
    with pytest.raises(InputError, match=r"belongs to a model with the depth interval \(0\.0, 2\.0\).*\(0\.0, 1\.0\)"):
        NODE(field(basis))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fourier(0), "must be an integer of at least 1, got 0"),
        (lambda: Legendre(2.5), r"must be an integer of at least 1, got 2\.5"),
        (lambda: Chebyshev(3, (1.0, 1.0)), "interval must be two different finite numbers"),
        (lambda: Chebyshev(3, (0.0, math.nan)), "interval must be two different finite numbers"),
        (lambda: Chebyshev(3, 1.0), r"interval must be two numbers, got 1\.0"),
        (lambda: GaussianRBF(3, width=0.0), r"width of GaussianRBF must be positive and finite, got 0\.0"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(InputError, match=message):
        make()
