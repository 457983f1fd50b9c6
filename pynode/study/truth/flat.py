"""A problem in double precision, as functions of vectors of numbers, which SciPy's solvers take."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacfwd
from torch.fx.experimental.proxy_tensor import make_fx

from pynode.study.problem import Problem

__all__ = ["Flat"]

_Derivatives = Callable[..., tuple[Tensor, Tensor]]  # t, z and parameters -> value, and Jacobian (n, m)


def _time(t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)  # a number of Python's would be rounded to the default dtype before


class Flat:
    """A problem in double precision.

    Args:
        problem: the problem; it is copied, and stays as it is.

    Attributes:
        z0: the initial state.
        t: the times.
        parameters: those that are differentiated, by name.
        n: how many numbers the state has.
        m: how many numbers are differentiated: those of the parameters and of the initial state.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.z0 = problem.z0.detach().double()
        self.t = problem.t.detach().double()
        self.args = tuple(a.double() if a.is_floating_point() else a for a in problem.args)
        field = problem.field
        self._module = copy.deepcopy(field).double() if isinstance(field, nn.Module) else None
        self._function = field
        self.parameters = {name: p.detach().double() for name, p in problem.parameters.items()}
        self.n = self.z0.numel()
        self.m = self.n + sum(p.numel() for p in self.parameters.values())

    def field(self, t: Tensor, z: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        """dz/dt in the state's shape."""
        if self._module is None:
            return self._function(t, z, *self.args)
        return functional_call(self._module, parameters, (t, z, *self.args))

    def value(self, t: float, y: np.ndarray) -> np.ndarray:
        """dz/dt at a state, both as vectors."""
        with torch.no_grad():
            return self.field(_time(t), self._state(y), self.parameters).detach().reshape(-1).numpy()

    def derivatives(self, t: float, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """dz/dt, `(n,)`, ∂f/∂z, `(n, n)`, and ∂f/∂θ, `(n, m - n)`."""
        value, by_all = self._derivatives(_time(t), self._state(y), *self.parameters.values())
        by_state, by_parameters = by_all.detach().numpy()[:, : self.n], by_all.detach().numpy()[:, self.n :]
        return value.detach().reshape(-1).numpy(), by_state, by_parameters

    def second_derivatives(self, t: float, y: np.ndarray) -> np.ndarray:
        """∂²f/∂z² and ∂²f/∂θ∂z, `(n, m, n)`; zero for a field that differentiates within itself."""
        found = self._second(_time(t), self._state(y), *self.parameters.values())
        return found.detach().reshape(self.n, self.m, self.n).numpy()

    def displaced(self, j: int, by: float) -> Flat:
        """The same with the `j`-th of the m numbers, the parameters' first, larger by `by`."""
        moved = copy.copy(self)
        own = [*self.parameters.items(), ("z0", self.z0)]
        given = {name: p.clone(memory_format=torch.contiguous_format) for name, p in own}
        for x in given.values():
            if j < x.numel():
                x.view(-1)[j] += by
                break
            j -= x.numel()
        moved.z0 = given.pop("z0")
        moved.parameters = given
        return moved

    def split(self, row: np.ndarray) -> dict[str, np.ndarray]:
        """A vector of m numbers, the parameters' first, by name."""
        shapes = [p.shape for p in self.parameters.values()] + [self.z0.shape]
        ends = np.cumsum([shape.numel() for shape in shapes])[:-1]
        parts = (part.reshape(s) for part, s in zip(np.split(row, ends), shapes, strict=True))
        return dict(zip([*self.parameters, "z0"], parts, strict=True))

    def _state(self, y: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(y)).reshape(self.z0.shape)

    @functools.cached_property
    def _derivatives(self) -> _Derivatives:
        return self._traced(self._chosen())

    @functools.cached_property
    def _second(self) -> Callable[..., Tensor]:
        by_state = jacfwd(lambda *given: self._chosen()(*given)[1], argnums=1)
        try:
            by_state(self.t[0], self.z0, *self.parameters.values())
        except Exception:
            return lambda *_: self.z0.new_zeros(self.n, self.m, self.n)
        return self._traced(by_state)

    def _traced(self, eager: Callable[..., Any]) -> Callable[..., Any]:
        """Derivatives as a graph, which takes a fifth of the time, where the field has no control flow on values.

        The trace runs on tensors without values, so that it ends with an error where there is such control flow.
        """
        inputs = (self.t[0], self.z0, *self.parameters.values())
        try:
            graph = make_fx(eager, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
            graph.graph.eliminate_dead_code()
            graph.recompile()
            graph(*inputs)
        except Exception:
            return eager
        return graph

    def _chosen(self) -> _Derivatives:
        """Forward derivatives; or row by row in reverse, for a field that differentiates within itself."""
        names, wanted = list(self.parameters), tuple(range(1, 2 + len(self.parameters)))

        def of(t: Tensor, z: Tensor, *parameters: Tensor) -> Tensor:
            return self.field(t, z, dict(zip(names, parameters, strict=True)))

        def with_value(t: Tensor, z: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
            value = of(t, z, *parameters)
            return value, value

        forward = jacfwd(with_value, argnums=wanted, has_aux=True)

        def by_columns(t: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
            found, value = forward(t, *given)
            return value, torch.cat([x.reshape(self.n, -1) for x in found], 1)

        def by_rows(t: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
            found = torch.autograd.functional.jacobian(lambda *x: of(t, *x), given)
            return of(t, *given), torch.cat([x.reshape(self.n, -1) for x in found], 1)

        try:
            by_columns(self.t[0], self.z0, *self.parameters.values())
        except Exception:
            return by_rows
        return by_columns
