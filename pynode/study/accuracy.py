"""How wrong a result is: errors of states and gradients against a reference, and the drift of invariants."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.errors import StudyError
from pynode.study.problem import Problem
from pynode.study.reference import Reference

__all__ = ["NotFinite", "array", "drift", "gradient_error", "relative", "state_errors"]


class NotFinite(ArithmeticError):
    """A result has infinite entries or NaN."""


def array(x: Any) -> np.ndarray:
    """A result of any package as an array in double precision."""
    return np.asarray(x.detach().cpu().numpy() if isinstance(x, Tensor) else x, dtype=np.float64)


def relative(got: np.ndarray, right: np.ndarray) -> float:
    """The root mean square of the difference, relative to that of what is right; of zeros, as it is."""
    if not right.size:
        return 0.0
    largest = float(np.abs(right).max())
    unit = largest or 1.0  # so that no square vanishes or overflows
    with np.errstate(over="ignore"):
        off = float(np.sqrt(np.mean((got / unit - right / unit) ** 2)))
    return off / float(np.sqrt(np.mean((right / unit) ** 2))) if largest else off


def state_errors(z: np.ndarray, reference: Reference) -> tuple[float, float]:
    """The errors at the last time, and over all times but the first, whose state is given.

    Raises:
        StudyError: the states have another shape.
        NotFinite: they are not finite.
    """
    if z.shape != reference.z.shape:
        raise StudyError(f"the states must have shape (time, *z0.shape): expected {reference.z.shape}, got {z.shape}")
    if not np.isfinite(z).all():
        bad = int(np.argmax(~np.isfinite(z.reshape(len(z), -1)).all(1)))
        raise NotFinite(f"the states are not finite from the time at position {bad} on")
    return relative(z[-1], reference.z[-1]), relative(z[1:], reference.z[1:])


def gradient_error(got: Mapping[str, Any], reference: Reference) -> float:
    """The error of a gradient, all of it as one vector.

    Raises:
        StudyError: it lacks entries, or they have other shapes.
        NotFinite: it is not finite.
    """
    if set(got) != set(reference.gradient):
        raise StudyError(
            f"the gradient must have the entries {', '.join(sorted(reference.gradient))}, got "
            f"{', '.join(sorted(got)) or 'none'}"
        )
    parts = []
    for name, right in reference.gradient.items():
        part = array(got[name])
        if part.shape != np.shape(right):
            raise StudyError(f"the gradient of {name} must have shape {np.shape(right)}, got {part.shape}")
        if not np.isfinite(part).all():
            raise NotFinite(f"the gradient of {name} is not finite")
        parts.append((part.ravel(), np.ravel(right)))
    return relative(*(np.concatenate(side) for side in zip(*parts, strict=True)))


def drift(problem: Problem, z: np.ndarray) -> float | None:
    """The greatest change of an invariant over the times, relative to its first value; `None` without invariants.

    It is infinite where an invariant is not finite, as where a logarithm meets a negative number.
    """
    states, changes = torch.as_tensor(z), []
    for invariant in problem.invariants.values():
        with torch.no_grad():
            values = array(invariant(states))
        if not np.isfinite(values).all():
            return math.inf
        scale = np.abs(values[0]).max() or 1.0
        changes.append(float(np.abs(values - values[0]).max() / scale))
    return max(changes, default=None)
