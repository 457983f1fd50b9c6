"""Independent samples, one solve for each: what an engine without a faster way does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pynode.engine.protocol import (
    Crossing,
    Derivatives,
    EventSearch,
    Gradients,
    Integration,
    PerSample,
    Problem,
    Retcode,
    Stats,
)
from pynode.errors import EngineUnavailable

__all__ = ["EachDerivatives", "find_each", "is_per_sample", "sample_of", "solve_each", "summary"]


def is_per_sample(x: Tensor, batch: int) -> bool:
    """Whether the first dimension of a conditioning tensor is the batch."""
    return x.dim() > 0 and x.shape[0] == batch


def sample_of(problem: Problem, b: int) -> Problem:
    """The problem of one sample of a problem of independent ones, a batch of one."""
    batch = problem.z0[0].shape[0]
    return replace(
        problem,
        z0=tuple(z[b : b + 1] for z in problem.z0),
        t=problem.t[b][~problem.t[b].isnan()],
        args=tuple(a[b : b + 1] if is_per_sample(a, batch) else a for a in problem.args),
    )


def summary(per_sample: PerSample) -> Stats:
    """The totals over the samples."""

    def total(x: Tensor | None) -> int | None:
        return None if x is None else int(x.sum())

    nfe, accepted, rejected = per_sample.nfe, per_sample.n_accepted, per_sample.n_rejected
    return Stats(int(nfe.sum()), None, total(accepted), total(rejected), 0.0, per_sample)


def find_each(
    find: Callable[[Problem, EventSearch], Crossing],
    problem: Problem,
    search: EventSearch,
    signs: Sequence[tuple[float, ...]],
) -> list[Crossing]:
    """Find the event of each sample by itself.

    Args:
        find: finds that of a problem of one sample.
        problem: a problem of independent samples.
        search: what is looked for.
        signs: of the values, for each sample.
    """
    return [find(sample_of(problem, b), replace(search, signs=own)) for b, own in enumerate(signs)]


def solve_each(solve: Callable[[Problem], Integration], problem: Problem) -> Integration:
    """Solve each sample by itself.

    Args:
        solve: solves a problem of one sample.
        problem: a problem of independent samples.
    """
    batch, time = problem.t.shape
    parts: list[Integration] = []
    if problem.watched is not None:
        problem.watched.samples = lambda: len(parts)
    for b in range(batch):
        parts.append(solve(sample_of(problem, b)))
    z = tuple(x.new_full((time, *x.shape), float("nan")) for x in problem.z0)
    for b, part in enumerate(parts):
        for whole, x in zip(z, part.z, strict=True):
            whole[: len(x), b] = x[:, 0]

    def counts(name: str) -> Tensor | None:
        values = [getattr(part.stats, name) for part in parts]
        return None if None in values else torch.tensor(values, device="cpu")

    nfe = counts("nfe")
    assert nfe is not None
    retcodes = tuple(part.retcode for part in parts)
    t_end = torch.tensor([part.t_end for part in parts], dtype=torch.float64, device="cpu")
    per_sample = PerSample(nfe, None, counts("n_accepted"), counts("n_rejected"), retcodes, t_end)
    stats = summary(per_sample)
    stats.seconds = sum(part.stats.seconds for part in parts)
    first = next((b for b, code in enumerate(retcodes) if code is not Retcode.SUCCESS), 0)
    integration = Integration(z, stats, retcodes[first], parts[first].t_end)
    if retcodes[first] is not Retcode.SUCCESS:
        ends = [tuple(x[-1] for x in part.z) if part.z_end is None else part.z_end for part in parts]
        integration.z_end = tuple(torch.cat(x) for x in zip(*ends, strict=True))
    if problem.sensitivity is not None:

        def pullback(cotangents: Sequence[Tensor | None]) -> Gradients:
            found = _pull_back(problem, parts, cotangents)
            per_sample.nfe_backward = counts("nfe_backward")
            stats.nfe_backward = None if per_sample.nfe_backward is None else int(per_sample.nfe_backward.sum())
            return found

        integration.pullback = pullback
        integration.derivatives = EachDerivatives(problem, lambda: parts)
    if problem.dense:
        integration.interpolant = lambda times: _interpolate(parts, times)
    return integration


def _pull_back(problem: Problem, parts: Sequence[Integration], cotangents: Sequence[Tensor | None]) -> Gradients:
    found = []
    for b, part in enumerate(parts):
        asked = ~problem.t[b].isnan()
        assert part.pullback is not None
        found.append(part.pullback([None if g is None else g[asked, b : b + 1] for g in cotangents]))
    return _gather(problem, found)


def _gather(problem: Problem, parts: Sequence[Gradients]) -> Gradients:
    """The gradients of all samples: beside one another where each has its own, else summed."""
    batch = problem.z0[0].shape[0]
    wants = problem.wants

    def zeros(key: str, tensors: Sequence[Tensor]) -> list[Tensor | None]:
        return [torch.zeros_like(x) if w else None for x, w in zip(tensors, wants[key], strict=True)]

    z0, (t,), args = zeros("z0", problem.z0), zeros("t", (problem.t,)), zeros("args", problem.args)
    parameters = zeros("parameters", problem.parameters)
    for b, got in enumerate(parts):
        asked = ~problem.t[b].isnan()
        for whole, g in zip(z0, got.z0, strict=True):
            if whole is not None and g is not None:
                whole[b] = g[0]
        if t is not None and got.t is not None:
            t[b, asked] = got.t
        for x, whole, g in zip(problem.args, args, got.args, strict=True):
            if whole is not None and g is not None:
                part_of = whole[b : b + 1] if is_per_sample(x, batch) else whole
                part_of += g
        for whole, g in zip(parameters, got.parameters, strict=True):
            if whole is not None and g is not None:
                whole += g
    return Gradients(z0, t, args, parameters)


class EachDerivatives:
    """The derivatives of independent samples, from those of each; see `Derivatives`.

    Args:
        problem: the problem of all.
        parts: makes the solves of each.
    """

    def __init__(self, problem: Problem, parts: Callable[[], Sequence[Integration]]) -> None:
        self.problem, self.parts = problem, parts

    def _each(self, directions: Gradients) -> Iterator[tuple[int, Tensor, Derivatives, Gradients]]:
        """For each sample its number, which times it has, its derivatives, and how its inputs move."""
        problem = self.problem
        batch = problem.z0[0].shape[0]
        for b, part in enumerate(self.parts()):
            if part.derivatives is None:
                raise EngineUnavailable(
                    "there are no forward and no second derivatives of independent samples by this sensitivity: use "
                    "another"
                )
            asked = ~problem.t[b].isnan()
            own = Gradients(
                [None if d is None else d[b : b + 1] for d in directions.z0],
                None if directions.t is None else directions.t[b, asked],
                [
                    None if d is None else d[b : b + 1] if is_per_sample(a, batch) else d
                    for a, d in zip(problem.args, directions.args, strict=True)
                ],
                directions.parameters,
            )
            yield b, asked, part.derivatives, own

    def tangent(self, directions: Gradients) -> tuple[Tensor, ...]:
        """As `Derivatives.tangent`; NaN where a sample has no time."""
        problem = self.problem
        found = tuple(x.new_full((problem.t.shape[1], *x.shape), float("nan")) for x in problem.z0)
        for b, _, derivatives, own in self._each(directions):
            for whole, x in zip(found, derivatives.tangent(own), strict=True):
                whole[: len(x), b] = x[:, 0]
        return found

    def second(self, cotangents: Sequence[Tensor | None], directions: Gradients) -> Gradients:
        """As `Derivatives.second`."""
        found = [
            d.second([None if g is None else g[asked, b : b + 1] for g in cotangents], own)
            for b, asked, d, own in self._each(directions)
        ]
        return _gather(self.problem, found)


def _interpolate(parts: Sequence[Integration], times: Tensor) -> tuple[Tensor, ...]:
    """The states at `(n,)` times, or at those of each sample, `(batch, n)`."""
    found = []
    for b, part in enumerate(parts):
        assert part.interpolant is not None
        found.append(part.interpolant(times if times.dim() == 1 else times[b]))
    return tuple(torch.cat(x, 1) for x in zip(*found, strict=True))
