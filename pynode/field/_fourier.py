"""Discrete Fourier transforms of real and imaginary parts: sums with the cosines, and with the sines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from pynode.errors import TraceError

__all__ = ["of_complex", "of_real", "to_real"]

Parts = tuple[Tensor, Tensor]


@torch.library.custom_op("pynode::fourier", mutates_args=())
def fourier(x: Tensor, points: int, n: int) -> Tensor:
    """The sums of x_j cos(2π j k / points) for k from 0 to n - 1, then those with the sines, along the last dimension.

    Args:
        x: `(…, m)`, real, with m no more than `points`.
        points: of the whole transform.
        n: how many frequencies, no more than `points`.

    Returns:
        `(…, 2 n)`.
    """
    half = torch.fft.rfft(x, n=points)
    if n > half.shape[-1]:
        beyond = half[..., 1 : points - half.shape[-1] + 1].flip(-1)
        half = torch.cat([half, beyond.conj()], -1)
    return torch.cat([half.real[..., :n], -half.imag[..., :n]], -1)


@torch.library.custom_op("pynode::fourier_sum", mutates_args=())
def fourier_sum(re: Tensor, im: Tensor, points: int, n: int) -> Tensor:
    """The sums over k of re_k cos(2π j k / points) - im_k sin(2π j k / points) for j from 0 to n - 1: (…, n).

    Args:
        re: `(…, m)`, real, with m no more than `points`.
        im: the same for the sines.
        points: of the whole transform.
        n: how many sums, no more than `points`.
    """
    return torch.fft.ifft(torch.complex(re, im), n=points, norm="forward").real[..., :n].contiguous()


@fourier.register_fake
def _(x: Tensor, points: int, n: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], 2 * n))


@fourier_sum.register_fake
def _(re: Tensor, im: Tensor, points: int, n: int) -> Tensor:
    return re.new_empty((*re.shape[:-1], n))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *_, ctx.points, ctx.n = inputs
    ctx.m = x.shape[-1]


def _pull_back(ctx: Any, v: Tensor) -> tuple[Any, ...]:
    cos, sin = v[..., : ctx.n], v[..., ctx.n :]
    return torch.ops.pynode.fourier_sum(cos, -sin, ctx.points, ctx.m), None, None


def _pull_back_sum(ctx: Any, v: Tensor) -> tuple[Any, ...]:
    parts = torch.ops.pynode.fourier(v, ctx.points, ctx.m)
    return parts[..., : ctx.m], -parts[..., ctx.m :], None, None


def _mapped(info: Any, dims: Any, x: Tensor, points: int, n: int) -> tuple[Tensor, int]:
    return torch.ops.pynode.fourier(x.movedim(dims[0], 0), points, n), 0


def _mapped_sum(info: Any, dims: Any, re: Tensor, im: Tensor, points: int, n: int) -> tuple[Tensor, int]:
    size = info.batch_size
    parts = [x.expand(size, *x.shape) if d is None else x.movedim(d, 0) for x, d in zip((re, im), dims, strict=False)]
    return torch.ops.pynode.fourier_sum(*parts, points, n), 0


fourier.register_autograd(_pull_back, setup_context=_keep)
fourier_sum.register_autograd(_pull_back_sum, setup_context=_keep)
fourier.register_vmap(_mapped)
fourier_sum.register_vmap(_mapped_sum)


def of_real(x: Tensor, dims: Sequence[int], normalization: int, onesided: bool) -> Parts:
    """ATen's `_fft_r2c`: of real numbers, over the last of `dims` first; the half of its frequencies if `onesided`."""
    *others, last = (d % x.dim() for d in dims)
    n = _points(x.shape[last])
    k = n // 2 + 1 if onesided else n
    cos, sin = _along(x, last, n, k)
    # Where the sines vanish, at the frequency zero, the imaginary part is 0 and not -0, whose angle would be -π for π.
    found = _full((cos, 0.0 - sin), others, True)
    return _scaled(found, normalization, [n, *(_points(x.shape[d]) for d in others)])


def of_complex(x: Parts, dims: Sequence[int], normalization: int, forward: bool) -> Parts:
    """ATen's `_fft_c2c`: of complex numbers."""
    dims = [d % x[0].dim() for d in dims]
    return _scaled(_full(x, dims, forward), normalization, [_points(x[0].shape[d]) for d in dims])


def to_real(x: Parts, dims: Sequence[int], normalization: int, n: int) -> Tensor:
    """ATen's `_fft_c2r`: the `n` real numbers along the last of `dims` that have these frequencies, one half of all."""
    *others, last = (d % x[0].dim() for d in dims)
    re, im = (part.narrow(last, 0, n // 2 + 1) for part in _full(x, others, False))
    with _disable_current_modes():
        # The frequencies that are left out count with those that are there.
        twice = torch.full((n // 2 + 1,), 2.0, dtype=re.dtype, device="cpu")
        twice[0] = 1.0
        if n % 2 == 0:
            twice[-1] = 1.0
        twice = twice.reshape(-1, *(1 for _ in range(last + 1, re.dim())))
    ends = ((twice * part).transpose(last, -1) for part in (re, im))
    out: Tensor = torch.ops.pynode.fourier_sum(*ends, _points(n), n).transpose(last, -1)
    return _scaled((out, out), normalization, [n, *(_points(re.shape[d]) for d in others)])[0]


def _full(x: Parts, dims: Sequence[int], forward: bool) -> Parts:
    """The transform over each of the dimensions, of as many frequencies as points."""
    re, im = x
    for d in dims:
        n = _points(re.shape[d])
        (re_cos, re_sin), (im_cos, im_sin) = _along(re, d, n, n), _along(im, d, n, n)
        re, im = (re_cos + im_sin, im_cos - re_sin) if forward else (re_cos - im_sin, im_cos + re_sin)
    return re, im


def _scaled(x: Parts, normalization: int, sizes: Sequence[int]) -> Parts:
    """Times nothing (0), one over the root of the number of points (1), or one over it (2)."""
    if normalization == 0:
        return x
    scale = math.prod(sizes) ** (-0.5 if normalization == 1 else -1.0)
    return x[0] * scale, x[1] * scale


def _points(n: object) -> int:
    if not isinstance(n, int):
        raise TraceError(
            "the field takes a Fourier transform over the batch: transform along the features of a sample, or use "
            'engine="torch"'
        )
    return n


def _along(x: Tensor, d: int, points: int, n: int) -> Parts:
    """The sums with the cosines and with the sines along one of the dimensions."""
    found: Tensor = torch.ops.pynode.fourier(x.transpose(d, -1), points, n)
    return found[..., :n].transpose(d, -1), found[..., n:].transpose(d, -1)
