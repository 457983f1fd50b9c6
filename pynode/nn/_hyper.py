"""A layer whose parameters another network computes from the depth."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pynode.errors import InputError
from pynode.nn._variant import DepthVariant

__all__ = ["Hypernetwork"]


class Hypernetwork(DepthVariant):
    """A layer or network with parameters θ(t) = g_ω(t), where g_ω is a network of the depth.

    Args:
        layer: what is to have the parameters, a module of one argument, e.g. `nn.Linear(2, 2)`. It is copied,
            and its own parameters, which are not trained, are what the default g_ω starts near.
        network: g_ω, from the depth `(1,)` to all parameters of the layer in one vector; `None` for a
            perceptron with one hidden layer.
        width: of the hidden layer of the default network.

    Raises:
        InputError: the layer has no parameters, or `network` gives another number of them.

    Source:
        S. Massaroli et al., "Dissecting Neural ODEs", NeurIPS 2020, section 3 (depth-variant parameters);
        D. Ha, A. Dai, Q. V. Le, "HyperNetworks", ICLR 2017.
    """

    def __init__(self, layer: nn.Module, network: nn.Module | None = None, *, width: int = 16) -> None:
        super().__init__()
        if not isinstance(layer, nn.Module) or not list(layer.parameters()):
            raise InputError(
                f"layer of Hypernetwork must be an nn.Module that has parameters, got {type(layer).__name__}"
            )
        start = torch.cat([p.detach().flatten() for p in layer.parameters()])
        if network is None:
            if not isinstance(width, int) or width < 1:
                raise InputError(f"width of Hypernetwork must be an integer of at least 1, got {width!r}")
            last = nn.Linear(width, len(start)).to(start)
            with torch.no_grad():
                last.bias.copy_(start)
            network = nn.Sequential(nn.Linear(1, width).to(start), nn.Tanh(), last)
        self.layer = copy.deepcopy(layer)
        self.shapes = {name: p.shape for name, p in self.layer.named_parameters()}
        for module in list(self.layer.modules()):
            for name, p in list(module.named_parameters(recurse=False)):
                delattr(module, name)  # a buffer follows .to(), and no optimizer finds it
                module.register_buffer(name, p.detach(), persistent=False)
        self.network = network
        with torch.no_grad():
            got = network(start.new_zeros(1))
        if got.shape != start.shape:
            raise InputError(
                f"network of Hypernetwork must map a depth (1,) to the {len(start)} parameters of the layer, "
                f"got shape {tuple(got.shape)}"
            )

    def parameters_at(self, t: Tensor) -> dict[str, Tensor]:
        """The parameters of the layer at one depth `t`, 0-d."""
        return self._named(self.network(t.reshape(1)))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Apply the layer at depth `t`, 0-d, or `(batch, 1, …)` for samples at depths of their own."""
        if not t.ndim:
            return functional_call(self.layer, self.parameters_at(t), (z,))

        def one(theta: Tensor, sample: Tensor) -> Tensor:
            return functional_call(self.layer, self._named(theta), (sample.unsqueeze(0),)).squeeze(0)

        return torch.vmap(one)(self.network(t.reshape(-1, 1)), z)

    def _named(self, theta: Tensor) -> dict[str, Tensor]:
        parts = theta.split([shape.numel() for shape in self.shapes.values()])
        return {name: part.reshape(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}
