"""A field together with its derivative in one direction, which is given when it is evaluated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pynode.field._extended import ExtendedField
from pynode.field._field import Field
from pynode.field._tangents import products, tracked
from pynode.nn._normalised import Composed

__all__ = ["DirectionField"]


class DirectionField(ExtendedField):
    """The variational equation ds/dt = (∂f/∂z) s + (∂f/∂a) ȧ + (∂f/∂p) ṗ + (∂f/∂t) ṫ beside dz/dt = f(t, z, a; p).

    Its state is that of the field, then a tangent like each of its tensors, then, where the time moves, a tensor
    `(batch,)` whose entries are ṫ and do not change. Its conditioning tensors are those of the field, then ȧ for each
    that moves, then ṗ, each with a first dimension of 1 before its own (so that nothing looks like the batch).

    It is differentiated by autograd where it is evaluated at states that do not depend on the parameters.

    Args:
        base: the field.
        n_states: how many tensors its state has.
        args: for each conditioning tensor whether it moves.
        parameters: for each parameter whether it moves.
        time: whether the time moves.
    """

    def __init__(
        self, base: Field, n_states: int, args: Sequence[bool], parameters: Sequence[bool], time: bool
    ) -> None:
        super().__init__(base, n_states)
        self.of_args, self.of_parameters, self.time = tuple(args), tuple(parameters), time

    @property
    def key(self) -> object:
        """As `Field.key`."""
        return (self.base.key, self.of_args, self.of_parameters, self.time)

    def __call__(self, t: Tensor, z: Sequence[Tensor], args: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
        """The derivatives of the state and of its tangent."""
        n, m = self.n_states, len(self.of_args)
        create = torch.is_grad_enabled()
        if not create:  # autograd does not follow some views that were made without it, though they say that it does
            t, z, args = t.detach(), [x.detach() for x in z], [a.detach() for a in args]
        with torch.enable_grad():
            states = [tracked(x) for x in z[:n]]
            own = [tracked(a) for a in args[:m]]
            moving_t = [tracked(t)] if self.time else []
            parameters = self.base.parameters
            with Composed():
                dz = self.base(moving_t[0] if self.time else t, states, own)
            moving = [*states, *(x for x, moves in zip(own, self.of_args, strict=True) if moves)]
            directions = [*z[n : 2 * n], *args[m : m + sum(self.of_args)]]
            moving += [p for p, moves in zip(parameters, self.of_parameters, strict=True) if moves]
            directions += [d[0] for d in args[m + sum(self.of_args) :]]
            moving += moving_t
            directions += [d[:1].sum() for d in z[2 * n :]]
            ds = products(dz, moving, directions, create)
        still = (torch.zeros_like(x) for x in z[2 * n :])
        return (*(dz if create else (x.detach() for x in dz)), *ds, *still)
