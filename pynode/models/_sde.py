"""Neural stochastic differential equations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pynode.engine.protocol import Stats
from pynode.errors import InputError, unknown_name
from pynode.models._check import check_callables, check_depth, through
from pynode.problem.inputs import as_times, check_number
from pynode.problem.stochastic import check_kind
from pynode.solution import Solution
from pynode.solve_sde import solve_sde

__all__ = ["NeuralSDE", "check_sde_keywords"]

_KEYWORDS = tuple(
    name
    for name, parameter in inspect.signature(solve_sde).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
    and name not in {"noise", "calculus", "args", "running_cost", "seed", "throw"}
)


def check_sde_keywords(keywords: Mapping[str, Any]) -> None:
    """Refuse keywords that `solve_sde` lacks or a model sets itself, and a solve without steps or tolerances.

    Raises:
        InputError: names what is wrong.
    """
    for name in keywords:
        if name not in _KEYWORDS:
            raise unknown_name("solver keyword", name, _KEYWORDS)
    steps = [name for name in ("dt", "rtol", "atol") if keywords.get(name) is not None]
    for name in steps:
        check_number(name, keywords[name])
    if not steps:
        raise InputError("an SDE needs the step dt=…, or rtol=… or atol=… for steps of the solver's choice")


class NeuralSDE(nn.Module):
    """A network whose depth is continuous and noisy: z(s₀) = h_x(x), dz = f(s, z) ds + g(s, z) dW, y = h_y(z(s₁)).

    Each call draws a path for each sample. The noise regularises, as dropout does; averaging over calls gives the
    mean and the spread of the output.

    Args:
        drift: f, a callable `f(s, z)` in the shape of z.
        diffusion: g, a callable `g(s, z)`, of the shape that `noise` says, see `solve_sde`.
        noise: `"diagonal"`, `"additive"`, `"scalar"` or `"general"`.
        calculus: `"ito"` or `"stratonovich"`.
        input_network: h_x; the identity where `None`.
        output_network: h_y; the identity where `None`.
        t: the depth interval (s₀, s₁), increasing.
        solver_keywords: as `pynode.solve_sde` takes: `solver`, `dt`, `rtol`, `atol`, `sensitivity`, `max_steps`,
            `engine`; `dt` or a tolerance is needed.

    Attributes:
        stats: the `Stats` of the last solve, `None` before it.

    Raises:
        InputError: an argument is not usable, or a name is unknown.

    Source:
        X. Liu et al., "Neural SDE: Stabilizing neural ODE networks with stochastic noise", 2019; X. Li, T.-K. L. Wong,
        R. T. Q. Chen, D. Duvenaud, "Scalable gradients for stochastic differential equations", AISTATS 2020; P. Kidger
        et al., "Neural SDEs as infinite-dimensional GANs", ICML 2021.
    """

    def __init__(
        self,
        drift: Callable[..., Any],
        diffusion: Callable[..., Any],
        *,
        noise: str = "diagonal",
        calculus: str = "ito",
        input_network: Callable[[Tensor], Tensor] | None = None,
        output_network: Callable[[Tensor], Tensor] | None = None,
        t: tuple[float, float] = (0.0, 1.0),
        **solver_keywords: Any,
    ) -> None:
        super().__init__()
        check_callables(drift, diffusion=diffusion, input_network=input_network, output_network=output_network)
        check_kind(noise, calculus)
        check_sde_keywords(solver_keywords)
        self.t = check_depth(t)
        if self.t[1] < self.t[0]:
            raise InputError(f"t must be increasing for an SDE, got {t}")
        self.drift, self.diffusion = drift, diffusion
        self.noise, self.calculus = noise, calculus
        self.input_network, self.output_network = input_network, output_network
        self.solver_keywords = solver_keywords
        self.stats: Stats | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "stats": None}

    def forward(self, x: Tensor, seed: int | None = None) -> Tensor:
        """The output at the end of the depth interval.

        Args:
            x: `(batch, …)`.
            seed: of the noise; a new one at each call where `None`.

        Returns:
            h_y(z(s₁)), `(batch, …)`.
        """
        z0 = through("input_network", self.input_network, x)
        return through("output_network", self.output_network, self._solve(z0, as_times("t", self.t, z0), seed)[-1])

    def trajectory(self, x: Tensor, t: Tensor, seed: int | None = None) -> Tensor:
        """The output at every depth of `t`.

        Args:
            x: `(batch, …)`.
            t: `(time,)`, strictly increasing, from s₀ on, which it may leave out.
            seed: of the noise; a new one at each call where `None`.

        Returns:
            h_y(z(s)) for each s, `(time, batch, …)`.
        """
        z0 = through("input_network", self.input_network, x)
        t = as_times("t", t, z0)
        if t.ndim != 1 or len(t) == 0:
            raise InputError(f"t must be 1-d and hold at least one depth, got shape {tuple(t.shape)}")
        start = torch.tensor(self.t[:1], dtype=t.dtype, device=t.device)
        skip = 0 if t[0] == start else 1
        if skip + len(t) == 1:
            z = z0.unsqueeze(0)
        else:
            z = self._solve(z0, torch.cat([start, t]) if skip else t, seed)[skip:]
        return z if self.output_network is None else torch.stack([self.output_network(state) for state in z])

    def _solve(self, z0: Tensor, t: Tensor, seed: int | None) -> Tensor:
        self.stats = None
        solution: Solution = solve_sde(
            self.drift,
            self.diffusion,
            z0,
            t,
            noise=self.noise,
            calculus=self.calculus,
            seed=seed,
            **self.solver_keywords,
        )
        self.stats = solution.stats
        z: Tensor = solution.z
        return z

    def extra_repr(self) -> str:
        """The arguments that are not modules."""
        parts = [f"noise={self.noise!r}", f"calculus={self.calculus!r}", f"t={self.t}"]
        return ", ".join(parts + [f"{k}={v!r}" for k, v in self.solver_keywords.items()])
