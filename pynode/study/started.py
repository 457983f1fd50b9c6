"""Processes of cells, as whoever watches them has them: forks of a server on Linux, fresh ones elsewhere."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

__all__ = ["Started", "start"]

_LOOK = 0.01  # seconds between two looks
_PATIENCE = 120.0  # seconds for a server to answer, on a machine that is busy


class Started(Protocol):
    """A process that runs what a folder says, see `child`."""

    @property
    def pid(self) -> int:
        """Its number."""

    def wait(self, seconds: float) -> int | None:
        """Its exit code, negative for a signal; `None` if it runs on after so many seconds."""

    def end(self) -> None:
        """End it now, with all that it has started."""


def start(folder: Path, environment: Mapping[str, str]) -> Started:
    """Start a process.

    Raises:
        OSError: no process can be started.
    """
    if sys.platform != "linux":  # a fork of a process that uses the system's libraries is not safe elsewhere
        return _Fresh(folder, environment)
    return _Forked(folder, environment)


class _Forked:
    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._server = _server(environment)
        self._ask()
        self.pid = self._number("pid")

    def _ask(self) -> None:
        assert self._server.stdin is not None
        with _LOCK:
            self._server.stdin.write(os.fsencode(self._folder) + b"\n")
            self._server.stdin.flush()

    def _number(self, name: str) -> int:
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            found = _read(self._folder / name)
            if found is not None:
                return found
            if self._server.poll() is not None:
                break
            time.sleep(_LOOK)
        raise OSError("the process that starts those of the cells has died, or does not answer")

    def wait(self, seconds: float) -> int | None:
        until = time.monotonic() + seconds
        while True:
            found = _read(self._folder / "status")
            if found is not None or time.monotonic() > until:
                return found
            if self._server.poll() is not None:
                raise OSError("the process that starts those of the cells has died")
            time.sleep(_LOOK)

    def end(self) -> None:
        if _read(self._folder / "status") is None and self._server.poll() is None:
            for kill in (os.killpg, os.kill):  # it may not have a group yet
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    kill(self.pid, signal.SIGKILL)
            self._number("status")


class _Fresh:
    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                _command("pynode.study.child", os.fspath(folder), str(os.getpid())),
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, seconds: float) -> int | None:
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> None:
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):  # all have ended
                os.killpg(self.pid, signal.SIGKILL)
        else:
            self._process.kill()
        self._process.wait()


def _command(module: str, *arguments: str) -> list[str]:
    """As `python -m`, which before Python 3.11 looks for modules in the current folder first, whatever is set."""
    run = f"import runpy, sys; sys.path[:] = filter(None, sys.path); runpy.run_module({module!r}, run_name='__main__')"
    return [sys.executable, "-c", run, *arguments]


_LOCK = threading.Lock()
_SERVERS: dict[tuple[int, str], subprocess.Popen[bytes]] = {}


def _server(environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """The server of this process for that number of threads, which torch takes from the environment as it starts."""
    key = os.getpid(), environment["OMP_NUM_THREADS"]
    with _LOCK:
        found = _SERVERS.get(key)
        if found is None or found.poll() is not None:
            found = _SERVERS[key] = subprocess.Popen(
                _command("pynode.study.server", str(os.getpid())),
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # so that Ctrl-C is this process's alone
            )
        return found


@atexit.register
def _close() -> None:
    """Let the servers of this process end."""
    for (owner, _), server in _SERVERS.items():
        if owner == os.getpid():
            assert server.stdin is not None
            with contextlib.suppress(OSError):
                server.stdin.close()
            server.wait()


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return None
