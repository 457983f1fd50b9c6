"""Says what is wrong where a field fails because its tensors are of another dtype, or elsewhere, than its state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

from pynode.errors import FieldError, PyNODEError

__all__ = ["mismatch_explained"]


@contextlib.contextmanager
def mismatch_explained(state: Sequence[Tensor], tensors: Iterable[Tensor]) -> Iterator[None]:
    """The context of an evaluation.

    Args:
        state: the state tensors.
        tensors: what the field reads besides its arguments.

    Raises:
        FieldError: the evaluation fails with a RuntimeError, and none of the field's floating-point tensors has the
            dtype, or the device, of the state.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, PyNODEError):
            raise
        own = [x for x in tensors if x.is_floating_point()]
        for what, remedy in (
            ("dtype", "Convert the field with field.to(z0.dtype), or z0 to the field's dtype, e.g. with .float()"),
            ("device", "Move the field and z0 to the same device"),
        ):
            expected, found = getattr(state[0], what), {str(getattr(x, what)) for x in own}
            if found and str(expected) not in found:
                raise FieldError(
                    f"the field's tensors are of {what} {', '.join(sorted(found))}, and its state is of {what} "
                    f"{expected}. {remedy}. (PyTorch says: {str(error).splitlines()[0] if str(error) else ''})"
                ) from error
        raise
