"""A solve whose field reads a path, `f(t, z, X, *args)`: that of a field with the path's tensors among its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.control import Control
from pynode.control._control import Form
from pynode.errors import InputError
from pynode.field._derived import derived_field
from pynode.field._outside import lacks_values
from pynode.julia_field import JuliaField
from pynode.nn._signature import with_time
from pynode.problem.inputs import as_times
from pynode.problem.stops import KNOTS, check_stops
from pynode.transforms import differentiated, example, is_mapped, untransformed

__all__ = ["check_control", "kinks_of", "reads_control", "with_jumps"]

_MOST = 1000  # times at which a solve starts afresh
_ROUNDINGS = 8


def check_control(control: Any, field: Any, z0: Tensor, t: Any) -> None:
    """Refuse what is no path for a solve.

    Args:
        control: the user's.
        field: the user's.
        z0: a tensor of the state.
        t: the times of the solve.

    Raises:
        InputError: it is not one, does not fit the state, or does not cover the times.
    """
    if not isinstance(control, Control):
        raise InputError(
            f"control must be a path such as pynode.control.CubicHermite(times, values), got {type(control).__name__}"
        )
    if isinstance(field, JuliaField):
        raise InputError("a JuliaField takes tensors, no control: pass what it needs of the path in args")
    dtype = torch.promote_types(z0.dtype.to_real(), torch.float32)  # a half state is solved in float32
    batch = z0.shape[0] if z0.dim() else 1
    if control.coefficients.dtype != dtype:
        raise InputError(
            f"the control's values must have the state's dtype {dtype}, got {control.coefficients.dtype}. Convert them"
        )
    if control.form.dims == 2 and len(control.coefficients) != batch:
        raise InputError(
            f"the control must have a path for each sample, expected batch {batch}, got {len(control.coefficients)}. "
            "Values (time, channels) are one path for all"
        )
    times = example(as_times("t", t, z0)).double()
    first, last = (float(x.detach()) for x in control.span)
    low, high = (float(x) for x in (times.nan_to_num(torch.inf).min(), times.nan_to_num(-torch.inf).max()))
    rounding = _ROUNDINGS * torch.finfo(dtype).eps * max(abs(low), abs(high))
    if low < first - rounding or high > last + rounding:
        raise InputError(
            f"t must be within the control's times, [{first:g}, {last:g}], got [{low:g}, {high:g}]. Solve within them, "
            "or give the control observations there"
        )


def reads_control(function: Any, form: Form, n_args: int | None = None) -> Any:
    """The user's `g(t, z, X, *args)` as one that takes the path's tensors in the place of X.

    Args:
        function: what the user passes; where it is not callable it is left as it is, to be refused.
        form: of the path.
        n_args: how many `args` there are, for a field, which may take the state alone.
    """
    if not callable(function):
        return function
    if n_args is not None:
        function = with_time(function, n_args + 1)
    return derived_field(_with_path, function, form)


def _with_path(
    function: Callable[..., Any], form: Form, owner: object, t: Tensor, z: Any, *args: Tensor, **keywords: Tensor
) -> Any:
    return function(t, z, form.of(args[:2]), *args[2:], **keywords)


def kinks_of(control: Control, tstops: Any, t: Any) -> Tensor | None:
    """The times at which a field that reads a path has a kink, for all samples the same; see `Problem`.

    Not where they, or the times of the solve `t`, on which the lengths of its steps depend, are differentiated: at a
    kink the derivatives to its time from either side differ.
    """
    times = control.times
    if tstops is None or not control.hidden or is_mapped(times) or _moves(control, t) or lacks_values():
        return None
    plain = example(times)
    with untransformed():  # within a transform whatever is computed is wrapped
        return plain.double().cpu().contiguous()


def _moves(control: Control, t: Any) -> bool:
    """Whether the times of the path or of the solve are differentiated."""
    given = t if isinstance(t, list | tuple) else [t]
    return any(isinstance(x, Tensor) and differentiated(x) for x in (control.times, *given))


def with_jumps(tstops: Any, control: Control, like: Tensor, t: Any) -> Any:
    """`tstops`, and where the path or its derivative jumps; with `"knots"` all times of the path, see also `kinks_of`.

    Raises:
        InputError: they are no times, or too many.
    """
    at_knots = isinstance(tstops, str) and tstops == KNOTS
    jumps = control.times if at_knots or (control.hidden and _moves(control, t)) else control.jumps
    if tstops is None or not len(jumps):
        return tstops
    given: Sequence[Tensor] = [] if at_knots else [stop.t for stop in check_stops(tstops, like)]
    times = example(as_times("t", t, like)).double()
    times = times[~times.isnan()]
    jumps = jumps.double()
    values = example(jumps.detach())
    jumps = jumps[(values >= times.min().to(values)) & (values <= times.max().to(values))]
    count = len(example(jumps.detach()).unique())
    if count > _MOST:
        if control.is_smooth and len(jumps) > len(control.jumps):
            raise InputError(
                f"the control has {count} knots within the span, and with tstops={KNOTS!r} or a gradient to times "
                "a solve would start afresh at each: solve fewer samples at once, or pass tstops=None, which goes on "
                "over the knots of a smooth path, with tighter tolerances"
            )
        raise InputError(
            f"the control jumps, or its derivative does, at {count} times within the span, and a solve would start "
            "afresh at each: use a smooth one (CubicHermite) of times that all samples share, solve fewer samples at "
            "once, or pass tstops=None with steps that are short enough"
        )
    return torch.cat([*(x[None].to(jumps.device) for x in given), jumps])
