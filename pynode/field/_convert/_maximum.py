"""The maximum over the windows of an image."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from pynode.field._convert._call import Call, Unsupported, handles
from pynode.field._convert._image import each, rank_of
from pynode.field._graph import Dim, Number


class Windows:
    """Windows over the last dimensions of an image: one slice of it for each place in the window.

    Attributes:
        size: the sizes of these dimensions.
        padding: before each of them.
        padded: the sizes of the image with its padding.
    """

    def __init__(self, c: Call, sizes: Sequence[Dim], out: Sequence[Dim]) -> None:
        self.c = c
        known = [n for n in (*sizes, *out) if isinstance(n, int)]
        if len(known) != 2 * len(out):
            raise Unsupported("an image whose size depends on the batch size")
        self.rank = len(out)
        self.size, self.out = known[: self.rank], known[self.rank :]
        self.padding = [0] * self.rank
        self.padded = self.size

    def places(self, d: int) -> list[Any]:
        """For each place in the window along a dimension: the entries, their positions, and which of them count."""
        raise NotImplementedError

    def take_along(self, i: int, d: int, entries: Any, shape: Sequence[Dim]) -> int:
        """Entries of a node along a dimension."""
        raise NotImplementedError

    def place_along(self, i: int, d: int, entries: Any, shape: Sequence[Dim]) -> int:
        """Zeros of a shape to which a node is added at entries along a dimension."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[tuple[list[Any], int, int]]:
        """Each place in the window: its entries, the positions that they have in the image, and those that count.

        Positions are numbers, and -1 where an entry has been met at a place before.
        """
        for place in itertools.product(*map(self.places, range(self.rank))):
            flat = [0.0]
            first = [True]
            for (_, positions, counted), n in zip(place, self.size, strict=True):
                flat = [k * n + p for k in flat for p in positions]
                first = [a and b for a in first for b in counted]
            once = flat if all(first) else [k if a else -1.0 for k, a in zip(flat, first, strict=True)]
            const = self.c.b.const
            yield [e for e, _, _ in place], const(flat, self.out, "float"), const(once, self.out, "float")

    def pad(self, i: int) -> int:
        """The image with minus infinity around it."""
        b = self.c.b
        if self.padded == self.size:
            return i
        out = i
        for k, (p, n, m) in enumerate(zip(self.padding, self.size, self.padded, strict=True)):
            shape = list(b.shape(out))
            d = len(shape) - self.rank + k
            shape[d] = m
            out = b.embed(out, d, p, p + n, 1, shape)
        inside = [
            [p <= k < p + n for k in range(m)] for p, n, m in zip(self.padding, self.size, self.padded, strict=True)
        ]
        mask = b.const([all(x) for x in itertools.product(*inside)], self.padded, "bool")
        return b.pointwise("where", [mask, out, Number(-math.inf)], b.shape(out))

    def unpad(self, i: int) -> int:
        """The image without its padding."""
        for k, (p, n) in enumerate(zip(self.padding, self.size, strict=True)):
            shape = list(self.c.b.shape(i))
            d = len(shape) - self.rank + k
            shape[d] = n
            i = self.c.b.slice(i, d, p, p + n, 1, shape)
        return i

    def take(self, i: int, entries: Sequence[Any]) -> int:
        """The entries of an image with its padding at one place of the windows."""
        shape = list(self.c.b.shape(i))
        for k, (e, n) in enumerate(zip(entries, self.out, strict=True)):
            d = len(shape) - self.rank + k
            shape[d] = n
            i = self.take_along(i, d, e, shape)
        return i

    def place(self, i: int, entries: Sequence[Any]) -> int:
        """The transpose of `take`."""
        shape = list(self.c.b.shape(i))
        for k, (e, n) in enumerate(zip(entries, self.padded, strict=True)):
            d = len(shape) - self.rank + k
            shape[d] = n
            i = self.place_along(i, d, e, shape)
        return i


class Regular(Windows):
    """Windows of one size at equal distances, whose arguments start at `first`."""

    def __init__(self, c: Call, first: int, sizes: Sequence[Dim], out: Sequence[Dim]) -> None:
        super().__init__(c, sizes, out)
        self.kernel = each(c.args[first], self.rank)
        self.stride = each(c.arg(first + 1, "stride") or c.args[first], self.rank)
        self.padding = list(each(c.arg(first + 2, "padding", 0), self.rank))
        self.dilation = each(c.arg(first + 3, "dilation", 1), self.rank)
        # With ceil_mode the last windows reach further than the padding.
        reach = [
            (o - 1) * s + (k - 1) * d + 1
            for o, s, k, d in zip(self.out, self.stride, self.kernel, self.dilation, strict=True)
        ]
        self.padded = [max(r, n + p) for r, n, p in zip(reach, self.size, self.padding, strict=True)]

    def places(self, d: int) -> list[Any]:
        found = []
        for k in range(self.kernel[d]):
            start, step, n = k * self.dilation[d], self.stride[d], self.out[d]
            positions = [start + j * step - self.padding[d] for j in range(n)]
            found.append(((start, start + (n - 1) * step + 1, step), positions, [True] * n))
        return found

    def take_along(self, i: int, d: int, entries: Any, shape: Sequence[Dim]) -> int:
        start, stop, step = entries
        return self.c.b.slice(i, d, start, stop, step, shape)

    def place_along(self, i: int, d: int, entries: Any, shape: Sequence[Dim]) -> int:
        start, stop, step = entries
        return self.c.b.embed(i, d, start, stop, step, shape)


class Adaptive(Windows):
    """As many windows as there are results, which may overlap and differ by one in size."""

    def places(self, d: int) -> list[Any]:
        n, m = self.size[d], self.out[d]
        starts, stops = [k * n // m for k in range(m)], [-(-(k + 1) * n // m) for k in range(m)]
        found = []
        for k in range(max(b - a for a, b in zip(starts, stops, strict=True))):
            positions = tuple(min(a + k, b - 1) for a, b in zip(starts, stops, strict=True))
            found.append((positions, positions, [a + k < b for a, b in zip(starts, stops, strict=True)]))
        return found

    def take_along(self, i: int, d: int, entries: Any, shape: Sequence[Dim]) -> int:
        return self.c.b.add("index_select", [i], shape, dim=d, index=entries)

    def place_along(self, i: int, d: int, entries: Any, shape: Sequence[Dim]) -> int:
        return self.c.b.add("index_add", [i], shape, dim=d, index=entries)


def _maximum(c: Call, windows: Windows) -> list[int]:
    """The maximum over windows, and where in the image it is."""
    padded = windows.pad(c.args[0])
    slices = [(windows.take(padded, entries), positions) for entries, positions, _ in windows]
    top = slices[0][0]
    for s, _ in slices[1:]:
        top = c.b.pointwise("maximum", [top, s], c.shape)
    # The first place where the maximum is met, as torch has it.
    where = c.b.full(math.inf, c.shape)
    for s, positions in reversed(slices):
        hit = c.b.pointwise("eq", [s, top], c.shape, "bool")
        where = c.b.pointwise("where", [hit, positions, where], c.shape)
    return [top, where]


def _maximum_backward(c: Call, windows: Windows, where: int) -> int:
    grad = c.args[0]
    shape = c.b.shape(grad)
    total = None
    for entries, _, once in windows:
        hit = c.b.pointwise("eq", [where, once], shape, "bool")
        part = windows.place(c.b.pointwise("where", [hit, grad, Number(0.0)], shape), entries)
        total = part if total is None else c.b.pointwise("add", [total, part], c.b.shape(part))
    assert total is not None
    return windows.unpad(total)


@handles("max_pool2d_with_indices", "max_pool3d_with_indices")
def _max_pool(c: Call) -> list[int]:
    rank = rank_of(c)
    return _maximum(c, Regular(c, 1, c.b.shape(c.args[0])[-rank:], c.shape[-rank:]))


@handles("max_pool2d_with_indices_backward", "max_pool3d_with_indices_backward")
def _max_pool_backward(c: Call) -> int:
    rank = rank_of(c)
    return _maximum_backward(c, Regular(c, 2, c.shape[-rank:], c.b.shape(c.args[0])[-rank:]), c.args[7])


@handles("adaptive_max_pool2d", "adaptive_max_pool3d")
def _adaptive_max_pool(c: Call) -> list[int]:
    rank = rank_of(c)
    return _maximum(c, Adaptive(c, c.b.shape(c.args[0])[-rank:], c.shape[-rank:]))


@handles("adaptive_max_pool2d_backward", "adaptive_max_pool3d_backward")
def _adaptive_max_pool_backward(c: Call) -> int:
    rank = rank_of(c)
    return _maximum_backward(c, Adaptive(c, c.shape[-rank:], c.b.shape(c.args[0])[-rank:]), c.args[2])
