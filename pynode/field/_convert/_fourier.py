"""Discrete Fourier transforms: `pynode::fourier` and `pynode::fourier_sum`, see `pynode.field._fourier`."""

from __future__ import annotations

from pynode.field._convert._call import Call, handles


@handles("fourier")
def _fourier(c: Call) -> int:
    x, points, n = c.args
    return c.b.add("fourier", [c.b.cast(x)], [*c.b.shape(x)[:-1], 2 * n], points=points)


@handles("fourier_sum")
def _fourier_sum(c: Call) -> int:
    re, im, points, n = c.args
    return c.b.add("fourier_sum", [c.b.cast(re), c.b.cast(im)], [*c.b.shape(re)[:-1], n], points=points)
