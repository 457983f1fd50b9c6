"""What a callable's latest solve was asked for, so that the next one may repeat it."""

from __future__ import annotations

import functools
import os
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.field._derived import made_of
from pynode.field._memory import memory_of
from pynode.field._outside import is_eager
from pynode.problem.asked import Asked
from pynode.problem.inputs import DTYPES, as_times, check_times
from pynode.repeated import Repeated
from pynode.sensitivity import Sensitivity
from pynode.solution import Solution
from pynode.torch_state import leaves_thread_state

__all__ = ["Recent", "as_tensor"]

_PLAIN = (str, float, int, type(None), Sensitivity)  # of which two that are equal ask for the same
_NUMBERS = {float, int}


def as_tensor(t: Any, z0: Any) -> Any:
    """Times in a list of numbers, or an array, as the tensor that `solve` takes them for; any others as they are."""
    kind = type(t)
    plain = type(z0) is Tensor and z0.is_cpu and z0.dtype in DTYPES
    if kind is Tensor or not plain or not is_eager():
        return t
    if kind is np.ndarray:
        return as_times("t", t, z0)
    if kind not in (list, tuple) or not set(map(type, t)) <= _NUMBERS:
        return t
    try:
        numbers = array("d", t)
    except OverflowError:
        return t
    return _tensor_of(numbers.tobytes(), z0.dtype).clone()


@functools.lru_cache(maxsize=64)
def _tensor_of(numbers: bytes, dtype: torch.dtype) -> Tensor:
    """The times of these float64 numbers beside a state of this dtype; nobody writes to it."""
    with torch.inference_mode(False):
        return as_times("t", array("d", numbers).tolist(), torch.empty(0, dtype=dtype, device="cpu"))


class Recent:
    """What a solve of a module, or of a field made of it, was asked for: states at some times, by plain keywords.

    It stays what it is when the next solve asks for something else, since another thread may be about to go by it.

    Args:
        keywords: those of `solve`.
        kinds: their types.
        engine: what `PYNODE_ENGINE` said.
        t: the times.
        repeated: what solves the like once more, by whether gradients are enabled.

    Raises:
        InputError: the times are not usable.
    """

    @leaves_thread_state
    def __init__(
        self, keywords: list[Any], kinds: list[type], engine: str | None, t: Tensor, repeated: dict[bool, Repeated]
    ) -> None:
        self.keywords, self.kinds, self.engine, self.repeated = keywords, kinds, engine, repeated
        with torch.inference_mode(False):  # or another solve could not be differentiated
            self.t, self.numbers = check_times(t.detach().clone(), t)
            self.times = self.t.double()

    @staticmethod
    def of(field: Callable[..., Any], t: Any, asked: Asked) -> Recent | None:
        """What this solve is asked for, if the one before was asked for the like; else it is kept for the next.

        Raises:
            InputError: the times are not usable.
        """
        if type(t) is not Tensor or t.dim() != 1 or t.requires_grad or not t.is_cpu or not is_eager():
            return None
        if not asked.is_plain or made_of(field) is None:
            return None
        memory, keywords = memory_of(field), list(vars(asked).values())
        found: Recent | None = memory.recent
        if found is not None and found._asks_for(keywords) and found._is_like(t):
            if not torch.equal(t, found.t):
                memory.recent = found = Recent(found.keywords, found.kinds, found.engine, t, found.repeated)
            return found
        plain = all([x == () if type(x) is tuple else isinstance(x, _PLAIN) for x in keywords])
        kinds, engine = list(map(type, keywords)), os.environ.get("PYNODE_ENGINE")
        memory.recent = Recent(keywords, kinds, engine, t, {}) if plain else None
        return None

    def _asks_for(self, keywords: list[Any]) -> bool:
        same = list(map(type, keywords)) == self.kinds and keywords == self.keywords
        return same and os.environ.get("PYNODE_ENGINE") == self.engine

    def _is_like(self, t: Tensor) -> bool:
        return t.dtype is self.t.dtype and t.shape == self.t.shape

    def solve(self, field: Callable[..., Any], z0: Any, t: Any, args: Sequence[Tensor]) -> Solution | None:
        """The solution, if there is what solves the like; else `None`."""
        repeated = self.repeated.get(torch.is_grad_enabled())
        return None if repeated is None else repeated.solve(field, z0, args, t, self.times, self.numbers)
