"""Packages that studies use where they are installed."""

from __future__ import annotations

import importlib
from types import ModuleType

from pynode.errors import StudyError

__all__ = ["EXTRA", "need"]

EXTRA = "pip install 'pynode-sciml[study]'"


def need(module: str, purpose: str) -> ModuleType:
    """The module, imported.

    Args:
        module: its name, e.g. `"plotly.offline"`.
        purpose: what needs it, the start of a sentence: `"the HTML page"`.

    Raises:
        StudyError: when its package is not installed; says how to get it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise  # the package is there and one that it needs is not
        raise StudyError(f"{purpose} needs {package}, which is not installed: {EXTRA}") from error
