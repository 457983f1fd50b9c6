"""A solve at other times than it was made for, with derivatives: it is made once more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pynode.derivatives.functions import differentiable
from pynode.derivatives.run import Failed, Run
from pynode.engine.protocol import Engine, Problem
from pynode.errors import InputError, SolveError

__all__ = ["Again"]


class Again:
    """The states of a solve at other times, differentiable in its inputs and in the times.

    Args:
        engine: what solved.
        problem: what was solved.
        levels: see `Run`.
        inputs: the problem's inputs, with their graph.
    """

    def __init__(
        self, engine: Engine, problem: Problem, levels: Sequence[frozenset[int]], inputs: Sequence[Tensor]
    ) -> None:
        self.engine, self.levels, self.inputs = engine, levels, tuple(inputs)
        self.problem = replace(problem, dense=False, watched=None)
        self.versions = self._versions()

    def _versions(self) -> list[int]:
        """How often each input was changed in place; of tensors made in inference mode, which do not tell, 0."""
        return [0 if x.is_inference() else x._version for x in self.inputs]

    def __call__(self, times: Tensor) -> tuple[Tensor, ...]:
        """The state tensors, `(n, batch, *features)`.

        Args:
            times: `(n,)`, in double, within the span.

        Raises:
            InputError: what the field reads has been changed in place; or times that require a gradient are equal.
            SolveError: the integration failed.
        """
        if self.versions != self._versions():
            raise InputError(
                "sol(t) solves once more for its gradient, and a tensor that was solved with has been changed in place "
                "since: call sol(t) before the optimizer's step, or under torch.no_grad()"
            )
        problem, n = self.problem, len(self.problem.z0)
        given, known = self.inputs[n], problem.t
        first, last = known[:1], known[-1:]
        values, position = torch.unique(times.detach(), return_inverse=True)
        if times.requires_grad and (len(values) < len(times) or bool((values == first).any())):
            raise InputError(
                "times of sol(t) that require a gradient must differ from one another and from t[0]: detach them, or "
                "ask for each by itself"
            )
        latest = torch.empty_like(position[: len(values)])
        latest[position] = torch.arange(len(times), device=times.device)  # one of the times of each value
        asked, inner = times[latest], (values != first) & (values != last)
        asked_last = asked[values == last] if times.requires_grad else times[:0]
        between = asked[inner] if bool(last > first) else asked[inner].flip(0)
        whole = torch.cat([given[:1], between, asked_last if len(asked_last) else given[-1:]])
        wants = {**problem.wants, "t": (whole.requires_grad,)}
        run = Run(self.engine, replace(problem, t=whole.detach(), wants=wants), self.levels, throw=True)
        try:
            z = differentiable(run, (*self.inputs[:n], whole, *self.inputs[n + 1 :]))
        except Failed:
            code = run.integration.retcode
            raise SolveError(f"the solve of sol(t) stopped: {code.value}", code) from None
        forwards = whole.detach() if bool(last > first) else -whole.detach()
        where = torch.searchsorted(forwards, times.detach() if bool(last > first) else -times.detach())
        return tuple(x[where.to(x.device)] for x in z)
