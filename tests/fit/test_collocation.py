"""Collocation: what local polynomials reproduce exactly, and a noisy sine."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pynode import InputError
from pynode.fit import collocate

T = torch.linspace(0, 2, 41, dtype=torch.float64)


ENGINES = ["torch", pytest.param("julia", marks=[pytest.mark.julia, pytest.mark.slow])]
KERNELS = [
    "Epanechnikov",
    "Uniform",
    "Triangular",
    "Quartic",
    "Triweight",
    "Tricube",
    "Gaussian",
    "Cosine",
    "Logistic",
    "Sigmoid",
    "Silverman",
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kernel", [f"{name}Kernel" for name in KERNELS])
def test_polynomials(kernel: str, engine: str) -> None:
    """Derivatives come from local parabolas, values from local lines: exact for those."""
    line, parabola = 3 - 2 * T, 1 + T - 0.5 * T**2
    du, u = collocate(torch.stack([line, parabola], -1).reshape(-1, 2, 1), T, kernel, 0.2, engine)
    assert du.shape == u.shape == (41, 2, 1)
    torch.testing.assert_close(du[:, 0, 0], torch.full_like(T, -2.0), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(du[:, 1, 0], 1 - T, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(u[:, 0, 0], line, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_noisy_sine(engine: str) -> None:
    """Far nearer to the truth than the data and their differences are; in float32, any shape."""
    t = torch.linspace(0, 2 * math.pi, 200)
    noise = 0.05 * torch.randn(200, generator=torch.Generator().manual_seed(0))
    data = t.sin() + noise
    du, u = collocate(data, t, "EpanechnikovKernel", 0.08, engine)
    assert du.dtype == torch.float32
    assert (u - t.sin()).square().mean().sqrt() < 0.5 * noise.square().mean().sqrt()
    assert (du - t.cos())[20:-20].square().mean().sqrt() < 0.15
    with pytest.raises(InputError, match="choose a higher bandwidth"):
        collocate(data, t, "TriangularKernel", 1e-4, engine)


@pytest.mark.julia
@pytest.mark.slow
@pytest.mark.parametrize("bandwidth", [None, 0.3])
@pytest.mark.parametrize("kernel", KERNELS)
def test_torch_is_diffeqflux(kernel: str, bandwidth: float | None) -> None:
    """Of noise at irregular times, in both precisions."""
    draw = torch.Generator().manual_seed(1)
    t = torch.rand(30, dtype=torch.float64, generator=draw).sort().values * 3 + 100
    data = torch.randn(30, 4, dtype=torch.float64, generator=draw)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-3)):
        ours, theirs = (collocate(data.to(dtype), t, kernel, bandwidth, engine) for engine in ("torch", "julia"))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


def test_against_weighted_least_squares() -> None:
    """The local fits by NumPy, of noise, with the bandwidth of DiffEqFlux's rule; and the gradient to the data."""
    t = torch.rand(25, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).sort().values
    data = torch.randn(25, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    du, u = collocate(data, t, engine="torch")
    h = 25 ** (-1 / 5) * 25 ** (-3 / 35) * math.log(25) ** (-1 / 16) * float(t[-1] - t[0])
    for i in range(25):
        root = (1 - (t - t[i]).abs() / h).clamp(min=0).sqrt().numpy()
        slope = np.polyfit((t - t[i]).numpy(), data.detach().numpy(), 2, w=root)[1]
        value = np.polyfit((t - t[i]).numpy(), data.detach().numpy(), 1, w=root)[1]
        assert (du[i].item(), u[i].item()) == pytest.approx((slope, value), rel=1e-8, abs=1e-10)
    assert torch.autograd.gradcheck(lambda x: collocate(x, t, engine="torch"), (data,))


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
