"""The continuous normalizing flow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynode.engine.protocol import Stats
from pynode.errors import InputError, unknown_name
from pynode.field._derived import derived_field
from pynode.models._check import (
    check_batch_norm,
    check_callables,
    check_depth,
    check_solver_keywords,
    depths_like,
    ends_like,
)
from pynode.models._dynamics import density_dynamics
from pynode.models._flow import Base, Flow, Mapped
from pynode.problem.inputs import as_times
from pynode.solution import Solution
from pynode.solve import solve

__all__ = ["CNF", "check_flow_keywords"]

_TRACES = ("exact", "hutchinson")
_NOISES = ("rademacher", "gaussian")


class CNF(Flow):
    """A continuous normalizing flow: ż = f(t, z), with data at z(t₀) and the base at z(t₁).

    The density follows the instantaneous change of variables, log p(x) = log q(z(t₁)) + ∫ tr ∂f/∂z dt. The trace is
    exact, by one vector-Jacobian product for each dimension or by the field's own `divergence(t, z)`, or Hutchinson's
    estimate εᵀ ∂f/∂z ε, with one ε for each sample, drawn once per solve.

    `kinetic` and `jacobian` are the weights of RNODE's regularisers ∫ ‖f‖² dt and ∫ ‖∂f/∂z‖²_F dt in `loss`. The first,
    averaged over the data, is the cost of transport in the dynamic formulation of Benamou and Brenier: among all flows
    from the data to the base the one with the least of it moves each point on a straight line at constant speed, the
    optimal transport map, and a solver needs few steps for it. The second keeps neighbours on parallel paths also away
    from the data, and its Hutchinson estimate ‖εᵀ ∂f/∂z‖² shares the product with the trace. What is solved is one
    field of z, the density and these integrals, so that all engines run it like any other. On small networks one thread
    of torch's is often faster than several, see `FFJORD`.

    Args:
        field: f, an `nn.Module` or callable `f(t, z)`, or `f(t, z, context)` where a context is given. The derivative
            of a sample must depend on that sample alone. If the field has a method `divergence` of the same arguments
            that returns the trace `(batch,)`, the exact trace is taken from it.
        base: q, a distribution of batch shape () with the data's event shape; or a callable `base(context)` that
            returns such a distribution or one of batch shape `(batch,)`. Where it is an `nn.Module`, it is trained and
            moved between devices with the flow.
        trace: `"exact"` or `"hutchinson"`.
        noise: what ε is drawn from: `"rademacher"` (signs) or `"gaussian"`.
        kinetic: λ_K ≥ 0; with 0 the term is not integrated.
        jacobian: λ_J ≥ 0; with 0 the term is not integrated.
        t: (t₀, t₁); t₁ may lie before t₀.
        solver_keywords: as `pynode.solve` takes.

    Attributes:
        field: as given.
        stats: the `Stats` of the last call, `None` before it.
        regularisation: `"kinetic"` and `"jacobian"` of the last call, where they have a weight; see `Flow`.

    Raises:
        InputError: an argument is not usable, or the name of a keyword, solver or sensitivity is unknown.

    Source:
        R. T. Q. Chen et al., "Neural Ordinary Differential Equations", NeurIPS 2018, theorem 1; W. Grathwohl et al.,
        "FFJORD", ICLR 2019, eq. 6; C. Finlay et al., "How to train your neural ODE: the world of Jacobian and kinetic
        regularization", ICML 2020, eq. 4 and 5.
    """

    def __init__(
        self,
        field: Callable[..., Any],
        base: Base,
        *,
        trace: str = "exact",
        noise: str = "rademacher",
        kinetic: float = 0.0,
        jacobian: float = 0.0,
        t: tuple[float, float] = (0.0, 1.0),
        **solver_keywords: Any,
    ) -> None:
        check_flow_keywords(trace, noise, kinetic, jacobian)
        super().__init__(base, {"kinetic": float(kinetic), "jacobian": float(jacobian)})
        check_solver_keywords(solver_keywords)
        check_callables(field)
        self.field = field
        self.trace = trace
        self.noise = noise
        self.t = check_depth(t)
        self.solver_keywords = solver_keywords
        self.stats: Stats | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "stats": None}

    def _map(self, x: Tensor, context: Tensor | None, reverse: bool, density: bool, trace: str | None = None) -> Mapped:
        self.regularisation = {}
        ends = ends_like(self.t[::-1] if reverse else self.t, x)
        if not density:
            return self._solve(x, ends, context).z[-1], None, {}
        trace = trace or self.trace
        terms = [name for name, weight in self.weights.items() if weight]
        field = derived_field(density_dynamics, self.field, trace, "kinetic" in terms, "jacobian" in terms)
        zero = x.new_zeros(len(x))
        noise = (self._draw(x),) if trace == "hutchinson" else ()
        solution = self._solve((x, zero, *(zero for _ in terms)), ends, context, field, noise)
        z, log_det, *energies = (component[-1] for component in solution.z)
        sign = 1.0 if ends[1] > ends[0] else -1.0
        regularisation = {k: sign * e.sum() / max(len(x), 1) for k, e in zip(terms, energies, strict=True)}
        self.regularisation = regularisation
        return z, log_det, regularisation

    def _solve(
        self,
        state: Any,
        t: Tensor,
        context: Tensor | None,
        field: Callable[..., Any] | None = None,
        noise: tuple[Tensor, ...] = (),
    ) -> Solution:
        check_batch_norm(self.field)
        args = noise if context is None else (*noise, context)
        solution = solve(field or self.field, state, t, args=args, **self.solver_keywords)
        self.stats = solution.stats
        return solution

    def _draw(self, x: Tensor) -> Tensor:
        if self.noise == "gaussian":
            return torch.randn_like(x)
        return torch.empty_like(x).bernoulli_(0.5).mul_(2).sub_(1)

    def trajectory(self, x: Tensor, t: Tensor, context: Tensor | None = None, *, reverse: bool = False) -> Tensor:
        """The state on the way from data to base, or back.

        Args:
            x: `(batch, *event)`: data; with `reverse`, points of the base.
            t: `(time,)`, strictly monotone within [t₀, t₁], from the end where x lives: t₀, or t₁ with `reverse`.
            context: as in `forward`.
            reverse: whether x lives at t₁.

        Returns:
            `(time, batch, *event)`.

        Raises:
            InputError: an argument is not usable.
        """
        x, context = self._checked("x", x, context)
        t = as_times("t", t, x)
        span, start = depths_like(self.t, t), 1 if reverse else 0
        if t.dim() != 1 or len(t) < 2 or t[0] != span[start]:
            raise InputError(
                f"t must be 1-d with at least two depths, the first of them {self.t[start]:g}, where x lives, "
                f"got {t.tolist()}"
            )
        low, high = sorted(span)
        if not bool(((t >= low) & (t <= high)).all()):
            raise InputError(f"t must lie within the flow's span, {self.t}, got {t.tolist()}")
        self.regularisation = {}
        trajectory: Tensor = self._solve(x, t, context).z
        return trajectory

    def extra_repr(self) -> str:
        """The arguments that are not modules."""
        parts = [f"trace={self.trace!r}", *(f"{name}={weight:g}" for name, weight in self.weights.items() if weight)]
        parts.append(f"t={self.t}")
        return ", ".join(parts + [f"{k}={v!r}" for k, v in self.solver_keywords.items()])


def check_flow_keywords(trace: str, noise: str, kinetic: float, jacobian: float) -> None:
    """Refuse names that do not exist and weights that are negative or no numbers.

    Raises:
        InputError: names the argument and what came.
    """
    for kind, name, valid in (("trace", trace, _TRACES), ("noise", noise, _NOISES)):
        if name not in valid:
            raise unknown_name(kind, name, valid)
    for kind, weight in (("kinetic", kinetic), ("jacobian", jacobian)):
        if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise InputError(f"{kind} is the weight of a regulariser, a finite number of at least 0, got {weight!r}")
