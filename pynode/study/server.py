"""Starts processes of cells at little cost: by forks of one that has imported torch, and done nothing else.

`python -m pynode.study.server PARENT` reads the paths of folders from its standard input, forks a process for each,
writes its `pid` into the folder and, when it has ended, its `status`.
"""

from __future__ import annotations

import contextlib
import gc
import os
import selectors
import signal
import sys
from pathlib import Path

__all__ = ["main", "write"]

_LOOK = 1.0  # seconds between two looks whether the parent is still there


def main(parent: int) -> None:
    """Serve until the input or the parent ends."""
    _import_what_cells_need()
    gc.collect()
    gc.freeze()  # so that collections of a fork do not write to, and so copy, what it shares
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        children: dict[int, tuple[int, Path]] = {}
        rest = b""
        while os.getppid() == parent:
            for key, _ in selector.select(_LOOK):
                if key.fd != sys.stdin.fileno():
                    pid, folder = children.pop(key.fd)
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    _reap(pid, folder)
                    continue
                data = os.read(key.fd, 65536)
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    folder = Path(os.fsdecode(line))
                    pid = _fork(folder)
                    watch = os.pidfd_open(pid)
                    selector.register(watch, selectors.EVENT_READ)
                    children[watch] = pid, folder
                    write(folder / "pid", pid)


def write(path: Path, number: int) -> None:
    """A file that is there with its whole content, or not at all."""
    hidden = path.with_name(f".{path.name}")
    with contextlib.suppress(FileNotFoundError):  # whoever asked has gone
        hidden.write_text(str(number))
        hidden.rename(path)


def _import_what_cells_need() -> None:
    import pynode.study.calibration
    import pynode.study.measure
    import pynode.study.peak  # noqa: F401


def _fork(folder: Path) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        _connect(folder)
        from pynode.study.child import main as run

        run(folder, parent)
        code = 0
    finally:
        os._exit(code)


def _connect(folder: Path) -> None:
    """The standard streams: nothing, and the log."""
    os.closerange(3, 256)  # the server's own
    null = os.open(os.devnull, os.O_RDONLY)
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for file, stream in ((null, 0), (log, 1), (log, 2)):
        os.dup2(file, stream)
    os.close(null)
    os.close(log)


def _reap(pid: int, folder: Path) -> None:
    """End what a process that has ended leaves behind, while nobody else can have its number."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    write(folder / "status", os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main(int(sys.argv[1]))
