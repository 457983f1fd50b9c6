"""Galerkin layers: parameters expanded in a basis of functions of depth."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pynode.errors import InputError
from pynode.nn._basis import Basis
from pynode.nn._variant import DepthVariant

__all__ = ["GalerkinConv2d", "GalerkinLinear"]


class _Galerkin(DepthVariant):
    """Weight and bias as Σₖ cₖ φₖ(t), with trained coefficients."""

    bias: nn.Parameter | None

    def __init__(self, shape: tuple[int, ...], basis: Basis, bias: bool) -> None:
        super().__init__()
        name = type(self).__name__
        if not isinstance(basis, Basis):
            raise InputError(
                f"basis of {name} must be a basis such as pynode.nn.Fourier(5), got {type(basis).__name__}"
            )
        for size in shape:
            if not isinstance(size, int) or size < 1:
                raise InputError(f"the sizes of {name} must be integers of at least 1, got {size!r}")
        self.basis = basis
        self.weight = nn.Parameter(torch.empty(*shape, basis.n))
        if bias:
            self.bias = nn.Parameter(torch.empty(shape[0], basis.n))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the coefficients such that θ(t) is about as large as the parameters of PyTorch's own layer."""
        fan_in = self.weight[0, ..., 0].numel()
        bound = 1 / math.sqrt(fan_in * self.basis.n)
        for coefficients in (self.weight, self.bias):
            if coefficients is not None:
                nn.init.uniform_(coefficients, -bound, bound)

    def parameters_at(self, t: Tensor) -> dict[str, Tensor]:
        """Weight and bias at one depth `t`, 0-d."""
        phi = self.basis(t)
        given = {"weight": self.weight, "bias": self.bias}
        return {name: c @ phi for name, c in given.items() if c is not None}

    def _stacked(self) -> tuple[Tensor, Tensor | None]:
        """The coefficients of all φₖ side by side: `(n · out, …)` and `(n · out,)`."""
        weight = self.weight.movedim(-1, 0).flatten(0, 1)
        return weight, None if self.bias is None else self.bias.T.flatten()

    def _combined(self, t: Tensor, parts: Tensor, dim: int) -> Tensor:
        """Σₖ φₖ(tᵢ) partsᵢₖ for samples at depths of their own; dimension `dim` of `parts` holds n · out."""
        parts = parts.unflatten(dim, (self.basis.n, -1))
        phi = self.basis(t.reshape(-1))  # (batch, n)
        ones = [1] * (parts.ndim - 1)
        ones[dim - 1] = self.basis.n
        return (parts * phi.reshape(-1, *ones)).sum(dim)


class GalerkinLinear(_Galerkin):
    """A linear layer whose weight and bias vary with depth: W(t) = Σₖ Wₖ φₖ(t).

    Args:
        in_features: size of each input.
        out_features: size of each output.
        basis: the functions φₖ, e.g. `pynode.nn.Fourier(5)`.
        bias: whether there is a bias, expanded likewise.

    Attributes:
        weight: coefficients `(out_features, in_features, n)`.
        bias: coefficients `(out_features, n)`, or `None`.

    Raises:
        InputError: a size is not positive, or `basis` is no basis.

    Source:
        S. Massaroli et al., "Dissecting Neural ODEs", NeurIPS 2020, section 3 (Galerkin neural ODEs).
    """

    def __init__(self, in_features: int, out_features: int, basis: Basis, bias: bool = True) -> None:
        super().__init__((out_features, in_features), basis, bias)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Apply the layer at depth `t`.

        Args:
            t: 0-d, or `(batch, 1, …)` for samples at depths of their own.
            z: `(batch, …, in_features)`.

        Returns:
            `(batch, …, out_features)`.
        """
        if t.ndim:
            return self._combined(t, F.linear(z, *self._stacked()), z.ndim - 1)
        theta = self.parameters_at(t)
        return F.linear(z, theta["weight"], theta.get("bias"))

    def extra_repr(self) -> str:
        """The arguments that are not modules."""
        return f"in_features={self.weight.shape[1]}, out_features={len(self.weight)}, bias={self.bias is not None}"


class GalerkinConv2d(_Galerkin):
    """A 2-d convolution whose kernel and bias vary with depth: W(t) = Σₖ Wₖ φₖ(t).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: of the kernel, one number or height and width.
        basis: the functions φₖ, e.g. `pynode.nn.Fourier(5)`.
        stride: as `nn.Conv2d` takes.
        padding: as `nn.Conv2d` takes, in numbers.
        dilation: as `nn.Conv2d` takes.
        groups: as `nn.Conv2d` takes.
        bias: whether there is a bias, expanded likewise.

    Attributes:
        weight: coefficients `(out_channels, in_channels / groups, height, width, n)`.
        bias: coefficients `(out_channels, n)`, or `None`.

    Raises:
        InputError: a size is not positive, `groups` does not divide the channels, or `basis` is no basis.

    Source:
        S. Massaroli et al., "Dissecting Neural ODEs", NeurIPS 2020, section 3 (Galerkin neural ODEs).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        basis: Basis,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        if not isinstance(groups, int) or groups < 1 or in_channels % groups or out_channels % groups:
            raise InputError(
                f"groups of GalerkinConv2d must divide in_channels={in_channels} and out_channels={out_channels}, "
                f"got {groups!r}"
            )
        kernel = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
        super().__init__((out_channels, in_channels // groups, *kernel), basis, bias)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Apply the layer at depth `t`.

        Args:
            t: 0-d, or `(batch, 1, 1, 1)` for samples at depths of their own.
            z: `(batch, in_channels, height, width)`.

        Returns:
            `(batch, out_channels, height, width)`, as `nn.Conv2d` gives.
        """
        if not t.ndim:
            theta = self.parameters_at(t)
            return self._convolved(z, theta["weight"], theta.get("bias"), self.groups)
        if self.groups == 1:
            return self._combined(t, self._convolved(z, *self._stacked(), 1), 1)
        phi = self.basis(t.reshape(-1))
        parts = [
            self._convolved(z, self.weight[..., k], None if self.bias is None else self.bias[:, k], self.groups)
            * phi[:, k].reshape(-1, 1, 1, 1)
            for k in range(self.basis.n)
        ]
        return torch.stack(parts).sum(0)

    def _convolved(self, z: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        return F.conv2d(z, weight, bias, self.stride, self.padding, self.dilation, groups)

    def extra_repr(self) -> str:
        """The arguments that are not modules."""
        out, each, *kernel = self.weight.shape[:-1]
        return (
            f"{each * self.groups}, {out}, kernel_size={tuple(kernel)}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}"
        )
