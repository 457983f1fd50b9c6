"""Which Julia code may run here: the text that this process was given itself; that of a file once it is allowed.

Julia code can do all that Python code can, and a model that is loaded from a file may be anybody's. A pickle carries
its code with a signature, made with multiprocessing's key: that of this process and of those that it spawns, which is
in no file. So copies and worker processes need no allowance, and files do.
"""

from __future__ import annotations

import hashlib
import hmac
import multiprocessing

from pynode.errors import FieldError

__all__ = ["admit", "allow", "check", "signature"]

_ALLOWED: set[str] = set()


def allow(code: str) -> None:
    """Let this code run in this process."""
    _ALLOWED.add(code)


def signature(code: str) -> bytes | None:
    """What a pickle carries beside the code that may run here; `None` of other code."""
    return _signed(code) if code in _ALLOWED else None


def admit(code: str, signature: bytes | None) -> None:
    """Let the code of a pickle run, if this process or the one that spawned it has signed it."""
    if isinstance(signature, bytes) and hmac.compare_digest(signature, _signed(code)):
        allow(code)


def check(code: str) -> None:
    """Refuse code that was not allowed.

    Raises:
        FieldError: it came from a file; the message shows it.
    """
    if code not in _ALLOWED:
        # No character that a terminal obeys rather than shows, with which code could hide.
        shown = "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in code)
        raise FieldError(
            "this JuliaField comes from a file, or from a process that this one was not spawned by, and its Julia code "
            "has not run. Such code can do whatever Python code can: read and write files, start processes. Read it, "
            "and if it may run, call pynode.trust_julia_code(model) and solve again. It is, between the lines:\n"
            f"{'-' * 40}\n{shown}\n{'-' * 40}"
        )


def _signed(code: str) -> bytes:
    return hmac.digest(bytes(multiprocessing.current_process().authkey), code.encode(), hashlib.sha256)
