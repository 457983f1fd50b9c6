"""torchdiffeq's dopri5 with a backward pass whose work grows with the number of reported times, not with its square.

torchdiffeq writes each reported state into one tensor in place; autograd then copies the cotangent of that whole tensor
once for each of them. Here the states are stacked. Steps, values and gradients are the same.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

__all__ = ["STACKED_DOPRI5"]

STACKED_DOPRI5 = "pynode_dopri5"

# The package has a function of this module's name.
_SOLVERS: dict[str, Any] = importlib.import_module("torchdiffeq._impl.odeint").SOLVERS
_Dopri5: Any = _SOLVERS["dopri5"]


class _StackedDopri5(_Dopri5):
    def integrate(self, t: Tensor) -> Tensor:
        t = t.to(self.dtype)
        self._before_integrate(t)
        return torch.stack([self.y0, *(self._advance(time) for time in t[1:])])


_SOLVERS[STACKED_DOPRI5] = _StackedDopri5
