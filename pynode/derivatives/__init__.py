"""Derivatives of a solve, of every kind that PyTorch has: one node of its graphs, and what follows it."""

from pynode.derivatives.dense import Again as Again
from pynode.derivatives.functions import differentiable as differentiable
from pynode.derivatives.run import Failed as Failed
from pynode.derivatives.run import Run as Run
