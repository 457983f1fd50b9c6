"""What the results of a problem are held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

__all__ = ["Reference"]


@dataclass(frozen=True, eq=False)
class Reference:
    """The right states and the right gradient of a problem, in double precision.

    Attributes:
        z: the states at the problem's times, `(time, *z0.shape)`.
        gradient: that of the problem's loss, by the names of the field's parameters and `"z0"`.
        loss: the loss of these states.
        agreement: how far two independent ways to the states are apart: the relative root mean square of the
            difference.
        gradient_agreement: the same of the gradient, all of it as one vector.
        how: how it was made, for the report.
    """

    z: np.ndarray
    gradient: Mapping[str, np.ndarray]
    loss: float
    agreement: float
    gradient_agreement: float
    how: str
