"""The residual network of a vector field: the baseline of the neural ODE."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pynode.engine.protocol import Stats
from pynode.errors import InputError
from pynode.models._check import check_callables, check_depth, through

__all__ = ["ResNet"]


class ResNet(nn.Module):
    """Residual layers z_{k+1} = z_k + h f_k(t_k, z_k): Euler's method on the vector field of a neural ODE.

    Args:
        field: f, an `nn.Module` or callable `f(t, z)` whose result has the shape of `z`,
            `(batch, features, …)`.
        depth: number of layers; h = (S - s₀) / depth.
        shared: whether all layers share the field's weights. Otherwise each layer after the first has a copy
            whose parameters are drawn anew by the modules' `reset_parameters`.
        input_network: from the input `(batch, …)` to z₀; identity where `None`.
        output_network: from the last state to the output; identity where `None`.
        t: the depth interval (s₀, S).

    Attributes:
        stats: the `Stats` of the last call, with `nfe` = depth; `None` before it.

    Raises:
        InputError: an argument is not usable.

    Source:
        R. T. Q. Chen et al., "Neural Ordinary Differential Equations", NeurIPS 2018, eq. 1.
    """

    def __init__(
        self,
        field: Callable[..., Any],
        depth: int,
        *,
        shared: bool = True,
        input_network: Callable[[Tensor], Tensor] | None = None,
        output_network: Callable[[Tensor], Tensor] | None = None,
        t: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        check_callables(field, input_network=input_network, output_network=output_network)
        if not isinstance(depth, int) or depth < 1:
            raise InputError(f"depth must be an integer of at least 1, got {depth!r}")
        self.field: Any = field if shared else _layers(field, depth)
        self.depth = depth
        self.shared = shared
        self.input_network = input_network
        self.output_network = output_network
        self.t = check_depth(t)
        self.stats: Stats | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The output after the last layer, `(batch, …)`, for an input `(batch, …)`."""
        return self._output(self._states(x)[-1])

    def trajectory(self, x: Tensor) -> Tensor:
        """The output before the first and after each layer, `(depth + 1, batch, …)`."""
        return torch.stack([self._output(z) for z in self._states(x)])

    def _states(self, x: Tensor) -> list[Tensor]:
        z = through("input_network", self.input_network, x)
        depths = torch.linspace(*self.t, self.depth + 1, dtype=z.dtype, device=z.device)
        step = (self.t[1] - self.t[0]) / self.depth
        states, start = [z], time.perf_counter()
        for k in range(self.depth):
            layer = self.field if self.shared else self.field[k]
            z = z + step * layer(depths[k], z)
            states.append(z)
        self.stats = Stats(nfe=self.depth, seconds=time.perf_counter() - start)
        return states

    def _output(self, z: Tensor) -> Tensor:
        return z if self.output_network is None else self.output_network(z)

    def extra_repr(self) -> str:
        """The arguments that are not modules."""
        return f"depth={self.depth}, shared={self.shared}, t={self.t}"


def _layers(field: Any, depth: int) -> nn.ModuleList:
    if not isinstance(field, nn.Module):
        raise InputError(
            f"ResNet(shared=False) copies the field's weights, so it must be an nn.Module, got {type(field).__name__}"
        )
    return nn.ModuleList([field, *(_fresh(field) for _ in range(depth - 1))])


def _fresh(field: nn.Module) -> nn.Module:
    """A deep copy whose parameters are drawn anew, where a module knows how to."""
    twin = copy.deepcopy(field)
    for module in twin.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    return twin
