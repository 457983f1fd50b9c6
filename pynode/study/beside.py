"""How many cells run on this machine at once, whichever process, study or user's account of ours started them."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from pathlib import Path
from types import TracebackType

__all__ = ["Presence"]

_COUNTER = itertools.count()


class Presence:
    """A locked file for as long as a cell runs; the lock of a process that dies is gone with it.

    Attributes:
        most: the greatest number of others that were seen at once; `None` where the system has no such locks.
    """

    def __init__(self) -> None:
        self.most: int | None = None
        self._folder = Path(tempfile.gettempdir()) / f"pynode-study-{os.getuid() if hasattr(os, 'getuid') else 0}"
        self._name = f"{os.getpid()}-{next(_COUNTER)}"
        self._file: int | None = None

    def __enter__(self) -> Presence:
        try:
            import fcntl
        except ImportError:  # Windows
            return self
        self._folder.mkdir(mode=0o700, exist_ok=True)
        hidden = self._folder / f".{self._name}"
        self._file = os.open(hidden, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        hidden.rename(self._folder / self._name)  # seen only now that it is locked
        self.most = 0
        self.look()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self.look()
            (self._folder / self._name).unlink(missing_ok=True)
            os.close(self._file)

    def look(self) -> None:
        """Count those who are there now."""
        if self._file is None or self.most is None:
            return
        others = sum(self._is_held(name) for name in os.listdir(self._folder) if name[0] != "." and name != self._name)
        self.most = max(self.most, others)

    def _is_held(self, name: str) -> bool:
        import fcntl

        path = self._folder / name
        try:
            file = os.open(path, os.O_RDWR)
        except FileNotFoundError:  # it has just ended
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            with contextlib.suppress(FileNotFoundError):  # another looked at the same time
                path.unlink()
            return False
        finally:
            os.close(file)
