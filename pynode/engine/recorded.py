"""A solve while `torch.jit.trace` records.

A recording repeats, for every input, the steps of the call that it is made of. Fixed steps are right for every input;
adaptive ones would be so for that of the recording only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.engine.grid import step_grid
from pynode.engine.solvers import SolverInfo
from pynode.errors import EngineUnavailable, FieldError, InputError
from pynode.field._time import time_dtype

__all__ = ["record"]


def record(
    engine: str,
    function: Callable[..., Any],
    state: tuple[Tensor, ...],
    t: Tensor,
    args: Sequence[Tensor],
    is_tuple: bool,
    solver: SolverInfo,
    dt: float | None,
    plain: bool,
) -> tuple[Tensor, ...]:
    """The states, `(time, batch, *features)` each, by torchdiffeq's steps on the user's own tensors.

    Args:
        engine: the engine that was chosen.
        function: the field.
        state: the state tensors.
        t: the times.
        args: the conditioning tensors.
        is_tuple: whether the field takes a tuple.
        solver: the solver.
        dt: its step.
        plain: whether the solve is neither of independent samples, nor to an event, nor dense.

    Raises:
        EngineUnavailable: the engine is not torch.
        InputError: the recording would be wrong for other inputs; says what to pass instead.
        FieldError: the field returns another shape or dtype than the state's.
    """
    if engine == "julia":
        raise EngineUnavailable(
            "torch.jit.trace records operations of PyTorch, and the julia engine's are none: pass engine='torch'"
        )
    if solver.adaptive or solver.name == "adams":
        what = f"those of {solver.name!r} depend on the state: pass a fixed-step solver, e.g. solver='rk4', dt=0.1"
    elif not plain:
        what = "those of independent samples, to an event or of a dense solution depend on the state: leave these out"
    elif _is_computed_from_input(t):
        what = "their number depends on t, which is an input of the recorded module: make t a constant of the module"
    else:
        return _record(function, state, t, args, is_tuple, solver, dt)
    raise InputError(f"torch.jit.trace records the steps of one call, and {what}")


def _record(
    function: Callable[..., Any],
    state: tuple[Tensor, ...],
    t: Tensor,
    args: Sequence[Tensor],
    is_tuple: bool,
    solver: SolverInfo,
    dt: float | None,
) -> tuple[Tensor, ...]:
    from pynode.engine.torch import torchdiffeq

    # torchdiffeq would make one vector of a tuple, by sizes that the recording keeps: here the batch stays a dimension.
    features = [tuple(map(int, x.shape[1:])) for x in state]
    sizes = [math.prod(shape) for shape in features]

    def joined(z: Sequence[Tensor]) -> Tensor:
        return torch.cat([x.flatten(1) if x.dim() > 1 else x[:, None] for x in z], 1)

    def parts(z: Tensor) -> tuple[Tensor, ...]:
        pairs = zip(torch.split(z, sizes, -1), features, strict=True)
        return tuple(x.unflatten(-1, shape) if shape else x[..., 0] for x, shape in pairs)

    # torchdiffeq hands the time on in the state's dtype: a field that wants it in double gets it from the first one on.
    double = time_dtype(function, state[0].dtype) != state[0].dtype
    origin, times = (t[0], t - t[0]) if double else (None, t)

    def rhs(t: Tensor, z: Tensor) -> Tensor:
        states = parts(z)
        t = t if origin is None else t.double() + origin
        out = function(t, states if is_tuple else states[0], *args)
        rates = tuple(out) if is_tuple else (out,)
        for dz, x in zip(rates, states, strict=True):
            expected, got = (x.dtype, *map(int, x.shape)), (dz.dtype, *map(int, dz.shape))
            if expected != got:
                raise FieldError(f"the field must return dz/dt as the state is, expected {expected}, got {got}")
        return joined(rates)

    assert dt is not None
    grid = step_grid(times, dt)
    options = {"grid_constructor": lambda func, y0, t: grid}
    return parts(torchdiffeq.odeint(rhs, joined(state), times, method=solver.torch, options=options))


def _is_computed_from_input(x: Tensor) -> bool:
    """Whether the recorded module computes it from its inputs."""
    values = [torch._C._get_value_trace(x)]  # type: ignore[attr-defined]
    while values:
        node = values.pop().node()
        if node.kind() == "prim::Param":
            return True
        values.extend(node.inputs())
    return False
