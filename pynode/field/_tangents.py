"""A field together with its derivatives in several directions, as one field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.field._extended import ExtendedField
from pynode.field._field import Field
from pynode.nn._normalised import Composed

__all__ = ["TangentField", "products", "tracked"]


class TangentField(ExtendedField):
    """The variational equation dS/dt = (∂f/∂z) S + (∂f/∂a) ȧ + (∂f/∂p) ṗ beside dz/dt = f(t, z, a; p).

    The state is that of the field followed by a tensor of `n` tangents, `(batch, n, *features)`, for each of its
    tensors. A product with the Jacobian is the derivative of the vector-Jacobian product in its cotangent: it takes no
    more than reverse differentiation, and all directions are one product.

    Args:
        base: the field.
        n_states: how many tensors its state has.
        n: how many directions there are.
        args: for each conditioning tensor the directions that belong to it: the number of the first, and whether each
            of them moves an entry of every row of the tensor, rather than one entry of the tensor; `None` for none.
        parameters: for each parameter the number of its first direction; `None` where it has none.
        lengths: how far the directions move an entry, of each conditioning tensor and then of each parameter; 1 of all
            unless given.
    """

    def __init__(
        self,
        base: Field,
        n_states: int,
        n: int,
        args: Sequence[tuple[int, bool] | None],
        parameters: Sequence[int | None],
        lengths: Sequence[float] = (),
    ) -> None:
        self.__dict__.update({k: v for k, v in base.__dict__.items() if k != "_live"})
        self.base, self.n_states, self.n = base, n_states, n
        self.of_args, self.of_parameters = tuple(args), tuple(parameters)
        self.lengths = tuple(lengths) or (1.0,) * (len(args) + len(parameters))
        self.is_tuple = True
        self._seeds: dict[Any, Tensor] = {}

    @property
    def key(self) -> object:
        """As `Field.key`."""
        return (self.base.key, self.n, self.of_args, self.of_parameters, self.lengths)

    def __call__(self, t: Tensor, z: Sequence[Tensor], args: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
        """The derivatives of the state and of its tangents."""
        create = torch.is_grad_enabled()
        tangents = z[self.n_states :]
        with torch.enable_grad():
            states = [tracked(x) for x in z[: self.n_states]]
            args = [tracked(a) for a in args]
            parameters = self.base.parameters
            with Composed():
                dz = self.base(t, states, args)
            cotangents = [torch.zeros_like(x).requires_grad_() for x in dz]
            pairs = [(x, v) for x, v in zip(dz, cotangents, strict=True) if x.requires_grad]
            moving = [(x, d, 1) for x, d in zip(states, tangents, strict=True)]  # 1: where the directions lie
            moving += [
                (x, d, 0)
                for x, d in zip((*args, *parameters), self._of(args, parameters), strict=True)
                if d is not None
            ]
            products: Sequence[Tensor | None] = [None] * len(moving)
            if pairs:
                products = torch.autograd.grad(
                    [x for x, _ in pairs],
                    [x for x, _, _ in moving],
                    [v for _, v in pairs],
                    create_graph=True,
                    allow_unused=True,
                )
            moved = [
                (g, d, dim)
                for g, (_, d, dim) in zip(products, moving, strict=True)
                if g is not None and g.requires_grad
            ]
            ds = _products(moved, cotangents, self.n, create) if moved else [torch.zeros_like(s) for s in tangents]
        return (*dz, *ds)

    def _of(self, args: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor | None]:
        """The directions in which the conditioning tensors and the parameters move, `(n, *shape)` of each."""
        found: list[Tensor | None] = []
        for a, where, length in zip(args, self.of_args, self.lengths[: len(args)], strict=True):
            if where is None:
                found.append(None)
                continue
            first, rows = where
            shape = a.shape[1:] if rows else a.shape
            seed = self._seed(first, shape, a, length)
            found.append(seed.unsqueeze(1).expand(self.n, *a.shape) if rows else seed)
        for p, first_of, length in zip(parameters, self.of_parameters, self.lengths[len(args) :], strict=True):
            found.append(None if first_of is None else self._seed(first_of, p.shape, p, length))
        return found

    def _seed(self, first: int, shape: torch.Size, like: Tensor, length: float) -> Tensor:
        """`(n, *shape)`: direction `first + i` moves entry `i` by the length, the others are zero."""
        key = (first, shape, like.dtype, like.device, length)
        if key not in self._seeds:
            size = shape.numel()
            # Outside of a recording that may be under way, to which it is a constant.
            with torch.utils._python_dispatch._disable_current_modes():
                seed = torch.zeros(self.n, size, dtype=like.dtype, device=like.device)
                seed[first : first + size] = length * torch.eye(size, dtype=like.dtype, device=like.device)
                self._seeds[key] = seed.reshape(self.n, *shape)
        return self._seeds[key]


def tracked(x: Tensor) -> Tensor:
    """A tensor that autograd follows, of the same values."""
    return x if x.requires_grad or not x.is_floating_point() else x.detach().requires_grad_()


def _products(
    moved: Sequence[tuple[Tensor, Tensor, int]], cotangents: Sequence[Tensor], n: int, create: bool
) -> tuple[Tensor, ...]:
    """The products of the Jacobians with all directions, `(batch, n, *features)` for each state tensor."""

    def one(*directions: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            [g for g, _, _ in moved],
            cotangents,
            directions,
            create_graph=create,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )

    if n == 1:  # the batching rules of some operations fix the batch size in a trace
        return tuple(x.unsqueeze(1) for x in one(*(d.select(dim, 0) for _, d, dim in moved)))
    found: tuple[Tensor, ...] = torch.vmap(one, in_dims=tuple(d for _, _, d in moved), out_dims=1)(
        *(d for _, d, _ in moved)
    )
    return found


def products(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], directions: Sequence[Tensor], create: bool
) -> Sequence[Tensor]:
    """The derivative of outputs, which autograd has followed, as the inputs move in their directions; like the outputs.

    Args:
        outputs: what was computed.
        inputs: from which it was computed.
        directions: like the inputs.
        create: whether the result is to be differentiated in turn.
    """
    cotangents = [torch.zeros_like(x).requires_grad_() for x in outputs]
    pairs = [(x, v) for x, v in zip(outputs, cotangents, strict=True) if x.requires_grad]
    gradients: Sequence[Tensor | None] = [None] * len(inputs)
    if pairs:
        gradients = torch.autograd.grad(
            [x for x, _ in pairs], inputs, [v for _, v in pairs], create_graph=True, allow_unused=True
        )
    moved = [(g, d) for g, d in zip(gradients, directions, strict=True) if g is not None and g.requires_grad]
    if not moved:
        return [torch.zeros_like(x) for x in outputs]
    return torch.autograd.grad(
        [g for g, _ in moved],
        cotangents,
        [d for _, d in moved],
        create_graph=create,
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
