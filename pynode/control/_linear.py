"""Paths of straight lines, and of constants."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pynode.control._control import Control
from pynode.control._samples import Samples

__all__ = ["Linear", "PiecewiseConstant"]


class Linear(Control):
    """Straight lines between the observations; a missing one is left out.

    Its derivative jumps at the knots, and so may the field: a solve ends a step at each. Where one is missing at the
    ends of a sample, the nearest is taken. See `Control` for the arguments.
    """

    powers = 2

    @staticmethod
    def _coefficients(samples: Samples) -> Sequence[Tensor]:
        values = samples.filled()
        return values[:, :-1], values.diff(dim=1) / samples.steps


class PiecewiseConstant(Control):
    """The latest observation; before the first one that.

    It jumps at the knots, and a solve starts afresh at each. The last value holds for ever. See `Control` for the
    arguments.
    """

    goes_on = True

    powers = 1

    @staticmethod
    def _coefficients(samples: Samples) -> Sequence[Tensor]:
        return (samples.carried(),)
