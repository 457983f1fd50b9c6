"""What a user's state is, and the tensors that are solved in its place.

A state is a tensor, or a tuple, named tuple or dictionary of tensors. A solver works with real tensors that have the
batch first: a complex tensor becomes the pairs of its real and imaginary parts, a 0-d one a batch of one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pynode.errors import FieldError, InputError

__all__ = ["TENSOR", "State", "as_tuple", "state_of", "with_args"]

_DICTS = (dict, OrderedDict)


class State(NamedTuple):
    """The form of a state; all of it can be compared, so that fields that are made with it are known again.

    Attributes:
        kind: `Tensor`, or the type that holds the tensors.
        keys: of a dictionary or a named tuple, by which the tensors are found.
        complex: for each tensor whether it is complex.
        scalar: for each tensor whether it is 0-d.
        complex_args: for each conditioning tensor whether it is complex.
        scalar_args: for each conditioning tensor whether it is complex and 0-d.
    """

    kind: Any
    keys: tuple[Any, ...]
    complex: tuple[bool, ...]
    scalar: tuple[bool, ...]
    complex_args: tuple[bool, ...] = ()
    scalar_args: tuple[bool, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether the state, a tensor or a tuple, and the conditioning tensors are what is solved with."""
        if self is TENSOR:
            return True
        return self.kind in (Tensor, tuple) and not any((*self.complex, *self.scalar, *self.complex_args))

    @property
    def is_tuple(self) -> bool:
        """Whether what is solved is a tuple."""
        return self.kind is not Tensor or not self.is_plain

    @property
    def is_single(self) -> bool:
        """Whether the state is without a batch."""
        return all(self.scalar)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tensors, as the user has them in `z0`."""
        if self.kind is Tensor:
            return ("z0",)
        if self.kind in _DICTS:
            return tuple(f"z0[{key!r}]" for key in self.keys)
        return tuple(f"z0.{key}" for key in self.keys) or tuple(f"z0[{i}]" for i in range(len(self.complex)))

    def parts(self, z: Any) -> tuple[Any, ...]:
        """What a state, or anything of its form, holds."""
        if self.kind is Tensor:
            return (z,)
        return tuple(z[key] for key in self.keys) if self.kind in _DICTS else tuple(z)

    def whole(self, parts: Sequence[Any]) -> Any:
        """What holds these parts, as the state its tensors."""
        if self.kind is Tensor:
            return parts[0]
        if self.kind in _DICTS:
            return self.kind(zip(self.keys, parts, strict=True))
        return self.kind(*parts) if self.keys else tuple(parts)

    def tensors(self, z: Any, leading: int = 0) -> tuple[Tensor, ...]:
        """The tensors that are solved, of a state whose tensors have so many dimensions before the batch."""
        if self.kind is Tensor and not self.complex[0] and not self.scalar[0]:
            return (z,)
        forms = zip(self.parts(z), self.complex, self.scalar, strict=True)
        return tuple(_solved(x, is_complex, is_scalar, leading) for x, is_complex, is_scalar in forms)

    def state(self, tensors: Sequence[Tensor], leading: int = 0) -> Any:
        """The state of tensors that are solved, which have so many dimensions before the batch."""
        forms = zip(tensors, self.complex, self.scalar, strict=True)
        return self.whole([_users(x, is_complex, is_scalar, leading) for x, is_complex, is_scalar in forms])

    def args(self, args: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The user's conditioning tensors, of those that are solved with."""
        if not any(self.complex_args):
            return tuple(args)
        forms = zip(args, self.complex_args, self.scalar_args, strict=True)
        return tuple(_users(x, is_complex, is_scalar, 0) for x, is_complex, is_scalar in forms)

    def with_real_args(self, n: int) -> State:
        """This form beside `n` more conditioning tensors, which are real."""
        if not self.complex_args:
            return self
        more = (False,) * n
        return self._replace(complex_args=(*self.complex_args, *more), scalar_args=(*self.scalar_args, *more))

    def rates(self, out: Any, z: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The derivatives of the tensors that are solved, `z`, of what the user's field has returned.

        Raises:
            FieldError: that has another form than the state, or other shapes or dtypes. Where these are the state's
                own, `Field` looks at them.
        """
        if self.kind in (Tensor, tuple) and not any((*self.complex, *self.scalar)):
            return (out,) if self.kind is Tensor else tuple(out)
        if not self._has_form(out):
            keys = f" with {', '.join(map(repr, self.keys))}" if self.keys else ""
            got = f"{type(out).__name__} with {list(out)}" if isinstance(out, dict) else type(out).__name__
            raise FieldError(
                f"the field must return dz/dt in the form of its state: expected {self.kind.__name__}{keys}, got {got}"
            )
        expected = self.parts(self.state(z))
        for name, o, x in zip(self.names, self.parts(out), expected, strict=True):
            if not isinstance(o, Tensor) or o.shape != x.shape or o.dtype != x.dtype:
                got = f"{tuple(o.shape)}, {o.dtype}" if isinstance(o, Tensor) else type(o).__name__
                raise FieldError(
                    f"the field must return the derivative of {name} with its shape and dtype: expected "
                    f"{tuple(x.shape)}, {x.dtype}, got {got}"
                )
        return self.tensors(out)

    def returned(self, out: Any) -> tuple[Any, ...] | None:
        """What a state holds that a user's function has returned; `None` if it has another form."""
        return self.parts(out) if self._has_form(out) else None

    def _has_form(self, out: Any) -> bool:
        if self.kind is Tensor:
            return isinstance(out, Tensor)
        if self.kind in _DICTS:
            return isinstance(out, dict) and out.keys() == set(self.keys)
        if self.keys:
            return isinstance(out, self.kind)
        return isinstance(out, tuple | list) and len(out) == len(self.complex)


TENSOR = State(Tensor, (), (False,), (False,))


def with_args(form: State, args: Sequence[Tensor]) -> tuple[State, tuple[Tensor, ...]]:
    """The form of a state beside these conditioning tensors, and what is solved with in their place."""
    if not any(a.is_complex() for a in args):
        return form, tuple(args)
    is_complex = tuple(a.is_complex() for a in args)
    is_scalar = tuple(a.is_complex() and a.dim() == 0 for a in args)
    forms = zip(args, is_complex, is_scalar, strict=True)
    given = tuple(_solved(a, complex_, scalar, 0) for a, complex_, scalar in forms)
    return form._replace(complex_args=is_complex, scalar_args=is_scalar), given


def state_of(z0: Any) -> State:
    """The form of an initial state.

    Raises:
        InputError: it is no state.
    """
    kind: Any = type(z0)
    keys: tuple[Any, ...] = ()
    parts: tuple[Any, ...] = (z0,)
    if isinstance(z0, Tensor):
        if z0.dim() and not z0.is_complex():
            return TENSOR
        kind = Tensor
    elif kind in _DICTS:
        keys, parts = tuple(z0), tuple(z0.values())
    elif isinstance(z0, tuple):
        parts = tuple(z0)
        if hasattr(z0, "_fields"):
            keys = z0._fields
        else:
            kind = tuple
    if not parts or not all(isinstance(x, Tensor) for x in parts):
        raise InputError(
            "z0 must be a tensor, or a non-empty tuple, named tuple or dictionary of tensors, got "
            f"{_described(z0, parts)}. Convert arrays and numbers with torch.as_tensor"
        )
    if not all(isinstance(key, str | int) for key in keys):
        raise InputError(f"the keys of z0 must be strings, got {list(keys)}. Name the tensors")
    return State(kind, keys, tuple(x.is_complex() for x in parts), tuple(x.dim() == 0 for x in parts))


def _described(z0: Any, parts: Sequence[Any]) -> str:
    if len(parts) == 1 and parts[0] is z0:
        kinds = {type(x).__name__ for x in z0} if isinstance(z0, list) else set()
    else:
        kinds = {type(x).__name__ for x in parts} or {"nothing"}
    return f"{type(z0).__name__} of {', '.join(sorted(kinds))}" if kinds else type(z0).__name__


def _solved(x: Tensor, is_complex: bool, is_scalar: bool, leading: int) -> Tensor:
    if is_scalar:
        x = x.unsqueeze(leading)
    # Not as views, which ask of memory, and that of a cotangent too, that it begins at an even number.
    return torch.stack([x.real, x.imag], -1) if is_complex else x


def _users(x: Tensor, is_complex: bool, is_scalar: bool, leading: int) -> Tensor:
    if is_complex:
        x = torch.complex(x[..., 0], x[..., 1])
    return x.select(leading, 0) if is_scalar else x


def as_tuple(z: Any) -> tuple[Any, ...]:
    """The tensors of a state that is a tensor or a tuple of them."""
    return z if isinstance(z, tuple) else (z,)
