"""Discrete Fourier transforms of real and imaginary parts: products with the matrices of cosines and sines."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from pynode.errors import TraceError

__all__ = ["of_complex", "of_real", "to_real"]

Parts = tuple[Tensor, Tensor]
_MOST_POINTS = 2048


def of_real(x: Tensor, dims: Sequence[int], normalization: int, onesided: bool) -> Parts:
    """ATen's `_fft_r2c`: of real numbers, over the last of `dims` first; the half of its frequencies if `onesided`."""
    *others, last = (d % x.dim() for d in dims)
    n = _points(x.shape[last])
    cos, sin = _waves(x, n, n // 2 + 1 if onesided else n)
    found = _full((_along(x, last, cos), -_along(x, last, sin)), others, True)
    return _scaled(found, normalization, [n, *(_points(x.shape[d]) for d in others)])


def of_complex(x: Parts, dims: Sequence[int], normalization: int, forward: bool) -> Parts:
    """ATen's `_fft_c2c`: of complex numbers."""
    dims = [d % x[0].dim() for d in dims]
    return _scaled(_full(x, dims, forward), normalization, [_points(x[0].shape[d]) for d in dims])


def to_real(x: Parts, dims: Sequence[int], normalization: int, n: int) -> Tensor:
    """ATen's `_fft_c2r`: the `n` real numbers along the last of `dims` that have these frequencies, one half of all."""
    *others, last = (d % x[0].dim() for d in dims)
    re, im = (part.narrow(last, 0, n // 2 + 1) for part in _full(x, others, False))
    cos, sin = _waves(re, _points(n), n // 2 + 1)
    with _disable_current_modes():
        # The frequencies that are left out count with those that are there.
        twice = torch.full((n // 2 + 1, 1), 2.0, dtype=cos.dtype)
        twice[0] = 1.0
        if n % 2 == 0:
            twice[-1] = 1.0
        cos, sin = ((twice * w.T).contiguous() for w in (cos, sin))
    out = _along(re, last, cos) - _along(im, last, sin)
    return _scaled((out, out), normalization, [n, *(_points(re.shape[d]) for d in others)])[0]


def _full(x: Parts, dims: Sequence[int], forward: bool) -> Parts:
    """The transform over each of the dimensions, of as many frequencies as points."""
    re, im = x
    for d in dims:
        n = _points(re.shape[d])
        cos, sin = _waves(re, n, n)
        if not forward:
            with _disable_current_modes():
                sin = -sin
        re, im = _along(re, d, cos) + _along(im, d, sin), _along(im, d, cos) - _along(re, d, sin)
    return re, im


def _scaled(x: Parts, normalization: int, sizes: Sequence[int]) -> Parts:
    """Times nothing (0), one over the root of the number of points (1), or one over it (2)."""
    if normalization == 0:
        return x
    scale = math.prod(sizes) ** (-0.5 if normalization == 1 else -1.0)
    return x[0] * scale, x[1] * scale


def _points(n: object) -> int:
    if not isinstance(n, int) or n > _MOST_POINTS:
        over = n if isinstance(n, int) else "a batch of"
        raise TraceError(
            f"the field takes a Fourier transform over {over} points, and pynode takes those of up to {_MOST_POINTS} "
            'features of a sample, as products of matrices: use engine="torch"'
        )
    return n


def _waves(like: Tensor, n: int, k: int) -> tuple[Tensor, Tensor]:
    """The cosines and sines `(n, k)` of the first `k` frequencies at `n` points."""
    with _disable_current_modes():
        turns = torch.outer(torch.arange(n), torch.arange(k)) % n  # exact, however large
        angle = turns.double() * (2 * math.pi / n)
        return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def _along(x: Tensor, d: int, matrix: Tensor) -> Tensor:
    """The product of a tensor, along one of its dimensions, with a matrix."""
    return (x.transpose(d, -1) @ matrix).transpose(d, -1)
