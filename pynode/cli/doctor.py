"""What `pynode doctor` prints: versions, engines, the Julia side, and what mends what is missing."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from juliapkg.state import STATE

import pynode
from pynode.cli import threads
from pynode.engine import Availability, engines
from pynode.engine.julia import runtime as julia_runtime
from pynode.engine.julia.install import CUDA, EXTRAS

__all__ = ["report"]

_PACKAGES = ("torch", "torchdiffeq", "juliacall", "juliapkg", "scikit-learn", "scipy", "matplotlib")
_VARIABLES = (
    "PYNODE_ENGINE",
    "PYNODE_ENV_FILE",
    "PYTHON_JULIACALL_EXE",
    "PYTHON_JULIACALL_PROJECT",
    "PYTHON_JULIACALL_THREADS",
    "OMP_NUM_THREADS",
)


def report(*, timing: bool = False) -> bool:
    """Print what is there, and what is missing with its remedy.

    Args:
        timing: also time, in a process of its own per engine, from the import to the first gradient.

    Returns:
        Whether at least one engine works.
    """
    states = engines()  # also loads the env file, which the lines below show
    _section("Python")
    _line("python", f"{platform.python_version()} ({sys.executable})")
    _line("pynode", f"{pynode.__version__} ({Path(pynode.__file__).parent})")
    for name in _PACKAGES:
        _line(name, _version(name))
    _section("Engines")
    for name, state in states.items():
        _line(name, "ok" if state.ok else f"not available: {state.why}")
        if state.fix and not state.ok:
            _line("", f"remedy: {state.fix}")
    _section("Julia")
    for name, value in _julia().items():
        _line(name, value)
    if states["julia"].ok:
        _line("starts", _start())
    _section("Threads")
    _line("torch", threads.advice())
    _section("Environment")
    for name in _VARIABLES:
        _line(name, os.environ.get(name, "not set"))
    if timing:
        _section("From import to first gradient")
        for name, state in states.items():
            _line(name, _time(name, state))
    return any(state.ok for state in states.values())


def _section(title: str) -> None:
    print(f"\n{title}")


def _line(name: str, value: str) -> None:
    print(f"  {name:<25} {value}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


_FIRST_GRADIENT = """
import time
marks = [time.perf_counter()]
import torch
marks.append(time.perf_counter())
import pynode
marks.append(time.perf_counter())
field = torch.nn.Linear(2, 2)
z0 = torch.ones(1, 2)
pynode.solve(lambda t, z: torch.tanh(field(z)), z0, [0.0, 1.0], engine={engine!r}).z[-1].sum().backward()
marks.append(time.perf_counter())
parts = [b - a for a, b in zip(marks, marks[1:])]
print("{{:.2f}} s from import pynode ({{:.2f}} s) to the first gradient; import torch took {{:.2f}} s before".format(
    parts[1] + parts[2], parts[1], parts[0]))
"""


def _time(engine: str, state: Availability) -> str:
    if not state.ok:
        return "not available"
    command = [sys.executable, "-c", _FIRST_GRADIENT.format(engine=engine)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return lines[-1] if lines else f"failed with exit code {done.returncode}"


_START = """
from pynode.engine.julia import runtime
from pynode.errors import EngineUnavailable
try:
    julia = runtime.start()
    print("yes, Julia", julia.seval("VERSION"), "with", julia.seval("Threads.nthreads()"), "threads")
except EngineUnavailable as error:
    print("no:", error)
"""


def _start() -> str:
    """Whether Julia starts with PyNODE, tried in a process of its own."""
    done = subprocess.run([sys.executable, "-c", _START], capture_output=True, text=True, check=False)
    said = done.stdout.strip().splitlines() or done.stderr.strip().splitlines()
    if done.returncode < 0:
        said = [*done.stderr.strip().splitlines()[:1], f"no: it ended by signal {-done.returncode}"]
    return said[-1] if said else f"no: it ended with exit code {done.returncode}"


def _julia() -> dict[str, str]:
    """Where Julia, its project and depot are, and the versions of the packages; starts no Julia."""
    executable, project = _located()
    found = {"sources of PyNODE": str(julia_runtime.julia_folder()), "executable": executable or "none found"}
    if executable and shutil.which(executable):
        done = subprocess.run([executable, "--version"], capture_output=True, text=True, check=False)
        found["version"] = done.stdout.strip() or done.stderr.strip()
    found["project"] = str(project)
    found["depot"] = os.environ.get("JULIA_DEPOT_PATH") or "Julia's default, ~/.julia"
    manifests = [m for name in ("JuliaManifest.toml", "Manifest.toml") if (m := project / name).is_file()]
    versions = julia_runtime.manifest_versions(manifests[0].read_text()) if manifests else {}
    for name in ("PyNODE", "SciMLBase", *EXTRAS, *CUDA):
        found[name] = versions.get(name, "not in the project" if manifests else "not installed")
    return found


def _located() -> tuple[str, Path]:
    """Julia's executable, if any, and its project: those of the environment, or those that juliapkg made."""
    project = os.environ.get("PYTHON_JULIACALL_PROJECT") or STATE["project"]
    executable = os.environ.get("PYTHON_JULIACALL_EXE")
    meta = Path(STATE["meta"])
    if not executable and meta.is_file():
        executable = json.loads(meta.read_text()).get("executable")
    return executable or shutil.which("julia") or "", Path(project)
