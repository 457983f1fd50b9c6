"""What may happen in the course of a solve: `Event`, where a function changes its sign, and `At`, at given times."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pynode.errors import InputError
from pynode.field._derived import derived_field
from pynode.field._time import time_as_asked
from pynode.problem.inputs import as_times
from pynode.transforms import example

__all__ = ["At", "Event", "Events", "events_of"]


class Event:
    """An event: a function of time and state changes its sign.

    Args:
        g: `g(t, z, *args)`, 0-d or `(n_events,)`: an event is where an entry passes zero.
        direction: 1 counts where an entry rises through zero, -1 where it falls, 0 both. Rising and falling are meant
            along the direction of the solve: backwards in time an entry rises that grows as t decreases.
        terminal: `True`: the solve ends at the first; an int n: at the n-th (of any of the entries); `False`: at none.
            By default it is `True` without an `affect`, and `False` with one.
        affect: `affect(t, z, *args) -> z` takes the state at the event and returns the one that the solve goes on with,
            in the same form (a tensor, a tuple, a named tuple, a dictionary) and of the same shapes. It may take the
            keyword argument `index` too: which entry of `g` it was, a 0-d integer tensor.

    In a joint batch `g` and `affect` see the whole batch, and an event is one of all; of independent samples they see
    one at a time, as a batch of one, and each has its own (`torch.vmap` maps them over samples where it can).

    An entry that is zero after an event counts from when it has left zero: it does not happen again at once. Nor is it
    an event where an `affect` carries the state to the other side of zero.
    """

    def __init__(
        self,
        g: Callable[..., Tensor],
        direction: int = 0,
        terminal: bool | int | None = None,
        affect: Callable[..., Any] | None = None,
    ) -> None:
        if not callable(g):
            raise InputError(f"the event function must be a callable g(t, z, *args), got {type(g).__name__}")
        if isinstance(direction, bool) or direction not in (-1, 0, 1):
            raise InputError(f"direction must be 1 (rising), -1 (falling) or 0 (both), got {direction!r}")
        if terminal is None:
            terminal = affect is None
        if not isinstance(terminal, int) or (not isinstance(terminal, bool) and terminal < 1):
            raise InputError(
                f"terminal must be True (end at the first), a positive int n (at the n-th) or False, got {terminal!r}"
            )
        self.g, self.direction, self.terminal = g, int(direction), terminal
        self.affect = None if affect is None else _checked(affect)
        self.takes_index = affect is not None and _takes_index(affect)

    @property
    def last(self) -> float:
        """At which occurrence the solve ends."""
        return float(self.terminal) if self.terminal else float("inf")

    def __repr__(self) -> str:
        affect = "" if self.affect is None else f", affect={_name(self.affect)}"
        return f"Event({_name(self.g)}, direction={self.direction}, terminal={self.terminal}{affect})"


class At:
    """Jumps of the state at given times: doses, pulses, resets.

    Args:
        times: 1-d, in any order; gradients flow to them. Those from `t[0]` on and before `t[-1]` happen (one at `t[-1]`
            belongs to what follows). Of independent samples also `(batch, n)`, each sample's own, NaN where it has
            fewer. `torch.vmap` maps over times that come in one order, between one another and between those of the
            solve, and over no others.
        affect: as that of `Event`; `index`, if it takes that, is the number of the time in `times`.
    """

    def __init__(self, times: Tensor | Sequence[float], affect: Callable[..., Any]) -> None:
        self.times, self.affect = times, _checked(affect)
        self.takes_index = _takes_index(affect)

    def in_double(self, like: Tensor, joint: bool) -> Tensor:
        """The times, `(n,)` or `(batch, n)`, in double and on the device of the state.

        Raises:
            InputError: they are no times, or not those of such a solve.
        """
        times = as_times("At's times", self.times, like)
        if times.dim() not in (1, 2):
            raise InputError(
                f"At's times must be 1-d, or (batch, n) for independent samples, got shape {tuple(times.shape)}"
            )
        if times.dim() == 2 and (joint or len(times) != len(like)):
            remedy = "batching='independent'" if joint else f"a row for each of the {len(like)} samples, or shape (n,)"
            raise InputError(f"At's times of shape {tuple(times.shape)} are those of each sample: pass {remedy}")
        values = example(times)
        if bool(values.isinf().any()) or (times.dim() == 1 and bool(values.isnan().any())):
            raise InputError(f"At's times must be finite, got {values.tolist()}. Remove what is not")
        return times.double()

    def __repr__(self) -> str:
        shape = tuple(self.times.shape) if isinstance(self.times, Tensor) else self.times
        return f"At({shape}, affect={_name(self.affect)})"


def _checked(affect: Any) -> Callable[..., Any]:
    if not callable(affect):
        raise InputError(f"affect must be a callable affect(t, z, *args) -> z, got {type(affect).__name__}")
    return affect


def _takes_index(affect: Callable[..., Any]) -> bool:
    """Whether a callable has a parameter of that name."""
    try:
        return "index" in inspect.signature(affect.forward if isinstance(affect, nn.Module) else affect).parameters
    except (TypeError, ValueError):
        return False


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


class Events:
    """What is to happen in the course of one solve.

    Args:
        given: the user's, in their order.

    Attributes:
        watched: the numbers of those that are `Event`.
        preset: the numbers of those that are `At`.
        function: the values of all event functions one after the other, as a function of time, state and conditioning
            tensors; `None` where there is none.
        directions: of each value; known once `measure` has been called, like `source` and `entry`, which are the number
            of its `Event`, and its own within that.
    """

    def __init__(self, given: Sequence[Event | At]) -> None:
        self.given = tuple(given)
        self.watched = [i for i, x in enumerate(given) if isinstance(x, Event)]
        self.preset = [i for i, x in enumerate(given) if isinstance(x, At)]
        functions = [x.g for x in given if isinstance(x, Event)]
        self.function: Callable[..., Any] | None = functions[0] if functions else None
        if len(functions) > 1:
            together = functools.partial(_together, len(functions))
            self.function = derived_field(together, functions[0], *functions[1:])
        self.directions: tuple[int, ...] = ()
        self.source: list[int] = []
        self.entry: list[int] = []

    def of(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Events:
        """The same of other functions, which are made of these."""
        found = [copy.copy(x) for x in self.given]
        for x in found:
            if isinstance(x, Event):
                x.g = wrap(x.g)
            x.affect = None if x.affect is None else wrap(x.affect)
        return Events(found)

    def measure(self, count: Callable[[Callable[..., Any]], int]) -> None:
        """Take note of how many values each event function has, also once more."""
        self.directions, self.source, self.entry = (), [], []
        for i in self.watched:
            event = self.given[i]
            assert isinstance(event, Event)
            n = count(event.g)
            self.directions += (event.direction,) * n
            self.source += [i] * n
            self.entry += range(n)

    def named(self, value: int) -> str:
        """What a message calls the event of a value."""
        event = self.given[self.source[value]]
        assert isinstance(event, Event)
        several = len(self.given) > 1 or self.source.count(self.source[value]) > 1
        return f"event{f' {self.source[value]}, value {self.entry[value]},' if several else ''} ({_name(event.g)})"


def events_of(event: Any) -> Events | None:
    """What `solve` is given as `event`.

    Raises:
        InputError: it is something else.
    """
    if event is None:
        return None
    given = list(event) if isinstance(event, list | tuple) else [event]
    found: list[Event | At] = []
    for x in given:
        if not isinstance(x, Event | At) and not callable(x):
            raise InputError(
                "event must be a callable g(t, z, *args), a pynode.Event, a pynode.At or a sequence of these, got "
                f"{type(x).__name__}"
            )
        found.append(x if isinstance(x, Event | At) else Event(x))
    return Events(found) if found else None


def _together(count: int, *given: Any) -> Tensor:
    """The values of so many event functions, which come first, then whose field this is, time, state and the rest."""
    functions, (_, t, z, *args) = given[:count], given[count:]
    found = []
    for function in functions:
        value = function(time_as_asked(function, t, _dtype(z)), z, *args)
        found.append(value.reshape(-1) if isinstance(value, Tensor) and value.dim() < 2 else value)
    return torch.cat(found)


def _dtype(z: Any) -> torch.dtype:
    while not isinstance(z, Tensor):
        z = next(iter(z.values())) if isinstance(z, dict) else z[0]
    return z.dtype.to_real()
