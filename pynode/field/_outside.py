"""Code of pynode that PyTorch's tools are not to look into, or not to speak of: compilers, and hooks of graphs."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch

from pynode.transforms import is_active

__all__ = ["is_eager", "is_recording", "lacks_values", "outside_of_compile", "unhooked"]

F = TypeVar("F", bound=Callable[..., Any])


def outside_of_compile(function: F) -> F:
    """Decorator of a function into which `torch.compile` is not to look.

    `torch.jit.trace` does not warn about pynode's own code there, but still about the user's.
    """
    hidden: Callable[..., Any] | None = None

    @functools.wraps(function)
    def outer(*args: Any, **keywords: Any) -> Any:
        nonlocal hidden
        if torch.compiler.is_dynamo_compiling():
            if hidden is None:  # not before: this imports what takes as long to import as all else
                hidden = torch.compiler.disable(function)
            return hidden(*args, **keywords)
        if is_recording():
            with warnings.catch_warnings():
                own = r"(pynode|torchdiffeq)\."
                warnings.filterwarnings("ignore", category=torch.jit.TracerWarning, module=own)  # type: ignore[attr-defined]
                return function(*args, **keywords)
        return function(*args, **keywords)

    return cast(F, outer)


def is_recording() -> bool:
    """Whether `torch.jit.trace` records."""
    return bool(torch._C._is_tracing())  # as torch.jit.is_tracing, outside of scripts


def lacks_values() -> bool:
    """Whether PyTorch records operations, whatever the values of tensors: `make_fx`, `torch.export`, `linearize`."""
    if not torch._C._len_torch_dispatch_stack():
        return False
    keys = torch._C._TorchDispatchModeKey
    return any(torch._C._get_dispatch_mode(key) is not None for key in (keys.PROXY, keys.FAKE))


def is_eager() -> bool:
    """Whether tensors are what they look like: no transform is under way, and nothing records."""
    return not (is_active() or is_recording() or lacks_values())


@contextlib.contextmanager
def unhooked() -> Iterator[None]:
    """The context of what is computed at the first of several solves alone, out of sight of hooks of saved tensors.

    `torch.utils.checkpoint` counts what is saved, and runs its function once more, which has to save as much.
    """
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is None:
        yield
        return
    with torch.autograd.graph.saved_tensors_hooks(_same, _same):
        yield


def _same(x: Any) -> Any:
    return x
