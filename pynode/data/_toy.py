"""Small synthetic problems."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from pynode.errors import InputError

__all__ = ["cubic", "spiral"]

_SPIRAL = np.array([[-0.1, 2.0], [-2.0, -0.1]])


def cubic(n: int = 10, *, low: float = -2.0, high: float = 2.0) -> TensorDataset:
    """The 1-d regression y = x³ + 0.1 x at equally spaced points.

    Args:
        n: number of points.
        low: the first point.
        high: the last point.

    Returns:
        Inputs `(n, 1)` and targets `(n, 1)`, float32.

    Raises:
        InputError: there is no point.

    Source:
        Z. Kolter, D. Duvenaud, M. Johnson, "Deep Implicit Layers", NeurIPS 2020 tutorial, chapter 3.
    """
    if n < 1:
        raise InputError(f"n must be at least 1, got {n!r}")
    x = torch.linspace(low, high, n, dtype=torch.float64).unsqueeze(1)
    y = x**3 + 0.1 * x
    return TensorDataset(x.float(), y.float())


def spiral(
    n: int = 1000, *, t: tuple[float, float] = (0.0, 25.0), z0: Sequence[Sequence[float]] = ((2.0, 0.0),)
) -> tuple[Tensor, Tensor]:
    """Trajectories of the cubic spiral ẏ = y³ A, with A = [[-0.1, 2], [-2, -0.1]] and y a row vector.

    Solved by SciPy's eighth-order pair at tolerance 1e-10, independently of pynode's engines.

    Args:
        n: number of equally spaced times.
        t: the first and the last time.
        z0: initial values, `(batch, 2)`.

    Returns:
        Times `(n,)` and states `(n, batch, 2)`, float32.

    Raises:
        InputError: fewer than two times, or an initial value that is not a point of the plane.

    Source:
        R. T. Q. Chen, Y. Rubanova, J. Bettencourt, D. Duvenaud, "Neural Ordinary Differential Equations",
        NeurIPS 2018; the demonstration of torchdiffeq.
    """
    if n < 2:
        raise InputError(f"n must be at least 2, the first and the last time, got {n!r}")
    start = np.asarray(z0, dtype=np.float64)
    if start.ndim != 2 or start.shape[1] != 2:
        raise InputError(f"z0 must be of shape (batch, 2), got {start.shape}")
    from scipy.integrate import solve_ivp  # here, so that importing pynode stays light

    def field(_: float, flat: np.ndarray) -> np.ndarray:
        return (flat.reshape(start.shape) ** 3 @ _SPIRAL).ravel()

    times = np.linspace(*t, n)
    solution = solve_ivp(field, t, start.ravel(), method="DOP853", t_eval=times, rtol=1e-10, atol=1e-10)
    states = solution.y.T.reshape(n, *start.shape)
    return torch.as_tensor(times, dtype=torch.float32), torch.as_tensor(states, dtype=torch.float32)
