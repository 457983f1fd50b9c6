"""Whether a field takes the time, `f(t, z, *args)`, or the state alone, `f(z)`: an autonomous one, e.g. `nn.Linear`."""

from __future__ import annotations

import functools
import inspect
import math
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pynode.errors import FieldError

__all__ = ["of_state", "takes_state_alone", "with_time"]

_TIMES = ("t", "time")  # what a first parameter of this name takes is no state


class _Positional(NamedTuple):
    """What a callable takes by position."""

    required: int
    most: float
    first: str


def with_time(field: Callable[..., Any], n_args: int = 0) -> Callable[..., Any]:
    """The field as a function of time, state and conditioning tensors; itself, if it is one.

    A field with exactly one required positional parameter takes the state alone. What hides its signature is taken to
    be a function of the time too.

    Args:
        field: the user's field.
        n_args: how many conditioning tensors there are.

    Raises:
        FieldError: it can be called in neither way.
    """
    found = _positional(field)
    if found is None or (found.required <= 2 + n_args <= found.most and not _takes_state_alone(found)):
        return field
    if _takes_state_alone(found):
        if n_args:
            raise FieldError(
                f"the field takes the state alone, and would not see the {n_args} tensors of args: write it as "
                "f(t, z, *args), or leave args out"
            )
        return of_state(field)
    given = "".join(f", a{i + 1}" for i in range(n_args))
    raise FieldError(
        f"the field must be a function f(t, z{given}) of the time, the state and the tensors of args, or of the state "
        f"alone, f(z): got one of {_count(found)}. Look at its parameters and at solve(args=…)"
    )


def of_state(field: Callable[[Any], Any]) -> Callable[..., Any]:
    """A function of the state alone as one of the time too, the same by `made_of` at each call."""
    return types.MethodType(_OF_STATE, field)


def takes_state_alone(function: Callable[..., Any]) -> bool:
    """Whether a callable takes the state alone, and not the time."""
    found = _positional(function)
    return found is not None and _takes_state_alone(found)


def _takes_state_alone(found: _Positional) -> bool:
    return found.required == 1 and found.most < math.inf and found.first not in _TIMES


def _count(found: _Positional) -> str:
    if not found.first:
        return "no positional parameters"
    most = "or more" if found.most == math.inf else f"to {found.most}"
    number = f"{found.required}" if found.required == found.most else f"{found.required} {most}"
    return f"{number} positional parameters, the first of which is {found.first!r}"


def _of_state(field: Callable[[Any], Any], t: Tensor, z: Any) -> Any:
    return field(z)


_OF_STATE = functools.partial(_of_state)  # as `derived_field` makes them


def _positional(field: Any) -> _Positional | None:
    """What the field takes by position; `None` where that cannot be seen."""
    if isinstance(field, nn.Module):
        if "_orig_mod" in field._modules:  # of torch.compile
            return _positional(field._modules["_orig_mod"])
        found = _positional(field.forward)
        if found is None or found.required > 0 or found.most < math.inf:
            return found
        inner = getattr(field, "module", None)  # of DataParallel, AveragedModel and their like
        return _positional(inner) if isinstance(inner, nn.Module) else found
    if isinstance(field, types.FunctionType):
        return _of_function(field, 0)
    if isinstance(field, types.MethodType) and isinstance(field.__func__, types.FunctionType):
        return _of_function(field.__func__, 1)
    scripted = isinstance(field, (torch.jit.ScriptFunction, torch.ScriptMethod))
    return _of_schema(field.schema) if scripted else _of_signature(field)


def _of_function(function: types.FunctionType, skip: int) -> _Positional | None:
    """Of a function, but for its first parameters."""
    if function.__dict__:  # what decorators have left there may be another signature
        return _of_signature(function, skip)
    return _of_code(function.__code__, len(function.__defaults__ or ()), skip)


@functools.lru_cache(maxsize=256)
def _of_code(code: types.CodeType, defaults: int, skip: int) -> _Positional:
    n = max(code.co_argcount - skip, 0)
    required = max(n - defaults, 0)
    most = math.inf if code.co_flags & inspect.CO_VARARGS else n
    return _Positional(required, most, code.co_varnames[skip] if n else "")


def _of_schema(schema: Any) -> _Positional | None:
    """Of what TorchScript knows of a function."""
    if schema is None:
        return None
    arguments = [a for a in schema.arguments if a.name != "self"]
    required = sum(not a.has_default_value() for a in arguments)
    return _Positional(required, len(arguments), arguments[0].name if arguments else "")


def _of_signature(function: Any, skip: int = 0) -> _Positional | None:
    """Of what Python knows of a function, but for its first parameters."""
    try:
        parameters = list(inspect.signature(function, follow_wrapped=False).parameters.values())
        if any(p.kind is p.VAR_POSITIONAL for p in parameters) and hasattr(function, "__wrapped__"):
            wrapped = _of_signature(function.__wrapped__, skip)
            return wrapped if wrapped is not None and _takes_state_alone(wrapped) else None
    except (TypeError, ValueError):
        return None
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][skip:]
    required = sum(p.default is p.empty for p in positional)
    most = math.inf if any(p.kind is p.VAR_POSITIONAL for p in parameters) else len(positional)
    return _Positional(required, most, positional[0].name if positional else "")
