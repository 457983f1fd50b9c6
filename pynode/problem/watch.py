"""What is known of the events of a solve while it runs: their signs, how often each has happened, and when last."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from pynode.engine.protocol import EventSearch
from pynode.errors import EngineUnavailable, InputError
from pynode.field import Field
from pynode.problem.crossing import ROUNDINGS, Arrival, Watched, event_values
from pynode.problem.event import Event, Events
from pynode.problem.pieces import on_side
from pynode.problem.signs import Signs
from pynode.problem.state import State
from pynode.problem.units import Args, Units
from pynode.transforms import example, is_wrapped, moves, numbers

__all__ = ["NO_TRANSFORMS", "Watch"]

Array = np.ndarray
NO_TRANSFORMS = (
    "an event's time and state have a gradient by autograd alone, no forward derivatives and none by torch.func: call "
    "solve(event=…) outside of its transforms and without dual numbers"
)


class Watch:
    """The events of each unit of a solve.

    Args:
        function: the values of all event functions.
        events: where they are from.
        form: the form of the user's state.
        field: the field that is solved.
        units: the units.
        on_sides: whether the field is on pieces, see `sides`.

    Attributes:
        search: what an engine is to look for.
        signs: of the values.
        count: `(units, events)`, how often each has happened.
    """

    def __init__(
        self, function: Callable[..., Tensor], events: Events, form: State, field: Field, units: Units, on_sides: bool
    ) -> None:
        self.events, self.units, self._user_form = events, units, form
        if on_sides:
            function, form = on_side(function), form.with_real_args(2)
        self.values = Watched(function, events.function, form, field, units)
        self.signs = Signs(0, ())
        self._function, self._form = function, form

    def measure(self, t: Tensor, z: Sequence[Tensor], args: Args) -> None:
        """Look at the event functions once, of the first unit: how many values they have.

        Args:
            t: `(1,)`.
            z: its state.
            args: its own conditioning tensors.
        """
        units, events, form = self.units, self.events, self._user_form
        plain = Args(tuple(map(example, args.tensors)), args.has_rows)

        def count(g: Callable[..., Tensor]) -> int:
            def evaluate(t: Tensor, z: tuple[Tensor, ...], args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                return (event_values(g, form, t, z, args),)

            return units.over(evaluate, example(t), [example(x) for x in z], plain, g)[0].shape[1]

        with torch.no_grad():
            events.measure(count)
        n = len(events.source)
        self.search = EventSearch(
            self._values_of_one, self._function, len(self._form.names), self._form, (0.0,) * n, events.directions
        )
        self.signs = Signs(units.count, events.directions)
        self.count = np.zeros((units.count, len(events.given)), np.int64)
        self._latest = np.full((units.count, n), -np.inf)
        self._last = np.array([x.last if isinstance(x, Event) else np.inf for x in events.given])

    def _values_of_one(self, t: Tensor, z: Sequence[Tensor], args: Sequence[Tensor]) -> Tensor:
        return event_values(self._function, self._form, t, z, args)

    def _plain(self, t: Tensor, z: Sequence[Tensor], args: Args) -> Array:
        with torch.no_grad():
            return numbers(self.values.values(t.detach(), [x.detach() for x in z], args).double())

    def jump(self, rows: Array, t: Tensor, before: Sequence[Tensor], after: Sequence[Tensor], args: Args) -> None:
        """The states of units jump."""
        found = [self._plain(t, z, args) for z in (before, after)]
        self.signs.pass_on(rows, found[0])
        self.signs.jump(rows, *found)

    def pass_on(self, rows: Array, t: Tensor, z: Sequence[Tensor], args: Args) -> None:
        """Units have come to these states without an event."""
        self.signs.pass_on(rows, self._plain(t, z, args))

    def start(
        self, rows: Array, t: Tensor, z: Sequence[Tensor], args: Args, now: Array, target: Array, sign: Array
    ) -> Array:
        """Units start from these states, with the running cost; which value of each has its event at once, or -1.

        Args:
            rows: the units.
            t: `(units,)`.
            z: their states.
            args: their conditioning tensors.
            now: the times, numbers along the solve.
            target: to which they are solved next.
            sign: the directions of time.

        Raises:
            InputError: a value is not finite.
            EngineUnavailable: a transform differentiates the states.
        """
        if any(is_wrapped(x) or moves(x) for x in z):
            raise EngineUnavailable(NO_TRANSFORMS)
        values, slopes = self.values.slopes(t, z, args, self.values.rates(t, z, args))
        finite = torch.isfinite(values).all(1)
        if not bool(finite.all()):
            at = "t[0]" if not self._started else f"t={float(t.detach()[~finite][0]):g}"
            raise InputError(
                f"event must return finite numbers, got {values[~finite][0].tolist()} at {at}. Look at what computes "
                "them"
            )
        self._started = True
        of_time, of_state = torch.finfo(t.dtype).eps, torch.finfo(z[0].dtype).eps
        size = np.maximum(np.abs(now), np.abs(target))
        resolution = ROUNDINGS * (of_time * size + of_state * np.abs(target - now))
        along = numbers(slopes.double()) * sign[:, None]
        return self.signs.start(rows, numbers(values.double()), along, resolution)

    _started = False

    def met(self, rows: Array, index: Array, arrival: Arrival) -> Array:
        """Units have had an event of these values; of which it is the last."""
        self.signs.met(rows, index, numbers(arrival.residual.double()))
        source = np.array(self.events.source)[index]
        self.count[rows, source] += 1
        return self.count[rows, source] >= self._last[source]

    def stuck(self, rows: Array, index: Array, now: Array) -> Array:
        """Of which of units, which have had an event of these values now, the last has come with no time in between."""
        still: Array = now - self._latest[rows, index] <= ROUNDINGS * np.spacing(np.abs(now))
        self._latest[rows, index] = now
        return still
