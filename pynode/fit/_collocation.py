"""Slopes estimated from data: what a field can be fitted to without solving anything."""

from __future__ import annotations

from array import array

import torch
from torch import Tensor

from pynode.engine.julia.function import reporting
from pynode.errors import FieldError, InputError, unknown_name
from pynode.problem.inputs import check_number, check_times

__all__ = ["collocate"]

_KERNELS = (
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
)


def collocate(
    data: Tensor, t: Tensor, kernel: str = "TriangularKernel", bandwidth: float | None = None
) -> tuple[Tensor, Tensor]:
    """Estimate dz/dt and z from noisy data by local polynomials, with DiffEqFlux's `collocate_data`.

    A field fitted to the pairs (z, dz/dt) is where a fit by solutions may start from. Not differentiable.

    Args:
        data: `(time, …)`, float32 or float64; each series along the first dimension is smoothed by itself.
        t: `(time,)`, strictly increasing.
        kernel: the weights of neighbouring times, a name of DiffEqFlux's: `"EpanechnikovKernel"`, `"UniformKernel"`,
            `"TriangularKernel"`, `"QuarticKernel"`, `"TriweightKernel"`, `"TricubeKernel"`, `"GaussianKernel"`,
            `"CosineKernel"`, `"LogisticKernel"`, `"SigmoidKernel"`, `"SilvermanKernel"`.
        bandwidth: how far the weights reach, as a part of the whole span; DiffEqFlux's rule from the number of
            times where `None`.

    Returns:
        dz/dt and z at `t`, each of the shape of `data`.

    Raises:
        EngineUnavailable: Julia is not there.
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
    series = data.detach().cpu().reshape(len(data), -1).contiguous()
    du, u = torch.empty_like(series), torch.empty_like(series)
    sizes = (int(data.dtype == torch.float64), series.shape[1], len(series))
    call = array("q", [*sizes, *(x.data_ptr() for x in (times, series, du, u))])
    try:
        with reporting() as julia:
            julia.collocate(call.buffer_info()[0], name, width)
    except FieldError as error:
        raise InputError(str(error)) from None
    return du.reshape(data.shape).to(data.device), u.reshape(data.shape).to(data.device)
