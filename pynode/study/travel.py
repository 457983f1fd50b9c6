"""Objects on their way to another process: by cloudpickle where that is installed, by pickle otherwise."""

from __future__ import annotations

import pickle
from typing import Any

from pynode.errors import StudyError

__all__ = ["packed"]

_REMEDY = (
    "Install cloudpickle (pip install 'pynode-sciml[study]'), which takes what a script, a notebook or a function "
    "defines; or define it at the top level of a module that can be imported"
)


def packed(x: Any, what: str) -> bytes:
    """An object as bytes that `pickle.loads` turns back in another process.

    Args:
        x: the object.
        what: what it is, for the message.

    Raises:
        StudyError: it cannot travel.
    """
    try:
        try:
            import cloudpickle
        except ImportError:
            data = pickle.dumps(x)
        else:
            return bytes(cloudpickle.dumps(x))
    except Exception as error:
        raise StudyError(
            f"{what} cannot be sent to a process of its own: {type(error).__name__}: {error}. {_REMEDY}"
        ) from error
    if b"__main__" in data:  # pickle would look for it in the other process's own script
        raise StudyError(f"{what} uses what the script itself defines, which pickle cannot send elsewhere. {_REMEDY}")
    return data
