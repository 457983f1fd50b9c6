"""Slopes estimated from data: what a field can be fitted to without solving anything."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable

import torch
from torch import Tensor

from pynode.engine.choose import named_engine
from pynode.engine.julia.function import reporting
from pynode.errors import FieldError, InputError, unknown_name
from pynode.problem.inputs import check_number, check_times

__all__ = ["collocate"]

Weights = Callable[[Tensor], Tensor]


def _within(weights: Weights) -> Weights:
    """The weights, and zero where |x| > 1."""
    return lambda x: torch.where(x.abs() > 1, 0.0, weights(x))


# Of the distance as a part of the bandwidth: those of DiffEqFlux.
_KERNELS: dict[str, Weights] = {
    "Epanechnikov": _within(lambda x: 0.75 * (1 - x**2)),
    "Uniform": _within(lambda x: torch.full_like(x, 0.5)),
    "Triangular": _within(lambda x: 1 - x.abs()),
    "Quartic": _within(lambda x: 15 * (1 - x**2) ** 2 / 16),
    "Triweight": _within(lambda x: 35 * (1 - x**2) ** 3 / 32),
    "Tricube": _within(lambda x: 70 * (1 - x.abs() ** 3) ** 3 / 81),
    "Gaussian": lambda x: torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi),
    "Cosine": _within(lambda x: math.pi * torch.cos(math.pi * x / 2) / 4),
    "Logistic": lambda x: 1 / (torch.exp(x) + 2 + torch.exp(-x)),
    "Sigmoid": lambda x: 2 / (math.pi * (torch.exp(x) + torch.exp(-x))),
    "Silverman": lambda x: torch.sin(x.abs() / 2 + math.pi / 4) / 2 * torch.exp(-x.abs() / math.sqrt(2)),
}


def collocate(
    data: Tensor,
    t: Tensor,
    kernel: str = "TriangularKernel",
    bandwidth: float | None = None,
    engine: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Estimate dz/dt and z from noisy data by local polynomials, as DiffEqFlux's `collocate_data` does.

    At each time a parabola is fitted for the slope, and a line for the value, by least squares with weights that fall
    with the distance. A field fitted to the pairs (z, dz/dt) is where a fit by solutions may start from.

    Args:
        data: `(time, …)`, float32 or float64; each series along the first dimension is smoothed by itself.
        t: `(time,)`, strictly increasing.
        kernel: the weights of neighbouring times, a name of DiffEqFlux's: `"EpanechnikovKernel"`, `"UniformKernel"`,
            `"TriangularKernel"`, `"QuarticKernel"`, `"TriweightKernel"`, `"TricubeKernel"`, `"GaussianKernel"`,
            `"CosineKernel"`, `"LogisticKernel"`, `"SigmoidKernel"`, `"SilvermanKernel"`.
        bandwidth: how far the weights reach, as a part of the whole span; DiffEqFlux's rule from the number of
            times where `None`.
        engine: `"torch"`, in PyTorch, differentiable in the data; `"julia"`, by DiffEqFlux itself, the same numbers to
            rounding, not differentiable; `"auto"`, what the environment variable `PYNODE_ENGINE` names, else torch.

    Returns:
        dz/dt and z at `t`, each of the shape of `data`.

    Raises:
        EngineUnavailable: `engine="julia"`, and Julia is not there.
        InputError: an argument is not usable, or the bandwidth is too small for these times.

    Source:
        H. Liang and H. Wu, "Parameter Estimation for Differential Equation Models Using a Framework of Measurement
        Error in Regression Models", JASA 2008; E. Roesch et al., "Collocation based training of neural ordinary
        differential equations", 2021.
    """
    name = kernel.removesuffix("Kernel") if isinstance(kernel, str) else kernel
    if name not in _KERNELS:
        raise unknown_name("kernel", kernel, [f"{k}Kernel" for k in _KERNELS])
    width = 0.0 if bandwidth is None else check_number("bandwidth", bandwidth)
    if not isinstance(data, Tensor) or data.dtype not in (torch.float32, torch.float64) or data.dim() < 1:
        raise InputError("data must be a tensor (time, …) of dtype torch.float32 or torch.float64")
    times = check_times(t, data)[0].detach().cpu()
    if len(times) != len(data) or times[0] > times[-1]:
        raise InputError(
            f"t must be increasing and have one entry for each of the {len(data)} of data along its first dimension, "
            f"got {len(times)} from {times[0]:g} to {times[-1]:g}"
        )
    if not bool(torch.isfinite(data).all()):
        raise InputError("data must be finite. Drop the times at which something is missing")
    times = (times.double() - times[0].double()).to(data.dtype)  # only the differences count
    if not bool((times.diff() > 0).all()):
        raise InputError(f"t has entries that {data.dtype} does not tell apart. Convert the data to torch.float64")
    series = data.reshape(len(data), -1)
    if named_engine(engine) == "julia":
        slopes, values = _by_diffeqflux(series, times, name, width)
    else:
        slopes, values = (weights.to(data) @ series for weights in _weights(times, _KERNELS[name], width))
    return slopes.reshape(data.shape), values.reshape(data.shape)


def _weights(times: Tensor, kernel: Weights, bandwidth: float) -> tuple[Tensor, Tensor]:
    """The two matrices `(time, time)`, in double, by which slopes and values are made of the data."""
    n = len(times)
    # Rounded as in DiffEqFlux: a kernel that jumps has the same times within its reach.
    width = (
        torch.tensor(bandwidth, dtype=times.dtype, device="cpu")
        if bandwidth
        else n ** (-1 / 5 - 3 / 35) * math.log(n) ** (-1 / 16)
    )
    reach = float(width) * float(times[-1] - times[0])
    distances = (times - times[:, None]) / (times[-1] - times[0])
    w = kernel((distances if bandwidth else distances.double()) / width).double()
    x = (times.double() - times.double()[:, None]) / reach  # of order one: the systems are well conditioned
    few = (w != 0).sum(1) < 3
    if bool(few.any()):
        raise InputError(
            f"bandwidth {float(width):g} reaches fewer than three times from {float(times[few][0]):g} after the first: "
            "choose a higher bandwidth"
        )

    def coefficient(index: int, degree: int) -> Tensor:
        powers = torch.stack([x**k for k in range(degree + 1)], dim=1)  # (time, degree + 1, time)
        weighted = powers * w[:, None]
        return torch.linalg.solve(weighted @ powers.mT, weighted)[:, index]

    return coefficient(1, 2) / reach, coefficient(0, 1)


def _by_diffeqflux(series: Tensor, times: Tensor, kernel: str, bandwidth: float) -> tuple[Tensor, Tensor]:
    """Slopes and values of `(time, n)`, from Julia."""
    data = series.detach().cpu().contiguous()
    du, u = torch.empty_like(data), torch.empty_like(data)
    sizes = (int(data.dtype == torch.float64), data.shape[1], len(data))
    call = array("q", [*sizes, *(x.data_ptr() for x in (times, data, du, u))])
    try:
        with reporting() as julia:
            julia.collocate(call.buffer_info()[0], kernel, bandwidth)
    except FieldError as error:
        raise InputError(str(error)) from None
    return du.to(series.device), u.to(series.device)
