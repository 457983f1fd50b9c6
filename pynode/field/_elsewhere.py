"""A field at other states, and for other parameters, than those of a solve.

What a solve takes for granted of a field, it looks at by numbers: that no sample depends on another, that noise does
not depend on the state. At one state alone that may hold by chance, as where a layer starts with weights of zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pynode.field._field import Field

__all__ = ["arbitrary", "moved", "outputs_elsewhere"]

_DISTANCES = (0.0, 0.4, -1.1)  # of the states, in units of 1 + |z|
_MOVED = 0.05  # by how much parameters differ from theirs


def outputs_elsewhere(
    field: Field, t: Tensor, state: Sequence[Tensor], args: Sequence[Tensor], *, tracked: bool = False
) -> Iterator[tuple[Field, tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """The field, a state and the derivatives there: as given, then with parameters and states a little off.

    Left out are states that the function refuses, and derivatives that are not finite, but for the given ones.

    Args:
        field: the field.
        t: 0-d.
        state: the state tensors.
        args: conditioning tensors.
        tracked: whether the derivatives are differentiable in the states.
    """
    other = moved(field)
    for i, distance in enumerate((0.0, *_DISTANCES)):
        with torch.set_grad_enabled(tracked), torch.inference_mode(False):
            f = other if i else field
            z = tuple([(x.detach() + distance * (1 + x.detach().abs()) * arbitrary(x, 0.2)) for x in state])
            z = tuple([x.requires_grad_() for x in z]) if tracked else z
            try:
                found = f(t, z, args)
            except Exception:  # the function is the user's, and need not take other states than those of a path
                if i == 0:
                    raise
                continue
        if i == 0 or all([bool(torch.isfinite(x.detach()).all()) for x in found]):
            yield f, z, tuple(found)


def moved(field: Field) -> Field:
    """The field with parameters a little off its own."""
    pairs = zip(field.names, field.parameters, strict=True)
    floats = [(n, p) for n, p in pairs if p.is_floating_point() and not field.is_fixed(p)]
    return field.replaced({n: p.detach() + _MOVED * arbitrary(p, 1.5) for n, p in floats})


def arbitrary(like: Tensor, offset: float) -> Tensor:
    """Numbers without a pattern, around an offset."""
    return (torch.arange(like.numel(), device=like.device).to(like.dtype).cos() + offset).reshape(like.shape)
