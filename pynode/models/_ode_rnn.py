"""The ODE-RNN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pynode.models._check import check_callables
from pynode.models._layers import layers
from pynode.models._observed import ObservedODE
from pynode.models._observed_model import ObservedModel
from pynode.problem.inputs import check_count

__all__ = ["ODERNN"]


class ODERNN(ObservedModel):
    """A recurrent network whose hidden state follows an ODE between the observations.

    h' = f(t, h) from a learned h(t₀) on, h = cell([x, mask], h) at an observation, ŷ = h_y(h). Series may have times of
    their own, and different lengths: pad them with `mask` False and the last time. All series of a call are solved
    together, by as many solves and jumps as the longest has observations.

    Args:
        obs_dim: channels of the observations.
        hidden: size of h.
        out_dim: channels of the output.
        field: f, a callable `f(h)` or `f(t, h)`, where t is the time of a series, 0-d, and h its state, a batch of one;
            a network with one hidden layer that does not depend on t where `None`.
        cell: takes `(batch, 2 obs_dim)`, the observations, zero where there is none, and the mask, and h
            `(batch, hidden)`, and returns h; a GRU cell where `None`.
        output_network: h_y, from `(batch, hidden)` to the output; linear where `None`.
        t0: the first time.
        width: of the hidden layer of the field that is made here.
        solver_keywords: as `pynode.solve` takes: `solver`, `rtol`, `atol`, `dt`, `sensitivity`, `max_steps`,
            `engine`, `throw`, … The time of the solve is one in which a unit leads from each observation to the next:
            `dt=0.25` takes four steps in between, and `max_steps` counts those.

    Attributes:
        initial: h(t₀), `(hidden,)`.
        stats: the `Stats` of the last call, `None` before it.

    Raises:
        InputError: an argument is not usable, or a name is unknown.

    Source:
        Y. Rubanova, R. T. Q. Chen, D. Duvenaud, "Latent ODEs for Irregularly-Sampled Time Series", NeurIPS 2019,
        algorithm 1.
    """

    def __init__(
        self,
        obs_dim: int,
        hidden: int,
        out_dim: int,
        *,
        field: Callable[..., Any] | None = None,
        cell: Callable[[Tensor, Tensor], Tensor] | None = None,
        output_network: Callable[[Tensor], Tensor] | None = None,
        t0: float = 0.0,
        width: int = 32,
        **solver_keywords: Any,
    ) -> None:
        n, d = check_count("hidden", hidden), check_count("obs_dim", obs_dim)
        field = nn.Sequential(*layers(n, check_count("width", width), n)) if field is None else field
        jump = _Cell(nn.GRUCell(2 * d, n) if cell is None else cell)
        out = nn.Linear(n, check_count("out_dim", out_dim)) if output_network is None else output_network
        check_callables(field, output_network=out)
        super().__init__(d, n, ObservedODE(field, jump), t0, solver_keywords)
        self.output_network = out

    def _output(self, h: Tensor) -> Tensor:
        return self.output_network(h)


class _Cell(nn.Module):
    """A cell of a recurrent network as a jump of the state."""

    def __init__(self, cell: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, h: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        return self.cell(torch.cat([x, mask], dim=1), h)
