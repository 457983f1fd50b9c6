"""Ctrl-C waits for the end of what cannot be done again once it is cut in two."""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import torch

__all__ = ["deferred", "import_for_fields", "import_for_traces"]


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """A context at the end of which the handler of Ctrl-C is called, if there was one meanwhile."""
    handler, came = signal.getsignal(signal.SIGINT), list[FrameType | None]()
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, lambda _, frame: came.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(signal.SIGINT, came[0])


# torch imports half of itself when a function of its own is called for the first time. Where that is cut in two, some
# of the modules stay, and a second import fails on them.


@functools.cache
def import_for_fields() -> None:
    """Import what torch imports when a field is evaluated for the first time."""
    with deferred():
        import torch._dynamo  # noqa: F401


@functools.cache
def import_for_traces() -> None:
    """Import what torch imports when a field is traced for the first time."""
    import_for_fields()
    with deferred():
        from torch.fx.experimental.proxy_tensor import make_fx

        def gradient(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return torch.autograd.grad((x * x).sum(), x)

        with torch.enable_grad():
            make_fx(gradient, tracing_mode="symbolic")(torch.ones(2, 3, requires_grad=True))
