"""Where in the user's code something happened."""

from __future__ import annotations

import linecache
import sys
from types import FrameType

__all__ = ["calling_line", "is_users", "place"]


def calling_line(until: str) -> str:
    """The innermost line of the user's code that runs below the file `until`; empty where there is none."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename != until:
        if is_users(frame.f_code.co_filename):
            return place(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return ""


def place(filename: str, line: int) -> str:
    """The line, as ` at file:line: text`."""
    return f" at {filename}:{line}: `{linecache.getline(filename, line).strip()}`"


def is_users(filename: str) -> bool:
    """Whether a file belongs neither to torch nor to the trace."""
    parts = filename.replace("\\", "/").split("/")
    return "torch" not in parts and not ("pynode" in parts and "field" in parts)
