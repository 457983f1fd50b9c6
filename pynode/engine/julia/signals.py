"""Whose the process's signals are: Python's, also while Julia runs.

Julia's collector of garbage stops threads by a fault, so that Julia has to handle signals; but then it takes those too
that a user sends, and ends the process at Ctrl-C. `kept` gives these back. Julia's thread that waits for them could
still get one, where another follows at once on a busy machine: it is put to rest.

Python calls its handlers on its main thread, between two steps of its own code: a solve asks for them itself, a few
times a second (`julia/src/solve/interrupt.jl`). While Julia starts Ctrl-C waits (`pynode.interrupts`): half of
a Julia cannot be started again.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

__all__ = ["EXCEPTION", "functions", "kept", "raise_exception"]

# Julia blocks these on the main thread, or has handlers of its own.
_TAKEN = ("SIGINT", "SIGTERM", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGPIPE")
_TASKS = "/proc/self/task"
_ACTION_BYTES = 1024  # more than a `struct sigaction` takes on any system


@contextlib.contextmanager
def kept(started: bool) -> Iterator[None]:
    """A context in which Julia starts, and after which signals are handled as before it.

    Args:
        started: Julia runs already, so that what was before it is not known but for Python's own handlers.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where Julia takes no signals that Python has
        yield
        return
    numbers = [number for name in _TAKEN if (number := getattr(signal, name, None)) is not None]
    sigaction = ctypes.CDLL(None).sigaction
    actions = {number: ctypes.create_string_buffer(_ACTION_BYTES) for number in numbers}
    for number, action in actions.items():
        sigaction(int(number), None, action)
    blocked = set() if started else signal.pthread_sigmask(signal.SIG_BLOCK, ())
    withhold = contextlib.nullcontext() if started else _interrupts_withheld()
    withhold.__enter__()
    threads = _threads()

    def give_back() -> None:
        for number, action in actions.items():
            handler = signal.getsignal(number)
            if not started:
                sigaction(int(number), action, None)
            elif callable(handler):
                signal.signal(number, handler)
        if not started or signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, set(numbers) - blocked)
        for thread in () if started else _threads() - threads:
            if not _blocks_interrupts(thread):  # the others of Julia's do
                _rest(thread)
        withhold.__exit__(None, None, None)

    with _as_soon_as_julia_runs(give_back):
        yield


@contextlib.contextmanager
def _as_soon_as_julia_runs(function: Callable[[], None]) -> Iterator[None]:
    """Call a function once: when Julia runs, some seconds before PythonCall is loaded, or when the context ends.

    juliacall registers Julia's end with `atexit` between the two.
    """
    register, waits = atexit.register, [function]

    def call() -> None:
        while waits:
            waits.pop()()

    def registered(at_exit: Callable[..., Any], *arguments: Any, **keywords: Any) -> Callable[..., Any]:
        library = ctypes.PyDLL(None)
        if hasattr(library, "jl_is_initialized") and library.jl_is_initialized():
            call()
        return register(at_exit, *arguments, **keywords)

    atexit.register = registered  # type: ignore[assignment]
    try:
        yield
    finally:
        atexit.register = register
        call()


@contextlib.contextmanager
def _interrupts_withheld() -> Iterator[None]:
    """A context in which a thread takes the SIGINTs that the main thread blocks, before Julia's thread can.

    Of the threads that wait for a signal the system takes the one that was there first. Julia's would end the process
    while Julia is being started.
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        yield
        return
    came: list[int] = []

    def take() -> None:
        while (found := signal.sigwaitinfo({signal.SIGINT})).si_pid != os.getpid():
            came.append(found.si_signo)

    thread = threading.Thread(target=take, daemon=True)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which the thread inherits
    thread.start()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        yield
    finally:
        assert thread.ident is not None
        signal.pthread_kill(thread.ident, signal.SIGINT)  # which ends it
        thread.join()
        for number in came:
            signal.raise_signal(number)


def _threads() -> set[int]:
    """The numbers of this process's threads; on other systems than Linux, where they are not told, none."""
    return {int(name) for name in os.listdir(_TASKS)} if os.path.isdir(_TASKS) else set()


def _blocks_interrupts(thread: int) -> bool:
    try:
        with open(f"{_TASKS}/{thread}/status") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
    except FileNotFoundError:  # it has ended
        return True
    return bool(int(fields["SigBlk"], 16) >> (signal.SIGINT - 1) & 1)


def _rest(thread: int) -> None:
    """Let a thread rest for ever: in the handler of a signal that nobody uses, during which it gets no other."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "tgkill"):  # before glibc 2.30
        return
    number, action, before = int(signal.SIGRTMAX), *(ctypes.create_string_buffer(_ACTION_BYTES) for _ in range(2))
    # A `struct sigaction` begins with the handler, then comes the mask.
    ctypes.c_void_p.from_buffer(action).value = ctypes.cast(library.pause, ctypes.c_void_p).value
    library.sigfillset(ctypes.byref(action, ctypes.sizeof(ctypes.c_void_p)))
    library.sigaction(number, action, before)
    library.tgkill(os.getpid(), thread, number)
    for _ in range(1000):
        if _blocks_interrupts(thread):
            break
        time.sleep(0.001)
    library.sigaction(number, before, None)


# Where Julia puts the exception that one of Python's handlers has raised: type, value, traceback.
EXCEPTION = (ctypes.c_void_p * 3)()


def functions() -> tuple[int, ...]:
    """The addresses of Python's functions that Julia calls: see `Python` in `julia/src/solve/interrupt.jl`."""
    names = ["PyGILState_Ensure", "PyErr_CheckSignals", "PyErr_Fetch", "PyGILState_Release"]
    names += ["PyObject_CallNoArgs", "Py_DecRef", "PyErr_Clear"]
    return tuple(ctypes.cast(ctypes.pythonapi[name], ctypes.c_void_p).value or 0 for name in names)


_restore = ctypes.pythonapi["PyErr_Restore"]  # a function object of its own
_restore.argtypes = [ctypes.c_void_p] * 3
_restore.restype = None


def raise_exception() -> NoReturn:
    """Raise the exception that Julia has put aside."""
    _restore(*EXCEPTION)
    raise AssertionError("Julia was interrupted without an exception")
