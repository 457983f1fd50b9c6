"""How a problem crosses to Julia: sizes and addresses in one array of integers, numbers in one of floats.

Julia reads and writes the tensors' memory in place; the layouts are those of `julia/src/bridge/bridge.jl`.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Sequence

from torch import Tensor

from pynode.engine.julia import signals
from pynode.engine.julia.runtime import evaluate, module
from pynode.engine.protocol import Retcode
from pynode.errors import FieldError, PyNODEError, SolveError

__all__ = ["RETCODES", "Entries", "Floats", "Layout", "address_of", "addresses", "integers"]

# In the order of PyNODE.jl's `Outcome`.
RETCODES = (
    Retcode.SUCCESS,
    Retcode.MAX_STEPS,
    Retcode.STEP_UNDERFLOW,
    Retcode.NON_FINITE,
    Retcode.FAILURE,
    Retcode.OFF_TRAJECTORY,
)

# Their numbers of integers, in the order of PyNODE.jl's `write_entry_points`.
_ENTRIES = {
    "forward": 3,
    "pullback": 4,
    "interpolate": 3,
    "release": 1,
    "tangent": 3,
    "forward_each": 3,
    "pullback_each": 3,
    "find_event": 3,
    "find_event_each": 3,
    "train": 3,
}


class Entries:
    """PyNODE.jl's entry points as C functions: a call costs a microsecond and releases Python's lock. Julia runs."""

    def __init__(self) -> None:
        addresses = array("q", [0] * len(_ENTRIES))
        evaluate(f"PyNODE.write_entry_points({addresses.buffer_info()[0]})")
        found = {name: self.function(x, n) for (name, n), x in zip(_ENTRIES.items(), addresses, strict=True)}
        self.forward, self.pullback, self.tangent = found["forward"], found["pullback"], found["tangent"]
        self.forward_each, self.pullback_each = found["forward_each"], found["pullback_each"]
        self.find_event, self.find_event_each = found["find_event"], found["find_event_each"]
        self.interpolate, self.release = found["interpolate"], found["release"]
        self.train = found["train"]

    def function(self, address: int, n: int) -> Callable[..., int]:
        """The C function of `n` integers at an address, which raises what went wrong in it."""
        function = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * n)(address)

        def call(*arguments: int) -> int:
            result: int = function(*arguments)
            if result >= 0:
                return result
            if result == -4:
                signals.raise_exception()
            if result == -2:  # the user's Julia code, with a message for the user
                raise FieldError(evaluate("PyNODE.last_error()"))
            if result == -3:  # a solve of a gradient's or an interpolation's
                what, outcome, reached = module().last_failure()
                retcode = RETCODES[int(outcome)]
                raise SolveError(f"{what} stopped at t={float(reached):.6g}: {retcode.value}", retcode)
            raise PyNODEError(f"Julia failed: {evaluate('PyNODE.last_error()')}")

        return call


class Floats:
    """A few floats that Julia reads and writes."""

    def __init__(self, *values: float) -> None:
        self.values = array("d", values + (0.0,) * (8 - len(values)))
        self.address, _ = self.values.buffer_info()


class Layout:
    """An array of integers for Julia as it is at each of several calls, but for the addresses in it.

    Args:
        values: what is in it, with `None` in the place of each address.
    """

    def __init__(self, values: Sequence[int | None]) -> None:
        self.array = array("q", [x or 0 for x in values])
        self.places = [i for i, x in enumerate(values) if x is None]

    def at(self, addresses: Sequence[int]) -> tuple[array[int], int, int]:
        """The array for these addresses, as `integers` gives it."""
        data = self.array[:]
        for i, x in zip(self.places, addresses, strict=True):
            data[i] = x
        address, length = data.buffer_info()
        return data, address, length


def integers(values: Sequence[int]) -> tuple[array[int], int, int]:
    """An array of integers with its address and length; it must outlive the call."""
    data = array("q", values)
    address, length = data.buffer_info()
    return data, address, length


def address_of(x: Tensor | None) -> int:
    """Where a tensor lies; 0 for none."""
    return 0 if x is None else x.data_ptr()


def addresses(tensors: Sequence[Tensor]) -> list[int]:
    """Number of tensors, then the size and address of each. The tensors must be contiguous and outlive the call."""
    out = [len(tensors)]
    for x in tensors:
        out += (x.numel(), x.data_ptr())
    return out
