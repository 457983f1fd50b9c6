"""Signals wait for the end of what cannot be done again, or ends the process, once an exception cuts it in two."""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["deferred", "import_for_fields", "import_for_traces"]


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """A context at the end of which the handlers of the signals that came meanwhile are called: Ctrl-C's, a timer's."""
    if threading.current_thread() is not threading.main_thread():  # where no handler runs
        yield
        return
    handlers = {int(n): handler for n in signal.valid_signals() if callable(handler := signal.getsignal(n))}
    came: list[tuple[int, FrameType | None]] = []
    for number in handlers:
        signal.signal(number, lambda n, frame: came.append((n, frame)))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        with contextlib.ExitStack() as calls:  # of all of them, though one may raise
            for n, frame in reversed(came):
                calls.callback(handlers[n], n, frame)


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
        import torch.fx.experimental.proxy_tensor
        import torch.fx.experimental.symbolic_shapes  # noqa: F401
