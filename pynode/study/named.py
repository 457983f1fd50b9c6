"""Python objects by a text: `module:NAME` or `FILE.py:NAME`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from pynode.errors import InputError

__all__ = ["files", "find", "load"]

_FILES: dict[str, str] = {}


def files() -> dict[str, str]:
    """The files that were loaded, by the names of their modules."""
    return dict(_FILES)


def find(target: str, what: str) -> Any:
    """What a text names.

    Args:
        target: `module:NAME` or `FILE.py:NAME`, where the name may have dots.
        what: what is looked for, for the message.

    Raises:
        InputError: there is no such thing.
    """
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise InputError(f"{what} must be named as module:NAME or FILE.py:NAME, got {target!r}")
    if place.endswith(".py"):
        module = load(Path(place))
    else:
        try:
            module = importlib.import_module(place)
        except ImportError as error:
            raise InputError(
                f"there is no module {place} for {what} {target!r}: {error}. Install it, set PYTHONPATH, or name its "
                "file: FILE.py:NAME"
            ) from error
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise InputError(f"{place} has no {name!r} for {what}. Define it at the module's top level")
        found = getattr(found, part)
    return found


def load(path: Path, name: str = "") -> ModuleType:
    """A file as a module, which finds what lies beside it, as a script does.

    Raises:
        InputError: it is not there, or raises.
    """
    path = path.resolve()
    name = name or f"_study_{path.stem}_{hashlib.sha256(os.fspath(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise InputError(f"there is no file {path}: give the path of a Python file, e.g. model.py:problem")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickle look for it
    sys.path.insert(0, os.fspath(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InputError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    _FILES[name] = os.fspath(path)
    return module
