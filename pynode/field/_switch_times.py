"""The times of jumps as functions of the thresholds that they depend on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pynode.errors import InputError
from pynode.field._switches import Search, Switch, crossing

__all__ = ["switch_times"]

_NEWTON = 2  # steps, after which all derivatives to the third order are those of the root
_NEAR = 64  # roundings
_REMEDY = "Pass tstops=None, and fixed steps, for a solve without the gradient of that time"


def switch_times(found: Sequence[Switch], like: Tensor) -> list[Tensor]:
    """The times, 0-d and in double, differentiable by the implicit function theorem.

    A time at which c(t, p) changes its sign has the derivative -(dc/dp) / (dc/dt) in the threshold p.

    Args:
        found: from `switches`.
        like: a tensor of the dtype and on the device of the time.

    Raises:
        InputError: a threshold requires a gradient, and the time has none.
    """
    times = []
    for switch in found:
        t = torch.tensor(switch.t, dtype=torch.float64, device=like.device)
        if torch.is_grad_enabled() and any(x.requires_grad for step in switch.tape.steps for x in step.constants):
            roots = [root for x in (switch, *_beside(switch, like)) if (root := _root(x, like)) is not None]
            if roots:
                _check_alike(roots, switch.t)
                root = roots[0].double()
                t = t + (root - root.detach())
        times.append(t)
    return times


def _operands(switch: Switch, t: Tensor) -> tuple[Sequence[Any], dict[str, Any]]:
    """Those of the step that jumps, with their graph."""
    seen: list[tuple[Sequence[Any], dict[str, Any]]] = []

    def look(i: int, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        if i == switch.step:
            seen.append((args, kwargs))

    with torch.enable_grad():
        switch.tape.play(t, look, switch.step + 1)
    return seen[0]


def _crossing(switch: Switch, t: Tensor) -> Tensor | None:
    """What changes its sign at a switch.

    Raises:
        InputError: that is not known, and depends on what requires a gradient.
    """
    step = switch.tape.steps[switch.step]
    args, kwargs = _operands(switch, t)
    with torch.enable_grad():
        c = crossing(step, args, kwargs, switch.level)
    if c is not None:
        return c[switch.element]
    if any(isinstance(x, Tensor) and x.requires_grad for x in tree_leaves((args, kwargs))):
        raise InputError(
            f"the field jumps at t={switch.t:g}, where the result of {step.operation} does, which depends on what "
            "requires a gradient: that time has no gradient. Let the field compare t with a threshold, e.g. t >= self.a"
            f". {_REMEDY}"
        )
    return None


def _root(switch: Switch, like: Tensor) -> Tensor | None:
    """The time of a switch as a function of its thresholds; `None` where these require no gradient."""
    t = like.new_tensor(switch.t)
    c = _crossing(switch, t)
    if c is None or not c.requires_grad:
        return None
    for _ in range(_NEWTON):
        if not t.requires_grad:
            t = t.clone().requires_grad_()
        c = _crossing(switch, t)
        assert c is not None
        (slope,) = torch.autograd.grad(c, t, create_graph=True, allow_unused=True)
        if slope is None or not bool(torch.isfinite(slope)) or slope == 0:
            raise InputError(
                f"the field jumps at t={switch.t:g}, where t passes what requires a gradient without a slope: that "
                f"time has no gradient. {_REMEDY}"
            )
        t = t - c / slope
    return t


def _beside(switch: Switch, like: Tensor) -> Iterator[Switch]:
    """What else jumps at the same time, and by itself, not because what it is computed from jumps."""
    search = Search(switch.tape, like, switch.t, switch.t)
    below, above = search.before(switch.t), search.after(switch.t)
    for i in search.steps:
        step = switch.tape.steps[i]
        for element in search.changed(i, below, above).tolist():
            if (i, element) == (switch.step, switch.element):
                continue
            at_below, at_above = (search.operands(t)[i][2][element] for t in (below, above))
            level = float(at_below if at_above > at_below else at_below - 1)
            with torch.no_grad():
                sides = [crossing(step, *search.operands(t)[i][:2], level) for t in (below, above)]
            low, high = (math.inf if c is None else float(c[element]) for c in sides)
            size = max([abs(switch.t), *map(_size, search.operands(above)[i][0])])
            if max(abs(low), abs(high)) <= _NEAR * torch.finfo(like.dtype).eps * size:
                yield Switch(switch.t, switch.tape, i, element, level)


def _size(x: Any) -> float:
    if isinstance(x, Tensor):
        return float(x.detach().abs().max()) if x.numel() and x.is_floating_point() else 0.0
    return abs(float(x)) if isinstance(x, int | float) else 0.0


def _check_alike(roots: Sequence[Tensor], t: float) -> None:
    """Refuse thresholds that meet at one time and are not the same one: each would have a gradient of its own.

    Raises:
        InputError: there are such.
    """
    if len(roots) == 1:
        return
    leaves = _leaves(roots)
    found = []
    for root in roots:
        grads = torch.autograd.grad(root, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
        found.append(torch.cat([g.reshape(-1).double() for g in grads]))
    if not all(torch.allclose(found[0], x, rtol=1e-4, atol=1e-9) for x in found[1:]):
        raise InputError(
            f"several thresholds that require a gradient meet at t={t:g}, and which of them the solution follows there "
            "cannot be told: let them differ, by 1e-6 of the span, say, or make them the same tensor"
        )


def _leaves(roots: Sequence[Tensor]) -> list[Tensor]:
    """The leaves that these depend on."""
    found: dict[int, Tensor] = {}
    waiting: list[Any] = [root.grad_fn for root in roots]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found[id(leaf)] = leaf
        waiting += [x for x, _ in node.next_functions]
    return list(found.values())
