"""What is solved in a study: a field with an initial state, times, and what is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pynode.errors import InputError
from pynode.field import Field
from pynode.problem.inputs import check_args, check_state, check_times
from pynode.problem.solved_field import solved_field
from pynode.problem.state import TENSOR, state_of
from pynode.study.content import digest
from pynode.study.reference import Reference
from pynode.study.setting import Setting

__all__ = ["Problem", "mean_square"]

_SETTINGS = (Setting(1e-3), Setting(1e-5), Setting(1e-7))


def mean_square(z: Tensor) -> Tensor:
    """The mean square of all states: the loss of a problem that names none."""
    return z.square().mean()


@dataclass(frozen=True, eq=False)
class Problem:
    """An initial value problem of a study.

    `Problem(field, z0, t)` is enough. The reference solution is then made by two independent solvers, see `Reference`.

    Attributes:
        field: an `nn.Module`, or a function `f(t, z, *args) -> dz/dt` without parameters.
        z0: the initial state, `(batch, *features)` or `(*features,)`, in float32 or float64.
        t: the times, `(time,)`, strictly monotone; states are compared at each.
        args: tensors that condition the field.
        name: what the problem is called; that of the field's class where it is not given.
        exact: the solution, where it is known: times `(time,)` -> states `(time, *z0.shape)`.
        invariants: what the exact solution keeps, by name: states `(time, *z0.shape)` -> values `(time, …)`.
        loss: what is differentiated: states `(time, *z0.shape)` -> a 0-d tensor; the mean square by default.
        stiff: whether only solvers for stiff fields will do.
        settings: the tolerances at which it is solved.
        jax: the same field for JAX, `f(t, z, parameters)`: arrays in the order of `field.parameters()`.
        julia: the same field as Julia code: an expression whose value is a function `(du, u, p, t)`, `p` the
            parameters, flattened, one after the other.
        description: a sentence on what it is.
        source: where it is from.
        reference: the right solution; made when it is needed where it is not given.

    Raises:
        InputError: an argument is not usable.
        FieldError: the field returns another shape or dtype than the state's.
        TraceError: the field draws random numbers.
    """

    kind: ClassVar[str] = "solve"

    field: Callable[..., Any]
    z0: Tensor
    t: Tensor
    args: tuple[Tensor, ...] = ()
    name: str = ""
    exact: Callable[[Tensor], Tensor] | None = None
    invariants: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    loss: Callable[[Tensor], Tensor] | None = None
    stiff: bool = False
    settings: tuple[Setting, ...] = _SETTINGS
    jax: Callable[..., Any] | None = None
    julia: str = ""
    description: str = ""
    source: str = ""
    reference: Reference | None = None

    def __post_init__(self) -> None:
        form = state_of(self.z0)
        if form is not TENSOR:
            raise InputError(
                "a study's z0 is one real tensor with at least one dimension, which all packages take, got "
                f"{_described(self.z0)}. Put the parts of the state together with torch.cat"
            )
        (z0,) = check_state(form, (self.z0.detach(),))
        t, _ = check_times(self.t, z0)
        if t.dim() != 1:
            raise InputError(f"a study's t is 1-d, got shape {tuple(t.shape)}. Make a problem of each row")
        self._set("z0", z0)
        self._set("t", t.detach())
        self._set("args", tuple(a.detach() for a in check_args(self.args)))
        found = Field(solved_field(self.field, None, form, len(self.args)), (z0,), self.t, self.args)
        if not isinstance(self.field, nn.Module) and found.parameters:
            raise InputError(
                f"the field reads {', '.join(found.names)}, which requires a gradient, and is no nn.Module, so that "
                "other packages do not find it. Make it an nn.Module with parameters"
            )
        if not self.name:
            named = self.field if hasattr(self.field, "__name__") else type(self.field)
            self._set("name", named.__name__)
        self._set("settings", _settings(self.settings))
        self._set("invariants", dict(self.invariants))
        self._check_functions()

    @property
    def dtype(self) -> str:
        """The dtype of its numbers, e.g. `"float64"`."""
        return str(self.z0.dtype).removeprefix("torch.")

    @property
    def content(self) -> str:
        """A digest of all that its results depend on."""
        functions = (self.field, self.exact, self.invariants, self.loss, self.jax, self.julia)
        return digest(self.name, self.z0, self.t, self.args, self.stiff, functions, self.reference)

    @property
    def equations(self) -> str:
        """A digest of what its states and its gradient depend on."""
        return digest(self.field, self.z0, self.t, self.args, self.loss)

    @property
    def own_reference(self) -> Reference | None:
        """The reference that it was given, unless it was made of other equations: they may have changed since."""
        given = self.reference
        return given if given is not None and given.of in ("", self.equations) else None

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The field's parameters that are differentiated, by name."""
        if not isinstance(self.field, nn.Module):
            return {}
        return {name: p for name, p in self.field.named_parameters() if p.requires_grad}

    def loss_of(self, z: Tensor) -> Tensor:
        """The loss of states `(time, *z0.shape)`."""
        return mean_square(z) if self.loss is None else self.loss(z)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_functions(self) -> None:
        """The loss, the invariants and the solution give what they are to give."""
        with torch.no_grad():
            z = self.z0.expand(len(self.t), *self.z0.shape).clone()
            loss = self.loss_of(z)
            if not isinstance(loss, Tensor) or loss.dim():
                raise InputError(f"loss must return a 0-d tensor, got {_described(loss)}. Take the mean or the sum")
            for name, invariant in self.invariants.items():
                value = invariant(z)
                if not isinstance(value, Tensor) or value.shape[:1] != self.t.shape:
                    raise InputError(
                        f"the invariant {name!r} must return (time, …) for states (time, *z0.shape): expected a first "
                        f"dimension of {len(self.t)}, got {_described(value)}"
                    )
            if self.exact is not None:
                states = self.exact(self.t)
                if not isinstance(states, Tensor) or states.shape != z.shape:
                    raise InputError(
                        f"exact must return states (time, *z0.shape): expected {tuple(z.shape)}, got "
                        f"{_described(states)}"
                    )
        if self.reference is not None and self.reference.z.shape != z.shape:
            raise InputError(
                f"the reference's states must have the shape (time, *z0.shape): expected {tuple(z.shape)}, got "
                f"{self.reference.z.shape}"
            )


def _described(x: object) -> str:
    return f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__


def _settings(given: Any) -> tuple[Setting, ...]:
    settings = tuple(given)
    if not settings or not all(isinstance(s, Setting) for s in settings):
        raise InputError(f"settings must be some of Setting, got {given!r}. Pass e.g. (Setting(1e-3), Setting(1e-6))")
    return settings
