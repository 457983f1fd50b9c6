"""Code of pynode's own that `torch.compile` and `torch.jit.trace` are not to look into, or not to speak of."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

__all__ = ["is_recording", "outside_of_compile"]

F = TypeVar("F", bound=Callable[..., Any])


def outside_of_compile(function: F) -> F:
    """Decorator of a function into which `torch.compile` is not to look.

    `torch.jit.trace` does not warn about pynode's own code there, but still about the user's.
    """
    hidden: Callable[..., Any] | None = None

    @functools.wraps(function)
    def outer(*args: Any, **keywords: Any) -> Any:
        nonlocal hidden
        if torch.compiler.is_dynamo_compiling():
            if hidden is None:  # not before: this imports what takes as long to import as all else
                hidden = torch.compiler.disable(function)
            return hidden(*args, **keywords)
        if is_recording():
            with warnings.catch_warnings():
                own = r"(pynode|torchdiffeq)\."
                warnings.filterwarnings("ignore", category=torch.jit.TracerWarning, module=own)  # type: ignore[attr-defined]
                return function(*args, **keywords)
        return function(*args, **keywords)

    return cast(F, outer)


def is_recording() -> bool:
    """Whether `torch.jit.trace` records."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined]
