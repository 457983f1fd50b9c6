"""Bases of functions of depth, in which depth-variant parameters are expanded."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pynode.errors import InputError
from pynode.numeric import real_number

__all__ = ["Basis", "Chebyshev", "Fourier", "GaussianRBF", "Legendre", "PiecewiseLinear", "bind_bases"]


class Basis(nn.Module):
    """n functions φ₁ … φₙ of depth on an interval; the base class of all bases.

    Args:
        n: number of functions.
        interval: where the functions are spread. `None`: over the depth interval of the model that the basis
            is given to, and over (0, 1) as long as it is given to none.

    Raises:
        InputError: `n` is not an integer of at least 1, or `interval` is not two different finite numbers.
    """

    index: Tensor

    def __init__(self, n: int, interval: tuple[float, float] | None = None) -> None:
        super().__init__()
        if not isinstance(n, int) or n < 1:
            raise InputError(f"n, the number of basis functions, must be an integer of at least 1, got {n!r}")
        self.n = n
        self.interval = (0.0, 1.0) if interval is None else _ordered(interval)
        self.fixed = interval is not None
        self.bound = False
        # 0 … n - 1: whole numbers, which are exact in every precision.
        self.register_buffer("index", torch.arange(n).to(torch.get_default_dtype()), persistent=False)

    def bind(self, t: tuple[float, float]) -> None:
        """Spread the functions over the depth interval of a model, unless they have an interval of their own.

        Raises:
            InputError: the basis belongs to a model with another depth interval.
        """
        if self.fixed:
            return
        wanted = _ordered(t)
        if self.bound and self.interval != wanted:
            raise InputError(
                f"this {type(self).__name__} basis belongs to a model with the depth interval {self.interval}, and "
                f"now comes to one with {wanted}. Make one basis for each, or name its interval=(…, …)"
            )
        self.interval, self.bound = wanted, True

    def position(self, t: Tensor) -> Tensor:
        """Where the depths `t` lie in the interval, from 0 to 1: `(*t.shape, 1)`."""
        first, last = self.interval
        return ((t - first) / (last - first)).unsqueeze(-1)

    def forward(self, t: Tensor) -> Tensor:
        """The functions at the depths `t`: `(*t.shape, n)`."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.n}, interval={self.interval}"


class Fourier(Basis):
    """1, cos 2πu, sin 2πu, cos 4πu, sin 4πu, …, with u from 0 to 1 over the interval, which is the period.

    Args:
        n: number of functions.
        interval: see `Basis`.
    """

    harmonic: Tensor
    quarter: Tensor

    def __init__(self, n: int, interval: tuple[float, float] | None = None) -> None:
        super().__init__(n, interval)
        harmonic = torch.ceil(self.index / 2)
        self.register_buffer("harmonic", harmonic, persistent=False)
        self.register_buffer("quarter", ((self.index % 2 == 0) & (harmonic > 0)).to(harmonic), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """The functions at the depths `t`: `(*t.shape, n)`."""
        angle = 2 * math.pi * self.position(t) * self.harmonic.to(t)
        return torch.cos(angle - 0.5 * math.pi * self.quarter.to(t))  # a quarter of a period later: the sines


class _Polynomials(Basis):
    """Polynomials by their three-term recurrence on [-1, 1]."""

    def forward(self, t: Tensor) -> Tensor:
        """The functions at the depths `t`: `(*t.shape, n)`."""
        x = 2 * self.position(t) - 1
        values = [torch.ones_like(x), x]
        for k in range(1, self.n - 1):
            a, b = self._recurrence(k)
            values.append(a * x * values[k] - b * values[k - 1])
        return torch.cat(values[: self.n], dim=-1)

    def _recurrence(self, k: int) -> tuple[float, float]:
        """A and b of p_{k+1} = a x p_k - b p_{k-1}."""
        raise NotImplementedError


class Chebyshev(_Polynomials):
    """The Chebyshev polynomials T₀ … Tₙ₋₁, with the interval mapped to [-1, 1].

    Args:
        n: number of functions.
        interval: see `Basis`.
    """

    def _recurrence(self, k: int) -> tuple[float, float]:
        return 2.0, 1.0


class Legendre(_Polynomials):
    """The Legendre polynomials P₀ … Pₙ₋₁, with the interval mapped to [-1, 1].

    Args:
        n: number of functions.
        interval: see `Basis`.
    """

    def _recurrence(self, k: int) -> tuple[float, float]:
        return (2 * k + 1) / (k + 1), k / (k + 1)


class PiecewiseLinear(Basis):
    """Hat functions at n equally spaced knots, the ends included: coefficients are values at the knots.

    Beyond the interval the value at its end goes on.

    Args:
        n: number of functions; one is the constant.
        interval: see `Basis`.
    """

    def forward(self, t: Tensor) -> Tensor:
        """The functions at the depths `t`: `(*t.shape, n)`."""
        place = self.position(t).clamp(0.0, 1.0) * (self.n - 1)
        return torch.relu(1 - torch.abs(place - self.index.to(t)))


class GaussianRBF(Basis):
    """Gaussian bells at n equally spaced centres, the ends included.

    Args:
        n: number of functions; the centre of a single one is the middle.
        interval: see `Basis`.
        width: standard deviation of a bell in distances between centres (in intervals for a single one).
    """

    def __init__(self, n: int, interval: tuple[float, float] | None = None, *, width: float = 1.0) -> None:
        super().__init__(n, interval)
        if not 0 < width < math.inf:
            raise InputError(f"width of GaussianRBF must be positive and finite, got {width!r}")
        self.width = width

    def forward(self, t: Tensor) -> Tensor:
        """The functions at the depths `t`: `(*t.shape, n)`."""
        u = self.position(t)
        distance = u * (self.n - 1) - self.index.to(t) if self.n > 1 else u - 0.5
        return torch.exp(-0.5 * (distance / self.width) ** 2)


def bind_bases(field: Any, t: tuple[float, float]) -> None:
    """Spread every basis in a field over the depth interval of its model.

    Raises:
        InputError: a basis belongs to a model with another depth interval.
    """
    for module in field.modules() if isinstance(field, nn.Module) else ():
        if isinstance(module, Basis):
            module.bind(t)


def _ordered(interval: tuple[float, float]) -> tuple[float, float]:
    try:
        first, last = sorted(map(real_number, interval))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(f"interval must be two numbers, got {interval!r}") from None
    if not (math.isfinite(first) and math.isfinite(last)) or first == last:
        raise InputError(f"interval must be two different finite numbers, got {interval!r}")
    return first, last
