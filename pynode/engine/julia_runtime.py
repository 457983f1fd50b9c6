"""The one place that starts Julia: lazily, through juliacall, on the main thread of the process that asked.

Julia is found through the environment variables `PYTHON_JULIACALL_EXE` and `PYTHON_JULIACALL_PROJECT`, or in the
environment that `install` has made with juliapkg. Nothing is ever installed without being asked for.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import re
import shutil
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pynode.engine._protocol import Availability
from pynode.errors import EngineUnavailable

__all__ = ["Plan", "available", "install", "julia_folder", "manifest_versions", "open_cuda", "start"]

PYNODE_UUID = "6f1c7d0e-53f0-4a7b-9d6e-0c7c4f5a8b21"
JULIA_VERSIONS = "~1.10, 1.11"

# Packages that PyNODE loads on demand, with the versions that it was run with.
EXTRAS = {
    "ComponentArrays": ("b0b7db55-cfe3-40fc-9ded-d10e2dbeff66", "0.15"),
    "ForwardDiff": ("f6369f11-7733-5829-9624-2563aa707210", "0.10, 1"),
    "OrdinaryDiffEqBDF": ("6ad6398a-0878-4a85-9266-38940aa047c8", "1"),
    "OrdinaryDiffEqRosenbrock": ("43230ef6-c299-4910-a778-202eb28ce4ce", "1"),
    "OrdinaryDiffEqSDIRK": ("2d112036-d095-4a1e-ab9a-08536f3ecdbf", "1"),
    "ReverseDiff": ("37e2e3b7-166d-5795-8a7a-e32c996b4267", "1.15"),
    "SciMLSensitivity": ("1ed8b502-d754-442c-8d5d-10ac956f44a1", "7.96"),
    "Zygote": ("e88e6eb3-aa80-5325-afca-941959d7151f", "0.6.67, 0.7"),
}

CUDA = {"CUDA": ("052768ef-5323-5732-b1bb-66c8b64840ba", "5.4, 6")}

_INSTALL = "Run `pynode julia install`, or set PYTHON_JULIACALL_EXE and PYTHON_JULIACALL_PROJECT"

# What juliacall reads when it starts Julia; what the user has set stays.
_DEFAULTS = {
    "PYTHON_JULIACALL_HANDLE_SIGNALS": "yes",
    "PYTHON_JULIACALL_THREADS": "1",
    "PYTHON_JULIACALL_STARTUP_FILE": "no",
    "PYTHON_JULIACALL_AUTOLOAD_IPYTHON_EXTENSION": "no",
    "PYTHON_JULIAPKG_OFFLINE": "yes",
}


def julia_folder() -> Path:
    """The folder of the Julia package PyNODE: inside an installed wheel, or at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "_julia"
    return shipped if shipped.exists() else package.parent / "julia"


def available() -> Availability:
    """Whether Julia with PyNODE can be started here. Starts nothing and installs nothing."""
    if importlib.util.find_spec("juliacall") is None:
        return Availability(False, "the Python package juliacall is not installed", "Run `pip install juliacall`")
    exe, project = os.environ.get("PYTHON_JULIACALL_EXE"), os.environ.get("PYTHON_JULIACALL_PROJECT")
    if exe and project:
        return _check_given(exe, Path(project))
    if exe or project:
        missing = "PYTHON_JULIACALL_PROJECT" if exe else "PYTHON_JULIACALL_EXE"
        return Availability(False, f"only one of Julia's two variables is set, {missing} is not", f"Set {missing} too")
    made = _juliapkg_project()
    if not (made / "pyjuliapkg" / "meta.json").exists() or not _has_pynode(made):
        return Availability(False, "no Julia with the package PyNODE was found", _INSTALL)
    return Availability(True)


def _check_given(exe: str, project: Path) -> Availability:
    if shutil.which(exe) is None:
        return Availability(
            False, f"PYTHON_JULIACALL_EXE is {exe!r}, which is not an executable file", "Set it to Julia's executable"
        )
    command = f"""{exe} --project={project} -e 'using Pkg; Pkg.develop(path="{julia_folder()}")'"""
    theirs, ours = manifest_versions(_manifest(project)).get("PythonCall"), importlib.metadata.version("juliacall")
    if theirs is not None and theirs != ours:
        return Availability(
            False,
            f"the Julia environment {project} has PythonCall {theirs}, which needs the same version of juliacall, "
            f"and juliacall {ours} is installed",
            f"Run `pip install juliacall=={theirs}`",
        )
    if not _has_pynode(project):
        return Availability(
            False, f"the Julia environment {project} does not have the package PyNODE", f"Run: {command}"
        )
    folder = re.search(rf'^path = "([^"]+)"\nuuid = "{PYNODE_UUID}"', _manifest(project), flags=re.M)
    if folder and not (project / folder.group(1)).exists():
        return Availability(
            False,
            f"the Julia environment {project} has PyNODE in the folder {folder.group(1)}, which is not there",
            f"Run: {command}",
        )
    return Availability(True)


def _manifest(project: Path) -> str:
    found = [project / name for name in ("JuliaManifest.toml", "Manifest.toml") if (project / name).exists()]
    return found[0].read_text() if found else ""


def _has_pynode(project: Path) -> bool:
    return PYNODE_UUID in _manifest(project)


def manifest_versions(manifest: str) -> dict[str, str]:
    """The version of each package that the text of a Manifest.toml lists."""
    entry = re.compile(r"^\[\[deps\.(\w+)\]\]$(.*?)(?=^\[\[|\Z)", flags=re.M | re.S)
    found = {}
    for name, body in entry.findall(manifest):
        match = re.search(r'^version = "([^"]+)"', body, flags=re.M)
        found[name] = match.group(1) if match else "without a version"
    return found


def _juliapkg_project() -> Path:
    from juliapkg.state import STATE

    return Path(STATE["project"])


@dataclass(frozen=True)
class Plan:
    """What `install` does.

    Attributes:
        project: the Julia environment that it makes.
        julia: the versions of Julia that will do.
        packages: the Julia packages, each with its versions or folder.
    """

    project: Path
    julia: str
    packages: dict[str, str]

    def __str__(self) -> str:
        lines = [f"Julia {self.julia} and these packages into {self.project}:"]
        return "\n".join([*lines, *(f"  {name} ({version})" for name, version in self.packages.items())])


def install(dry_run: bool = False, cuda: bool = False) -> Plan:
    """Provide Julia and the packages of the julia engine, through juliapkg, with its progress on the terminal.

    Args:
        dry_run: only say what would be done.
        cuda: also CUDA.jl, for states on a GPU.

    Returns:
        The plan that was, or would be, carried out.

    Raises:
        EngineUnavailable: juliapkg could not do it, e.g. without a connection; the message has its reason.
    """
    if os.environ.get("PYTHON_JULIACALL_EXE") or os.environ.get("PYTHON_JULIACALL_PROJECT"):
        raise EngineUnavailable(
            "PYTHON_JULIACALL_EXE and PYTHON_JULIACALL_PROJECT name a Julia of your own, which pynode leaves alone: "
            f'unset them, or add PyNODE to it yourself with Pkg.develop(path="{julia_folder()}")'
        )
    extras = {**EXTRAS, **(CUDA if cuda else {})}
    plan = Plan(
        _juliapkg_project(),
        JULIA_VERSIONS,
        {"PyNODE": str(julia_folder()), **{name: version for name, (_, version) in extras.items()}},
    )
    if dry_run:
        return plan
    import juliapkg

    try:
        juliapkg.require_julia(JULIA_VERSIONS)
        juliapkg.add("PyNODE", PYNODE_UUID, dev=True, path=str(julia_folder()))
        for name, (uuid, version) in extras.items():
            juliapkg.add(name, uuid, version=version)
        juliapkg.resolve(force=True)
    except Exception as error:
        raise EngineUnavailable(
            f"Julia could not be installed: {error}. Check the connection, or install Julia yourself and set "
            "PYTHON_JULIACALL_EXE and PYTHON_JULIACALL_PROJECT"
        ) from error
    return plan


_pid: int | None = None


def start() -> Any:
    """Start Julia, once, and return the Julia module PyNODE.

    Raises:
        EngineUnavailable: Julia is not there, this is not the main thread, or the process was forked from one
            that had started Julia.
    """
    if _pid is not None and _pid != os.getpid():
        raise EngineUnavailable(
            "this process was forked from one in which Julia runs, and Julia does not survive a fork: start worker "
            'processes with multiprocessing.get_context("spawn"), or use engine="torch" in them'
        )
    if threading.current_thread() is not threading.main_thread():
        raise EngineUnavailable(
            'Julia runs on the main thread only: solve there, or use engine="torch" in other threads'
        )
    return _started()


@functools.cache
def _started() -> Any:
    global _pid
    state = available()
    if not state.ok:
        raise EngineUnavailable(f"the julia engine is not available here: {state.why}. {state.fix}")
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        # juliacall warns of torch being imported first; both orders are tested.
        warnings.filterwarnings("ignore", message="torch was imported before juliacall")
        import juliacall
    try:
        juliacall.Main.seval("import PyNODE")
        module = juliacall.Main.PyNODE
        module.set_blas_threads(torch.get_num_threads())
    except juliacall.JuliaError as error:
        raise EngineUnavailable(f"Julia started, but PyNODE could not be loaded: {error}") from error
    _pid = os.getpid()
    return module


def open_cuda(index: int) -> int:
    """Let Julia work on a GPU, and return the handle of the stream on which it does.

    Raises:
        EngineUnavailable: Julia is not there, or has no CUDA.jl, or finds no GPU.
    """
    module = start()
    import juliacall

    otherwise = 'Or move the field and the state to the CPU, or use engine="torch"'
    try:
        juliacall.Main.seval("import CUDA")
    except juliacall.JuliaError as error:
        raise EngineUnavailable(
            f"the state is on cuda:{index}, and Julia could not load the package CUDA: {error.exception}. Run `pynode "
            f"julia install --cuda`, or add CUDA to your own Julia environment. {otherwise}"
        ) from error
    if not juliacall.Main.CUDA.functional():
        raise EngineUnavailable(
            f"the state is on cuda:{index}, and Julia's package CUDA finds no GPU that works: `CUDA.versioninfo()` "
            f"in Julia says why. {otherwise}"
        )
    return int(module.open_cuda(index))
