"""The torch engine's stochastic differential equations: torchsde integrates and differentiates.

torchsde (X. Li et al., "Scalable gradients for stochastic differential equations", AISTATS 2020,
https://github.com/google-research/torchsde) does all the integration; this module translates a `StochasticProblem`.
"""

from __future__ import annotations

import importlib.util
import itertools
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pynode.engine.grid import substeps
from pynode.engine.protocol import Availability, Retcode, Stats
from pynode.engine.stochastic import StochasticIntegration, StochasticProblem

__all__ = ["TorchStochastic"]

_LONGER = 1 + 1e-6  # so that rounding in a sum of steps leaves no sliver before the next time


class TorchStochastic:
    """Runs drift and diffusion as they are through torchsde, by fixed steps from each time to the next."""

    name = "torch"

    def available(self) -> Availability:
        """Whether torchsde is installed."""
        if importlib.util.find_spec("torchsde") is None:
            return Availability(False, "the package torchsde is not installed", 'Run `pip install "pynode-sciml[sde]"`')
        return Availability(True)

    def sensitivities(self, calculus: str) -> tuple[str, ...]:
        """`discrete`, by autograd through the steps; `backsolve`, torchsde's stochastic adjoint."""
        return "discrete", "backsolve"

    def solve(self, problem: StochasticProblem) -> StochasticIntegration:
        """As `StochasticEngine.solve`."""
        started = time.perf_counter()
        z0, n = problem.z0, len(problem.z0)
        for field in (problem.drift, problem.diffusion):
            field.check_finite(z0, problem.args)
        leaves = [x.detach().clone().requires_grad_(w) for x, w in zip(z0, problem.wants, strict=False)]
        wants_args = problem.wants[n : n + len(problem.args)]
        args = [a.detach().requires_grad_(w) for a, w in zip(problem.args, wants_args, strict=True)]
        stats = Stats()
        sde = _Equation(problem, args, stats)
        stop = None
        count = sum(substeps(problem.t.tolist(), problem.dt or 0.0))
        if count > problem.max_steps:
            stop = Retcode.MAX_STEPS
            z = torch.full((len(problem.t), *sde.flat(leaves).shape), float("nan"), device="cpu").to(leaves[0])
            z[0] = sde.flat(leaves).detach()
            states = sde.tensors(z)
        else:
            with torch.set_grad_enabled(problem.sensitivity is not None):
                z = _integrate(problem, sde, sde.flat(leaves))
                states = sde.tensors(z)
        stats.n_accepted = None if stop else count
        last = len(problem.t) - 1
        finite = torch.isfinite(z.detach()).flatten(1).all(1)
        if not bool(finite.all()):
            stop = stop or Retcode.NON_FINITE
            last = int(finite.int().argmin()) - 1
            states = tuple(x.detach().clone() for x in states)
            for x in states:
                x[last + 1 :] = float("nan")
        stats.seconds = time.perf_counter() - started
        out = tuple(x.detach().clone() for x in states)
        if stop is not None:
            return StochasticIntegration(
                out, stats, stop, float(problem.t[last]), None, tuple(x[last].clone() for x in out)
            )
        pullback = None
        if problem.sensitivity is not None:
            pullback = _Graph(problem, states, (*leaves, *args, *sde.parameters_of_fields), stats)
        return StochasticIntegration(out, stats, Retcode.SUCCESS, float(problem.t[-1]), pullback)


class _Graph:
    """The autograd graph of a solve."""

    def __init__(
        self, problem: StochasticProblem, z: tuple[Tensor, ...], inputs: tuple[Tensor, ...], stats: Stats
    ) -> None:
        self.problem, self.z, self.inputs, self.stats = problem, z, inputs, stats

    def __call__(self, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The gradients for cotangents of the states."""
        pairs = [(z, g) for z, g in zip(self.z, cotangents, strict=True) if g is not None and z.requires_grad]
        at = [i for i, wanted in enumerate(self.problem.wants) if wanted]
        found: list[Tensor | None] = [None] * len(self.inputs)
        before = self.stats.nfe
        outputs, given = [z for z, _ in pairs], [g for _, g in pairs]
        inputs = [self.inputs[i] for i in at]
        gradients: Sequence[Tensor | None] = [None] * len(at)
        if pairs and at:
            gradients = torch.autograd.grad(outputs, inputs, given, retain_graph=True, allow_unused=True)
        for i, g in zip(at, gradients, strict=True):
            found[i] = torch.zeros_like(self.inputs[i]) if g is None else g
        self.stats.nfe_backward, self.stats.nfe = self.stats.nfe - before, before
        return found


class _Equation(nn.Module):
    """The SDE as torchsde has it: a state `(batch, numbers)`.

    Args:
        problem: the problem.
        args: its conditioning tensors, as leaves.
        stats: where evaluations of the drift are counted.
    """

    def __init__(self, problem: StochasticProblem, args: Sequence[Tensor], stats: Stats) -> None:
        super().__init__()
        n = len(problem.z0) + len(args)
        m = len(problem.drift.parameters)
        self.noise_type = "diagonal" if problem.channels is None else problem.noise
        self.sde_type = problem.calculus
        self.problem, self.args, self.stats = problem, args, stats
        self.drift = problem.drift.on_leaves(problem.wants[n : n + m])
        self.diffusion = problem.diffusion.on_leaves(problem.wants[n + m :])
        self.shapes = [z.shape[1:] for z in problem.z0]
        self.extra = len(self.shapes) - 1  # a running cost, which has no noise
        for field in (self.drift, self.diffusion):
            field.freeze()
            field.settle()

    @property
    def parameters_of_fields(self) -> tuple[Tensor, ...]:
        """The leaves in the place of the parameters."""
        return (*self.drift.parameters, *self.diffusion.parameters)

    def flat(self, z: Sequence[Tensor]) -> Tensor:
        """`(batch, numbers)`."""
        return torch.cat([x.reshape(x.shape[0], -1) for x in z], dim=1)

    def tensors(self, y: Tensor) -> tuple[Tensor, ...]:
        """The state tensors of `(…, batch, numbers)`."""
        parts = y.split([shape.numel() for shape in self.shapes], dim=-1)
        return tuple(x.reshape(*y.shape[:-1], *shape) for x, shape in zip(parts, self.shapes, strict=True))

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """The drift."""
        self.stats.nfe += 1
        return self.flat(self.drift(t, self.tensors(y), self.args))

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """The diffusion, `(batch, numbers)` or `(batch, numbers, channels)`."""
        problem, z = self.problem, self.tensors(y)[0]
        if problem.channels is None:
            (out,) = self.diffusion(t, (z,), self.args)
            out = out.reshape(len(y), -1)
        else:
            blank = z.new_zeros(*z.shape, problem.channels)
            out = self.diffusion(t, (z, blank), self.args)[1].reshape(len(y), -1, problem.channels)
        return torch.cat([out, out.new_zeros(len(y), 1, *out.shape[2:])], dim=1) if self.extra else out


def _integrate(problem: StochasticProblem, sde: _Equation, y0: Tensor) -> Tensor:
    """The states `(time, batch, numbers)`, by fixed steps that end on each time."""
    import torchsde

    solver, t = problem.solver, problem.t
    assert solver.torch is not None
    assert problem.dt is not None
    noises = problem.channels or y0.shape[1] - sde.extra
    area = "space-time" if solver.torch == "srk" else "none"
    bm: Any = torchsde.BrownianInterval(
        t0=float(t[0]),
        t1=float(t[-1]),
        size=(len(y0), noises),
        dtype=y0.dtype,
        device=y0.device,
        entropy=problem.seed,
        levy_area_approximation=area,
    )
    if problem.channels is None and sde.extra:
        bm = _padded(bm, sde.extra)
    keywords: dict[str, Any] = {"bm": bm, "method": solver.torch}
    if solver.name == "rkmil":
        keywords["options"] = {"grad_free": True}
    call = torchsde.sdeint
    if problem.sensitivity == "backsolve":
        call = torchsde.sdeint_adjoint
        keywords["adjoint_params"] = tuple(x for x in (*sde.args, *sde.parameters_of_fields) if x.requires_grad)
    states = [y0]
    for start, end in itertools.pairwise(t):
        (n,) = substeps((float(start), float(end)), problem.dt)
        whole = abs(float(end - start) / problem.dt - n) < 1e-3
        dt = (float(end - start) / n if whole else problem.dt) * _LONGER
        states.append(call(sde, states[-1], torch.stack([start, end]), dt=dt, **keywords)[-1])
    return torch.stack(states)


def _padded(bm: Any, extra: int) -> Any:
    """A Brownian motion with entries more that stay zero, so that the others are what they are without them."""
    import torchsde

    class Padded(torchsde.BaseBrownian):
        shape = (bm.shape[0], bm.shape[1] + extra)
        dtype, device = bm.dtype, bm.device
        levy_area_approximation = bm.levy_area_approximation

        def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Any:
            found = bm(ta, tb, return_U=return_U, return_A=return_A)
            pad = nn.functional.pad
            return tuple(pad(x, (0, extra)) for x in found) if isinstance(found, tuple) else pad(found, (0, extra))

        def __repr__(self) -> str:
            return repr(bm)

        def display(self) -> None:
            bm.display()

        def size(self) -> Any:
            return self.shape

    return Padded()
