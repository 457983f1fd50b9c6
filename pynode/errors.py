"""The exceptions that pynode raises.

Each is a `PyNODEError` and also the builtin exception of its kind, so that callers can
catch either.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "EngineUnavailable",
    "FieldError",
    "InputError",
    "NotComparable",
    "PyNODEError",
    "PyNODEWarning",
    "SolveError",
    "StudyError",
    "TraceError",
    "unknown_name",
]


class PyNODEError(Exception):
    """Base class of every error that pynode raises on purpose."""


class PyNODEWarning(UserWarning):
    """Category of every warning that pynode emits."""


class InputError(PyNODEError, ValueError):
    """An argument of `solve` or of a model is not usable: says what was expected and what came."""


class FieldError(PyNODEError, ValueError):
    """The vector field returned a wrong shape, dtype or device, or captures what it should be given."""


class TraceError(PyNODEError, NotImplementedError):
    """The vector field cannot be turned into a graph: names the operation and the source line.

    Attributes:
        reason: the message without its remedy; empty where it has not been told apart.
    """

    def __init__(self, message: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class EngineUnavailable(PyNODEError, RuntimeError):
    """The engine, or the part of it that was asked for, is not there: says what is missing and the remedy."""


class SolveError(PyNODEError, ArithmeticError):
    """The integration did not reach the last time.

    Attributes:
        retcode: the `pynode.Retcode` of the failed integration.
        t_end: of a forward solve, the time that was reached: `Solution.t_end`; `None` of a backward one.
        z_end: the state there: `Solution.z_end`.
    """

    def __init__(self, message: str, retcode: object = None, t_end: object = None, z_end: object = None) -> None:
        super().__init__(message)
        self.retcode, self.t_end, self.z_end = retcode, t_end, z_end


class StudyError(PyNODEError, ValueError):
    """A study cannot be made, run or read as it is asked for: says what was expected and what came."""


class NotComparable(StudyError):
    """A contender cannot take part in a cell of a study, which is no failure of its: says why."""


def unknown_name(kind: str, got: object, valid: Iterable[str]) -> InputError:
    """An `InputError` for a wrong name, listing the valid ones with the nearest first.

    Args:
        kind: what the name stands for, e.g. `"solver"`.
        got: what the user gave.
        valid: every valid name.

    Returns:
        The error, to be raised by the caller.
    """
    names = sorted(valid)
    near = difflib.get_close_matches(str(got).lower(), names, n=3, cutoff=0.4)
    ordered = near + [name for name in names if name not in near]
    return InputError(f"unknown {kind} {got!r}: expected one of {', '.join(map(repr, ordered))}")
