"""What fails leaves PyTorch's state as it was, also where a signal has cut a context manager's own code in two.

`with torch.no_grad():` runs Python code when it is entered and left. An exception that a signal raises within that
code, as Ctrl-C's `KeyboardInterrupt`, leaves the context entered for good.
"""

from __future__ import annotations

import functools
import gc
import operator
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.utils._python_dispatch as dispatch
from torch import nn
from torch.autograd import forward_ad

from pynode.interrupts import deferred

__all__ = ["leaves_process_state", "leaves_thread_state"]

F = TypeVar("F", bound=Callable[..., Any])
_C = torch._C
_DEVICES = ("cpu", "cuda") if torch.backends.cuda.is_built() else ("cpu",)
_FLAGS = tuple(name for name in vars(dispatch) if name.startswith("_is_in_"))  # whether a mode is entered
_flags = functools.partial(operator.itemgetter(*_FLAGS), vars(dispatch))


def _levels() -> list[tuple[Any, int]]:
    """The transforms of `torch.func` that are under way."""
    return [(layer.key(), layer.level()) for layer in _C._functorch.get_interpreter_stack() or ()]


def _layers() -> list[Any]:
    """The same as torch keeps them, the innermost first."""
    layers: list[Any] = []
    if _C._functorch.peek_interpreter_stack() is not None:
        with deferred():
            while _C._functorch.peek_interpreter_stack() is not None:
                layers.append(_C._functorch.pop_dynamic_layer_stack())
            for layer in reversed(layers):
                _C._functorch.push_dynamic_layer_stack(layer)
    return layers


def _entered() -> tuple[Any, ...]:
    """What this thread has entered; read at each solve, so that it is not more than microseconds."""
    n_functions, n_dispatch = _C._len_torch_function_stack(), _C._len_torch_dispatch_stack()
    try:
        torch.autocast_increment_nesting()
    finally:  # also where a signal comes in between
        nesting = torch.autocast_decrement_nesting()
    return (
        torch.is_grad_enabled(),
        _C._is_fwd_grad_enabled(),
        forward_ad._current_level,
        n_functions and [_C._get_function_stack_at(i) for i in range(n_functions)],
        n_dispatch and [_C._get_dispatch_stack_at(i) for i in range(n_dispatch)],
        _C._functorch.peek_interpreter_stack() and _levels(),
        _C._autograd._top_saved_tensors_default_hooks(True),
        torch.is_autocast_cache_enabled(),
        nesting,
        *[torch.is_autocast_enabled(device) for device in _DEVICES],
        *[torch.get_autocast_dtype(device) for device in _DEVICES],
    )


def _enter(
    layers: Sequence[Any],
    grad: bool,
    forward_grad: bool,
    dual_level: int,
    function_modes: Any,
    dispatch_modes: Any,
    transforms: Any,
    hooks: Any,
    cache: bool,
    nesting: int,
    *autocast: Any,
) -> None:
    """Make this thread's state what `_entered` was."""
    while forward_ad._current_level > dual_level:
        forward_ad.exit_dual_level()
    _C._set_fwd_grad_enabled(forward_grad)
    while _C._len_torch_function_stack():
        _C._pop_torch_function_stack()
    for mode in function_modes or ():
        _C._push_on_torch_function_stack(mode)
    while _C._len_torch_dispatch_stack():
        _C._pop_torch_dispatch_stack(None)
    for mode in dispatch_modes or ():
        _C._push_on_torch_dispatch_stack(mode)
    if (_levels() or None) != transforms:
        while _C._functorch.peek_interpreter_stack() is not None:
            _C._functorch.pop_dynamic_layer_stack()
        for layer in reversed(layers):
            _C._functorch.push_dynamic_layer_stack(layer)
    while _C._autograd._top_saved_tensors_default_hooks(True) not in (None, hooks):
        _C._autograd._pop_saved_tensors_default_hooks()
    torch.set_autocast_cache_enabled(cache)
    for device, enabled, dtype in zip(_DEVICES, autocast[: len(_DEVICES)], autocast[len(_DEVICES) :], strict=True):
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)
    while torch.autocast_decrement_nesting() >= nesting:
        pass
    if torch.autocast_increment_nesting() == 0:
        torch.clear_autocast_cache()
    torch.set_grad_enabled(grad)


class _Process(NamedTuple):
    """What is the process's, and changes while a field is watched at its first evaluation."""

    getattribute: Any
    filters: tuple[Any, ...]
    showwarning: Any
    profile: Any  # the thread's
    collects: bool  # whether Python collects garbage

    @classmethod
    def now(cls) -> _Process:
        """As it is."""
        return cls(
            vars(nn.Module).get("__getattribute__"),
            tuple(warnings.filters),
            warnings.showwarning,
            sys.getprofile(),
            gc.isenabled(),
        )

    def restore(self) -> None:
        """Make it so again."""
        if self.getattribute is not None:
            nn.Module.__getattribute__ = self.getattribute  # type: ignore[method-assign]
        elif "__getattribute__" in vars(nn.Module):
            del nn.Module.__getattribute__
        warnings.filters[:] = self.filters  # type: ignore[index]
        warnings.showwarning = self.showwarning
        if self.profile is None:
            sys.setprofile(None)
        if self.collects:
            gc.enable()


def leaves_thread_state(function: F) -> F:
    """A function that leaves what its thread has entered as it was, whatever it raises."""

    @functools.wraps(function)
    def outer(*args: Any, **keywords: Any) -> Any:
        before, layers, first = _entered(), _layers(), threading.get_ident() not in _CALLS.threads
        try:
            if first:
                _CALLS.begin()
            return function(*args, **keywords)
        except BaseException as error:
            if _entered() != before:
                _close_generators()
                _enter(layers, *before)
            signal = error.__context__
            if "mode stack" in str(error) and signal is not None and not isinstance(signal, Exception):
                raise signal from None  # rather than what torch says of a mode whose code it has cut in two
            raise
        finally:
            if first:
                try:
                    _CALLS.end()
                except BaseException:  # of a signal, which may have cut that short
                    _CALLS.end()
                    raise

    return cast(F, outer)


class _Calls:
    """The threads that are in such a function; the last to leave puts torch's flags of modes back.

    These are the process's: of two threads that are in a mode at once, the second to leave sets what the first has set.
    """

    def __init__(self) -> None:
        self.threads: set[int] = set()
        self.lock = threading.Lock()
        self.flags = _flags()
        self.at_once = False  # whether there was ever more than one

    def begin(self) -> None:
        """This thread, which was in none, is in one."""
        with self.lock:
            if not self.threads:
                self.flags = _flags()
            else:
                self.at_once = True
            self.threads.add(threading.get_ident())

    def end(self) -> None:
        """This thread is in none any more."""
        with self.lock:
            self.threads.discard(threading.get_ident())
            if self.at_once:
                modes = [_C._get_dispatch_stack_at(i) for i in range(_C._len_torch_dispatch_stack())]
                _tell_compiler(not all([mode.ignore_compile_internals() for mode in modes]))
            if not self.threads and _flags() != self.flags:
                for name, value in zip(_FLAGS, self.flags, strict=True):
                    setattr(dispatch, name, value)


_CALLS = _Calls()
# Of the flags one is kept for each thread as well, by torch's later versions.
_tell_compiler = getattr(dispatch, "set_is_in_mode_without_ignore_compile_internals", bool)


def leaves_process_state(function: F) -> F:
    """A function that leaves warnings' filters and `nn.Module` as they were; one thread at a time is in such a one."""

    @functools.wraps(function)
    def outer(*args: Any, **keywords: Any) -> Any:
        with _ALONE:
            before = _Process.now()
            try:
                return function(*args, **keywords)
            except BaseException:
                if _Process.now() != before:
                    _close_generators()
                    before.restore()
                raise

    return cast(F, outer)


_ALONE = threading.RLock()


def _close_generators() -> None:
    """Let the contexts that the exception has cut in two be left now, rather than once its traceback is gone."""
    traceback.clear_frames(sys.exc_info()[2])
