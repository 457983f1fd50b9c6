"""`vmap` of a solve and of its derivatives: the mapped dimension joins the batch, or there is one solve for each.

It joins the batch where only the state, conditioning tensors with a row for each sample and times of each sample's own
are mapped over, where no gradient of anything else is wanted for each, and where the field treats each sample by
itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch

from pynode.derivatives.run import Run
from pynode.engine.each import is_per_sample
from pynode.engine.protocol import Problem
from pynode.errors import EngineUnavailable
from pynode.transforms import untransformed

__all__ = ["map_over"]

Tensors = tuple[Tensor, ...]
Some = Sequence[Tensor | None]
Dims = Sequence[int | None]


def map_over(
    function: Any,
    size: int,
    run: Run,
    head: tuple[Any, ...],
    others: Sequence[tuple[str, Some, Dims]],
    x: Sequence[Tensor],
    dims: Dims,
) -> tuple[Tensors, Any]:
    """Apply a function of a run to each of `size` values of its tensors.

    Args:
        function: the autograd function, called with a run, `head`, `others` and `x`.
        size: how many there are.
        run: the run.
        head: what follows it.
        others: further tensors, with the dimensions that are mapped over: `"z"` where they are like the solution,
            `"x"` where they are like the inputs.
        x: the run's inputs.
        dims: the dimensions of these that are mapped over.

    Returns:
        The results, and the dimensions along which they lie.
    """
    if all(d is None for d in dims):
        return _each([run] * size, function, head, others, x, dims)
    key = (size, tuple(dims))
    if key not in run.parts:
        run.parts[key] = _Joined.of(run, size, dims) or _Members(run, size)
    part = run.parts[key]
    if isinstance(part, _Members):
        return _each(part.runs, function, head, others, x, dims)
    return part(function, head, others, x, dims)


class _Members:
    """One run for each."""

    def __init__(self, run: Run, size: int) -> None:
        self.runs = [run.like(run.problem) for _ in range(size)]


def _pick(x: Tensor | None, dim: int | None, i: int) -> Tensor | None:
    return x if x is None or dim is None else x.select(dim, i)


def _each(
    runs: Sequence[Run],
    function: Any,
    head: tuple[Any, ...],
    others: Sequence[tuple[str, Some, Dims]],
    x: Sequence[Tensor],
    dims: Dims,
) -> tuple[Tensors, Any]:
    found = []
    for i, run in enumerate(runs):
        further = [_pick(y, d, i) for _, ys, ds in others for y, d in zip(ys, ds, strict=True)]
        found.append(function.apply(run, *head, *further, *(_pick(y, d, i) for y, d in zip(x, dims, strict=True))))
    stacked = tuple(torch.stack(parts) for parts in zip(*found, strict=True))
    return stacked, (0,) * len(stacked)


class _Joined:
    """One run whose batch holds all: sample `i * batch + b` is sample `b` of the `i`-th."""

    def __init__(self, run: Run, size: int, rows: Sequence[bool]) -> None:
        self.size, self.rows, self.batch = size, rows, run.problem.z0[0].shape[0]
        examples = self._inputs(run.problem.inputs, [None] * len(rows))
        n, m = len(run.problem.z0), len(run.problem.args)
        problem = replace(run.problem, z0=tuple(examples[:n]), t=examples[n], args=tuple(examples[n + 1 : n + 1 + m]))
        self.runs = [run.like(problem)]

    @staticmethod
    def of(run: Run, size: int, dims: Dims) -> _Joined | None:
        problem = run.problem
        batch = problem.z0[0].shape[0]
        if not batch:
            return None
        rows = [True] * len(problem.z0) + [problem.t.dim() == 2]
        rows += [is_per_sample(a, batch) for a in problem.args] + [False] * len(problem.parameters)
        if any(not is_per_sample(a, batch) and is_per_sample(a, size * batch) for a in problem.args):
            return None  # it would be taken to have rows
        # The transform that maps is the one above those that are left.
        level = (_functorch.maybe_current_level() or 0) + 1
        for row, dim, above in zip(rows, dims, run.levels, strict=True):
            if not row and (dim is not None or any(x > level for x in above)):
                return None
        return _Joined(run, size, rows) if _is_unmixed(problem, size) else None

    def _inputs(self, x: Some, dims: Dims) -> list[Any]:
        """Values like the run's inputs, with those that have rows joined."""
        found: list[Tensor | None] = []
        for y, dim, has_rows in zip(x, dims, self.rows, strict=True):
            if y is not None and has_rows:
                found.append(self._joined(y, dim).flatten(0, 1))
                continue
            if dim is not None:
                raise _apart()
            found.append(y)
        return found

    def _joined(self, y: Tensor, dim: int | None) -> Tensor:
        return y.expand(self.size, *y.shape) if dim is None else y.movedim(dim, 0)

    def __call__(
        self,
        function: Any,
        head: tuple[Any, ...],
        others: Sequence[tuple[str, Some, Dims]],
        x: Sequence[Tensor],
        dims: Dims,
    ) -> tuple[Tensors, Any]:
        if head and not all(self.rows[place] for place in head[0]):
            raise _apart()
        further: list[Tensor | None] = []
        for kind, ys, ds in others:
            if kind == "x":
                further += self._inputs(ys, ds)
            else:
                further += [
                    None if y is None else self._joined(y, d).movedim(0, 1).flatten(1, 2)
                    for y, d in zip(ys, ds, strict=True)
                ]
        found: Tensors = function.apply(self.runs[0], *head, *further, *self._inputs(x, dims))
        dim = 0 if head else 1  # gradients are like the inputs, all else is like the solution
        return tuple(y.unflatten(dim, (self.size, self.batch)) for y in found), (dim,) * len(found)


def _apart() -> EngineUnavailable:
    return EngineUnavailable(
        "a derivative in something that all samples share was asked for, for each of the samples that vmap has joined "
        "into one solve: take that derivative within the vmap, as in vmap(grad(f)), or loop"
    )


def _is_unmixed(problem: Problem, size: int) -> bool:
    """Whether the field gives each sample of a joined batch the derivative that it has in its own.

    It is looked at for numbers that differ from one sample to the next, so that nothing is equal by accident.
    """
    batch = problem.z0[0].shape[0]

    def varied(x: Tensor) -> Tensor:
        y = x.detach().repeat(size, *[1] * (x.dim() - 1))
        change = torch.arange(1.0, y.numel() + 1, device="cpu").to(y).reshape(y.shape).mul(0.7).cos()
        return y * (1 + 1e-2 * change) + 1e-3 * change if y.is_floating_point() else y

    t = problem.t if problem.t.dim() == 1 else problem.t[0]
    z0 = [varied(z) for z in problem.z0]
    args = [varied(a) if is_per_sample(a, batch) else a.detach() for a in problem.args]
    with torch.no_grad(), untransformed():
        try:
            joint = problem.field(t[0], z0, args)
        except RuntimeError:  # a shape that the field cannot take: the rows of a conditioning tensor are no samples
            return False
        for i in {0, size - 1}:
            own = slice(i * batch, (i + 1) * batch)
            mine = [a[own] if is_per_sample(b, batch) else a for a, b in zip(args, problem.args, strict=True)]
            alone = problem.field(t[0], [z[own] for z in z0], mine)
            for whole, x in zip(joint, alone, strict=True):
                tolerance = 1e-4 if x.dtype == torch.float32 else 1e-9
                scale = max(whole.abs().max().item(), 1.0)
                part = whole[own] if whole.dim() else whole
                if part.shape != x.shape or not torch.allclose(part, x, tolerance, tolerance * scale, equal_nan=True):
                    return False
    return True
