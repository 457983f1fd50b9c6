"""Tensors with a graph that an evaluation of a field keeps in an attribute, a list or a cache.

Where a later evaluation computes dz/dt from such a tensor, no gradient is that of the solve: the tensor belongs to the
evaluation that has made it, and engines repeat, record and differentiate evaluations one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.errors import FieldError
from pynode.field._bindings import Reads

__all__ = ["cache_of", "check_no_cache", "for_the_user"]

_MARK = "_pynode_kept"  # of a tensor that was left where the user's objects and their copy are the same


class _Kept(torch.autograd.Function):
    """The identity, with an error for a derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        raise FieldError(
            "a tensor that the field has kept in an attribute or a list while it was solved has no gradient: a loss "
            "on what happens along the solution belongs in solve(running_cost=…), or in the state"
        )


def for_the_user(x: Tensor) -> Tensor:
    """A tensor that an evaluation has kept, as the user's objects may hold it."""
    with torch.enable_grad():
        kept: Tensor = _Kept.apply(x.detach().requires_grad_())
    setattr(kept, _MARK, True)
    return kept


def cache_of(function: Callable[..., Any], before: Iterable[Tensor], again: Callable[[], Any]) -> str | None:
    """The name of a tensor that an evaluation has kept and from which the next one computes its result.

    Args:
        function: what has been evaluated.
        before: tensors that it had before that.
        again: evaluates it once more.
    """
    known, reads = set(map(id, before)), Reads(function)
    found = {**reads.tensors, **reads.captured}
    kept = {n: x for n, x in found.items() if x.requires_grad and x.grad_fn is not None and id(x) not in known}
    if not kept:
        return None
    for x in kept.values():
        setattr(x, _MARK, True)
    out = again()
    nodes = _nodes([x for x in (out if isinstance(out, tuple | list) else (out,)) if isinstance(x, Tensor)])
    return next((n for n, x in kept.items() if x.grad_fn in nodes), None)


def _nodes(outputs: Sequence[Tensor]) -> set[Any]:
    """All nodes of the graphs of some tensors."""
    found: set[Any] = set()
    waiting = [x.grad_fn for x in outputs]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [following for following, _ in node.next_functions]
    return found


def check_no_cache(cached: str | None, named: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse the gradient of a field that computes from what an evaluation before has kept.

    Args:
        cached: see `cache_of`.
        named: what a gradient is wanted for.

    Raises:
        FieldError: names the tensor.
    """
    kept = [name for name, x in named if x.grad_fn is not None and hasattr(x, _MARK)]
    if cached is None and not kept:
        return
    raise FieldError(
        f"the field computes dz/dt from {cached or kept[0]}, which an evaluation before has computed and kept, with "
        "its graph: a solve has no gradient through that. Compute it anew in each evaluation; or once before each "
        "solve, outside of the field, which then reads it; detach() what is to be a constant"
    )
