"""Refuses a field that changes its inputs in place: they are the solver's, which goes on with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from pynode.errors import FieldError
from pynode.field._lines import calling_line

__all__ = ["check_unwritten", "versions"]


def versions(inputs: Sequence[Tensor]) -> list[int]:
    """What changes with each input when that is written to; in inference mode nothing tells."""
    return [0 if x.is_inference() else x._version for x in inputs]


def check_unwritten(
    inputs: Sequence[Tensor], before: Sequence[int], named: Sequence[str], again: Callable[[Any], Any] | None = None
) -> None:
    """Refuse a field that has written to one of its inputs.

    Args:
        inputs: what it was given.
        before: their `versions` then.
        named: how the user calls them.
        again: evaluates the field once more on inputs like these, within a context for them, to find the line.

    Raises:
        FieldError: names the input, and the line where that is known.
    """
    if versions(inputs) == list(before):
        return
    where = ""
    if again is not None:
        mode = _Writing()
        again(mode)
        where = mode.where
    written = next(n for n, x, v in zip(named, inputs, before, strict=True) if versions([x]) != [v])
    raise FieldError(
        f"the field changes its input {written} in place{where}, with which the solver goes on: compute a new tensor, "
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
