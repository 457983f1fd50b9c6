"""Layers that vector fields are built of."""

from pynode.nn._order import HigherOrder as HigherOrder
from pynode.nn._time import TimeConcat as TimeConcat
from pynode.nn._time import TimeSequential as TimeSequential

__all__ = ["HigherOrder", "TimeConcat", "TimeSequential"]
