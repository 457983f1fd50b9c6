"""Where what a field computes from the time jumps: comparisons, roundings, tables.

A `Tape` has the operations whose results are piecewise constant in time. In their order, each is looked at between the
jumps that were found so far, where its operands are continuous: a change from one end to the other is closed in on to
neighbouring floating-point numbers, by secants where the operation says of what it is a change of sign.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pynode.errors import InputError
from pynode.field._tape import Slot, Step, Tape

__all__ = ["Search", "Switch", "crossing", "has_switches", "switches"]

MOST = 1000  # jumps in one solve
_SAMPLES = 64  # places where an operand that is no straight line is looked at
_GOLDEN = (math.sqrt(5) - 1) / 2

_COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
_WITH_REMAINDER = ("remainder", "fmod", "frac")
_ROUNDINGS = ("floor", "ceil", "trunc", "round", "floor_divide", "sign", "sgn", "heaviside", *_WITH_REMAINDER)
# Of these the result is on a straight line in time if the operands are.
_STRAIGHT = {"detach", "alias", "clone", "view", "_unsafe_view", "_reshape_alias", "unsqueeze", "squeeze", "expand"}
_STRAIGHT |= {"select", "slice", "unbind", "split", "permute", "t", "transpose", "lift_fresh", "repeat", "cat", "stack"}
_STRAIGHT |= {"_to_copy", "add", "sub", "rsub", "neg", *_WITH_REMAINDER}
_CONSTANT, _LINE, _CURVE = range(3)


class Switch(NamedTuple):
    """A jump in time.

    Attributes:
        t: where.
        tape: of the computation that jumps.
        step: the number of the step.
        element: which entry of its result, flattened.
        level: see `crossing`.
    """

    t: float
    tape: Tape
    step: int
    element: int
    level: float


def _is_switch(step: Step, tape: Tape) -> bool:
    """Whether an operation on floating-point numbers has a result that is piecewise constant, or jumps."""
    if step.smooth or not any(tape.floating[n] for n in step.slots):
        return False
    name = step.name.rstrip("_")
    if name in _ROUNDINGS or (name in ("div", "divide") and step.kwargs.get("rounding_mode") is not None):
        return True
    return any(n is not None and not tape.floating[n] for n in step.outputs)


def has_switches(tape: Tape) -> bool:
    """Whether there is anything to look for."""
    return any(_is_switch(step, tape) for step in tape.steps)


def _shapes_in_time(tape: Tape) -> list[int]:
    """For each slot whether it is constant between the jumps, on a straight line, or neither."""
    found = [_CONSTANT] * len(tape.floating)
    found[0] = _LINE

    def kind(x: Any) -> int:
        return found[x.number] if isinstance(x, Slot) else _CONSTANT

    for step in tape.steps:
        most, name = max(found[n] for n in step.slots), step.name.rstrip("_")
        if most == _LINE:
            product = name in ("mul", "div") and step.kwargs.get("rounding_mode") is None
            divisor = name in ("div", *_WITH_REMAINDER) and len(step.args) > 1 and kind(step.args[1]) != _CONSTANT
            both = product and all(kind(x) != _CONSTANT for x in step.args[:2])
            straight = (name in _STRAIGHT or product) and not both and not divisor
            most = _LINE if straight else _CURVE
        jumps = _is_switch(step, tape) and name not in _WITH_REMAINDER
        for n in step.outputs:
            if n is not None:
                steady = jumps or not tape.floating[n]
                found[n] = _CURVE if step.smooth else _CONSTANT if steady else most
    return found


def _value(step: Step, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """What is constant but for the jumps, flattened."""
    out = step.operation(*unshared(step, args), **kwargs)
    if step.name in ("remainder", "fmod"):
        out = torch.round((args[0] - out) / args[1])
    elif step.name == "frac":
        out = args[0] - out
    parts = [out] if isinstance(out, Tensor) else [x for x in out if isinstance(x, Tensor)]
    if not isinstance(out, Tensor):
        parts = [x for x in parts if not x.is_floating_point()]
    return torch.cat([x.detach().reshape(-1).double() for x in parts])


def unshared(step: Step, args: Sequence[Any]) -> Sequence[Any]:
    """The operands, copied where the operation writes to them."""
    if not step.operation._schema.is_mutable:
        return args
    return [x.clone() if isinstance(x, Tensor) else x for x in args]


def crossing(step: Step, args: Sequence[Any], kwargs: dict[str, Any], level: float) -> Tensor | None:
    """What changes its sign where the result leaves `level` upwards; `None` where that is not known.

    Flattened, an entry for each of the result's.
    """
    name = step.name.rstrip("_")
    x: Any = args[0]
    other: Any = args[1] if len(args) > 1 else None
    if name in _COMPARISONS:
        return (x - other).reshape(-1)
    if name in ("bucketize", "searchsorted"):
        knots, x = (other, x) if name == "bucketize" else (x, other)
        if not isinstance(knots, Tensor) or knots.dim() != 1 or not 0 <= level < len(knots):
            return None
        knot = knots[int(level)]
        return (x - knot).reshape(-1)
    if name in ("sign", "sgn", "heaviside"):
        return (x + 0 * other if name == "heaviside" else x).reshape(-1)
    if name == "ceil":
        return (x - level).reshape(-1)
    if name == "round":
        return (x - (level + 0.5)).reshape(-1) if other is None and not kwargs.get("decimals") else None
    if name in ("floor_divide", "remainder", "fmod", "div", "divide"):
        x = x / other
    down = name in ("floor", "remainder") or (name == "floor_divide") or kwargs.get("rounding_mode") == "floor"
    cut = name in ("trunc", "fmod", "frac") or kwargs.get("rounding_mode") == "trunc"
    if name == "_to_copy":
        if kwargs.get("dtype") is torch.bool:
            return None
        cut = True
    if not (down or cut):
        return None
    return (x - (level + 1 if down or level >= 0 else level)).reshape(-1)


class Search:
    """The search on one tape.

    Args:
        tape: the tape.
        like: a tensor of the dtype and on the device of the time.
        first: the span, `first` < `last`.
        last: its end.
    """

    def __init__(self, tape: Tape, like: Tensor, first: float, last: float) -> None:
        self.tape, self.like, self.first, self.last = tape, like, first, last
        self.number = np.float32 if like.dtype == torch.float32 else np.float64
        self.steps = [i for i, step in enumerate(tape.steps) if _is_switch(step, tape)]
        shapes = _shapes_in_time(tape)
        self.curved = {i for i in self.steps if any(shapes[n] == _CURVE for n in tape.steps[i].slots)}
        self.operands = functools.lru_cache(maxsize=4096)(self._operands)

    def _operands(self, t: float) -> dict[int, tuple[Any, dict[str, Any], np.ndarray]]:
        """For each step that may jump its operands at a time, and its value."""
        found = {}

        def look(i: int, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
            if i in self.looked:
                value = _value(self.tape.steps[i], args, kwargs)
                found[i] = (unshared(self.tape.steps[i], args), kwargs, value.cpu().numpy())

        with torch.no_grad():
            self.tape.play(self.like.new_tensor(t), look, self.steps[-1] + 1)
        return found

    @functools.cached_property
    def looked(self) -> set[int]:
        """The steps that may jump, as a set."""
        return set(self.steps)

    def after(self, t: float) -> float:
        """The next number."""
        with np.errstate(under="ignore"):
            return float(np.nextafter(self.number(t), self.number(math.inf)))

    def before(self, t: float) -> float:
        """The one before."""
        with np.errstate(under="ignore"):
            return float(np.nextafter(self.number(t), self.number(-math.inf)))

    def run(self, stops: dict[float, Switch | None]) -> None:
        """Add the jumps that are not among `stops` yet."""
        for i in self.steps:
            inner = sorted(s for s in stops if self.first < s < self.last)
            ends = [self.first, *inner, self.last]
            for p, q in itertools.pairwise(ends):
                a, b = (self.after(p) if p in stops else p), (self.before(q) if q in stops else q)
                if a < b:
                    self._region(i, a, b, stops)

    def _region(self, i: int, a: float, b: float, stops: dict[float, Switch | None]) -> None:
        """Look at one step between two times."""
        count = _SAMPLES
        points = [a, b]
        while i in self.curved:
            # Evenly spread, but not at even distances, which a periodic operand may have for its period.
            inner = {float(self.number(a + (b - a) * (k * _GOLDEN % 1))) for k in range(1, count)}
            points = sorted({a, b} | {x for x in inner if a < x < b})
            changed = sum(bool(self.changed(i, u, v).size) for u, v in itertools.pairwise(points))
            if changed * 8 <= count or count >= 64 * _SAMPLES:
                break
            count *= 4  # a change may have hidden others
        waiting = list(itertools.pairwise(points))[::-1]
        while waiting:
            u, v = waiting.pop()
            elements = self.changed(i, u, v).tolist() if u < v else []
            if not elements:
                continue
            switch = self._locate(i, elements[0], u, v)
            stops[switch.t] = switch
            if len(stops) > MOST:
                raise InputError(
                    f"the field jumps at more than {MOST} times within the span, by comparisons or roundings of t, and "
                    "each would end a step: solve over shorter spans, or pass tstops=None (no search for jumps, which "
                    "a solver may then step over) with fixed steps that are short enough"
                )
            waiting += [(self.after(switch.t), v), (u, self.before(switch.t))]

    def changed(self, i: int, u: float, v: float) -> np.ndarray:
        """Which entries of a step's result differ between two times."""
        left, right = self.operands(u)[i][2], self.operands(v)[i][2]
        return np.flatnonzero((left != right) & ~(np.isnan(left) & np.isnan(right)))

    def _locate(self, i: int, element: int, u: float, v: float) -> Switch:
        """Where an entry first leaves the value that it has at `u`, between there and `v`."""
        at_u, at_v = self.operands(u)[i][2][element], self.operands(v)[i][2][element]
        level = float(at_u if at_v > at_u else at_u - 1)
        step = self.tape.steps[i]

        def side(t: float) -> float:
            args, kwargs, _ = self.operands(t)[i]
            with torch.no_grad():
                found = crossing(step, args, kwargs, level)
            return math.nan if found is None else float(found[element])

        lo, hi = u, v

        def move(t: float) -> None:
            nonlocal lo, hi
            if self.operands(t)[i][2][element] == at_u:
                lo = t
            else:
                hi = t

        while (nearest := self.after(lo)) < hi:
            below, above = side(lo), side(hi)
            guess = lo - below * (hi - lo) / (above - below) if above != below else math.nan
            if math.isfinite(guess):
                guess = float(self.number(min(max(guess, nearest), self.before(hi))))
                move(guess)
                if self.after(lo) < hi:
                    move(self.before(hi) if hi == guess else self.after(lo))
            if self.after(lo) < hi:
                middle = float(self.number(lo + (hi - lo) / 2))
                move(middle if lo < middle < hi else self.after(lo))
        at_lo = lo == self.first or (hi != self.last and side(lo) == 0)
        return Switch(lo if at_lo else hi, self.tape, i, element, level)


def switches(record: Callable[[Tensor], Tape], like: Tensor, first: float, last: float) -> list[Switch]:
    """The times at which something jumps, from the least to the greatest; those at the span's ends included.

    Args:
        record: evaluates the field at a time and gives the tape of that.
        like: a tensor of the dtype and on the device of the time.
        first: the span, `first` < `last`.
        last: its end.

    Raises:
        InputError: there are too many.
    """
    first, last = float(first), float(last)
    tape = record(like.new_tensor(first))
    found: dict[float, Switch | None] = {}
    if not has_switches(tape):
        return []
    Search(tape, like, first, last).run(found)
    looked: set[tuple[float, float]] = set()
    while tape.branches:
        # Python's `if` has hidden what is computed on its other side.
        pieces = set(itertools.pairwise(sorted({first, last, *found}))) - looked
        before = len(found)
        for a, b in sorted(pieces):
            looked.add((a, b))
            middle = a + (b - a) / 2
            search = Search(record(like.new_tensor(middle)), like, a, b)
            if search.steps:
                search.run(found)
        if len(found) == before:
            break
    return [switch for _, switch in sorted(found.items()) if switch is not None]
