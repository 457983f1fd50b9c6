"""The numbers of a study, as its file or a call gives them: no truth values and texts, of which Python makes some."""

from __future__ import annotations

from typing import Any

from pynode.errors import InputError
from pynode.problem.inputs import check_count, check_finite, check_number

__all__ = ["count", "finite", "positive", "whole"]


def count(name: str, value: Any) -> int:
    """A positive whole number.

    Raises:
        InputError: it is none.
    """
    if isinstance(value, bool):
        raise InputError(f"{name} must be a positive int, got {value!r}. Pass e.g. 10")
    return check_count(name, value)


def whole(name: str, value: Any) -> int:
    """A whole number of any sign.

    Raises:
        InputError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise InputError(f"{name} must be an int of at most 64 bits, got {value!r}. Pass e.g. 10")
    return value


def positive(name: str, value: Any) -> float:
    """A positive, finite number.

    Raises:
        InputError: it is none.
    """
    _check_kind(name, value, "a positive number")
    return check_number(name, value)


def finite(name: str, value: Any) -> float:
    """A finite number of any sign.

    Raises:
        InputError: it is none.
    """
    _check_kind(name, value, "a finite number")
    return check_finite(name, value)


def _check_kind(name: str, value: Any, expected: str) -> None:
    if isinstance(value, bool | str):
        raise InputError(f"{name} must be {expected}, got {value!r}. Pass e.g. 0.5")
