"""Paths through data, which a field can read: a forcing, or the observations that drive a neural CDE.

`solve(..., control=X)` passes the path to the field, `f(t, z, X, *args)`, which evaluates `X(t)` and `X.derivative(t)`.
"""

from pynode.control._control import Control
from pynode.control._cubic import CubicHermite, NaturalCubic
from pynode.control._linear import Linear, PiecewiseConstant
from pynode.control._log_signature import log_signatures

__all__ = ["Control", "CubicHermite", "Linear", "NaturalCubic", "PiecewiseConstant", "log_signatures"]
