"""Randomness, which has no place in a vector field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pynode.errors import TraceError
from pynode.field._lines import calling_line

__all__ = ["NoRandomness", "draws_random_numbers", "randomness_refused"]


def draws_random_numbers(operation: object) -> bool:
    """Whether an operation's result depends on a random number generator."""
    return isinstance(operation, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in operation.tags


def randomness_refused(operation: object, where: str = "") -> TraceError:
    """The error for a field that draws random numbers."""
    return TraceError(
        f"the field draws random numbers ({operation}){where}: a vector field is a function of t and z. "
        "Call field.eval() for dropout, or draw the noise once and pass it in args"
    )


class NoRandomness(TorchDispatchMode):
    """Within this context, drawing random numbers is a `TraceError`: no solver could control the error.

    Args:
        file: the file that calls what runs in the context.
    """

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = file

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not draws_random_numbers(func):
            return func(*args, **(kwargs or {}))
        before = _generators()  # many operations only draw in training, or with a probability above zero
        result = func(*args, **(kwargs or {}))
        if (kwargs or {}).get("generator") is not None or not all(map(torch.equal, before, _generators())):
            raise randomness_refused(func, calling_line(self.file))
        return result


def _generators() -> list[torch.Tensor]:
    """The states of torch's default generators."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ())]
