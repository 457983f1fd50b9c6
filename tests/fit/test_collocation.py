"""Collocation: what local polynomials reproduce exactly, and a noisy sine."""

from __future__ import annotations

import math

import pytest
import torch

from pynode import InputError
from pynode.fit import collocate

T = torch.linspace(0, 2, 41, dtype=torch.float64)


@pytest.mark.julia
@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["TriangularKernel", "EpanechnikovKernel", "GaussianKernel"])
def test_polynomials(kernel: str) -> None:
    """Derivatives come from local parabolas, values from local lines: exact for those."""
    line, parabola = 3 - 2 * T, 1 + T - 0.5 * T**2
    du, u = collocate(torch.stack([line, parabola], -1).reshape(-1, 2, 1), T, kernel, 0.2)
    assert du.shape == u.shape == (41, 2, 1)
    torch.testing.assert_close(du[:, 0, 0], torch.full_like(T, -2.0), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(du[:, 1, 0], 1 - T, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(u[:, 0, 0], line, rtol=1e-8, atol=1e-8)


@pytest.mark.julia
@pytest.mark.slow
def test_a_noisy_sine() -> None:
    """Far nearer to the truth than the data and their differences are; in float32, any shape."""
    t = torch.linspace(0, 2 * math.pi, 200)
    noise = 0.05 * torch.randn(200, generator=torch.Generator().manual_seed(0))
    data = t.sin() + noise
    du, u = collocate(data, t, "EpanechnikovKernel", 0.08)
    assert du.dtype == torch.float32
    assert (u - t.sin()).square().mean().sqrt() < 0.5 * noise.square().mean().sqrt()
    assert (du - t.cos())[20:-20].square().mean().sqrt() < 0.15
    with pytest.raises(InputError, match="choose a higher bandwidth"):
        collocate(data, t, "TriangularKernel", 1e-4)


def test_refusals() -> None:
    data = torch.zeros(41, 2, dtype=torch.float64)
    with pytest.raises(InputError, match="unknown kernel 'Gausian': expected one of 'GaussianKernel'"):
        collocate(data, T, "Gausian")
    with pytest.raises(InputError, match="t must be increasing and have one entry for each of the 41"):
        collocate(data, T[1:])
    with pytest.raises(InputError, match="t must be increasing"):
        collocate(data, T.flip(0))
    with pytest.raises(InputError, match="data must be finite"):
        collocate(data + math.inf, T)
    with pytest.raises(InputError, match="bandwidth must be positive"):
        collocate(data, T, bandwidth=-1.0)
    with pytest.raises(InputError, match=r"data must be a tensor \(time, …\)"):
        collocate(data.int(), T)
