"""What torchdiffeq's own derivatives leave out without a word: added, refused, or told of."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.engine.refused import no_derivative_of, once_differentiable
from pynode.problem.crossing import NO_FURTHER
from pynode.problem.state import as_tuple

__all__ = ["linked_event", "warn_of_no_gradient", "without_second_derivatives"]

_NO_SECOND = (
    "torchdiffeq's adjoint",
    'use odeint, or pynode.solve(…, sensitivity="backsolve"), for second derivatives',
)


def linked_event(
    func: Callable[..., Any],
    y0: Any,
    t0: Tensor,
    event_fn: Callable[..., Tensor],
    reverse_time: bool,
    solve: Callable[..., Any],
) -> Any:
    """`torchdiffeq.odeint_event`, with the gradient to what `event_fn` reads; further derivatives of the event raise.

    torchdiffeq gives no gradient to `event_fn`, and second derivatives that hold the rates at the event.

    Args:
        func: as in `odeint_event`.
        y0: as in `odeint_event`.
        t0: as in `odeint_event`.
        event_fn: as in `odeint_event`.
        reverse_time: as in `odeint_event`.
        solve: the interface, with its options.
    """
    start = t0.reshape(1)
    other = start.detach() + (-1.0 if reverse_time else 1.0)
    found, solution = solve(func, y0, torch.cat([start, other]), event_fn=event_fn)
    if not torch.is_grad_enabled():
        return found, solution
    t, parts = found.detach(), as_tuple(solution)
    last = [x[-1] for x in parts]

    def form(z: Sequence[Tensor]) -> Any:
        return tuple(z) if isinstance(y0, tuple) else z[0]

    with torch.no_grad():
        signs = torch.sign(event_fn(start[0], y0))
        rates = as_tuple(func(t, form([x.detach() for x in last])))

    def value(t: Tensor, z: Sequence[Tensor]) -> Tensor:
        return (event_fn(t, form(z)) * signs).min()  # the one of several that has changed its sign

    at = [x.detach().clone().requires_grad_() for x in (t, *last)]
    held = value(at[0], at[1:])
    partial = torch.autograd.grad(held, at, allow_unused=True) if held.requires_grad else ()
    pairs = zip(partial, (torch.ones_like(t), *rates), strict=False)
    slope = sum(((g.conj() * rate).sum().real.to(t) for g, rate in pairs if g is not None), torch.zeros_like(t))
    met = value(t, last)
    delay = ((met.detach() - met) / (slope + 1e-12)).to(t)  # zero, with the derivative of the event's time
    ends = (t + delay, *(x + (rate * delay).to(x.dtype) for x, rate in zip(last, rates, strict=True)))
    stop, *end = (x.clone() for x in once_differentiable(*NO_FURTHER, ends))
    return stop, form([torch.cat([x[:-1], y[None]]) for x, y in zip(parts, end, strict=True)])


def without_second_derivatives(solution: Any, inputs: Sequence[Any]) -> Any:
    """What `torchdiffeq.odeint_adjoint` returns, whose gradient raises where it is differentiated.

    torchdiffeq computes the gradient without a graph: what is differentiated again would take it for a constant.

    Args:
        solution: the states.
        inputs: the tensors that the gradient depends on.
    """
    node: Any = as_tuple(solution)[0].grad_fn
    while node is not None and node.name() != "OdeintAdjointMethodBackward":
        node = node.next_functions[0][0] if node.next_functions else None
    if node is None:
        return solution
    followed = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]

    def hook(gradients: Sequence[Tensor | None], cotangents: Sequence[Tensor | None]) -> Any:
        if not torch.is_grad_enabled():
            return None
        places = [i for i, g in enumerate(gradients) if g is not None]
        depends = [*followed, *(x for x in cotangents if x is not None)]
        marked = list(gradients)
        for i, g in zip(places, no_derivative_of(*_NO_SECOND, [gradients[i] for i in places], depends), strict=True):
            marked[i] = g
        return tuple(marked)

    node.register_hook(hook)
    return solution


def warn_of_no_gradient(inputs: Iterable[Any]) -> None:
    """Say that SciPy's solvers return states without a gradient, where one of the inputs requires it."""
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
        warnings.warn(
            "odeint with method='scipy_solver' returns states without a gradient, as torchdiffeq does: use "
            "odeint_adjoint, or torch.no_grad() where none is needed",
            stacklevel=4,
        )
