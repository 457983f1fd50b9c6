"""Parametrized tensors (`torch.nn.utils.parametrize`): computed once, then read instead of computed again.

A weight norm, say, depends on parameters alone. Its result takes the place of what it is computed from: as an
input of the graph whose gradient flows on through PyTorch, so that the parametrization itself needs no
counterpart in the graph, and no evaluation of the field repeats it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

__all__ = ["Slots", "requires_grad", "values_of"]

# By dotted name: the module that has the parametrized tensor, and the attribute.
Slots = Mapping[str, tuple[nn.Module, str]]


def values_of(slots: Slots) -> dict[str, Tensor]:
    """Compute the parametrized tensors."""
    return {path: getattr(owner, name) for path, (owner, name) in slots.items()}


def requires_grad(slots: Slots, path: str) -> bool:
    """Whether a parametrized tensor is computed from something that requires a gradient."""
    owner, name = slots[path]
    parametrization: nn.Module = owner.parametrizations[name]  # type: ignore[index, assignment]
    return any(p.requires_grad for p in parametrization.parameters())
