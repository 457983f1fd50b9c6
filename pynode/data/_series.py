"""Time series: spirals that are observed irregularly, and the pelts of the Hudson's Bay Company."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from pynode.errors import InputError

__all__ = ["lynx_hare", "spirals"]

_WINDOW, _PATH = 100, 200  # times that may be observed, and times of the path, which goes on
_SPAN = 1.2 * math.pi  # radians of a path
_START = (0.6 * math.pi, 4.2 * math.pi)
_END = 6 * math.pi  # of both curves


def spirals(
    n: int = 1000,
    n_obs: int = 100,
    noise: float = 0.3,
    *,
    start: tuple[float, float] = _START,
    generator: torch.Generator | None = None,
) -> TensorDataset:
    """Bi-directional spirals in the plane, each observed at irregular times with Gaussian noise.

    Half of the paths, by chance, follow the clockwise spiral r = 15 / (6π + 1 - φ) around (-5, 0), the others the
    counter-clockwise r = 0.3 φ around (5, 0); each starts at an angle of its own, and its time is the angle passed
    since. A path has 200 equally spaced times from 0 to 1.2 π. Observed are `n_obs` of the first 100, drawn without
    replacement for each path, so that the second half is there to extrapolate to.

    Args:
        n: number of paths.
        n_obs: number of observations of each path, at most 100.
        noise: standard deviation of the observations.
        start: the angles between which paths start, within [0, 4.8 π]. Observed is then what lies up to 0.6 π beyond
            the latter, and the path of a start in the last 0.6 π goes on where nothing was observed.
        generator: seeds paths, times and noise; torch's default generator where `None`.

    Returns:
        Observations `(n, n_obs, 2)`, their times `(n, n_obs)`, increasing; the paths without noise `(n, 200, 2)`
        and their times `(n, 200)`; float32.

    Raises:
        InputError: there is no path, `n_obs` is not between 1 and 100, the noise is negative, or paths would start
            outside of the curves.

    Source:
        R. T. Q. Chen, Y. Rubanova, J. Bettencourt, D. Duvenaud, "Neural Ordinary Differential Equations",
        NeurIPS 2018, section 5.1.
    """
    if n < 1:
        raise InputError(f"n must be at least 1, got {n!r}")
    if not 1 <= n_obs <= _WINDOW:
        raise InputError(f"n_obs must be between 1 and {_WINDOW}, the times that may be observed, got {n_obs!r}")
    if not 0 <= noise < math.inf:
        raise InputError(f"noise must be a standard deviation, finite and at least 0, got {noise!r}")
    low, high = start
    if not 0 <= low <= high <= _END - _SPAN:
        raise InputError(f"start must be two increasing angles between 0 and 4.8 π = {_END - _SPAN:.2f}, got {start!r}")
    grid = torch.linspace(0, _SPAN, _PATH, dtype=torch.float64)
    angle = low + (high - low) * torch.rand(n, 1, dtype=torch.float64, generator=generator) + grid
    clockwise = _around(-5.0, 15 / (_END + 1 - angle), _END + 1 - angle)
    counter = _around(5.0, 0.3 * angle, angle)
    path = torch.where(torch.rand(n, 1, 1, generator=generator) < 0.5, clockwise, counter)
    chosen = torch.rand(n, _WINDOW, generator=generator).argsort(1)[:, :n_obs].sort(1).values
    x = path.gather(1, chosen.unsqueeze(2).expand(-1, -1, 2))
    x = x + noise * torch.randn(x.shape, dtype=x.dtype, generator=generator)
    times = grid.float().expand(n, -1)
    return TensorDataset(x.float(), times.gather(1, chosen), path.float(), times)


def _around(centre: float, radius: Tensor, angle: Tensor) -> Tensor:
    return torch.stack([centre + radius * angle.cos(), radius * angle.sin()], dim=-1)


# Pelts of hare and lynx, in thousands, from 1900 on.
_PELTS = (
    (30.0, 4.0),
    (47.2, 6.1),
    (70.2, 9.8),
    (77.4, 35.2),
    (36.3, 59.4),
    (20.6, 41.7),
    (18.1, 19.0),
    (21.4, 13.0),
    (22.0, 8.3),
    (25.4, 9.1),
    (27.1, 7.4),
    (40.3, 8.0),
    (57.0, 12.3),
    (76.6, 19.5),
    (52.3, 45.7),
    (19.5, 51.1),
    (11.2, 29.7),
    (7.6, 15.8),
    (14.6, 9.7),
    (16.2, 10.1),
    (24.7, 8.6),
)


def lynx_hare() -> tuple[Tensor, Tensor]:
    """Pelts of snowshoe hare and Canada lynx that the Hudson's Bay Company collected, 1900 to 1920.

    Returns:
        The years `(21,)`, and thousands of pelts `(21, 2)`, hare and lynx, float32.

    Source:
        P. Howard, "Modeling Basics", lecture notes of Math 442, Texas A&M University, 2009, the table that is
        also the data of B. Carpenter, "Predator-Prey Population Dynamics: the Lotka-Volterra model in Stan",
        Stan case studies, 2018. The record is that of C. Elton and M. Nicholson, "The ten-year cycle in numbers
        of the lynx in Canada", Journal of Animal Ecology 11, 1942.
    """
    pelts = torch.tensor(_PELTS)
    return torch.arange(1900.0, 1900.0 + len(pelts)), pelts
