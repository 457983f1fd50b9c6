"""A system image: the julia engine's packages, compiled into one file that Julia starts with.

Code that is in an image is used whatever has become of its sources. So a record lies beside it of what it was made
from, and an image whose record tells of something else is stale.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from pynode.engine.julia import environment
from pynode.engine.protocol import Availability
from pynode.errors import PyNODEWarning

__all__ = ["VARIABLE", "check_named", "image_of", "record_of", "stale", "started_with", "write_record"]

VARIABLE = "PYTHON_JULIACALL_SYSIMAGE"

_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
_WORDS = {"julia": "Julia", "packages": "the environment", "sources": "PyNODE", "juliacall": "juliacall"}


def image_of(project: Path) -> Path:
    """Where the image of a Julia environment lies, if there is one."""
    return project / f"pynode-image{_SUFFIX}"


def record_of(exe: str, project: Path) -> dict[str, str]:
    """What an image of an environment would be made from now, as texts that change with it.

    Args:
        exe: Julia's executable.
        project: the folder of the environment.
    """
    julia = Path(shutil.which(exe) or exe).resolve()
    file = julia.stat() if julia.exists() else None
    found, digest = environment.read(project), hashlib.sha256()
    sources = found.sources("PyNODE")
    for path in sorted(sources.rglob("*")) if sources else ():
        if path.suffix in (".jl", ".toml") and "test" not in path.relative_to(sources or path).parts:
            digest.update(str(path.relative_to(sources or path)).encode() + b"\0" + path.read_bytes() + b"\0")
    packages = json.dumps([found.julia, found.packages], sort_keys=True, default=str)
    return {
        "julia": f"{julia} {file.st_size} {file.st_mtime_ns}" if file else str(julia),
        "packages": hashlib.sha256(packages.encode()).hexdigest(),
        "sources": digest.hexdigest(),
        "juliacall": importlib.metadata.version("juliacall"),
    }


def write_record(image: Path, record: dict[str, str]) -> None:
    """Write the record of an image that has been made."""
    _path(image).write_text(json.dumps(record, indent=2) + "\n")


def stale(image: Path, record: dict[str, str]) -> str:
    """What has changed since an image was made, in words; empty where nothing has.

    Args:
        image: an image that `write_record` has a record of, or that someone else has made, who answers for it.
        record: of what it would be made from now.
    """
    try:
        before = json.loads(_path(image).read_text())
    except FileNotFoundError:
        return ""
    except ValueError:
        return "its record cannot be read"
    changed = [word for key, word in _WORDS.items() if before.get(key) != record[key]]
    return (
        f"{' and '.join(changed)} {'has' if len(changed) == 1 else 'have'} changed since it was made" if changed else ""
    )


def _path(image: Path) -> Path:
    return image.with_name(image.name + ".json")


def check_named() -> Availability:
    """Whether the image that the user's variable names can be used; where it names none, nothing is wrong."""
    named = os.environ.get(VARIABLE)
    if not named:
        return Availability(True)
    remedy = f"Unset {VARIABLE}; `pynode julia compile` makes an image that is used without it"
    if not Path(named).exists():
        return Availability(False, f"{VARIABLE} is {named!r}, and there is no such file", remedy)
    why = stale(Path(named), record_of(environment.executable(), environment.project_folder()))
    return Availability(False, f"the system image {named} is stale: {why}", remedy) if why else Availability(True)


@contextlib.contextmanager
def started_with() -> Iterator[None]:
    """The context in which Julia is started, with the image of its environment, where the user names no other."""
    project = environment.project_folder()
    image = image_of(project)
    if os.environ.get(VARIABLE) or not image.exists():
        yield
        return
    if why := stale(image, record_of(environment.executable(), project)):
        what = f"Julia starts without the system image {image}: {why}"
        warnings.warn(f"{what}. Run `pynode julia compile`, or remove the file", PyNODEWarning, stacklevel=2)
        yield
        return
    os.environ[VARIABLE] = str(image)
    try:
        yield
    finally:
        del os.environ[VARIABLE]
