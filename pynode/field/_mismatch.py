"""Says what is wrong where a field or a network fails because its tensors are of another dtype than what it gets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

from pynode.errors import FieldError, PyNODEError

__all__ = ["mismatch_explained"]


@contextlib.contextmanager
def mismatch_explained(
    state: Sequence[Tensor], tensors: Iterable[Tensor], owner: str = "field", given: str = "z0"
) -> Iterator[None]:
    """The context of an evaluation.

    Args:
        state: the tensors that are given.
        tensors: what the owner reads besides.
        owner: the name of what is evaluated.
        given: the name of what it is given.

    Raises:
        FieldError: the evaluation fails with a RuntimeError, and none of the owner's floating-point tensors has
            the dtype, or the device, of what it is given.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, PyNODEError):
            raise
        own = [x for x in tensors if x.is_floating_point()]
        for what, remedy in (
            (
                "dtype",
                f"Convert the {owner} with {owner}.to({given}.dtype), or {given} to its dtype, e.g. with .float()",
            ),
            ("device", f"Move {owner} and {given} to the same device"),
        ):
            expected, found = getattr(state[0], what), {str(getattr(x, what)) for x in own}
            if found and str(expected) not in found:
                raise FieldError(
                    f"the {owner}'s tensors are of {what} {', '.join(sorted(found))}, and {given} is of {what} "
                    f"{expected}. {remedy}. (PyTorch says: {str(error).splitlines()[0] if str(error) else ''})"
                ) from error
        raise
