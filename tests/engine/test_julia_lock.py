"""The lock file, and what `pynode julia install` does, without a network."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import juliapkg
import pytest
from juliapkg.compat import Compat, Version
from juliapkg.state import STATE

from pynode.cli.main import main
from pynode.engine.julia import environment, lock
from pynode.engine.julia import install as julia_install
from pynode.engine.julia.install import EXTRAS
from pynode.engine.julia.runtime import PYNODE_UUID, julia_folder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LOCK = lock.read(julia_folder())
PYNODE = tomllib.loads((julia_folder() / "Project.toml").read_text(encoding="utf-8"))
JULIA = Version.parse(LOCK.julia)


# -- the lock file -------------------------------------------------------------------------------------------


def test_it_has_what_an_installation_has() -> None:
    expected = {name: uuid for name, (uuid, _) in EXTRAS.items()}
    bridge = {"PythonCall": LOCK.packages["PythonCall"]["uuid"]}
    assert LOCK.direct == expected | bridge | {"PyNODE": PYNODE_UUID}
    assert all(LOCK.packages[name]["uuid"] == uuid for name, uuid in LOCK.direct.items())


def test_it_belongs_to_the_package() -> None:
    """Where this fails, make the lock anew: see julia/lock/write.jl."""
    entry = LOCK.packages["PyNODE"]
    assert entry["version"] == PYNODE["version"]
    assert entry["extensions"] == PYNODE["extensions"]
    assert sorted(entry["deps"]) == sorted(PYNODE["deps"])
    weak = entry["weakdeps"]
    assert sorted(weak) == sorted(PYNODE["weakdeps"])


def test_versions_are_within_the_bounds() -> None:
    bounds = PYNODE["compat"] | {name: compat for name, (_, compat) in EXTRAS.items()}
    for name, bound in bounds.items():
        if name in LOCK.packages and name not in ("Random", "LinearAlgebra"):
            assert Version.parse(LOCK.versions[name]) in Compat.parse(bound), name
    assert JULIA in Compat.parse(julia_install.JULIA_VERSIONS)


def test_all_is_registered_and_nothing_is_missing() -> None:
    """Every package is a registered version or comes with Julia; only PyNODE is a folder, beside the lock file."""
    assert {name for name, entry in LOCK.packages.items() if "path" in entry} == {"PyNODE"}
    assert LOCK.sources("PyNODE").resolve() == julia_folder().resolve()  # type: ignore[union-attr]
    for name, entry in LOCK.packages.items():
        assert set(entry.get("deps", ())) <= LOCK.packages.keys(), name
        assert "repo-url" not in entry, name
        assert re.fullmatch(r"[0-9a-f]{40}|", entry.get("git-tree-sha1", "")), name
    without = {name for name, entry in LOCK.packages.items() if "git-tree-sha1" not in entry}
    assert {"LinearAlgebra", "OpenBLAS_jll"} < without
    assert not without & (LOCK.direct.keys() - {"PyNODE"})


@pytest.mark.julia
def test_julia_takes_the_manifest_as_that_of_the_project() -> None:
    code = "using Pkg; print(Pkg.is_manifest_current(), ' ', length(Pkg.Types.EnvCache().manifest))"
    project = f"--project={julia_folder() / 'lock'}"
    command = [os.environ["PYTHON_JULIACALL_EXE"], "--startup-file=no", project, "-e", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == f"true {len(LOCK.packages)}"


# -- installation --------------------------------------------------------------------------------------------


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The Julia code that an installation runs, in a place of its own, where Julia need not be."""
    for name in ("PYTHON_JULIACALL_EXE", "PYTHON_JULIACALL_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    prefix = tmp_path / "julia_env" / "pyjuliapkg"
    places = {"prefix": prefix, "deps": prefix / "juliapkg.json", "meta": prefix / "meta.json"}
    for name, place in {"project": prefix.parent, "install": prefix / "install", **places}.items():
        monkeypatch.setitem(STATE, name, str(place))
    for name in ("offline", "project_is_shared", "resolved"):
        monkeypatch.setitem(STATE, name, False)
    ran: list[str] = []

    def run_script(script: list[str], executable: str, project: str) -> None:
        assert executable == "the julia"
        assert environment.read(Path(project)).sources("PyNODE") == julia_folder()
        ran.extend(script)

    def find_julia(compat: Compat, prefix: str, install: bool) -> tuple[str, Version]:
        assert (prefix, install, str(compat)) == (STATE["install"], True, f"={LOCK.julia}")
        return "the julia", JULIA

    def resolve(force: bool) -> None:
        assert STATE["offline"]
        Path(STATE["meta"]).write_text(json.dumps({"offline": True, "executable": "the julia"}))

    monkeypatch.setattr("juliapkg.deps.run_script", run_script)
    monkeypatch.setattr("juliapkg.find_julia.find_julia", find_julia)
    monkeypatch.setattr(juliapkg, "resolve", resolve)
    # Tests run with whichever juliacall is there.
    monkeypatch.setattr(lock, "version", lambda _: LOCK.versions["PythonCall"])
    monkeypatch.setattr("pynode.engine.julia.runtime.importlib.metadata.version", lock.version)
    return ran


def test_locked_versions_are_what_julia_instantiates(scripts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["julia", "install", "--locked"]) == 0
    assert [line for line in scripts if line != "using Pkg"] == ["Pkg.instantiate()", "Pkg.precompile()"]
    made = environment.read(Path(STATE["project"]))
    assert made.sources("PyNODE") == julia_folder()
    assert made.versions == LOCK.versions
    for name, entry in LOCK.packages.items():
        assert made.packages[name] == entry | ({"path": julia_folder().as_posix()} if name == "PyNODE" else {})
    wanted = json.loads(Path(STATE["deps"]).read_text())
    assert wanted["julia"] == f"={LOCK.julia}"
    assert wanted["packages"]["Zygote"]["version"] == f"={LOCK.versions['Zygote']}"
    assert "PythonCall" not in wanted["packages"]
    assert json.loads(Path(STATE["meta"]).read_text()) == {"offline": False, "executable": "the julia"}
    assert STATE["offline"] is False
    printed = capsys.readouterr().out
    steps = [f"1/4 Julia {LOCK.julia}", f"2/4 {len(LOCK.packages)} packages", "3/4 compiling", "4/4 the environment"]
    places = [printed.index(step) for step in (f"Julia {LOCK.julia} and these packages", *steps)]
    assert places == sorted(places)


def test_a_failed_installation_leaves_what_was_there(
    scripts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise subprocess.CalledProcessError(1, "julia")

    monkeypatch.setattr("juliapkg.deps.run_script", fails)
    project = Path(STATE["project"])
    project.mkdir()
    (project / "Manifest.toml").write_text("before")
    assert main(["julia", "install", "--locked"]) == 1
    error = capsys.readouterr().err
    assert "Julia could not be installed: Julia's package manager failed (exit code 1)" in error
    assert "Check the connection" in error
    assert error.count("\n") == 1
    assert [p.name for p in project.iterdir()] == ["Manifest.toml"]
    assert (project / "Manifest.toml").read_text() == "before"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.setattr(lock, "version", lambda _: "0.0.1"), "juliacall 0.0.1 is installed. Run `pip install"),
        (lambda m: m.setitem(STATE, "project_is_shared", True), "PYTHON_JULIAPKG_PROJECT names the environment"),
        (
            lambda m: m.setattr("juliapkg.find_julia.find_julia", lambda **_: ("other", Version.parse("1.11.2"))),
            "PYTHON_JULIAPKG_EXE names Julia 1.11.2",
        ),
        (lambda m: m.setitem(STATE, "offline", True), "unset PYTHON_JULIAPKG_OFFLINE"),
    ],
    ids=["juliacall", "shared", "julia", "offline"],
)
def test_what_cannot_be_locked_is_refused(
    scripts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: Any, message: str
) -> None:
    change(monkeypatch)
    assert main(["julia", "install", "--locked"]) == 1
    assert message in capsys.readouterr().err
    assert scripts == []
    assert not (Path(STATE["project"]) / "Manifest.toml").exists()


def test_the_lock_has_no_cuda(scripts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["julia", "install", "--locked", "--cuda"]) == 2
    assert "leave out cuda or locked" in capsys.readouterr().err


def test_without_a_connection_it_is_one_line(
    scripts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def offline(**_: Any) -> None:
        raise OSError("could not resolve host")

    monkeypatch.setattr(juliapkg, "resolve", offline)
    assert main(["julia", "install"]) == 1
    error = capsys.readouterr().err
    assert "Julia could not be installed: could not resolve host" in error
    assert "Check the connection" in error
    assert error.count("\n") == 1


def test_an_installation_that_does_not_serve_is_an_error(
    scripts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(juliapkg, "resolve", lambda **_: None)
    assert main(["julia", "install"]) == 1
    assert "Julia was installed, but does not serve: no Julia with the package PyNODE" in capsys.readouterr().err


def test_juliapkg_has_the_functions_that_are_used() -> None:
    import inspect

    from juliapkg.deps import run_script
    from juliapkg.find_julia import find_julia

    assert {"compat", "prefix", "install"} <= inspect.signature(find_julia).parameters.keys()
    assert {"script", "executable", "project"} <= inspect.signature(run_script).parameters.keys()
