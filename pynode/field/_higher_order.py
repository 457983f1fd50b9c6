"""Refuses torch's operators of functions, `torch.cond` and its like, which compile what they are given."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import PurePath

from pynode.errors import FieldError
from pynode.field._convert._hints import hint
from pynode.field._lines import is_users, place

__all__ = ["no_higher_order"]


@contextlib.contextmanager
def no_higher_order() -> Iterator[None]:
    """The context of an evaluation that cannot go on where one of these operators is met.

    Raises:
        FieldError: names the operator and the user's line, and says what to write instead.
    """
    try:
        yield
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        users = [i for i, f in enumerate(frames) if is_users(f.filename) and f.filename != "<string>"]
        met = [i for i, frame in enumerate(frames) if PurePath(frame.filename).parent.name == "_higher_order_ops"]
        if not met or (users and users[-1] == len(frames) - 1):  # the latter is what a branch itself raises
            raise
        name = PurePath(frames[met[0]].filename).stem
        where = place(frames[users[-1]].filename, frames[users[-1]].lineno or 0) if users else ""
        raise FieldError(
            f"the field calls torch's {name}{where}, which compiles its branches by itself and cannot be followed. "
            f'{hint(name)}A plain `if` or `while` runs with engine="torch", or with lowering="callback"'
        ) from error
