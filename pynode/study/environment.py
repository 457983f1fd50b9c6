"""What a row was measured with: versions, the processor, the revision; nothing that names the machine or its user."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import subprocess
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

import pynode

__all__ = ["environment", "identity"]

_PACKAGES = (
    "numpy",
    "scipy",
    "torchdiffeq",
    "torchode",
    "torchdyn",
    "diffrax",
    "jax",
    "jaxlib",
    "diffeqpy",
    "juliacall",
)


def identity(found: dict[str, Any]) -> str:
    """The digest of an environment, by which rows refer to it."""
    return sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def _text() -> str:
    processor, memory = _processor(), _memory()
    return json.dumps(
        {
            "python": f"{platform.python_implementation()} {platform.python_version()}",
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "processor": processor,
            "cores": os.cpu_count(),
            "memory_mb": memory,
            "pynode": pynode.__version__,
            "revision": _revision(),
            "packages": {name: v for name in _PACKAGES if (v := _version(name))} | {"torch": str(torch.__version__)},
            "julia": _julia(),
        }
    )


def environment() -> dict[str, Any]:
    """The environment of this process and of those that it starts."""
    found: dict[str, Any] = json.loads(_text())
    return found


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    except (AttributeError, ValueError, OSError):  # no such number on this system
        return None


def _revision() -> str | None:
    """The git revision of pynode's sources, with a + where files differ from it; `None` of an installed package."""
    folder = Path(pynode.__file__).parent
    git = ["git", "-C", os.fspath(folder)]
    try:
        inside = subprocess.run([*git, "ls-files", "--error-unmatch", "__init__.py"], capture_output=True, check=False)
        if inside.returncode:
            return None
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):  # no git
        return None
    return head + "+" * bool(changed.strip())


def _julia() -> dict[str, Any] | None:
    """The versions of Julia and its packages by the manifest of the project; starts no Julia."""
    from pynode.engine.julia.environment import project_folder, read

    found = read(project_folder())
    return {"version": found.julia, "packages": found.versions} if found.packages else None
