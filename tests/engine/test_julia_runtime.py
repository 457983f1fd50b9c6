"""Where Julia is looked for, what is said when it is not there, and how it starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from juliapkg.state import STATE

import pynode
from pynode.engine.julia import runtime as julia_runtime

VARIABLES = ("PYTHON_JULIACALL_EXE", "PYTHON_JULIACALL_PROJECT")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Julia environment without packages, named by the environment variables together with an executable."""
    monkeypatch.setenv("PYTHON_JULIACALL_EXE", sys.executable)
    monkeypatch.setenv("PYTHON_JULIACALL_PROJECT", str(tmp_path))
    return tmp_path


def write_manifest(project: Path, python_call: str) -> None:
    entries = {"PyNODE": (julia_runtime.PYNODE_UUID, "0.1.0"), "PythonCall": ("6099a3de", python_call)}
    text = "".join(f'[[deps.{n}]]\nuuid = "{uuid}"\nversion = "{v}"\n\n' for n, (uuid, v) in entries.items())
    (project / "Manifest.toml").write_text(text)


def test_environment_without_the_package(project: Path) -> None:
    state = julia_runtime.available()
    assert not state.ok
    assert "does not have the package PyNODE" in state.why
    assert f'Pkg.develop(path="{julia_runtime.julia_folder()}")' in state.fix


def test_environment_with_another_bridge(project: Path) -> None:
    write_manifest(project, "0.0.1")
    state = julia_runtime.available()
    assert not state.ok
    assert "has PythonCall 0.0.1" in state.why
    assert state.fix == "Run `pip install juliacall==0.0.1`"


def test_environment_that_will_do(project: Path) -> None:
    write_manifest(project, version("juliacall"))
    assert julia_runtime.available().ok


def test_environment_whose_package_is_gone(project: Path) -> None:
    text = f'[[deps.PyNODE]]\npath = "/nowhere/julia"\nuuid = "{julia_runtime.PYNODE_UUID}"\n'
    (project / "Manifest.toml").write_text(text)
    assert "in the folder /nowhere/julia, which is not there" in julia_runtime.available().why


def test_missing_executable(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON_JULIACALL_EXE", "/nowhere/julia")
    assert "'/nowhere/julia', which is not an executable file" in julia_runtime.available().why


@pytest.mark.parametrize("name", VARIABLES)
def test_one_variable_of_two(project: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv(name)
    state = julia_runtime.available()
    assert not state.ok
    assert state.fix == f"Set {name} too"


def test_no_julia_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(julia_runtime, "juliapkg_project", lambda: tmp_path)
    state = julia_runtime.available()
    assert not state.ok
    assert state.why == "no Julia with the package PyNODE was found"
    assert "pynode julia install" in state.fix


def test_environment_of_another_juliacall(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After an update of juliacall, the environment that juliapkg made has another PythonCall."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(julia_runtime, "juliapkg_project", lambda: tmp_path)
    (tmp_path / "pyjuliapkg").mkdir()
    (tmp_path / "pyjuliapkg" / "meta.json").write_text("{}")
    write_manifest(tmp_path, version("juliacall"))
    assert julia_runtime.available().ok
    write_manifest(tmp_path, "0.0.1")
    state = julia_runtime.available()
    assert "has PythonCall 0.0.1" in state.why
    assert state.fix == "Run `pynode julia install`"


def test_nothing_is_installed_when_julia_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """juliapkg resolves anew where requirements have changed: offline, so that it changes no environment."""
    for name in julia_runtime._DEFAULTS:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "")  # so that it is taken back
        monkeypatch.delenv(name)
    monkeypatch.setitem(STATE, "offline", False)
    julia_runtime._set_defaults()
    assert STATE["offline"] is True
    monkeypatch.setenv("PYTHON_JULIAPKG_OFFLINE", "no")
    julia_runtime._set_defaults()
    assert STATE["offline"] is False


def test_the_package_is_where_it_is_said_to_be() -> None:
    assert f'uuid = "{julia_runtime.PYNODE_UUID}"' in (julia_runtime.julia_folder() / "Project.toml").read_text()


IN_A_THREAD = """
import threading
import pynode, torch
caught = []
def work():
    try:
        pynode.solve(lambda t, z: -z, torch.ones(1, 1), [0.0, 1.0], engine="julia")
    except pynode.EngineUnavailable as error:
        caught.append(str(error))
thread = threading.Thread(target=work)
thread.start()
thread.join()
assert "Julia has to be started on the main thread" in caught[0], caught
print(pynode.solve(lambda t, z: -z, torch.ones(1, 1), [0.0, 1.0], engine="julia").retcode.name)
"""


@pytest.mark.julia
def test_started_on_the_main_thread_alone() -> None:
    done = subprocess.run([sys.executable, "-c", IN_A_THREAD], capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "SUCCESS"


SCRIPT = """
{imports}
import pynode
z = torch.tensor([[1.0, 2.0]], dtype=torch.float64, requires_grad=True)
sol = pynode.solve(lambda t, z: -z, z, [0.0, 1.0], engine="julia", rtol=1e-8, atol=1e-8)
sol.z[-1].sum().backward()
print(sol.engine, round(float(z.grad[0, 0]), 6))
{after}
"""

FORKED = """
import os
child = os.fork()
if child == 0:
    try:
        pynode.solve(lambda t, z: -z, z, [0.0, 1.0], engine="julia")
    except pynode.EngineUnavailable as error:
        print(str(error)[:32], flush=True)
        os._exit(0)
    os._exit(1)
assert os.waitpid(child, 0)[1] == 0
"""


def run(imports: str, after: str = "") -> list[str]:
    script = SCRIPT.format(imports=imports, after=after)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=500, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.julia
@pytest.mark.slow
@pytest.mark.parametrize("imports", ["import torch", "import juliacall, torch"], ids=["torch first", "juliacall first"])
def test_both_import_orders(imports: str) -> None:
    assert run(imports) == ["julia 0.367879"]


@pytest.mark.julia
@pytest.mark.slow
def test_refused_in_a_forked_child() -> None:
    assert run("import torch", FORKED) == ["julia 0.367879", "this process was forked from one"]


PIPES = """
import os, torch, pynode
pynode.solve(lambda t, z: -z, torch.ones(1, 1), [0.0, 1.0], engine="julia")
print("started", flush=True)
print(input(), [os.get_blocking(stream) for stream in range(3)])
"""


@pytest.mark.julia
def test_pipes_wait_as_before() -> None:
    """What is written to the input later is read, and output that is not read soon is not lost."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", PIPES], text=True, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        out, error = process.communicate("late\n", timeout=100)
    assert out == "late [True, True, True]\n", error


@pytest.mark.julia
def test_kernels_are_shared_and_batch_sizes_free() -> None:
    """Two modules of one architecture, and a new batch size, need no new kernel."""
    from pynode.engine.choose import get_engine

    def network() -> torch.nn.Module:
        net = torch.nn.Sequential(torch.nn.Linear(3, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
        net.forward = lambda t, z, layers=list(net): layers[2](layers[1](layers[0](z)))  # type: ignore[method-assign]
        return net

    engine = get_engine("julia")
    pynode.solve(network(), torch.randn(4, 3), [0.0, 1.0], engine="julia")
    count = julia_runtime.module().kernel_count()
    pynode.solve(network(), torch.randn(9, 3), [0.0, 1.0], engine="julia")
    assert julia_runtime.module().kernel_count() == count
    assert engine.name == "julia"


START = """
import pynode, torch
for k in range(2):
    try:
        pynode.solve(lambda t, z: -z, torch.ones(1, 1), [0.0, 1.0], engine="julia")
    except pynode.EngineUnavailable as error:
        print(error)
"""


@pytest.mark.slow
def test_julia_that_does_not_start(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_manifest(project, version("juliacall"))
    executable = project / "julia"
    executable.write_text("#!/bin/sh\necho 'ERROR: could not load library' >&2\nexit 1\n")
    executable.chmod(0o755)
    monkeypatch.setenv("PYTHON_JULIACALL_EXE", str(executable))
    done = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        assert line.startswith("Julia could not be started: ERROR: could not load library. Run: "), line
        assert f'Pkg.develop(path="{julia_runtime.julia_folder()}")' in line
    doctor = subprocess.run(
        [sys.executable, "-c", "from pynode.cli import main; main(['doctor'])"],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert "no: Julia could not be started: ERROR: could not load library" in doctor.stdout, doctor.stdout


def test_the_bridge_has_one_number() -> None:
    entries = (julia_runtime.julia_folder() / "src" / "bridge" / "entries.jl").read_text()
    assert f"const BRIDGE = {julia_runtime.BRIDGE}\n" in entries


OTHER_BRIDGE = """
from pynode.engine.julia import runtime
runtime.BRIDGE += 1
from pynode.errors import EngineUnavailable
try:
    runtime.start()
except EngineUnavailable as error:
    print(error)
"""


@pytest.mark.julia
def test_pynode_of_another_version() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OTHER_BRIDGE], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "does not belong to this version of pynode" in done.stdout
    assert "Pkg.develop" in done.stdout or "pynode julia install" in done.stdout


CHILDREN = """
import os, signal, sys, torch, pynode
from torch.utils.data import DataLoader, TensorDataset
pynode.solve(lambda t, z: -z, torch.ones(1, 1), [0.0, 1.0], engine="julia")
list(DataLoader(TensorDataset(torch.ones(2)), num_workers=1))  # its handler of SIGCHLD takes the place of libuv's
loaders, seen = signal.getsignal(signal.SIGCHLD), []
assert callable(loaders)
signal.signal(signal.SIGCHLD, lambda number, frame: (seen.append(number), loaders(number, frame)))
from juliacall import Main
Main.seval(f'push!(LOAD_PATH, "{sys.argv[1]}")')
Main.seval('PyNODE.load((Base.identify_package("Fresh"),))')  # is compiled first, in a process of Julia's
before = len(seen)
os.kill(os.getpid(), signal.SIGCHLD)
print(Main.seval("Base.loaded_modules[Base.identify_package(\\"Fresh\\")].ANSWER"), len(seen) - before)
"""


@pytest.mark.julia
def test_packages_are_compiled_whoever_handles_the_ends_of_processes(tmp_path: Path) -> None:
    """After a data loader with workers Julia would wait for its own processes for ever."""
    (tmp_path / "Fresh" / "src").mkdir(parents=True)
    (tmp_path / "Fresh" / "Project.toml").write_text(
        'name = "Fresh"\nuuid = "4b4f4b0e-93a5-4d7c-8d3e-0c1f5f1f4f11"\nversion = "1.0.0"\n'
    )
    (tmp_path / "Fresh" / "src" / "Fresh.jl").write_text("module Fresh\nconst ANSWER = 42\nend\n")
    depots = os.environ.get("JULIA_DEPOT_PATH", "")
    environment = {**os.environ, "JULIA_DEPOT_PATH": f"{tmp_path / 'depot'}:{depots}"}
    command = [sys.executable, "-c", CHILDREN, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.stdout.splitlines()[-1:] == ["42 1"], done.stderr


LOGS = """
import logging, torch, pynode
logging.basicConfig(format="%(name)s %(levelname)s %(message)s")
logging.getLogger("pynode").setLevel(logging.INFO)
for k in range(2):
    pynode.solve(lambda t, z: -z, torch.ones(1, 1), [0.0, 1.0], engine="julia")
"""


@pytest.mark.julia
def test_the_log_tells_of_julias_start_and_of_new_kernels() -> None:
    done = subprocess.run([sys.executable, "-c", LOGS], capture_output=True, text=True, timeout=500, check=True)
    started, kernel = (line for line in done.stderr.splitlines() if line.startswith("pynode INFO "))
    assert re.fullmatch(r"pynode INFO Julia 1\.\d+\.\d+ started in \d+\.\d s, threads: \d+", started)
    assert kernel.startswith("pynode INFO julia has a new kernel")
