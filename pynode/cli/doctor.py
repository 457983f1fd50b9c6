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

import torch

import pynode
from pynode.cli import threads
from pynode.engine import Availability, engines
from pynode.engine.julia import environment
from pynode.engine.julia import runtime as julia_runtime
from pynode.engine.julia.install import CUDA, EXTRAS

__all__ = ["report"]

_PACKAGES = ("torchdiffeq", "juliacall", "juliapkg", "scikit-learn", "scipy", "matplotlib")
_VARIABLES = (
    "PYNODE_ENGINE",
    "PYNODE_ENV_FILE",
    "PYTHON_JULIACALL_EXE",
    "PYTHON_JULIACALL_PROJECT",
    "PYTHON_JULIACALL_SYSIMAGE",
    "PYTHON_JULIACALL_THREADS",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
)


def report(*, timing: bool = False, as_json: bool = False) -> bool:
    """Print what is there, and what is missing with its remedy.

    Args:
        timing: also time, in a process of its own per engine, from the import to the first gradient.
        as_json: as a JSON object of the sections, each an object of its lines, in place of text.

    Returns:
        Whether at least one engine works.
    """
    states = engines()
    found = _found(states, timing)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        for title, lines in found.items():
            print(f"\n{title}")
            for name, value in lines.items():
                print(f"  {name:<25} {value}")
    return any(state.ok for state in states.values())


def _found(states: dict[str, Availability], timing: bool) -> dict[str, dict[str, str]]:
    """The sections of the report."""
    found = {
        "Python": {
            "python": f"{platform.python_version()} ({sys.executable})",
            "system": f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} cores",
            "pynode": f"{pynode.__version__} ({Path(pynode.__file__).parent})",
            "torch": str(torch.__version__),  # with the build, CPU or CUDA
            **{name: _version(name) for name in _PACKAGES},
        },
        "Engines": _engines(states),
        "Julia": _julia() | ({"starts": _start()} if states["julia"].ok else {}),
        "Threads": {"torch": threads.advice()},
        "Environment": {name: os.environ.get(name, "not set") for name in _VARIABLES},
    }
    if timing:
        found["From import to first gradient"] = {name: _time(name, state) for name, state in states.items()}
    return found


def _engines(states: dict[str, Availability]) -> dict[str, str]:
    """Whether each can run, and of those that cannot, the remedy."""
    found = {}
    for name, state in states.items():
        found[name] = "ok" if state.ok else f"not available: {state.why}"
        if state.fix and not state.ok:
            found[f"{name}, remedy"] = state.fix
    return found


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
    runtime.start()
    print("yes, Julia", runtime.evaluate("VERSION"), "with", runtime.evaluate("Threads.nthreads()"), "threads")
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
    executable, project = environment.executable(), environment.project_folder()
    found = {"sources of PyNODE": str(julia_runtime.julia_folder()), "executable": executable or "none found"}
    if executable and shutil.which(executable):
        done = subprocess.run([executable, "--version"], capture_output=True, text=True, check=False)
        found["version"] = done.stdout.strip() or done.stderr.strip()
    found["project"] = str(project)
    found["depot"] = os.environ.get("JULIA_DEPOT_PATH") or "Julia's default, ~/.julia"
    made = environment.read(project)
    missing = made.broken or ("not in the project" if made.packages else "not installed")
    names = ("PyNODE", "PythonCall", "SciMLBase", *EXTRAS, *CUDA)
    return found | {name: made.versions.get(name, missing) for name in names}
