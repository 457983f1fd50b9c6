"""Independent samples in Julia: one call for all of them, shared out among Julia's threads."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pynode.engine.continuous import Unchanged
from pynode.engine.each import EachDerivatives, sample_of, solve_each, summary
from pynode.engine.julia.call import RETCODES, integers
from pynode.engine.julia.device import Device
from pynode.engine.julia.lowering import traced
from pynode.engine.julia.memory import in_order
from pynode.engine.julia.reached import take_reached
from pynode.engine.julia.rows import own_and_shared
from pynode.engine.julia.runtime import alone
from pynode.engine.julia.session import Kept, Session
from pynode.engine.protocol import Gradients, Integration, PerSample, Problem, Retcode
from pynode.sensitivity import Discrete

__all__ = ["solve_samples"]


def solve_samples(
    session: Session, problem: Problem, solve: Callable[[Problem], Integration], device: Device, memory: int
) -> Integration:
    """Solve every sample with steps of its own.

    The discrete adjoint and solves without a gradient are one call; continuous adjoints, interpolants, mass matrices,
    split fields, fields that Python evaluates and states on a GPU are solved one sample after the other.

    Args:
        session: the Julia that runs.
        problem: a problem of independent samples.
        solve: solves a problem of one sample.
        device: where its tensors lie.
        memory: what is kept of the steps of all samples may take this many bytes.
    """
    how = problem.sensitivity
    if device.is_gpu:
        if isinstance(how, Discrete):
            problem = replace(problem, sensitivity=replace(how, memory=max(1, memory // len(problem.t))))
        return solve_each(solve, problem)
    apart = problem.dense or problem.mass is not None or problem.split is not None
    if apart or (how is not None and how.name != "discrete"):
        return solve_each(solve, problem)
    started = time.perf_counter()
    problem.field.check_finite(problem.z0, problem.args)
    lowered = traced(session, sample_of(problem, 0), device)
    if lowered is None:
        return solve_each(solve, problem)
    batch, times = problem.t.shape
    julia = session.start()
    z0 = [in_order(z) for z in problem.z0]
    t = in_order(problem.t)
    counts = (~t.isnan()).sum(1)
    results = torch.zeros(batch, 5, dtype=torch.float64, device="cpu")
    out = [z.new_empty((times, *z.shape)) for z in z0]
    tensors, has_rows, layout = own_and_shared(problem, lowered.read)
    solver = problem.solver
    assert solver.julia is not None
    values = [lowered.kernel, session.number("solver", solver.julia), batch, times]
    values += [1 if how is None else 2, int(solver.adaptive), problem.max_steps, memory // batch]
    values += [int(problem.wants["t"][0]), t.data_ptr(), counts.data_ptr(), results.data_ptr(), len(z0)]
    for z, o in zip(z0, out, strict=True):
        values += (z.numel() // batch, z.data_ptr(), o.data_ptr())
    data, address, length = integers(values + list(layout))
    floats = session.floats_of(problem)
    kept = julia.forward_each(address, length, floats.address)
    del data, tensors
    codes = tuple(RETCODES[int(i)] for i in results[:, 3])
    nfe, accepted, rejected = results[:, :3].long().unbind(1)
    t_end = results[:, 4].clone()
    stats = summary(PerSample(nfe, None, accepted, rejected, codes, t_end))
    stats.seconds = time.perf_counter() - started
    first = next((b for b, code in enumerate(codes) if code is not Retcode.SUCCESS), 0)
    integration = Integration(tuple(out), stats, codes[first], t_end[first].item())
    if codes[first] is not Retcode.SUCCESS:
        integration.z_end = _take_ends(t, counts.tolist(), out, codes, t_end)
        integration.t_end = t_end[first].item()
    if kept:
        handle = Kept(session, kept, lowered)

        def pullback(cotangents: Sequence[Tensor | None]) -> Gradients:
            return _pull_back(session, handle.number, problem, has_rows, stats, cotangents)

        integration.pullback = pullback
        unchanged = Unchanged(problem, lowered.read)

        @functools.cache
        def parts() -> list[Integration]:
            unchanged.check()
            return [solve(sample_of(problem, b)) for b in range(batch)]

        integration.derivatives = EachDerivatives(problem, parts)
    return integration


def _take_ends(
    t: Tensor, counts: Sequence[int], out: Sequence[Tensor], codes: Sequence[Retcode], t_end: Tensor
) -> tuple[Tensor, ...]:
    """The state of each sample at the time that it reached; writes the times of those that failed to `t_end`."""
    ends = []
    for b, (count, code) in enumerate(zip(counts, codes, strict=True)):
        own = [x[:count, b : b + 1] for x in out]
        if code is Retcode.SUCCESS:
            ends.append(tuple(x[-1] for x in own))
        else:
            t_end[b], z = take_reached(t[b, :count], own, t_end[b].item())
            ends.append(z)
    return tuple(torch.cat(x) for x in zip(*ends, strict=True))


@alone
def _pull_back(
    session: Session,
    number: int,
    problem: Problem,
    has_rows: Sequence[bool],
    stats: Any,
    cotangents: Sequence[Tensor | None],
) -> Gradients:
    julia = session.start()
    batch, times = problem.t.shape

    def room(key: str, tensors: Sequence[Tensor]) -> list[Tensor | None]:
        wants = problem.wants[key]
        contiguous = torch.contiguous_format
        return [
            torch.zeros_like(x, memory_format=contiguous) if w else None for x, w in zip(tensors, wants, strict=True)
        ]

    def address(x: Tensor | None) -> int:
        return 0 if x is None else x.data_ptr()

    z0, (t,), args = room("z0", problem.z0), room("t", (problem.t,)), room("args", problem.args)
    parameters = room("parameters", problem.parameters)
    given = [None if g is None else in_order(g) for g in cotangents]
    nfe = torch.zeros(batch, dtype=torch.float64, device="cpu")
    values = [address(t), times, nfe.data_ptr(), len(z0)]
    for x, g, dx in zip(problem.z0, given, z0, strict=True):
        values += (x.numel() // batch, address(g), address(dx))
    values.append(len(args) + len(parameters))
    for x, dx, rows in zip(problem.args, args, has_rows, strict=True):
        values += (x.numel() // batch if rows else x.numel(), address(dx), int(rows))
    for x, dx in zip(problem.parameters, parameters, strict=True):
        values += (x.numel(), address(dx), 0)
    data, start, length = integers(values)
    julia.pullback_each(number, start, length)
    del data
    stats.per_sample.nfe_backward = nfe.long()
    stats.nfe_backward = int(nfe.sum())
    return Gradients(z0, t, args, parameters)
