"""A path of polynomials between knots."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pynode.control._samples import Samples, check_samples
from pynode.errors import InputError
from pynode.field._tape import smooth

__all__ = ["Control", "Form"]


class Form(NamedTuple):
    """What tells paths whose tensors have one meaning.

    Attributes:
        kind: the class.
        dims: of a value: 0, a number; 1, `(channels,)`, for all samples; 2, `(batch, channels)`.
    """

    kind: type[Control]
    dims: int

    def of(self, tensors: Sequence[Tensor]) -> Control:
        """The path of these tensors, for a solve that steps to its knots."""
        made = self.kind.__new__(self.kind)
        made.form, (made.knots, made.coefficients) = self, tensors
        made.hidden = True
        return made


class Control:
    """A path through data, a polynomial between each two knots; one of its subclasses is to be used.

    It is differentiable in the values and in the times. Before its first time, and after its last, a path is constant.

    Args:
        times: `(time,)`, strictly increasing; or `(batch, time)`, those of each sample, NaN behind them where it has
            fewer. They are kept in the dtype of the values, which must hold them.
        values: `(batch, time, channels)`; or, the same for all samples and at times `(time,)`, `(time, channels)` or
            `(time,)`. float32 or float64. NaN where a channel was not observed, see the subclass. A channel that a
            sample never observes is zero.

    Attributes:
        form: see `Form`.
        knots: the times, `(1 or batch, time)`, going on behind the last of a sample that has fewer.
        times: `(n,)`, those of all samples.
        coefficients: of each piece, in powers of the time since it began, `(1 or batch, pieces, powers * channels)`.
        jumps: `(n,)`, times at which value or derivative may jump.
        hidden: whether a solve does not have to look for these.

    Raises:
        InputError: times or values are not as above.
    """

    powers: ClassVar[int]  # coefficients of a piece
    is_smooth: ClassVar[bool] = False  # whether value and derivative are continuous between a sample's ends
    goes_on: ClassVar[bool] = False  # whether there is a last piece that does not end

    form: Form
    knots: Tensor
    times: Tensor
    coefficients: Tensor
    jumps: Tensor
    hidden: bool

    def __init__(self, times: Tensor | Sequence[float], values: Tensor) -> None:
        samples = check_samples(times, values)
        powers = self._coefficients(samples)
        self.form = Form(type(self), values.dim() - 1)
        self.knots = samples.times
        self.coefficients = torch.cat(tuple(powers), -1)
        shared = len(self.knots) == 1
        self.times = self.knots[0] if shared else self.knots[samples.known]
        self.hidden = self.is_smooth and shared  # beyond whose ends there is no solve
        self.jumps = self.times
        if self.is_smooth:
            self.jumps = self.times[:0] if shared else self.knots[samples.is_end()]

    @staticmethod
    def _coefficients(samples: Samples) -> Sequence[Tensor]:
        """Those of each power, `(1 or batch, pieces, channels)` each."""
        raise NotImplementedError

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """What `Form.of` makes the path of."""
        return self.knots, self.coefficients

    @property
    def span(self) -> tuple[Tensor, Tensor]:
        """The first and the last time of any sample, 0-d; the latter is infinite where the last piece does not end."""
        # Of the samples' own: `knots` go on behind the last of a sample that has fewer.
        last = self.knots.new_tensor(torch.inf) if self.goes_on else self.times.max()
        return self.knots[:, 0].min(), last

    def __call__(self, t: Tensor) -> Tensor:
        """The value at time t.

        Args:
            t: 0-d, or `(n,)`.

        Returns:
            0-d, `(channels,)` or `(batch, channels)`, see `values`; for `(n,)` times it has a dimension of n before
            the channels.
        """
        time, powers = self._at(t)
        value = powers[-1]
        for c in reversed(powers[:-1]):
            value = c + time * value
        return self._shaped(value, t)

    def derivative(self, t: Tensor) -> Tensor:
        """The derivative in time at time t, shaped as the value; at a knot that of the piece which begins there."""
        time, powers = self._at(t)
        slope = torch.zeros_like(powers[0])
        for i in range(len(powers) - 1, 0, -1):
            slope = i * powers[i] + time * slope
        if not self.goes_on:
            with self._lookup():
                at = t.detach().reshape(1, -1)
                inside = (at >= self.knots[:, :1]) & (at <= self.knots[:, -1:])
            slope = torch.where(inside.unsqueeze(-1), slope, 0.0)
        return self._shaped(slope, t)

    def _lookup(self) -> Any:
        return smooth() if self.hidden else contextlib.nullcontext()

    def _at(self, t: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The time since the piece began, `(1 or batch, n, 1)`, and its coefficients, `(1 or batch, n, channels)`."""
        if not isinstance(t, Tensor) or t.dim() > 1:
            got = tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__
            raise InputError(f"a control is evaluated at a tensor of times, 0-d or (n,), got {got}")
        knots, pieces = self.knots, self.coefficients.shape[1]
        t = t.reshape(1, -1)
        if not self.goes_on:
            t = torch.minimum(torch.maximum(t, knots[:, :1]), knots[:, -1:])
        with self._lookup():
            inner, of = knots[:, 1:pieces].contiguous(), t.detach()
            if len(knots) == 1:
                index = torch.searchsorted(inner[0], of[0].contiguous(), right=True)
            else:
                index = torch.searchsorted(inner, of.expand(len(knots), -1).contiguous(), right=True)
        if index.dim() == 1:
            began, found = knots.index_select(1, index), self.coefficients.index_select(1, index)
        else:
            began = knots.gather(1, index)
            found = self.coefficients.gather(1, index.unsqueeze(-1).expand(-1, -1, self.coefficients.shape[-1]))
        return (t - began).unsqueeze(-1), list(found.chunk(self.powers, -1))

    def _shaped(self, x: Tensor, t: Tensor) -> Tensor:
        if self.form.dims == 0:
            x = x.squeeze(-1)
        if self.form.dims < 2:
            x = x.squeeze(0)
        n = x.dim() - (1 if self.form.dims == 0 else 2)
        return x.select(n, 0) if t.dim() == 0 else x
