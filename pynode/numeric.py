"""Numbers that a user gives, as real ones: neither an imaginary part nor a gradient is dropped without an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from numbers import Complex, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.transforms import is_followed

__all__ = ["dense", "of_array", "real_number", "real_tensor", "tensors_in"]


def real_number(value: Any) -> float:
    """A real number as a float.

    Raises:
        TypeError: it is complex, masked, a date, or no number, or a derivative with respect to it would be lost.
        ValueError: it is no number, or several.
        RuntimeError: so is a tensor.
        OverflowError: it lies beyond all floats.
    """
    if isinstance(value, Tensor):
        if is_followed(value):
            raise TypeError("a tensor that requires a gradient would get none")
        value = dense(value).item()  # of several numbers a RuntimeError
    elif isinstance(value, np.ndarray | np.generic):
        if np.ma.is_masked(value) or value.dtype.kind in "mM":
            raise TypeError("it is masked" if np.ma.is_masked(value) else "it is a date")
        value = value.item()  # of several numbers a ValueError
    if isinstance(value, Complex) and not isinstance(value, Real):
        raise TypeError("it is complex, and a real number is wanted")
    return float(value)


def dense(x: Tensor) -> Tensor:
    """The tensor.

    Raises:
        TypeError: it is sparse or nested, or has no numbers, as those on `meta`.
    """
    if x.layout is not torch.strided or x.is_nested or x.device.type == "meta":
        raise TypeError(f"a dense tensor of numbers is wanted, not one of layout {x.layout} on {x.device}")
    return x


def of_array(array: np.ndarray[Any, Any]) -> Tensor:
    """A copy of an array, whatever its strides and byte order, as a tensor of its dtype.

    Raises:
        TypeError: PyTorch has no such dtype, or numbers are masked.
    """
    if np.ma.is_masked(array):
        raise TypeError("numbers in it are masked")
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))


def real_tensor(given: Any, device: torch.device | None = None) -> Tensor:
    """Real numbers, in a tensor, an array, or nested sequences of these and of numbers, in float64.

    Tensors keep their gradients, also within sequences; what lies in an array is copied.

    Raises:
        TypeError: there are complex ones, or what is no number.
        ValueError: a sequence is not of one shape.
        RuntimeError: so are tensors in it.
        OverflowError: an int lies beyond all floats.
    """
    if hasattr(given, "__array__") and not isinstance(given, Tensor):
        given = of_array(np.asanyarray(given))
    if isinstance(given, Tensor):
        if given.is_complex():
            raise TypeError("they are complex, and real numbers are wanted")
        return dense(given).to(device, torch.float64)
    if _is_sequence(given):
        parts = list(given)
        if not all(isinstance(x, int | float) for x in parts):
            return torch.stack([real_tensor(x, device) for x in parts])
        given = parts
    elif isinstance(given, Complex) and not isinstance(given, Real):
        raise TypeError("they are complex, and real numbers are wanted")
    return torch.as_tensor(given, dtype=torch.float64, device=device)


def tensors_in(given: Any) -> Iterator[Tensor]:
    """The tensors in nested sequences."""
    if isinstance(given, Tensor):
        yield given
    elif _is_sequence(given):
        for part in given:
            yield from tensors_in(part)


def _is_sequence(given: Any) -> bool:
    """Whether it is a list, a tuple, or like one: of a length, with what is in it in an order."""
    ordered = not isinstance(given, str | bytes | bytearray | memoryview | Mapping | Set)
    return ordered and hasattr(given, "__len__") and hasattr(given, "__iter__") and not hasattr(given, "__array__")
