"""The neural ODE in its complete formulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pynode.engine.protocol import Stats
from pynode.errors import InputError
from pynode.models._check import check_callables, check_depth, check_solver_keywords, depths_like, ends_like, through
from pynode.models._moved import from_own_start, moved
from pynode.nn import HigherOrder
from pynode.nn._basis import bind_bases
from pynode.problem.inputs import as_times
from pynode.solve import solve
from pynode.transforms import is_followed

__all__ = ["NODE", "append_zeros"]


class NODE(nn.Module):
    """A neural ODE: z(s₀) = h_x(x), ż = f(s, z), ŷ(s) = h_y(z(s)).

    With its default number of threads torch can be many times slower on small networks than with one: set
    `OMP_NUM_THREADS=1` or call `torch.set_num_threads(1)`; `pynode doctor` measures it.

    Args:
        field: f, an `nn.Module` or callable `f(t, z)`, or `f(t, z, x)` with `control`.
        input_network: h_x, from the input `(batch, …)` to the state `(batch, features, …)`; identity where
            `None` (for `order` n, zeros are appended for the derivatives).
        output_network: h_y, from the state to the output; identity where `None`.
        control: data control: the field gets the model's input as its third argument, `f(t, z, x)`.
        order: n of a field of n-th order: the state holds z and its first n - 1 derivatives along
            dimension 1, and the field returns the last derivative (see `pynode.nn.HigherOrder`).
        t: the depth interval (s₀, S); S may lie before s₀. The bases of Galerkin layers in the field span it.
        running_cost: l, a callable `l(t, z)` (`l(t, z, x)` with `control`) that returns `(batch,)`; its
            integral over the depth interval is `NODE.running_cost`.
        solver_keywords: as `pynode.solve` takes: `solver`, `rtol`, `atol`, `dt`, `sensitivity`, `max_steps`,
            `engine`, `throw`.

    Attributes:
        field: what is solved; for `order` ≥ 2 the first-order form of the given field.
        stats: the `Stats` of the last call, whichever thread made it; `None` before it.
        running_cost: `(batch,)`, the integral of l in the last call, differentiable; `None` without l.

    Raises:
        InputError: an argument is not usable, or the name of a keyword, solver or sensitivity is unknown.

    Source:
        R. T. Q. Chen et al., "Neural Ordinary Differential Equations", NeurIPS 2018; S. Massaroli et al.,
        "Dissecting Neural ODEs", NeurIPS 2020, eq. 1 (the formulation and its names).
    """

    def __init__(
        self,
        field: Callable[..., Any],
        *,
        input_network: Callable[[Tensor], Tensor] | None = None,
        output_network: Callable[[Tensor], Tensor] | None = None,
        control: bool = False,
        order: int = 1,
        t: tuple[float, float] = (0.0, 1.0),
        running_cost: Callable[..., Tensor] | None = None,
        **solver_keywords: Any,
    ) -> None:
        super().__init__()
        check_solver_keywords(solver_keywords)
        check_callables(field, input_network=input_network, output_network=output_network, running_cost=running_cost)
        if not isinstance(order, int) or order < 1:
            raise InputError(f"order must be an integer of at least 1, got {order!r}")
        self.field: Any = field if order == 1 else HigherOrder(field, order)
        self.input_network = input_network
        self.output_network = output_network
        if not isinstance(control, bool):
            raise InputError(
                f"control must be True, which passes the model's input to the field, or False, got "
                f"{type(control).__name__}. For a path through data use NeuralCDE, or pynode.solve(…, control=path)"
            )
        self.control = control
        self.order = order
        self.t = check_depth(t)
        bind_bases(field, self.t)
        self.cost = running_cost
        self.solver_keywords = solver_keywords
        self._forget()

    def _forget(self) -> None:
        self.stats: Stats | None = None
        self.running_cost: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        # The last call's results hang on its autograd graph, which neither copies nor pickles.
        return {**self.__dict__, "stats": None, "running_cost": None}

    def forward(self, x: Tensor) -> Tensor:
        """The output at the end of the depth interval.

        Args:
            x: `(batch, …)`.

        Returns:
            h_y(z(S)), `(batch, …)`.
        """
        z0 = self._initial_state(x)
        ends = ends_like(self.t, z0)
        return self._output(self._solve(z0, ends, self._arguments(x, z0))[-1])

    def trajectory(self, x: Tensor, t: Tensor) -> Tensor:
        """The output at every depth of `t`.

        Args:
            x: `(batch, …)`.
            t: `(time,)`, strictly monotone away from s₀, which it may leave out: z(s₀) = h_x(x) in any case. In double
                where its dtype is.

        Returns:
            h_y(z(s)) for each s, `(time, batch, …)`.
        """
        z0 = self._initial_state(x)
        t = as_times("t", t, z0)
        if t.ndim != 1 or len(t) == 0:
            raise InputError(f"t must be 1-d and hold at least one depth, got shape {tuple(t.shape)}")
        start, args = depths_like(self.t, t)[:1], self._arguments(x, z0)
        times, from_start = from_own_start(start, t)
        z = self._solve(z0, times, args) if len(times) > 1 else z0.unsqueeze(0)
        if not from_start:
            z = z[1:]
        elif is_followed(t):
            first = moved(self._field_at(t[0].detach()), z0, t[0], args)
            z = torch.cat([first.unsqueeze(0), z[1:]])
        return z if self.output_network is None else torch.stack([self._output(state) for state in z])

    def _initial_state(self, x: Tensor) -> Tensor:
        if self.input_network is not None:
            z0 = through("input_network", self.input_network, x)
        elif self.order > 1:
            z0 = append_zeros(x, (self.order - 1) * x.shape[1])
        else:
            z0 = x
        if not isinstance(z0, Tensor):
            raise InputError(
                f"the state must be one tensor, got {type(z0).__name__} from "
                f"{'the input' if self.input_network is None else 'input_network'}; convert an array with "
                "torch.as_tensor, and for a state of several tensors use pynode.solve"
            )
        return z0

    def _arguments(self, x: Tensor, z0: Tensor) -> tuple[Tensor, ...]:
        """What the field gets beside depth and state."""
        if not self.control:
            return ()
        if x.shape[:1] != z0.shape[:1]:
            raise InputError(
                f"the control must have the batch size of the state: expected {z0.shape[0]} rows, got an input of "
                f"shape {tuple(x.shape)}. input_network must keep one row for each row of the input"
            )
        return (x,)

    def _solve(self, z0: Tensor, t: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        """The states at the depths `t`, the first of which is `z0`; sets `stats` and `running_cost`."""
        self._forget()
        solution = solve(self.field, z0, t, args=args, running_cost=self.cost, **self.solver_keywords)
        self.stats = solution.stats
        self.running_cost = solution.running_cost
        return solution.z

    def _field_at(self, s: Tensor) -> Any:
        """The field that holds at depth `s`, 0-d."""
        return self.field

    def _output(self, z: Tensor) -> Tensor:
        return z if self.output_network is None else self.output_network(z)

    def extra_repr(self) -> str:
        """The arguments that are not modules."""
        parts = [f"t={self.t}"]
        parts += [f"order={self.order}"] if self.order > 1 else []
        parts += ["control=True"] if self.control else []
        return ", ".join(parts + [f"{k}={v!r}" for k, v in self.solver_keywords.items()])


def append_zeros(z: Tensor, n: int) -> Tensor:
    """The state `(batch, features, …)` with `n` features (channels) of zeros more."""
    if not isinstance(z, Tensor):
        raise InputError(f"the input must be a tensor, got {type(z).__name__}. Convert an array with torch.as_tensor")
    return torch.cat([z, z.new_zeros(z.shape[0], n, *z.shape[2:])], dim=1)
