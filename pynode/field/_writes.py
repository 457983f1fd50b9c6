"""Refuses a field that changes its inputs in place: they are the solver's, which goes on with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from pynode.errors import FieldError
from pynode.field._fingerprint import version
from pynode.field._lines import calling_line

__all__ = ["versions", "written"]


def versions(inputs: Sequence[Tensor]) -> list[int]:
    """The `version` of each input."""
    return list(map(version, inputs))


def written(
    inputs: Sequence[Tensor], before: Sequence[int], named: Sequence[str], again: Callable[[Any], Any] | None = None
) -> FieldError:
    """The refusal of a field that has written to one of its inputs, with its line where that is known.

    Args:
        inputs: what it was given.
        before: their `versions` then, which have changed since.
        named: how the user calls them.
        again: evaluates the field once more on inputs like these, within a context for them, to find the line.
    """
    where = ""
    if again is not None:
        mode = _Writing()
        again(mode)
        where = mode.where
    name = next(n for n, x, v in zip(named, inputs, before, strict=True) if version(x) != v)
    return FieldError(
        f"the field changes its input {name} in place{where}, with which the solver goes on: compute a new tensor, "
        "z + 1 for z.add_(1), nn.ReLU() for nn.ReLU(inplace=True)"
    )


class _Writing(TorchFunctionMode):
    """Finds the user's line that is the first to write to one of some tensors.

    Attributes:
        inputs: the tensors, as soon as they are there.
        where: the line, as ` at file:line: text`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inputs: Sequence[Tensor] = ()
        self.where = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = versions(self.inputs)
        out = func(*args, **(kwargs or {}))
        if not self.where and versions(self.inputs) != before:
            self.where = calling_line(__file__)
        return out
