"""Checks of what every model takes, made when it is built rather than at its first call."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pynode.engine.choose import named_engine
from pynode.engine.solvers import find_solver, resolve_solver
from pynode.errors import InputError, TraceError, unknown_name
from pynode.field._mismatch import mismatch_explained
from pynode.field._outside import is_recording, outside_of_compile
from pynode.numeric import real_number
from pynode.problem.inputs import as_times, check_lowering, check_number
from pynode.sensitivity import find_sensitivity
from pynode.solve import solve
from pynode.transforms import is_active

__all__ = [
    "check_batch_norm",
    "check_callables",
    "check_depth",
    "check_solver_keywords",
    "depths_like",
    "ends_like",
    "through",
]

_HELD = 1e-3  # A dtype holds depths if it moves none by more than this part of the distance between them.
_NOT_FOR_MODELS = {"args", "running_cost", "dense", "event", "save"}  # the model's own business
_SOLVER_KEYWORDS = tuple(
    name
    for name, parameter in inspect.signature(solve).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name not in _NOT_FOR_MODELS
)


def check_solver_keywords(keywords: Mapping[str, Any], own: Sequence[str] = ()) -> None:
    """Refuse keywords that `solve` lacks, names that do not exist, and numbers that are not positive.

    Args:
        keywords: the user's.
        own: keywords of `solve` that the model sets itself.

    Raises:
        InputError: a name is unknown (the message lists the valid ones, nearest first), or a number is not
            usable.
        EngineUnavailable: the engine that is named lacks the solver.
    """
    known = [name for name in _SOLVER_KEYWORDS if name not in own]
    for name in keywords:
        if name not in known:
            raise unknown_name("solver keyword", name, known)
    for name in ("rtol", "atol", "dt", "max_steps"):
        if keywords.get(name) is not None:
            check_number(name, keywords[name])
    check_lowering(keywords.get("lowering", "trace"))
    find_sensitivity(keywords.get("sensitivity", "auto"))
    engine, solver = keywords.get("engine", "auto"), keywords.get("solver", "auto")
    if engine != "auto":
        resolve_solver(solver, named_engine(engine))
    elif solver != "auto":
        find_solver(solver)


def check_depth(t: Any) -> tuple[float, float]:
    """The depth interval as two floats.

    Raises:
        InputError: it is not two different finite numbers.
    """
    try:
        start, end = map(real_number, t)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(f"t must be two numbers, the first and the last depth, got {t!r}") from None
    if not (math.isfinite(start) and math.isfinite(end)) or start == end:
        raise InputError(f"t must be two different finite numbers, got {t!r}")
    return start, end


@outside_of_compile
def depths_like(depths: Sequence[float], t: Tensor) -> Tensor:
    """A model's depths, two or more, in the dtype of times that a user gives.

    Raises:
        InputError: that dtype cannot hold them.
    """
    exact = torch.tensor(depths, dtype=torch.float64, device=t.device)
    found = exact.to(t.dtype)
    if bool((found - exact).abs().max() > _HELD * exact.diff().abs().min()):
        raise InputError(
            f"t is of dtype {t.dtype}, which does not hold the model's depths, {tuple(depths)}: pass it in "
            "torch.float64"
        )
    return found


@outside_of_compile
def ends_like(t: tuple[float, float], like: Tensor) -> Tensor:
    """A model's first and last depth, as `as_times` makes them; calls share the tensor, which nobody changes."""
    plain = type(t) is tuple and all(type(x) is float for x in t)  # rather than what someone has put in its place
    if not plain or is_active() or is_recording() or torch._C._len_torch_dispatch_stack():
        return as_times("t", t, like)
    return _ends(t, repr(t), like.dtype, like.device)


@functools.lru_cache(maxsize=64)
def _ends(t: tuple[float, float], _: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    # The text tells apart what compares as equal, 0.0 and -0.0 for one.
    with torch.inference_mode(False):
        return as_times("t", t, torch.empty(0, dtype=dtype, device=device))


def check_callables(field: Any, **networks: Any) -> None:
    """Refuse a field that is not callable, and a network that is neither callable nor `None`.

    Raises:
        InputError: names the part and what came.
    """
    given = {name: network for name, network in networks.items() if network is not None}
    for name, part in {"field": field, **given}.items():
        if not callable(part):
            raise InputError(f"{name} must be an nn.Module or a callable, got {type(part).__name__}")


def check_batch_norm(field: Any) -> None:
    """Refuse a field with batch norm in training mode, whose Jacobian is not one of each sample.

    Raises:
        TraceError: names the layer.
    """
    for name, module in field.named_modules() if isinstance(field, nn.Module) else ():
        if module.training and isinstance(module, _BatchNorm):
            raise TraceError(
                f"the field's layer {name or '(itself)'}, {type(module).__name__}, is in training mode, where the "
                "derivative of a sample depends on the other samples, and a density needs a function of t and z. Call "
                ".eval() on that layer, or take another (e.g. nn.LayerNorm)"
            )


def through(name: str, network: Callable[[Tensor], Tensor] | None, x: Tensor) -> Any:
    """What a network of a model makes of its input; the input itself without one.

    Raises:
        FieldError: the network's parameters are of another dtype, or elsewhere, than the input.
    """
    if network is None or not isinstance(x, Tensor):
        return x if network is None else network(x)
    tensors = network.parameters() if isinstance(network, nn.Module) else ()
    with mismatch_explained((x,), tensors, name, "x"):
        return network(x)
