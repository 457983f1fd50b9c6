"""The exact versions that pynode was run with, and the Julia environment that has them."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from pynode.engine.julia import environment
from pynode.engine.julia.environment import Environment, juliapkg_project
from pynode.errors import EngineUnavailable

__all__ = ["install", "read"]

logger = logging.getLogger("pynode")

_FILES = ("Project.toml", "Manifest.toml")


def read(sources: Path) -> Environment:
    """The locked environment.

    Args:
        sources: the folder of the Julia package PyNODE.
    """
    return environment.read(sources / "lock")


def install(sources: Path) -> None:
    """Make juliapkg's environment the locked one: the same Julia, the same packages.

    Args:
        sources: the folder of the Julia package PyNODE.

    Raises:
        EngineUnavailable: juliacall is of another version than the lock, or juliapkg has been told to use another Julia
            or an environment that others share.
        subprocess.CalledProcessError: Julia's package manager failed.
    """
    from juliapkg.deps import run_script
    from juliapkg.state import STATE

    wanted = read(sources)
    bridge = wanted.versions["PythonCall"]
    if bridge != version("juliacall"):
        raise EngineUnavailable(
            f"the lock file has PythonCall {bridge}, which needs the same version of juliacall, and juliacall "
            f"{version('juliacall')} is installed. Run `pip install juliacall=={bridge}` first"
        )
    if STATE["project_is_shared"]:
        raise EngineUnavailable(
            f"PYTHON_JULIAPKG_PROJECT names the environment {STATE['project']}, whose versions a lock would replace: "
            "unset it"
        )
    logger.info("1/4 Julia %s", wanted.julia)
    executable = _julia(wanted.julia)
    with tempfile.TemporaryDirectory() as folder:
        logger.info("2/4 %d packages, in the versions of %s", len(wanted.packages), wanted.folder)
        made = Path(folder)
        _copy(wanted, made)
        run_script(["using Pkg", "Pkg.instantiate()"], executable=executable, project=folder)
        logger.info("3/4 compiling them, which takes some minutes")
        run_script(["using Pkg", "Pkg.precompile()"], executable=executable, project=folder)
        project = juliapkg_project()
        project.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            shutil.copyfile(made / name, project / name)
    logger.info("4/4 the environment %s", project)
    _record(wanted, sources)


def _julia(wanted: str) -> str:
    """The executable of that version of Julia, which is downloaded where it is not there.

    Raises:
        EngineUnavailable: juliapkg has been told to use another.
    """
    from juliapkg.compat import Compat
    from juliapkg.find_julia import find_julia
    from juliapkg.state import STATE

    executable, found = find_julia(compat=Compat.parse(f"={wanted}"), prefix=STATE["install"], install=True)
    if str(found) != wanted:
        raise EngineUnavailable(
            f"the lock file is of Julia {wanted}, and PYTHON_JULIAPKG_EXE names Julia {found}: unset it, or install "
            "without --locked"
        )
    return str(executable)


def _copy(wanted: Environment, folder: Path) -> None:
    """Copy the locked environment, with the path of PyNODE's sources in full."""
    sources = (wanted.folder / wanted.packages["PyNODE"]["path"]).resolve().as_posix()
    shutil.copyfile(wanted.folder / "Project.toml", folder / "Project.toml")
    text = (wanted.folder / "Manifest.toml").read_text(encoding="utf-8")
    text = text.replace('path = ".."', f"path = {json.dumps(sources)}")
    (folder / "Manifest.toml").write_text(text, encoding="utf-8")


def _record(wanted: Environment, sources: Path) -> None:
    """Tell juliapkg of the environment, so that it finds it made, and leaves it."""
    import juliapkg
    from juliapkg.state import STATE

    juliapkg.require_julia(f"={wanted.julia}")
    for name, uuid in wanted.direct.items():
        if name == "PyNODE":
            juliapkg.add(name, uuid, dev=True, path=str(sources))
        elif name != "PythonCall":  # which juliacall asks for itself
            juliapkg.add(name, uuid, version=f"={wanted.versions[name]}")
    with _offline():
        juliapkg.resolve(force=True)
    # juliapkg makes anew what it has resolved offline, as soon as it is not.
    meta = Path(STATE["meta"])
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"offline": False}))


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Let juliapkg record what is there, and change nothing."""
    from juliapkg.state import STATE

    STATE["offline"] = True
    try:
        yield
    finally:
        STATE["offline"] = False
