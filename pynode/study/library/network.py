"""Networks of tanh layers, in torch, in JAX and in Julia, and their trained weights."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Network", "julia_layers", "julia_network", "load", "network_in_jax"]


class Network(nn.Module):
    """Linear layers with tanh between them; with `time`, each layer has t as one more input, as in FFJORD.

    Args:
        widths: of the state, of the hidden layers, and of the state again.
        time: whether the field depends on t.
    """

    def __init__(self, *widths: int, time: bool = False) -> None:
        super().__init__()
        self.widths, self.time = widths, time
        self.layers = nn.ModuleList(nn.Linear(a + time, b) for a, b in itertools.pairwise(widths))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """The value at `z` `(batch, features)`."""
        column = t.to(z).expand(len(z), 1) if self.time else z[:, :0]
        for i, layer in enumerate(self.layers):
            z = layer(torch.cat([z, column], 1) if self.time else z)
            z = torch.tanh(z) if i < len(self.layers) - 1 else z
        return z


def network_in_jax(t: Any, z: Any, parameters: Sequence[Any], time: bool) -> Any:
    """`Network`, of its parameters in order, in JAX."""
    import jax.numpy as jnp

    last = len(parameters) - 2
    for i in range(0, len(parameters), 2):
        z = jnp.concatenate([z, jnp.full((len(z), 1), t, z.dtype)], 1) if time else z
        z = z @ parameters[i].T + parameters[i + 1]
        z = jnp.tanh(z) if i < last else z
    return z


def julia_layers(widths: Sequence[int], time: bool) -> str:
    """Lines of Julia that cut `p` into `W1`, `b1`, `W2`, …; a weight is `(inputs, outputs)`, as it lies in memory."""
    lines, at = [], 0
    for i, (a, b) in enumerate(itertools.pairwise(widths), 1):
        n = (a + time) * b
        lines.append(f"W{i} = reshape(view(p, {at + 1}:{at + n}), {a + time}, {b})")
        lines.append(f"b{i} = view(p, {at + n + 1}:{at + n + b})")
        at += n + b
    return "\n    ".join(lines)


def julia_network(widths: Sequence[int]) -> str:
    """`Network` without time, in Julia."""
    value = "u"
    for i in range(1, len(widths)):
        value = f"W{i}' * {value} .+ b{i}"
        value = f"tanh.({value})" if i < len(widths) - 1 else value
    return f"function (du, u, p, t)\n    {julia_layers(widths, False)}\n    du .= {value}\n    return nothing\nend"


def load(name: str) -> tuple[dict[str, Tensor], Tensor, dict[str, str]]:
    """A trained network that comes with pynode.

    Args:
        name: of the file, without its ending.

    Returns:
        The weights by name; the initial states of the problem; and how it was trained. All float32.
    """
    place = resources.files(__package__) / "data" / f"{name}.npz"
    with place.open("rb") as file, np.load(file) as archive:
        arrays = {key: archive[key] for key in archive.files}
    z0 = torch.from_numpy(arrays.pop("z0"))
    notes = {key.removeprefix("note."): str(arrays.pop(key)) for key in list(arrays) if key.startswith("note.")}
    return {key: torch.from_numpy(value) for key, value in arrays.items()}, z0, notes
