import math

import pytest
import torch
from torch import nn
from torch.distributions import (
    Independent,
    MultivariateNormal,
    Normal,
    SigmoidTransform,
    TransformedDistribution,
    Uniform,
)

from pynode.errors import InputError
from pynode.models import CNF, FFJORD, Dequantised


class Still(nn.Module):
    def forward(self, t, z):
        return torch.zeros_like(z)


def uniform_on_levels(alpha, *shape):
    """A flow that does nothing, with the base that makes y uniform on [0, 1)."""
    p = Uniform(torch.full(shape, alpha), torch.full(shape, 1 - alpha), validate_args=False)
    base = TransformedDistribution(p, [SigmoidTransform().inv])
    return CNF(Still(), Independent(base, len(shape), validate_args=False))


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_uniform_density_is_the_uniform_distribution_of_levels(levels):
    model = Dequantised(uniform_on_levels(0.1, 1, 4, 4), levels, alpha=0.1)
    x = torch.randint(0, levels, (50, 1, 4, 4)) / (levels - 1)
    torch.testing.assert_close(model.log_prob(x), torch.full((50,), -16 * math.log(levels)), atol=1e-3, rtol=0)
    torch.testing.assert_close(model.bits_per_dim(x), torch.full((50,), math.log2(levels)), atol=1e-4, rtol=0)


def test_probabilities_of_all_levels_sum_to_one():
    """Of one pixel with a logistic density; the bound averaged in the probability itself, not its logarithm."""
    levels, alpha = 5, 0.05
    model = Dequantised(CNF(Still(), Independent(logistic(), 1)), levels, alpha=alpha)
    x = (torch.arange(levels) / (levels - 1)).repeat(20000).unsqueeze(1)
    p = model.log_prob(x).exp().reshape(-1, levels).mean(0)
    # y = (p - α) / (1 - 2 α) in [0, 1], and a logistic z has a uniform p
    torch.testing.assert_close(p, torch.full((levels,), (1 - 2 * alpha) / levels), atol=2e-3, rtol=0)


def logistic():
    return TransformedDistribution(Uniform(torch.zeros(1), torch.ones(1)), [SigmoidTransform().inv])


def test_samples_are_levels():
    torch.manual_seed(0)
    x = Dequantised(FFJORD((1, 4, 4), hidden=(4,)), 17).sample(6)
    assert x.shape == (6, 1, 4, 4)
    k = x * 16
    torch.testing.assert_close(k, k.round(), atol=1e-5, rtol=0)
    assert (x.min() >= 0) & (x.max() <= 1)
    y = Dequantised(uniform_on_levels(0.1, 1), 4, alpha=0.1).sample(8000) * 3
    counts = torch.bincount(y.round().long().flatten(), minlength=4)
    assert ((counts - 2000).abs() < 5 * math.sqrt(8000 * 3 / 16)).all()


def test_whitening_is_an_affine_map_of_the_logits():
    """A flow that does nothing is then the normal distribution of the images' mean and covariance."""
    torch.manual_seed(0)
    standard = Independent(Normal(torch.zeros(4), torch.ones(4)), 1)
    model = Dequantised(CNF(Still(), standard), 8)
    x = (torch.randn(500, 4) @ torch.randn(4, 4) + 3).round().clamp(0, 7) / 7
    torch.manual_seed(1)
    y, plain = model.dequantise(x)
    torch.manual_seed(1)
    model.whiten(x)
    torch.manual_seed(1)
    white, ratio = model.dequantise(x)
    torch.testing.assert_close(white.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(white.T.cov(), torch.eye(4), atol=1e-4, rtol=0)
    normal = MultivariateNormal(y.mean(0), y.T.cov())
    torch.testing.assert_close(standard.log_prob(white) + ratio, normal.log_prob(y) + plain, atol=1e-3, rtol=1e-4)
    samples = model.sample(20000)
    torch.testing.assert_close(samples.mean(0), x.mean(0), atol=0.1, rtol=0)
    loaded = Dequantised(CNF(Still(), standard), 8)
    loaded.load_state_dict(model.state_dict())
    torch.manual_seed(1)
    torch.testing.assert_close(loaded.dequantise(x)[0], white)
    one = Dequantised(FFJORD((1, 1, 1), hidden=(4,)), 4)
    one.whiten(torch.randint(0, 4, (50, 1, 1, 1)) / 3)
    assert one.factor.shape == (1, 1)
    with pytest.raises(InputError, match="whiten needs more images than the 4 entries of one, got 4"):
        model.whiten(x[:4])


@pytest.mark.slow
def test_training_lowers_the_bits():
    torch.manual_seed(0)
    model = Dequantised(FFJORD((1, 4, 4), hidden=(8,), kinetic=0.01), 4)
    x = torch.zeros(64, 1, 4, 4)
    x[:, :, :2] = 1.0
    before = model.bits_per_dim(x).mean().item()
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    for _ in range(15):
        optimizer.zero_grad()
        loss = model.loss(x)
        loss.backward()
        optimizer.step()
    assert model.flow.regularisation["kinetic"] > 0
    assert model.bits_per_dim(x).mean().item() < before - 0.2


def test_arguments_that_are_no_use():
    flow = FFJORD((1, 4, 4))
    with pytest.raises(InputError, match="flow must be a CNF or an FFJORD, got Linear"):
        Dequantised(nn.Linear(2, 2))
    with pytest.raises(InputError, match="levels must be a whole number of at least 2, got 1"):
        Dequantised(flow, 1)
    with pytest.raises(InputError, match=r"alpha must lie between 0 and 0\.5, got 0\.5"):
        Dequantised(flow, alpha=0.5)
    for x in (torch.full((1, 1, 4, 4), 7.0), torch.full((1, 1, 4, 4), math.nan), torch.zeros(1, 1, 4, 4).long()):
        with pytest.raises(InputError, match=r"grey levels k / 255 in \[0, 1\], as floating point"):
            Dequantised(flow).log_prob(x)
    with pytest.raises(InputError, match=r"x must have shape \(batch, 1, 4, 4\)"):
        Dequantised(flow).log_prob(torch.zeros(2, 16))
