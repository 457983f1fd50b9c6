"""The gradient of a loss in the space of functions of depth."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pynode.errors import InputError
from pynode.field._time import time_as_asked
from pynode.models._check import depths_like
from pynode.models._node import NODE
from pynode.nn import DepthVariant
from pynode.nn._signature import with_time
from pynode.problem.inputs import as_times

__all__ = ["parameter_gradient_density"]


def parameter_gradient_density(model: NODE, x: Tensor, loss: Callable[..., Tensor], s: Tensor) -> dict[str, Tensor]:
    """The gradient δℓ/δθ(s) = a(s)ᵀ ∂f/∂θ(s) of a loss with respect to the field's parameters at each depth.

    a(s) = dℓ/dz(s) is the adjoint. With θ constant, the integral over depth is the gradient that training uses;
    where θ(s) = Σₖ cₖ φₖ(s), as in a Galerkin layer, the integral against φₖ is the gradient of cₖ. A running cost
    adds its own ∂l/∂θ(s), as weighted by the loss.

    Args:
        model: a `NODE` or one that is made of it. For an `AdaptiveDepthNODE`, s is the depth that all samples
            share, before it is rescaled.
        x: the input, `(batch, …)`.
        loss: the loss, 0-d, as a function of the output of the model; of output and running cost `(batch,)` where
            the model has one.
        s: `(time,)`, increasing depths within the model's depth interval (decreasing where that is).

    Returns:
        For each parameter of the field, by its name in `model.field`, `(time, *shape)`. Of a layer whose
        parameters depend on depth (a `pynode.nn.DepthVariant`) these are θ(s), e.g. `"0.weight"` of shape
        `(time, out_features, in_features)`, and not what θ(s) is computed from. Parameters of another interval
        of a `StackedNODE` have density 0.

    Raises:
        InputError: a depth lies outside of the model's interval, the loss is not 0-d, or a layer has
            no common θ(s), which it lacks in an `AdaptiveDepthNODE`.

    Source:
        S. Massaroli et al., "Dissecting Neural ODEs", NeurIPS 2020, theorem 2 (infinite-dimensional gradients).
    """
    with torch.no_grad():
        z0 = model._initial_state(x)
        args = model._arguments(x, z0)
    depths = _check_depths(s, model, z0)
    last = model.stats, model.running_cost
    states, outputs = _solved(model, z0, depths, args)
    model.stats, model.running_cost = last
    with torch.enable_grad():
        value = loss(*outputs)
    if not isinstance(value, Tensor) or value.ndim:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"loss must return a 0-d tensor, got {got}. Sum or average over the batch")
    adjoints = torch.autograd.grad(value, [*states, *outputs[1:]], allow_unused=True, materialize_grads=True)
    densities = [
        _at(model, depth, z.detach(), (a, *adjoints[len(states) :]), args)
        for depth, z, a in zip(depths, states, adjoints, strict=False)
    ]
    return {name: torch.stack([density[name] for density in densities]) for name in densities[0]}


def _check_depths(s: Any, model: NODE, z0: Tensor) -> Tensor:
    depths = as_times("s", s, z0)
    start, end = model.t
    sign = 1 if end > start else -1
    way = sign * depths
    if depths.ndim != 1 or not len(depths) or not bool((way.diff() > 0).all()):
        raise InputError(
            f"s must be 1-d, hold at least one depth and be strictly {'increasing' if sign > 0 else 'decreasing'}, "
            f"got {depths.tolist()}"
        )
    if not bool((way >= sign * start).all() and (way <= sign * end).all()):
        raise InputError(f"s must lie within the model's depth interval {model.t}, got {depths.tolist()}")
    return depths


def _solved(
    model: NODE, z0: Tensor, depths: Tensor, args: tuple[Tensor, ...]
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """The states at the depths, each a step on the way to the outputs; and the outputs, the running cost included."""
    z, costs = z0.detach().requires_grad_(), [z0.new_zeros(len(z0))]
    here, end = depths_like(model.t, depths)
    states = []
    with torch.enable_grad():
        for depth in (*depths, end):
            if depth != here:
                z = model._solve(z, torch.stack([here, depth]), args)[-1]
                costs += [] if model.running_cost is None else [model.running_cost]
            states.append(z)
            here = depth
        outputs = (model._output(z), *(() if model.cost is None else (torch.stack(costs).sum(0),)))
    return states[: len(depths)], outputs


def _at(
    model: NODE, s: Tensor, z: Tensor, cotangents: tuple[Tensor, ...], args: tuple[Tensor, ...]
) -> dict[str, Tensor]:
    """The density at one depth; the cotangents are those of the state and, where there is one, the running cost."""
    field = model._field_at(s)
    variant = {name: m for name, m in _named_modules(model.field) if isinstance(m, DepthVariant)}
    with torch.enable_grad(), _recorded(variant) as calls:
        functions = [with_time(field, len(args))] + ([] if model.cost is None else [model.cost])
        values = [f(time_as_asked(f, s, z.dtype), z, *args) for f in functions]
    active = {module for _, module in _named_modules(field)}
    for name, layer in variant.items():
        if layer in active and not calls[name]:
            raise InputError(
                f"the layer {name or type(layer).__name__!r} has no θ(s) that all samples share, as each is at a depth "
                "of its own. Look at the gradient of what θ(s) is computed from instead"
            )
    computed = {id(p) for layer in variant.values() for p in layer.parameters()}
    sources: list[tuple[str, Tensor]] = [
        (n, p) for n, p in _named_parameters(model.field) if p.requires_grad and id(p) not in computed
    ]
    with torch.no_grad():
        shapes = [(name, layer.parameters_at(s.to(z.dtype))) for name, layer in variant.items()]
    density = {_join(name, n): torch.zeros_like(p) for name, theta in shapes for n, p in theta.items()}
    density.update({n: torch.zeros_like(p) for n, p in sources})
    sources += [(_join(name, n), p) for name in variant for theta in calls[name] for n, p in theta.items()]
    pairs = [(v, c) for v, c in zip(values, cotangents, strict=True) if v.requires_grad]
    if pairs and sources:
        outputs, given = zip(*pairs, strict=True)
        wanted = [p for _, p in sources]
        found = torch.autograd.grad(outputs, wanted, given, allow_unused=True, materialize_grads=True)
        for (name, _), gradient in zip(sources, found, strict=True):
            density[name] = density[name] + gradient
    return density


@contextlib.contextmanager
def _recorded(layers: Mapping[str, DepthVariant]) -> Iterator[dict[str, list[dict[str, Tensor]]]]:
    """Within the context, what the layers' `parameters_at` return, by the name of the layer, call by call."""
    calls: dict[str, list[dict[str, Tensor]]] = {name: [] for name in layers}

    def recording(layer: DepthVariant, found: list[dict[str, Tensor]]) -> Callable[[Tensor], dict[str, Tensor]]:
        def parameters_at(t: Tensor) -> dict[str, Tensor]:
            found.append(type(layer).parameters_at(layer, t))
            return found[-1]

        return parameters_at

    try:
        for name, layer in layers.items():
            layer.parameters_at = recording(layer, calls[name])  # type: ignore[method-assign, assignment]
        yield calls
    finally:
        for layer in layers.values():
            layer.__dict__.pop("parameters_at", None)


def _named_modules(field: Any) -> list[tuple[str, nn.Module]]:
    return list(field.named_modules()) if isinstance(field, nn.Module) else []


def _named_parameters(field: Any) -> list[tuple[str, nn.Parameter]]:
    return list(field.named_parameters()) if isinstance(field, nn.Module) else []


def _join(layer: str, name: str) -> str:
    return f"{layer}.{name}" if layer else name
