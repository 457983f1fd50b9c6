"""Where in the user's code something happened."""

from __future__ import annotations

import linecache
import os
import sys
from types import FrameType

import torch

__all__ = ["PYNODE", "calling_line", "is_users", "place"]

PYNODE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")  # its folder
# The folders of torch and of the trace.
_OTHERS = tuple(os.path.join(os.path.dirname(file), "") for file in (torch.__file__, __file__))


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
    return not filename.startswith(_OTHERS)
