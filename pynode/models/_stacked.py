"""Neural ODEs whose field changes at knots."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pynode.engine.protocol import Retcode
from pynode.errors import InputError
from pynode.field._outside import outside_of_compile
from pynode.models._check import depths_like
from pynode.models._failed import failed_samples, spread
from pynode.models._moved import moved
from pynode.models._node import NODE
from pynode.nn import HigherOrder
from pynode.numeric import real_number
from pynode.problem.counts import Joined
from pynode.problem.inputs import check_times
from pynode.solve import solve

__all__ = ["StackedNODE"]


class StackedNODE(NODE):
    """A neural ODE with one field for each of several intervals of depth; the solver restarts at the knots.

    With fields of one architecture this is the depth-variant neural ODE with piecewise constant θ(s).

    Args:
        fields: f₁ … fₙ, `nn.Module`s, each as `NODE` takes; the same module may come twice.
        knots: the n + 1 depths k₀ … kₙ between which the fields hold, strictly monotone, from the first to the last
            depth of `t`; or the n - 1 between these. `None`: n equal intervals.
        node_keywords: as `NODE` takes.

    Attributes:
        knots: the n + 1 depths.
        stats: sums over the intervals of the last call.

    Raises:
        InputError: there is no field or one that is no module, `knots` has another length, is not strictly
            monotone or does not go with `t`, or as `NODE` raises; at a call, a depth lies outside of `t`.

    Source:
        S. Massaroli et al., "Dissecting Neural ODEs", NeurIPS 2020, section 3 (stacked neural ODEs).
    """

    def __init__(
        self,
        fields: Sequence[nn.Module],
        *,
        knots: Sequence[float] | None = None,
        **node_keywords: Any,
    ) -> None:
        fields = list(fields) if isinstance(fields, Sequence | nn.ModuleList) else [fields]
        for i, field in enumerate(fields):
            if not isinstance(field, nn.Module):
                raise InputError(f"fields must be a list of nn.Modules, got {type(field).__name__} at position {i}")
        if not fields:
            raise InputError("fields must hold at least one vector field, got none")
        # One that comes twice has one name: `torch.func.functional_call` would not put back what it gives it under two.
        different = list(dict.fromkeys(fields))
        super().__init__(nn.ModuleList(different), **node_keywords)
        self._which = [different.index(field) for field in fields]
        if self.order > 1:
            self.field = nn.ModuleList(HigherOrder(field, self.order) for field in different)
        self.knots = _knots(knots, len(fields), self.t)
        self._sign = 1 if self.t[1] > self.t[0] else -1

    def _field_at(self, s: Tensor) -> Any:
        return self.field[self._which[self._interval(s)]]

    def _interval(self, s: Tensor) -> int:
        """Which interval contains `s`, 0-d; a knot belongs to the one that begins there."""
        begun = self._sign * s.new_tensor(self.knots[:-1]) <= self._sign * s
        return max(int(begun.sum()) - 1, 0)

    @outside_of_compile
    def _solve(self, z0: Tensor, t: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        self._forget()
        t, _ = check_times(t, z0)
        knots, ahead = depths_like(self.knots, t), self._sign * t.detach()
        if not bool((ahead >= self._sign * knots[0]).all() and (ahead <= self._sign * knots[-1]).all()):
            raise InputError(
                f"a stacked model has fields for depths from {self.knots[0]:g} to {self.knots[-1]:g} only, "
                f"got {t.tolist()}"
            )
        if len(t) > 1 and bool(ahead[1] < ahead[0]):
            raise InputError(
                f"the depths of a stacked model must go the way of its knots, {self.knots}, got {t.tolist()}. Build "
                "one with the fields and the depth interval the other way round"
            )
        states, parts, z, start, done = [z0.unsqueeze(0)], [], z0, t[:1], 1
        failed: Tensor | None = None
        for i in range(self._interval(t[0].detach()), len(self._which)):
            field, end = self.field[self._which[i]], knots[i + 1 : i + 2]
            stop = int((ahead <= self._sign * end).sum())
            goes_on = stop < len(t)
            at_end = goes_on and stop > done and bool(t[stop - 1] == end)
            inside = t[done : stop - at_end]
            part = solve(
                field,
                z,
                # The next interval begins at the knot, also where that is a depth that was asked for.
                torch.cat([start, inside, end if goes_on else t[:0]]),
                args=args,
                running_cost=self.cost,
                **self.solver_keywords,
            )
            parts.append(part)
            found = [part.z[1 : 1 + len(inside)]]
            if at_end:
                found.append(moved(field, part.z[-1], t[stop - 1], args).unsqueeze(0))
            states += found if failed is None else [x.masked_fill(failed, torch.nan) for x in found]
            z, start, done = part.z[-1], end, stop
            if done == len(t):
                break
            if part.retcode is not Retcode.SUCCESS:  # of all samples, or of some that are solved by themselves
                lost = spread(failed_samples(z), z)
                failed = lost if failed is None else failed | lost
                if bool(failed.all()):
                    states.append(z.new_full((len(t) - done, *z.shape), torch.nan))
                    break
            if failed is not None:
                z = z.masked_fill(failed, 0.0)  # from which what has failed goes on, unseen, beside the others
        self.stats = Joined([part.stats for part in parts])
        costs = [part.running_cost for part in parts if part.running_cost is not None]
        self.running_cost = torch.stack(costs).sum(0) if costs else None
        return torch.cat(states)

    def extra_repr(self) -> str:
        """The arguments that are not modules."""
        return f"{super().extra_repr()}, knots={self.knots}"


def _knots(knots: Sequence[float] | None, n: int, t: tuple[float, float]) -> tuple[float, ...]:
    """The n + 1 depths between which n fields hold."""
    start, end = t
    if knots is None:
        return (*(start + (end - start) * i / n for i in range(n)), end)
    try:
        given = tuple(map(real_number, knots))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(f"knots must be a sequence of numbers, got {knots!r}") from None
    if len(given) not in (n - 1, n + 1):
        raise InputError(
            f"knots must be the {n + 1} depths between which {n} fields hold, or the {n - 1} inner ones of these, "
            f"got {len(given)} of them"
        )
    full = given if len(given) == n + 1 else (start, *given, end)
    sign = 1 if end > start else -1
    if not all(math.isfinite(k) for k in full) or any(sign * b <= sign * a for a, b in itertools.pairwise(full)):
        raise InputError(
            f"knots must be finite and strictly {'increasing' if sign > 0 else 'decreasing'}, as the depth interval "
            f"t={t} is, got {list(given)}"
        )
    if (full[0], full[-1]) != t:
        raise InputError(
            f"knots must begin and end with the depth interval t={t}, got {list(given)}. "
            f"Pass t=({full[0]:g}, {full[-1]:g}), or the inner knots alone"
        )
    return full
