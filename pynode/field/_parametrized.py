"""Parametrized tensors (`torch.nn.utils.parametrize`): computed once, then read instead of computed again.

A weight norm, say, depends on parameters alone. Its result takes the place of what it is computed from: as an
input of the graph whose gradient flows on through PyTorch, so that the parametrization itself needs no
counterpart in the graph, and no evaluation of the field repeats it. `torch.nn.utils.spectral_norm`, which a hook
computes, is of that kind too: in training each solve is one step of its power iteration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm

__all__ = ["Slots", "hidden_by_hooks", "hooked", "is_computing", "requires_grad", "sources", "values_of"]

# By dotted name: the module that has the parametrized tensor, and the attribute.
Slots = Mapping[str, tuple[nn.Module, str]]


def is_computing(hook: object) -> bool:
    """Whether a hook does nothing but compute a tensor."""
    return isinstance(hook, SpectralNorm)


def hooked(module: nn.Module) -> dict[str, SpectralNorm]:
    """The hooks of a module that compute tensors, by the name of these."""
    return {hook.name: hook for hook in module.__dict__["_forward_pre_hooks"].values() if is_computing(hook)}


def hidden_by_hooks(module: nn.Module) -> set[str]:
    """The names of a module's tensors that hooks compute, and of what they are computed from."""
    return {name + part for name in hooked(module) for part in ("", "_orig", "_u", "_v")}


def values_of(slots: Slots) -> dict[str, Tensor]:
    """Compute the parametrized tensors."""
    return {path: _value(owner, name) for path, (owner, name) in slots.items()}


def _value(owner: nn.Module, name: str) -> Tensor:
    hook = hooked(owner).get(name)
    value: Tensor = getattr(owner, name) if hook is None else hook.compute_weight(owner, owner.training)
    return value


def sources(owner: nn.Module, name: str) -> Iterator[Tensor]:
    """The parameters from which a parametrized tensor is computed."""
    if name in hooked(owner):
        return iter([getattr(owner, f"{name}_orig")])
    parametrization: nn.Module = owner.parametrizations[name]  # type: ignore[index, assignment]
    return parametrization.parameters()


def requires_grad(slots: Slots, path: str) -> bool:
    """Whether a parametrized tensor is computed from something that requires a gradient."""
    return any(p.requires_grad for p in sources(*slots[path]))
