"""Normalisations of which derivatives of every order are right.

PyTorch's second derivative of `layer_norm`, `batch_norm` and `instance_norm` takes the mean and the deviation for
constants where it is differentiated in turn (as of 2.13): third derivatives in reverse are wrong, and nothing says so.
The gradient of a product with a Jacobian is one, as that product is the derivative of another product in its cotangent;
so is that of a field with the Hessian of a Lagrangian.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["Composed"]


class Composed(TorchFunctionMode):
    """The context in which normalisations are made of means, products and roots, whose derivatives PyTorch has."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The function, or what stands in its place."""
        return _COMPOSED.get(func, func)(*args, **(kwargs or {}))


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    if tuple(input.shape[-len(dims) :]) != tuple(normalized_shape):
        return torch.layer_norm(input, normalized_shape, weight, bias, eps, cudnn_enable)  # which refuses it
    out = _standardised(input, dims, eps)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def _batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    if not training or running_mean is not None:  # constants, or what a field may not change
        return torch.batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled)
    return _affine(_standardised(input, (0, *range(2, input.dim())), eps), weight, bias)


def _instance_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    if not use_input_stats or running_mean is not None:
        return torch.instance_norm(
            input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, cudnn_enabled
        )
    return _affine(_standardised(input, tuple(range(2, input.dim())), eps), weight, bias)


def _standardised(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Weight and bias of each channel, the second dimension."""
    shape = (-1, *[1] * (x.dim() - 2))
    x = x if weight is None else x * weight.reshape(shape)
    return x if bias is None else x + bias.reshape(shape)


def _functional_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training or running_mean is not None:
        return functional.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return _batch_norm(input, weight, bias, None, None, True, momentum, eps, True)


def _functional_instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats or running_mean is not None:
        return functional.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    return _instance_norm(input, weight, bias, None, None, True, momentum, eps, True)


# A function of `torch.nn.functional` is met itself, and what it calls is not.
_COMPOSED: dict[Any, Callable[..., Any]] = {
    torch.layer_norm: _layer_norm,
    torch.batch_norm: _batch_norm,
    torch.instance_norm: _instance_norm,
    functional.layer_norm: _layer_norm,
    functional.batch_norm: _functional_batch_norm,
    functional.instance_norm: _functional_instance_norm,
}
