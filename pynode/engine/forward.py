"""Forward sensitivities: the derivatives of the state, solved for along with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pynode.engine.continuous import ContinuousDerivatives
from pynode.engine.each import is_per_sample
from pynode.engine.protocol import Gradients, Integration, Problem, Retcode
from pynode.engine.scale import exponent, largest, spans
from pynode.errors import EngineUnavailable, InputError
from pynode.field._elsewhere import arbitrary, outputs_elsewhere
from pynode.field._outside import unhooked
from pynode.field._tangents import TangentField
from pynode.sensitivity import find_sensitivity
from pynode.weak import WeakMap

__all__ = ["solve_forward"]

_MEMORY = 2**28  # what the tangents may take unless told otherwise
_WORK = 16  # states that a solver works with, about


@dataclass(frozen=True)
class _Directions:
    """What the solution is differentiated by, and where in the tangents that is.

    Attributes:
        n: how many directions there are.
        separate: whether no sample depends on another: then a direction moves one entry of every sample, and else one
            entry of one.
        z0: for each state tensor the first direction; `None` where no gradient is wanted. Likewise for the rest.
        args: the first direction, and whether each direction moves an entry of every row.
        parameters: the first direction of each.
        t0: the direction of the first time.
        lengths: how far directions move an entry of each of the problem's inputs: not much less than its own size, so
            that a tangent is not lost below the absolute tolerance, which is in units of the state.
    """

    n: int
    separate: bool
    z0: tuple[int | None, ...]
    args: tuple[tuple[int, bool] | None, ...]
    parameters: tuple[int | None, ...]
    t0: int | None
    lengths: tuple[float, ...]

    @staticmethod
    def of(problem: Problem, separate: bool) -> _Directions:
        """One direction for each number that a gradient is wanted for, as far as samples do not share them."""
        n, batch, wants = 0, problem.z0[0].shape[0], problem.wants

        def take(size: int) -> int:
            nonlocal n
            n += size
            return n - size

        def size(x: Tensor, rows: bool) -> int:
            return x.numel() // batch if rows else x.numel()

        z0 = [take(size(x, separate)) if w else None for x, w in zip(problem.z0, wants["z0"], strict=True)]
        args: list[tuple[int, bool] | None] = []
        for a, w in zip(problem.args, wants["args"], strict=True):
            rows = separate and is_per_sample(a, batch)
            args.append((take(size(a, rows)), rows) if w else None)
        parameters = zip(problem.parameters, wants["parameters"], strict=True)
        of_parameters = [take(p.numel()) if w else None for p, w in parameters]
        t0 = take(1) if wants["t"][0] else None
        lengths = tuple(_length(x) if w else 1.0 for x, w in zip(spans(problem), problem.wanted, strict=True))
        return _Directions(n, separate, tuple(z0), tuple(args), tuple(of_parameters), t0, lengths)


def _length(x: Tensor) -> float:
    """A power of 1024, which changes seldom as the numbers do: with another one the field is traced anew."""
    return 2.0 ** (10 * round(exponent(1.0, largest([x]), x.dtype) / 10))


def solve_forward(
    solve: Callable[[Problem], Integration], problem: Problem, norm_over_all: bool, further: str
) -> Integration:
    """Solve the state and its derivatives in all that a gradient is wanted for (the variational equation).

    Args:
        solve: solves a problem without a sensitivity.
        problem: a problem whose sensitivity is `Forward`.
        norm_over_all: whether `solve` measures the error by one mean over all state tensors. The tolerances are then
            tightened so that the state is as accurate as without its tangents.
        further: the sensitivity by which second derivatives are computed.

    Raises:
        EngineUnavailable: the field is, or contains, a `JuliaField`.
        InputError: the tangents take more memory than allowed.
    """
    if problem.field.facts.runs_on is not None:
        raise EngineUnavailable(
            "sensitivity='forward' differentiates products with the Jacobian once more, and the field is, or contains, "
            "a JuliaField, whose products have no derivative: use 'discrete' or 'gauss'"
        )
    problem.field.check_finite(problem.z0, problem.args)
    base = problem.field.on_leaves()
    base.freeze()
    problem = replace(problem, field=base)
    directions = _Directions.of(problem, _is_separate(problem))
    _refuse_size(problem, directions)
    lengths = directions.lengths[len(problem.z0) + 1 :]
    field = TangentField(problem.field, len(problem.z0), directions.n, directions.args, directions.parameters, lengths)
    tangents = _first_tangents(problem, directions)
    tighter = math.sqrt(1 + directions.n) if norm_over_all else 1.0
    least = min(problem.rtol, 16 * torch.finfo(problem.z0[0].dtype).eps)
    extended = replace(
        problem,
        field=field,
        z0=(*problem.z0, *tangents),
        rtol=max(problem.rtol / tighter, least),
        atol=problem.atol / tighter,
        sensitivity=None,
        split=None,
    )
    done = solve(extended)
    n = len(problem.z0)
    z, s = done.z[:n], done.z[n:]
    interpolant = done.interpolant
    pullback = None
    if done.retcode is Retcode.SUCCESS:
        # Now, since later the field may be another.
        rates = _rates(problem, z) if directions.t0 is not None else ()
        done.stats.nfe += len(rates)

        def pullback(cotangents: Sequence[Tensor | None]) -> Gradients:
            done.stats.nfe_backward = 0
            return _contract(problem, directions, rates, s, cotangents)

    return replace(
        done,
        z=z,
        z_end=None if done.z_end is None else done.z_end[:n],
        pullback=pullback,
        interpolant=None if interpolant is None else lambda times: interpolant(times)[:n],
        derivatives=ContinuousDerivatives(
            solve,
            replace(problem, field=base, parameters=base.parameters, sensitivity=find_sensitivity(further)),
            list(problem.field.named_tensors().values()),
        ),
    )


# For each field the batch sizes and shapes for which samples do not, or do, depend on one another.
_SEPARATE: WeakMap[object, dict[object, bool]] = WeakMap()


def _is_separate(problem: Problem) -> bool:
    """Whether dz/dt of a sample depends on no other sample's state, nor on rows of `args` but its own.

    It is looked at once for a field, at several states and for parameters off theirs: by products with cotangents that
    are zero for a half of the samples, where the products have to be zero too; the halves are chosen so that any two
    samples are once in different ones.
    """
    z0, field = problem.z0, problem.field
    batch = z0[0].shape[0]
    known = _SEPARATE.setdefault(field.key, {})
    key = (batch, *(a.shape for a in problem.args))
    if key in known:
        return known[key]
    of_rows = {id(a): a.detach().clone() for a in problem.args if is_per_sample(a, batch) and a.is_floating_point()}
    rows = [a.requires_grad_() for a in of_rows.values()]
    args, separate = [of_rows.get(id(a), a) for a in problem.args], True
    with torch.inference_mode(False), torch.enable_grad(), unhooked():
        for _, states, dz in outputs_elsewhere(field, problem.t[0], z0, args, tracked=True):
            outputs = [x for x in dz if x.requires_grad]
            for bit in range((batch - 1).bit_length() if outputs else 0):
                half = (torch.arange(batch, device=z0[0].device) >> bit) % 2
                for side in (0, 1):
                    inside = half == side
                    cotangents = [_rows(inside, x) * arbitrary(x, 0.0) for x in outputs]  # so that nothing cancels
                    found = torch.autograd.grad(
                        outputs, [*states, *rows], cotangents, retain_graph=True, allow_unused=True
                    )
                    separate &= not any(bool((g * _rows(~inside, g)).any()) for g in found if g is not None)
    known[key] = separate
    return separate


def _rows(chosen: Tensor, like: Tensor) -> Tensor:
    return chosen.to(like).reshape(-1, *[1] * (like.dim() - 1))


def _refuse_size(problem: Problem, directions: _Directions) -> None:
    assert problem.sensitivity is not None
    given = problem.sensitivity.options.get("memory", _MEMORY)
    limit = int(given)  # type: ignore[call-overload]
    numbers = sum(z.numel() for z in problem.z0)
    moved = sum(x.numel() for x in (*problem.args, *problem.parameters))
    needed = directions.n * (numbers * (len(problem.t) + _WORK) + moved)
    if problem.solver.stiff:  # the Jacobian of all
        needed += (numbers * (1 + directions.n)) ** 2
    needed *= problem.z0[0].element_size()
    if needed <= limit:
        return
    mixed = "" if directions.separate else " (its samples depend on one another, so that each counts)"
    raise InputError(
        f"sensitivity='forward' carries {directions.n} derivatives of each of the state's {numbers} numbers{mixed}, "
        f"one for each number that a gradient is wanted for: about {needed / 2**20:.0f} MiB, more than the "
        f"{limit / 2**20:.0f} MiB allowed. Use 'discrete' or 'gauss', whose cost does not grow with that, or raise "
        "pynode.Forward(memory=…)"
    )


def _first_tangents(problem: Problem, directions: _Directions) -> list[Tensor]:
    """The derivatives of the initial state, `(batch, n, *features)` of each tensor."""
    rates: Sequence[Tensor] = ()
    if directions.t0 is not None:
        with torch.no_grad():
            rates = problem.field(problem.t[0], problem.z0, problem.args)
    found = []
    for i, z in enumerate(problem.z0):
        batch, first = z.shape[0], directions.z0[i]
        s = z.new_zeros(batch, directions.n, math.prod(z.shape[1:]))
        size = s.shape[2]
        if first is not None and directions.separate:
            s[:, first : first + size] = directions.lengths[i] * torch.eye(size, device="cpu").to(s)
        elif first is not None:
            unit = torch.eye(batch * size, device="cpu").to(s).reshape(batch * size, batch, size)
            s[:, first : first + batch * size] = directions.lengths[i] * unit.movedim(0, 1)
        if directions.t0 is not None:  # z(t) depends on t[0] as on a move of z0 against the field
            s[:, directions.t0] = -directions.lengths[len(problem.z0)] * rates[i].reshape(batch, size)
        found.append(s.reshape(batch, directions.n, *z.shape[1:]))
    return found


def _rates(problem: Problem, z: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """dz/dt at each of the problem's times, where the states are `z`."""
    with torch.no_grad():
        return [problem.field(t, [x[i] for x in z], problem.args) for i, t in enumerate(problem.t)]


def _contract(
    problem: Problem,
    directions: _Directions,
    rates: Sequence[tuple[Tensor, ...]],
    s: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Gradients:
    """The cotangents of what the solution depends on, from its derivatives, `rates` in t, and its own cotangents."""
    t, batch = problem.t, problem.z0[0].shape[0]
    rows = s[0].new_zeros(batch, directions.n)  # what each sample contributes
    for g, x in zip(cotangents, s, strict=True):
        if g is not None:
            time = len(t)
            rows += torch.einsum("tbnf,tbf->bn", x.reshape(time, batch, directions.n, -1), g.reshape(time, batch, -1))
    total = rows.sum(0)

    def part(x: Tensor, first: int | None, own: bool, length: float) -> Tensor | None:
        if first is None:
            return None
        found = rows[:, first : first + x.numel() // batch] if own else total[first : first + x.numel()]
        return found.reshape(x.shape) / length

    dt = None
    if directions.t0 is not None:
        dt = torch.zeros_like(t)
        for i, of_states in enumerate(rates):
            dt[i] = sum((g[i] * rate).sum() for g, rate in zip(cotangents, of_states, strict=True) if g is not None)
        # The first value is z0 whatever t[0]: there the two cancel.
        dt[0] += total[directions.t0] / directions.lengths[len(problem.z0)]
    length = iter(directions.lengths)
    z0 = [part(x, first, directions.separate, next(length)) for x, first in zip(problem.z0, directions.z0, strict=True)]
    next(length)  # of the times
    of_args = zip(problem.args, directions.args, strict=True)
    of_parameters = zip(problem.parameters, directions.parameters, strict=True)
    return Gradients(
        z0,
        dt,
        [part(a, where and where[0], where is not None and where[1], next(length)) for a, where in of_args],
        [part(p, first, False, next(length)) for p, first in of_parameters],
    )
