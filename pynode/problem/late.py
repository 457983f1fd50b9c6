"""Solves of fields that turn out to read what was no input of the solve."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pynode.field._substitution import LateRead

__all__ = ["once_known"]

T = TypeVar("T")

_ATTEMPTS = 100  # tensors that may be met one after the other in the course of a solve


def once_known(solve: Callable[[], T]) -> T:
    """What this returns once all that the field reads is known to be an input."""
    attempts = 0
    while True:
        try:
            return solve()
        except LateRead:
            attempts += 1
            if attempts == _ATTEMPTS:
                raise
            # It is known now, and an input from the start.
