"""Derivatives that do not exist: they raise where they are asked for, and are never `None` or zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.errors import EngineUnavailable

__all__ = ["never_differentiable", "no_derivative_of", "once_differentiable"]


def once_differentiable(what: str, remedy: str, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The same tensors; what is differentiated twice, or forwards, raises.

    Args:
        what: what the message says has no further derivative.
        remedy: what to do instead.
        tensors: floating-point tensors.
    """
    found: tuple[Tensor, ...] = _First.apply((what, remedy), *tensors)
    return found


def no_derivative_of(what: str, remedy: str, gradients: Sequence[Any], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients that were computed without a graph, of which a derivative in any of the inputs raises.

    Args:
        what: as in `once_differentiable`.
        remedy: as in `once_differentiable`.
        gradients: the gradients.
        inputs: what they depend on.
    """
    found: tuple[Tensor, ...] = _Last.apply((what, remedy), len(gradients), *gradients, *inputs)
    return found


def never_differentiable(message: str, tensors: Sequence[Tensor], like: Tensor) -> tuple[Tensor, ...]:
    """The same tensors, which require a gradient as `like` does; whoever asks for it gets an error.

    Args:
        message: what the error says.
        tensors: floating-point tensors without a graph.
        like: a tensor that requires a gradient.
    """
    found: tuple[Tensor, ...] = _Never.apply(message, like, *tensors)
    return found


def _refuse(message: tuple[str, str]) -> EngineUnavailable:
    what, remedy = message
    return EngineUnavailable(f"{what} has a gradient, and no further derivative: {remedy}")


class _First(torch.autograd.Function):
    """The identity, whose gradient has no derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(message: tuple[str, str], *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for x in tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.message, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        # The tensors go along, so that whoever differentiates by what they depend on meets the error.
        return None, *_Last.apply(ctx.message, len(cotangents), *cotangents, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise _refuse(ctx.message)


class _Last(torch.autograd.Function):
    """The first `n` of the tensors, with an error for a derivative in any."""

    generate_vmap_rule = True

    @staticmethod
    def forward(message: tuple[str, str], n: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for x in tensors[:n])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.message = inputs[0]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        raise _refuse(ctx.message)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise _refuse(ctx.message)


class _Never(torch.autograd.Function):
    """Tensors, with an error for a derivative of them."""

    @staticmethod
    def forward(message: str, like: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for x in tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.message = inputs[0]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        raise EngineUnavailable(ctx.message)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise EngineUnavailable(ctx.message)
