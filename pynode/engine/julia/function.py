"""A function written in Julia as an operation of PyTorch, which autograd differentiates and the trace records.

`pynode::julia(operands, number, kernels)` is the value of the function that PyNODE.jl has registered under `number`.
The operands are t, the state, the parameters, the parameters of the networks that the function calls, and the
conditioning tensors; `kernels` are the networks' kernels, as in "3,5", 0 for one that is not traced yet.
`pynode::julia_products(v, operands, …)` are the products of a cotangent with its Jacobians in each operand.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.engine.julia import runtime as julia_runtime
from pynode.engine.julia import signals
from pynode.engine.julia.memory import in_order
from pynode.errors import EngineUnavailable, FieldError, PyNODEError

__all__ = ["UnknownNetwork", "call", "is_recording", "reporting"]


def is_recording(x: Tensor) -> bool:
    """Whether a tensor has no values, since a trace is being recorded."""
    from torch._subclasses.fake_tensor import is_fake  # slow to import, and in use by then if so

    return is_fake(x)


class UnknownNetwork(Exception):
    """The Julia function calls a network with an input of a shape, without the batch, that it was not traced for."""

    def __init__(self, index: int, shape: tuple[int, ...]) -> None:
        self.index, self.shape = index, shape


def call(operands: Sequence[Tensor], number: int, kernels: Sequence[int]) -> Tensor:
    """The value of a registered function, `(batch, *features)` as its second operand; differentiable."""
    state = operands[1]
    if state.device.type != "cpu":
        raise EngineUnavailable(f"a JuliaField takes CPU tensors, the state is on {state.device}: move it to the CPU")
    value: Tensor = torch.ops.pynode.julia(operands, number, ",".join(map(str, kernels)))
    return value


@contextlib.contextmanager
def reporting() -> Iterator[Any]:
    """The Julia module PyNODE; what goes wrong in the user's Julia code within the context is a `FieldError`."""
    with julia_runtime.LOCK:
        module = julia_runtime.module()
        from juliacall import JuliaError

        try:
            yield module
        except JuliaError as error:
            raise FieldError(str(module.told(error.exception))) from None


@julia_runtime.alone
def _evaluate(operands: Sequence[Tensor], number: int, kernels: str, v: Tensor | None) -> list[Tensor]:
    """The value, or with `v` the products with each operand's Jacobian, by Julia."""
    module = julia_runtime.module()
    xs = [in_order(x.detach()) for x in operands]
    v = None if v is None else in_order(v.detach())
    out = [torch.empty_like(x) for x in (xs[1:2] if v is None else xs)]
    numbers = [int(k) for k in kernels.split(",") if k]
    data = array("q", [number, int(xs[1].dtype == torch.float64), len(numbers), *numbers, len(xs)])
    for x in xs:
        data.extend((x.dim(), *reversed(x.shape), x.data_ptr()))
    data.append(0 if v is None else v.data_ptr())
    data.extend(x.data_ptr() for x in out)
    data.extend([0] * 16)  # room for the answer
    address, length = data.buffer_info()
    code = module.julia_evaluate(address, length)
    if code > 0:
        raise UnknownNetwork(code - 1, tuple(reversed(data[1 : 1 + data[0]])))
    if code == -4:
        signals.raise_exception()
    if code < 0:
        raise (FieldError if code == -2 else PyNODEError)(str(module.last_error()))
    return out


@torch.library.custom_op("pynode::julia", mutates_args=(), device_types="cpu")
def _julia(operands: list[Tensor], number: int, kernels: str) -> Tensor:
    return _evaluate(operands, number, kernels, None)[0]


@torch.library.custom_op("pynode::julia_products", mutates_args=(), device_types="cpu")
def _julia_products(v: Tensor, operands: list[Tensor], number: int, kernels: str) -> list[Tensor]:
    return _evaluate(operands, number, kernels, v)


def _contiguous_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_julia.register_fake
def _(operands: list[Tensor], number: int, kernels: str) -> Tensor:
    return _contiguous_like(operands[1])


@_julia_products.register_fake
def _(v: Tensor, operands: list[Tensor], number: int, kernels: str) -> list[Tensor]:
    return [_contiguous_like(x) for x in operands]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    operands, ctx.number, ctx.kernels = inputs
    ctx.save_for_backward(*operands)


def _pull_back(ctx: Any, v: Tensor) -> tuple[Any, ...]:
    products = torch.ops.pynode.julia_products(v, ctx.saved_tensors, ctx.number, ctx.kernels)
    wanted = ctx.needs_input_grad[0]
    return [g if w else None for g, w in zip(products, wanted, strict=True)], None, None


torch.library.register_autograd("pynode::julia", _pull_back, setup_context=_keep)
