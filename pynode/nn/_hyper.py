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
        parameters = list(self.layer.parameters())
        self.shapes = [p.shape for p in parameters]
        places = {id(p): i for i, p in enumerate(parameters)}
        # Where each belongs, once for each module that has it: layers may share one, and a layer may occur twice.
        self.places: dict[str, int] = {}
        for path, module in list(self.layer.named_modules()):
            for name, p in list(module.named_parameters(recurse=False, remove_duplicate=False)):
                self.places[f"{path}.{name}" if path else name] = places[id(p)]
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
        """The parameters of the layer at one depth `t`, 0-d, by name."""
        return self._named(self.network(t.reshape(1)))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Apply the layer at depth `t`, 0-d, or `(batch, 1, …)` for samples at depths of their own."""
        if not t.ndim:
            return self._call(self.parameters_at(t), z)

        def one(theta: Tensor, sample: Tensor) -> Tensor:
            return self._call(self._named(theta), sample.unsqueeze(0)).squeeze(0)

        return torch.vmap(one)(self.network(t.reshape(-1, 1)), z)

    def _named(self, theta: Tensor) -> dict[str, Tensor]:
        parts = theta.split([shape.numel() for shape in self.shapes])
        tensors = [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        return {name: tensors[i] for name, i in self.places.items()}

    def _call(self, parameters: dict[str, Tensor], z: Tensor) -> Tensor:
        # Each place has one name here: functional_call would not put back what it gives a place under two.
        return functional_call(self.layer, parameters, (z,), tie_weights=False)
