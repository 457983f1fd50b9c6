"""What the files of a Julia environment say: its packages and their versions. Starts nothing."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["MANIFESTS", "Environment", "executable", "juliapkg_project", "project_folder", "read"]

_PROJECTS = ("JuliaProject.toml", "Project.toml")
MANIFESTS = ("JuliaManifest.toml", "Manifest.toml")


@dataclass(frozen=True)
class Environment:
    """A Julia environment, as far as its files tell.

    Attributes:
        folder: where they are.
        julia: the version of Julia by which the manifest was made; empty where there is no manifest.
        direct: the packages that the project names, with their UUIDs.
        packages: all packages of the manifest, each with its entry there.
        broken: which file cannot be read, and why; empty where all can.
    """

    folder: Path
    julia: str = ""
    direct: dict[str, str] = field(default_factory=dict)
    packages: dict[str, dict[str, Any]] = field(default_factory=dict)
    broken: str = ""

    @property
    def versions(self) -> dict[str, str]:
        """The version of each package."""
        return {name: entry.get("version", "without a version") for name, entry in self.packages.items()}

    def sources(self, package: str) -> Path | None:
        """The folder that a package is developed in; `None` of one that has a registered version."""
        path = self.packages.get(package, {}).get("path")
        return None if path is None else self.folder / path


def read(folder: Path) -> Environment:
    """The environment in a folder; an empty one where there is none."""
    try:
        project, manifest = _first(folder, _PROJECTS), _first(folder, MANIFESTS)
    except (OSError, ValueError) as error:
        return Environment(folder, broken=str(error))
    packages = {name: entries[0] for name, entries in manifest.get("deps", {}).items()}
    return Environment(folder, manifest.get("julia_version", ""), project.get("deps", {}), packages)


def _first(folder: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """The first of some TOML files that is there; nothing where none is.

    Raises:
        ValueError: it is no TOML.
    """
    for path in (folder / name for name in names):
        if path.is_file():
            try:
                return tomllib.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{path} is no TOML file: {error}") from error
    return {}


def juliapkg_project() -> Path:
    """The Julia environment that juliapkg has made, or would make."""
    from juliapkg.state import STATE

    return Path(STATE["project"])


def project_folder() -> Path:
    """The Julia environment that is used: the one that is named by the user, or juliapkg's."""
    return Path(os.environ.get("PYTHON_JULIACALL_PROJECT") or juliapkg_project())


def executable() -> str:
    """Julia's executable: the user's, juliapkg's, or the one on the path; empty where there is none."""
    meta = juliapkg_project() / "pyjuliapkg" / "meta.json"
    made = json.loads(meta.read_text()).get("executable") if meta.is_file() else None
    return os.environ.get("PYTHON_JULIACALL_EXE") or made or shutil.which("julia") or ""
