"""What a field may return: tensors like those of its state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.errors import FieldError

__all__ = ["check_outputs"]

_REMEDY = {
    "shape": "Check the last layer's width, and that the field keeps the batch dimension first",
    "dtype": "Convert the field with field.to(z0.dtype), or z0 to the field's dtype",
    "device": "Move the field and z0 to the same device",
}


def check_outputs(out: Any, z0: Sequence[Tensor], is_tuple: bool, autocast: torch.dtype | None) -> None:
    """Refuse what a field has returned where it is not like the state.

    Args:
        out: the result.
        z0: the state tensors, whose shapes, dtypes and devices it is to have.
        is_tuple: whether the state is a tuple.
        autocast: a dtype that it may have instead.

    Raises:
        FieldError: names what was expected and what came.
    """
    if is_tuple:
        if not isinstance(out, tuple | list) or len(out) != len(z0):
            came = f"{len(out)} of them" if isinstance(out, tuple | list) else type(out).__name__
            raise FieldError(f"the field must return a tuple of {len(z0)} tensors, as its state is, got {came}")
        outputs = tuple(out)
    else:
        outputs = (out,)
    for i, (o, z) in enumerate(zip(outputs, z0, strict=True)):
        which = f"component {i} of dz/dt" if is_tuple else "dz/dt"
        if not isinstance(o, Tensor):
            raise FieldError(f"the field must return a tensor for {which}, got {type(o).__name__}")
        for what in ("shape", "dtype", "device"):
            expected, got = getattr(z, what), getattr(o, what)
            if what == "dtype" and got == autocast:
                continue
            if expected != got:
                if what == "shape":
                    expected, got = tuple(expected), tuple(got)
                raise FieldError(
                    f"the field must return {which} with the {what} of the state: expected {expected}, "
                    f"got {got}. {_REMEDY[what]}"
                )
