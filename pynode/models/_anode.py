"""Augmented neural ODEs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter

from pynode.errors import FieldError, InputError
from pynode.models._node import NODE, append_zeros

__all__ = ["ANODE"]


class ANODE(NODE):
    """An augmented neural ODE: the flow has `augment_dim` dimensions more than the input.

    Args:
        field: f, as `NODE` takes, on the augmented state `(batch, features + augment_dim, …)`.
        augment_dim: p, the number of dimensions more; of channels for images `(batch, channels, h, w)`.
        input_network: `None` appends zeros, z(s₀) = [x, 0]; a network h_x from `(batch, n, …)` to
            `(batch, n + p, …)` makes the input-layer augmentation (IL-NODE), z(s₀) = h_x(x); `"linear"` is a linear
            h_x of the features (a 1 × 1 convolution for images), whose sizes follow from the first input.
        node_keywords: as `NODE` takes. With `order` k the augmented state is the position: its derivatives
            begin at zero, unless `input_network` returns k (n + p) features.

    Raises:
        InputError: `augment_dim` is no positive integer, or as `NODE` raises; at the first call,
            `input_network` returns another number of features.
        FieldError: at a call, the field returns another shape than the augmented state's.

    Source:
        E. Dupont, A. Doucet, Y. W. Teh, "Augmented Neural ODEs", NeurIPS 2019; S. Massaroli et al.,
        "Dissecting Neural ODEs", NeurIPS 2020, section 4 (input-layer augmentation).
    """

    def __init__(
        self,
        field: Callable[..., Any],
        augment_dim: int,
        *,
        input_network: Callable[[Tensor], Tensor] | str | None = None,
        **node_keywords: Any,
    ) -> None:
        if not isinstance(augment_dim, int) or augment_dim < 1:
            raise InputError(
                f"augment_dim must be an integer of at least 1, the number of dimensions to add, got {augment_dim!r}. "
                "For a flow in the space of the input use NODE"
            )
        if isinstance(input_network, str):
            if input_network != "linear":
                raise InputError(f"input_network must be a callable, None or 'linear', got {input_network!r}")
            input_network = _LinearAugmentation(augment_dim)
        super().__init__(field, input_network=input_network, **node_keywords)
        self.augment_dim = augment_dim

    def _initial_state(self, x: Tensor) -> Tensor:
        width = x.shape[1] + self.augment_dim
        if self.input_network is None:
            z0 = append_zeros(x, self.augment_dim)
        else:
            z0 = super()._initial_state(x)
            if z0.ndim < 2 or z0.shape[1] not in (width, self.order * width):
                raise InputError(
                    f"input_network must return the {x.shape[1]} features of the input and augment_dim="
                    f"{self.augment_dim} more: expected {width} along dimension 1, got shape {tuple(z0.shape)}"
                )
        return append_zeros(z0, self.order * width - z0.shape[1]) if z0.shape[1] < self.order * width else z0

    def _solve(self, z0: Tensor, t: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        try:
            return super()._solve(z0, t, args)
        except FieldError as error:
            n = z0.shape[1] // self.order
            raise FieldError(
                f"{error}. (The state is augmented: {n - self.augment_dim} features of the input and "
                f"augment_dim={self.augment_dim} more)"
            ) from error

    def extra_repr(self) -> str:
        """The arguments that are not modules."""
        return f"augment_dim={self.augment_dim}, {super().extra_repr()}"


class _LinearAugmentation(LazyModuleMixin, nn.Linear):
    """A linear layer from n to n + p features along dimension 1; n follows from the first input."""

    cls_to_become = None

    def __init__(self, augment_dim: int) -> None:
        super().__init__(0, 0)
        self.augment_dim = augment_dim
        self.weight: Any = UninitializedParameter()
        self.bias: Any = UninitializedParameter()

    def initialize_parameters(self, x: Tensor) -> None:
        """Make weight and bias for inputs like `x`, `(batch, n, …)`."""
        if self.has_uninitialized_params():
            self.in_features = x.shape[1]
            self.out_features = x.shape[1] + self.augment_dim
            self.weight.materialize((self.out_features, self.in_features))
            self.bias.materialize((self.out_features,))
            nn.Linear.reset_parameters(self)

    def reset_parameters(self) -> None:
        """Draw the parameters as `nn.Linear` does, once they have a size."""
        if not self.has_uninitialized_params() and self.in_features:
            super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """From `(batch, n, …)` to `(batch, n + p, …)`."""
        return F.linear(x.movedim(1, -1), self.weight, self.bias).movedim(-1, 1)
