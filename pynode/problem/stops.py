"""Times at which a solve starts afresh, since the field or its derivatives jump there."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pynode.engine.each import is_per_sample
from pynode.engine.protocol import Problem
from pynode.errors import EngineUnavailable, InputError
from pynode.field import Field
from pynode.field._switch_times import switch_times
from pynode.field._switches import has_switches, switches
from pynode.field._tape import Tape
from pynode.field._time import time_dtype
from pynode.problem.crossing import event_values
from pynode.problem.inputs import as_times
from pynode.problem.state import State
from pynode.transforms import differentiated, example, is_mapped, is_wrapped, moves, untransformed

__all__ = ["KNOTS", "Stop", "check_continuous", "check_stops", "find_stops"]

KNOTS = "knots"  # in the place of times, those of the control


class Stop(NamedTuple):
    """A time at which a solve starts afresh.

    Attributes:
        value: the time.
        t: the same, 0-d, in double; it may require a gradient.
    """

    value: float
    t: Tensor


def check_stops(tstops: Any, like: Tensor) -> list[Stop]:
    """The times that the user gives, in no order.

    Raises:
        InputError: they are no times.
    """
    if tstops is None or (isinstance(tstops, tuple | list) and not tstops):
        return []
    if isinstance(tstops, str):
        raise InputError(
            f"tstops must be times, None, or with a control {KNOTS!r}, got {tstops!r}. Pass a list of times, or the "
            "path as control="
        )
    times = as_times("tstops", tstops, like)
    if times.dim() != 1:
        raise InputError(
            f"tstops must be 1-d, got shape {tuple(times.shape)}. Pass a list of times, or None for no search for jumps"
        )
    values = example(times).tolist()
    if not all(map(math.isfinite, values)):
        raise InputError(f"tstops must be finite, got {values}. Remove what is not")
    return [Stop(float(x), t) for x, t in zip(values, times.double().unbind(), strict=True)]


def find_stops(
    given: Sequence[Stop],
    search: bool,
    problem: Problem,
    inputs: Sequence[Tensor],
    event: Callable[..., Any] | None,
    form: State,
) -> list[Stop]:
    """Those within the span of a solve, or at its ends, in increasing order: the user's and those that are found.

    Args:
        given: the user's.
        search: whether to look for others.
        problem: what is solved.
        inputs: its inputs as the user has them, maybe a transform's.
        event: the user's event function.
        form: the form of the state that it takes.

    Raises:
        InputError: there are too many, or one has no gradient and needs it.
        EngineUnavailable: they cannot be found under a transform, or not with their derivatives.
    """
    if not problem.z0[0].shape[0]:
        return []
    known = problem.t[~problem.t.isnan()]
    first, last = float(known.min()), float(known.max())
    stops = {stop.value: stop for stop in given if first <= stop.value <= last}
    if search:
        known_as = {float(known.new_tensor(x).to(problem.field.time_dtype)): x for x in stops}  # to the field
        for stop in _found(problem, inputs, event, form, first, last):
            value = known_as.get(stop.value, stop.value)
            if value not in stops or (differentiated(stop.t) and not differentiated(stops[value].t)):
                stops.pop(value, None)
                stops[stop.value] = stop
    if any(is_mapped(stop.t) for stop in given) or (stops and is_mapped(inputs[len(problem.z0)])):
        raise EngineUnavailable(
            "torch.vmap over the times of a solve that starts afresh at jumps has no one order of them: call solve "
            "once for each, or pass tstops=None for no stops"
        )
    return [stops[value] for value in sorted(stops)]


def _found(
    problem: Problem, inputs: Sequence[Tensor], event: Callable[..., Any] | None, form: State, first: float, last: float
) -> list[Stop]:
    field, state = problem.field, tuple(z.detach().clone() for z in problem.z0)
    n, m = len(state), len(problem.args)
    args = inputs[n + 1 : n + 1 + m]
    forwards = any(is_wrapped(x) or moves(x) for x in inputs)
    tracked = torch.is_grad_enabled()
    wanted = [is_wrapped(x) or moves(x) or (tracked and x.requires_grad) for x in inputs]
    found = []
    with _plain() if forwards else contextlib.nullcontext():
        if forwards:  # what depends on one of these is refused below
            field = field.on_leaves(wanted[n + 1 + m :])
            pairs = zip(args, wanted[n + 1 :], strict=False)
            args = [example(a).requires_grad_(w and a.is_floating_point()) for a, w in pairs]
        for evaluate, dtype in _computations(field, state, args, event, form, problem.t.dim() == 2):
            like = problem.t.new_empty((), dtype=dtype)
            low, high = (float(like.new_tensor(x)) for x in (first, last))
            at = switches(functools.partial(_tape, evaluate, state), like, low, high) if low < high else []
            found += list(zip(at, switch_times(at, like), strict=True))
    integers = any(is_wrapped(a) and not a.is_floating_point() for a in inputs[n + 1 : n + 1 + m])
    if forwards and found and (integers or any(t.requires_grad for _, t in found)):
        raise EngineUnavailable(
            "a jump of the field was found whose time depends on the field's tensors: that time has a gradient by "
            "autograd alone, none by torch.func, and no forward derivatives. Pass the times that are learned in "
            "tstops=…, and compare t with their detached values"
        )
    return [Stop(min(max(switch.t, first), last), t) for switch, t in found]


@contextlib.contextmanager
def _plain() -> Iterator[None]:
    """The context in which plain tensors are differentiated within a transform."""
    with untransformed(), forward_ad._set_fwd_grad_enabled(False), torch.enable_grad():
        yield


def _computations(
    field: Field,
    state: tuple[Tensor, ...],
    args: Sequence[Tensor],
    event: Callable[..., Any] | None,
    form: State,
    each: bool,
) -> Iterator[tuple[Callable[[Tensor], Any], torch.dtype]]:
    """What may jump, and the dtype in which it gets the time."""
    if field.facts.switches:
        yield lambda t: field(t, state, args), field.time_dtype
    if event is not None and callable(event):
        batch = state[0].shape[0]
        for b in range(batch) if each else [None]:  # of independent samples it sees one at a time
            own = slice(b, None if b is None else b + 1)
            z = tuple(x[own] for x in state)
            conditions = [a[own] if b is not None and is_per_sample(a, batch) else a for a in args]
            yield functools.partial(_event_at, event, form, z, conditions), time_dtype(event, state[0].dtype)


def _event_at(event: Callable[..., Any], form: State, z: Sequence[Tensor], args: Sequence[Tensor], t: Tensor) -> Tensor:
    return event_values(event, form, t, z, args)


def _tape(evaluate: Callable[[Tensor], Any], state: Sequence[Tensor], t: Tensor) -> Tape:
    tape = Tape(t, state)
    with tape:
        evaluate(t)
    return tape


def check_continuous(
    function: Callable[..., Any],
    state: tuple[Tensor, ...],
    t: Tensor,
    args: Sequence[Tensor],
    is_tuple: bool,
    tstops: Any,
) -> None:
    """Refuse jumps in a solve that `torch.jit.trace` records, whose steps are those of one call.

    Raises:
        InputError: times where the field jumps are given, or it compares or rounds what depends on t alone.
    """
    if tstops is None:
        return
    with torch.no_grad():
        z = tuple(x.detach().clone() for x in state)
        at = t.detach().flatten()[0].to(time_dtype(function, state[0].dtype)).clone()
        jumps = has_switches(_tape(lambda s: function(s, z if is_tuple else z[0], *args), z, at))
    if jumps or len(tstops):
        raise InputError(
            "torch.jit.trace records steps of equal length, which would step over the times where the field jumps "
            "(given in tstops, or by comparisons or roundings of t): record each piece by itself, or pass tstops=None "
            "to leave the jumps to steps that are short enough"
        )
