"""Numbers that a user gives, as real ones: neither an imaginary part nor a gradient is dropped without an error."""

from __future__ import annotations

from numbers import Complex, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

__all__ = ["of_array", "real_number", "real_tensor"]


def real_number(value: Any) -> float:
    """A real number as a float.

    Raises:
        TypeError: it is complex, requires a gradient, or is no number.
        ValueError: it is no number, or several.
        RuntimeError: so is a tensor.
        OverflowError: it lies beyond all floats.
    """
    if isinstance(value, Tensor) and value.requires_grad:
        raise TypeError("a tensor that requires a gradient would get none")
    if isinstance(value, np.ndarray | Tensor):
        value = value.item()  # of several numbers a ValueError, or torch's RuntimeError
    if isinstance(value, Complex) and not isinstance(value, Real):
        raise TypeError("it is complex, and a real number is wanted")
    return float(value)


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
        return given.to(device, torch.float64)
    if isinstance(given, list | tuple):
        held = tree_leaves(given)
        if any(isinstance(x, np.ndarray | Tensor) for x in held):
            return torch.stack([real_tensor(x, device) for x in given])
        if any(isinstance(x, Complex) and not isinstance(x, Real) for x in held):
            raise TypeError("they are complex, and real numbers are wanted")
    return torch.as_tensor(given, dtype=torch.float64, device=device)
