"""What `pynode trace` prints: the operations of a field in a file, what is fused, and what they cost."""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pynode.errors import InputError, PyNODEError
from pynode.field import explain

__all__ = ["report"]

_MODULE = "__pynode_trace__"


def report(target: str, states: Sequence[Sequence[int]], args: Sequence[Sequence[int]], batch: int, dtype: str) -> str:
    """The explanation of a field as text.

    Args:
        target: `FILE.py:NAME`, where the name is a class without arguments, an instance, or a function.
        states: the shapes of the state's tensors, without the batch.
        args: those of the conditioning tensors.
        batch: the batch size.
        dtype: the name of the numbers' type.

    Raises:
        InputError: there is no such field, or it does not take such a state.
        TraceError: the field cannot be turned into a graph.
    """
    kind: torch.dtype = getattr(torch, dtype)
    field = _field(target)
    if isinstance(field, nn.Module):
        field = field.to(kind)
    generator = torch.Generator().manual_seed(0)

    def draw(shape: Sequence[int]) -> Tensor:
        return torch.randn(batch, *shape, dtype=kind, generator=generator)

    z0 = tuple(map(draw, states))
    try:
        return str(explain(field, z0 if len(z0) > 1 else z0[0], tuple(map(draw, args))))
    except PyNODEError:
        raise
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in z0)
        raise InputError(
            f"{target} does not take a state of shape {shapes} in {dtype}: {type(error).__name__}: {error}. Give the "
            "state's features by --state, conditioning tensors by --args, the type of the numbers by --dtype"
        ) from error


def _field(target: str) -> Callable[..., Any]:
    """What the target names; of a class, an instance.

    Raises:
        InputError: it names nothing that is a field.
    """
    file, _, name = target.rpartition(":")
    path = Path(file)
    if not name.isidentifier() or path.suffix != ".py":
        raise InputError(f"expected FILE.py:NAME, e.g. model.py:Field, got {target!r}")
    if not path.is_file():
        raise InputError(f"there is no file {file}: give the path of a Python file, e.g. model.py:Field")
    module = _load(path)
    if not hasattr(module, name):
        own = [n for n, x in vars(module).items() if callable(x) and _is_of(x, module)]
        raise InputError(f"{file} has no {name!r}: it has {', '.join(own) or 'nothing that can be called'}")
    found = getattr(module, name)
    if inspect.isclass(found):
        try:
            inspect.signature(found).bind()
        except TypeError as error:
            raise InputError(
                f"{target} is a class whose constructor needs arguments ({error}): make an instance in the file, "
                f"field = {name}(…), and give {file}:field"
            ) from None
        found = found()
    if not callable(found):
        raise InputError(f"{target} is a {type(found).__name__}: a field is a module, or a function f(t, z, *args)")
    return found


def _is_of(x: Any, module: ModuleType) -> bool:
    """Whether a class, a function or an instance is of a module's own making."""
    return isinstance(x, nn.Module) or getattr(x, "__module__", None) == module.__name__


def _load(path: Path) -> ModuleType:
    """The file as a module, which finds what lies beside it, as a script does."""
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module  # where dataclasses and pickle look for it
    sys.path.insert(0, os.fspath(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    return module
