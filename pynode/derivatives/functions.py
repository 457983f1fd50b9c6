"""A solve as a function of its inputs, and its derivatives, for autograd, dual numbers and `torch.func`.

With z(x) the solution, x all that it depends on, J(x) its Jacobian, v cotangents of z and w directions of x:

    _Solve     z(x)
    _Gradient  J(x)ᵀ v
    _Tangent   J(x) w
    _Second    the gradient of <v, J(x) w> in x

Each is differentiated by those below it: J(x)ᵀ v in v along w is J(x) w, and in x along w it is the gradient of
<v, J(x) w>, since the second derivative is symmetric. An engine computes them from plain tensors; whatever a transform
wraps is unwrapped by PyTorch before `forward`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pynode.derivatives.batched import for_each
from pynode.derivatives.mapped import map_over
from pynode.derivatives.run import Run
from pynode.errors import EngineUnavailable
from pynode.torch_state import leaves_thread_state
from pynode.transforms import is_active

__all__ = ["differentiable"]

_LEAF = "torch::autograd::AccumulateGrad"  # the name of a leaf's node

Tensors = tuple[Tensor, ...]
Some = Sequence[Tensor | None]


def differentiable(run: Run, inputs: Sequence[Tensor]) -> Tensors:
    """The solution, `(time, batch, *features)` of each state tensor, differentiable in its inputs."""
    # Without a transform `apply` comes down to that of its base, but looks at the signature of `forward` at each call.
    apply = _Solve.apply if is_active() else super(torch.autograd.Function, _Solve).apply
    z: Tensors = apply(run, *inputs)
    return z


def _is_plain() -> bool:
    """Whether nothing follows what is computed now: no graph, no dual number, no transform."""
    followed = torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
    return not followed and forward_ad._current_level < 0


def _places(wanted: Sequence[bool]) -> tuple[int, ...]:
    return tuple(i for i, w in enumerate(wanted) if w)


def _spread(n: int, places: Sequence[int], values: Some) -> list[Tensor | None]:
    """The values at their places among `n`."""
    found: list[Tensor | None] = [None] * n
    for place, value in zip(places, values, strict=True):
        found[place] = value
    return found


def _needed(ctx: Any) -> list[bool]:
    """For each tensor that a function was given, or `None` in its place, whether the pass under way goes on to it."""
    nodes = iter(ctx.next_functions)
    return [x is not None and _is_executed(next(nodes)[0]) for x in _saved(ctx)]


def _is_executed(node: Any) -> bool:
    """Whether the pass under way goes on to a node.

    Of a leaf PyTorch does not tell. Inputs are none, see `_aliases`, but where an outer transform alone follows one.
    """
    if node is None:
        return False
    return bool(node.name() == _LEAF or torch._C._will_engine_execute_node(node))


def _third() -> EngineUnavailable:
    return EngineUnavailable(
        "pynode.solve has derivatives to the second order, and the third was asked for. Put what has to be "
        "differentiated more often into the field or the running_cost, or use torchdiffeq.odeint itself, which is "
        "differentiated operation by operation"
    )


class _OfRun(torch.autograd.Function):
    """One whose first argument is a run, and the others are tensors, the last ones the run's inputs."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.run, *tensors = inputs
        _save(ctx, tensors)


class _AtPlaces(torch.autograd.Function):
    """One whose first arguments are a run, places among its inputs, and how many states it has; then as `_OfRun`."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.run, ctx.places, ctx.n, *tensors = inputs
        _save(ctx, tensors)


def _save(ctx: Any, tensors: list[Tensor | None]) -> None:
    ctx.unsaved = {i: x for i, x in enumerate(tensors) if x is not None and x.is_inference()}
    for i in ctx.unsaved:
        tensors[i] = None
    # Saved so that autograd refuses a backward pass after one of them has been changed in place.
    ctx.save_for_backward(*tensors)
    if is_active():
        ctx.save_for_forward(*tensors)
    ctx.set_materialize_grads(False)


def _saved(ctx: Any) -> tuple[Any, ...]:
    """The tensors that a function was given, or `None` in the place of one."""
    tensors = ctx.saved_tensors
    return tuple(ctx.unsaved.get(i, x) for i, x in enumerate(tensors)) if ctx.unsaved else tensors


class _Solve(_OfRun):
    """z(x)."""

    @staticmethod
    def forward(run: Run, *x: Tensor) -> Tensors:
        return run.solve(x)

    @staticmethod
    def backward(ctx: Any, *v: Tensor | None) -> Any:
        bare = ctx.run is not None and ctx.run.bare and _is_plain() and not torch._C._is_any_autocast_enabled()
        return _pull_back(ctx, v) if bare else _pull_back_guarded(ctx, v)

    @staticmethod
    @leaves_thread_state
    def jvp(ctx: Any, _: None, *w: Tensor | None) -> Tensors:
        return _tangent(ctx.run, w, _saved(ctx))

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[Any], run: Run, *x: Tensor) -> tuple[Tensors, Any]:
        return map_over(_Solve, info.batch_size, run, (), [], x, in_dims[1:])


class _Gradient(_AtPlaces):
    """J(x)ᵀ v at those places of x that are wanted."""

    @staticmethod
    def forward(run: Run, places: tuple[int, ...], n: int, *tensors: Any) -> Tensors:
        v, x = _detached(tensors[:n]), tensors[n:]
        return _picked(run.pull_back(v, x).flat, places, x)

    @staticmethod
    @leaves_thread_state
    def backward(ctx: Any, *w: Tensor | None) -> Any:
        places, n, run, tensors = ctx.places, ctx.n, ctx.run, _saved(ctx)
        v, x = tensors[:n], tensors[n:]
        directions = _spread(len(x), places, w)
        needed = _needed(ctx)
        of_v: Some = [None] * n
        if any(needed[:n]) and any(d is not None for d in w):
            of_v = [g if wanted else None for g, wanted in zip(_tangent(run, directions, x), needed, strict=False)]
        at = _places(needed[n:])
        return (*(None,) * 3, *of_v, *_spread(len(x), at, _second(run, at, v, directions, x)))

    @staticmethod
    @leaves_thread_state
    def jvp(ctx: Any, _run: None, _places: None, _n: None, *moved: Tensor | None) -> Tensors:
        places, n, run, tensors = ctx.places, ctx.n, ctx.run, _saved(ctx)
        v, x = tensors[:n], tensors[n:]
        first = _gradient(run, places, moved[:n], x)
        second = _second(run, places, v, moved[n:], x)
        return tuple(_sum(a, b, x[p]) for a, b, p in zip(first, second, places, strict=True))

    @staticmethod
    def vmap(
        info: Any, in_dims: Sequence[Any], run: Run, places: tuple[int, ...], n: int, *tensors: Any
    ) -> tuple[Tensors, Any]:
        dims = in_dims[3:]
        others = [("z", tensors[:n], dims[:n])]
        return map_over(_Gradient, info.batch_size, run, (places, n), others, tensors[n:], dims[n:])


class _Tangent(_OfRun):
    """J(x) w."""

    @staticmethod
    def forward(run: Run, *tensors: Any) -> Tensors:
        n = len(tensors) // 2
        w, x = _detached(tensors[:n]), tensors[n:]
        return run.tangent(w, x)

    @staticmethod
    @leaves_thread_state
    def backward(ctx: Any, *v: Tensor | None) -> Any:
        run, tensors = ctx.run, _saved(ctx)
        n = len(tensors) // 2
        w, x = tensors[:n], tensors[n:]
        needed = _needed(ctx)
        of_w, of_x = _places(needed[:n]), _places(needed[n:])
        return (
            None,
            *_spread(n, of_w, _gradient(run, of_w, v, x)),
            *_spread(n, of_x, _second(run, of_x, v, w, x)),
        )

    @staticmethod
    @leaves_thread_state
    def jvp(ctx: Any, _: None, *moved: Tensor | None) -> Tensors:
        n = len(moved) // 2
        if any(d is not None for d in moved[n:]):
            raise EngineUnavailable(
                "a forward derivative of a forward derivative of pynode.solve was asked for: take the second one as "
                "torch.func.hessian does, forward over reverse (jacfwd(jacrev(f))), or reverse over either"
            )
        return _tangent(ctx.run, moved[:n], _saved(ctx)[n:])

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[Any], run: Run, *tensors: Any) -> tuple[Tensors, Any]:
        n, dims = len(tensors) // 2, in_dims[1:]
        others = [("x", tensors[:n], dims[:n])]
        return map_over(_Tangent, info.batch_size, run, (), others, tensors[n:], dims[n:])


class _Second(_AtPlaces):
    """The gradient of <v, J(x) w> at those places of x that are wanted."""

    @staticmethod
    def forward(run: Run, places: tuple[int, ...], n: int, *tensors: Any) -> Tensors:
        m = (len(tensors) - n) // 2
        v, w, x = _detached(tensors[:n]), _detached(tensors[n : n + m]), tensors[n + m :]
        return _picked(run.second(v, w, x).flat, places, x)

    @staticmethod
    @leaves_thread_state
    def backward(ctx: Any, *u: Tensor | None) -> Any:
        places, n, run, tensors = ctx.places, ctx.n, ctx.run, _saved(ctx)
        m = (len(tensors) - n) // 2
        needed = _needed(ctx)
        if any(needed[:n]) or any(needed[n + m :]):
            raise _third()
        # It is linear in w, by a matrix that is symmetric.
        directions, at = _spread(m, places, u), _places(needed[n : n + m])
        found = _second(run, at, tensors[:n], directions, tensors[n + m :])
        return (*(None,) * (3 + n), *_spread(m, at, found), *(None,) * m)

    @staticmethod
    @leaves_thread_state
    def jvp(ctx: Any, _run: None, _places: None, _n: None, *moved: Tensor | None) -> Tensors:
        places, n, run, tensors = ctx.places, ctx.n, ctx.run, _saved(ctx)
        m = (len(tensors) - n) // 2
        v, w, x = tensors[:n], tensors[n : n + m], tensors[n + m :]
        if any(d is not None for d in moved[n + m :]):
            raise _third()
        first = _second(run, places, moved[:n], w, x)
        second = _second(run, places, v, moved[n : n + m], x)
        return tuple(_sum(a, b, x[p]) for a, b, p in zip(first, second, places, strict=True))

    @staticmethod
    def vmap(
        info: Any, in_dims: Sequence[Any], run: Run, places: tuple[int, ...], n: int, *tensors: Any
    ) -> tuple[Tensors, Any]:
        m, dims = (len(tensors) - n) // 2, in_dims[3:]
        others = [("z", tensors[:n], dims[:n]), ("x", tensors[n : n + m], dims[n : n + m])]
        return map_over(_Second, info.batch_size, run, (places, n), others, tensors[n + m :], dims[n + m :])


def _pull_back(ctx: Any, v: Sequence[Tensor | None]) -> Any:
    """`backward` of `_Solve`."""
    x, run = _saved(ctx), ctx.run
    if not torch._C._autograd._get_current_graph_task_keep_graph():
        ctx.run = None  # as autograd does with what it saved, since no second pass can follow
    if all([g is None for g in v]):
        return (None,) * (1 + len(x))
    wanted = ctx.needs_input_grad[1:]
    if not _is_plain():
        places = _places(wanted)
        return None, *_spread(len(x), places, _gradient(run, places, v, x))
    found = list(for_each(lambda v: run.pull_back(_detached(v), x).flat, v))
    for i, g in enumerate(found):
        if g is None and wanted[i]:
            found[i] = torch.zeros_like(x[i])
    field = run.problem.field
    if field.optional:
        for i, name in enumerate(field.names, len(x) - len(field.names)):
            g = found[i]
            if name in field.optional and g is not None and not bool(g.any()):
                found[i] = None
    return None, *found


_pull_back_guarded = leaves_thread_state(_pull_back)


def _detached(tensors: Some) -> Some:
    """The same without the graph that they have, which an engine's own would join."""
    return [None if x is None else x.detach() for x in tensors]


def _picked(found: Some, places: Sequence[int], x: Sequence[Tensor]) -> Tensors:
    picked = [(found[i], x[i]) for i in places]
    return tuple(torch.zeros_like(like) if g is None else g for g, like in picked)


def _aliases(tensors: Some) -> Some:
    """The tensors, with aliases for leaves, of which autograd does not tell whether a pass reaches them."""
    return [
        x if x is None or not (x.requires_grad and x.is_leaf and torch.is_grad_enabled()) else x.view_as(x)
        for x in tensors
    ]


def _gradient(run: Run, places: tuple[int, ...], v: Some, x: Sequence[Tensor]) -> Some:
    if not places or all(g is None for g in v):
        return [None] * len(places)
    return for_each(lambda tensors: _Gradient.apply(run, places, len(v), *_aliases(tensors)), (*v, *x))


def _tangent(run: Run, w: Some, x: Sequence[Tensor]) -> Tensors:
    return tuple(for_each(lambda tensors: _Tangent.apply(run, *_aliases(tensors)), (*w, *x)))  # type: ignore[arg-type]


def _second(run: Run, places: tuple[int, ...], v: Some, w: Some, x: Sequence[Tensor]) -> Some:
    if not places or all(g is None for g in v) or all(d is None for d in w):
        return [None] * len(places)
    return for_each(lambda tensors: _Second.apply(run, places, len(v), *_aliases(tensors)), (*v, *w, *x))


def _sum(a: Tensor | None, b: Tensor | None, like: Tensor) -> Tensor:
    if a is None or b is None:
        return torch.zeros_like(like) if a is None and b is None else (a if b is None else b)  # type: ignore[return-value]
    return a + b
