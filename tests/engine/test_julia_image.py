"""System images: how one is made, when it is used, and that a stale one is not. Julia is a script here."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from pynode import cli
from pynode.engine.julia import runtime as julia_runtime
from pynode.engine.julia.compile import compile_image
from pynode.engine.julia.image import VARIABLE, image_of, record_of, stale, started_with, write_record
from pynode.errors import EngineUnavailable, InputError, PyNODEWarning

# Notes what it was called with, and does what COMPILES says.
JULIA = """#!{python}
import json, os, pathlib, sys
project, image, *packages = sys.argv[sys.argv.index("-e") + 2:]
files = [(pathlib.Path(project) / name).read_text() for name in ("Project.toml", "Manifest.toml")]
use = pathlib.Path(project) / "use.jl"
files.append(use.read_text() if use.exists() else "")
pathlib.Path({said!r}).write_text(json.dumps([sys.argv[1:], *files]))
how = os.environ["COMPILES"]
if how != "absent":
    pathlib.Path(image).write_bytes(b"half of it")
sys.exit({{"well": 0, "badly": 1, "absent": 86}}[how])
"""


@pytest.fixture
def julia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment with PyNODE's sources, and an executable; returns the environment's folder."""
    from importlib.metadata import version

    project, sources, exe = tmp_path / "project", tmp_path / "sources", tmp_path / "julia"
    (sources / "src").mkdir(parents=True)
    (sources / "src" / "PyNODE.jl").write_text("module PyNODE end")
    project.mkdir()
    entries = {"PyNODE": f'path = "../sources"\nuuid = "{julia_runtime.PYNODE_UUID}"\nversion = "0.1.0"'}
    entries["PythonCall"] = f'uuid = "6099a3de"\nversion = "{version("juliacall")}"'
    entries["SciMLSensitivity"] = 'uuid = "1ed8b502"\nversion = "7.106.0"'
    entries["FFTW"] = 'uuid = "7a1cc6ca"\nversion = "1.8.0"'
    (project / "Manifest.toml").write_text("".join(f"[[deps.{name}]]\n{text}\n\n" for name, text in entries.items()))
    (project / "Project.toml").write_text('[deps]\nFFTW = "7a1cc6ca"\nSciMLSensitivity = "1ed8b502"\n')
    exe.write_text(JULIA.format(python=sys.executable, said=str(tmp_path / "said")))
    exe.chmod(0o755)
    monkeypatch.setenv("PYTHON_JULIACALL_EXE", str(exe))
    monkeypatch.setenv("PYTHON_JULIACALL_PROJECT", str(project))
    monkeypatch.setenv("COMPILES", "well")
    monkeypatch.delenv(VARIABLE, raising=False)
    return project


def test_an_image_is_made_in_the_environment(julia: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["julia", "compile", "--with", "FFTW"]) == 0
    image = image_of(julia)
    assert image.read_bytes() == b"half of it"
    assert str(image) in capsys.readouterr().out
    said, project, manifest, use = json.loads((julia.parent / "said").read_text())
    assert said[0] == "--startup-file=no"
    assert project.split() == ["[deps]", "PyNODE", "=", f'"{julia_runtime.PYNODE_UUID}"', "FFTW", "=", '"7a1cc6ca"']
    assert f'path = "{(julia.parent / "sources").resolve().as_posix()}"' in manifest  # from any folder
    assert 'version = "1.8.0"' in manifest
    assert said[-2:] == ["PyNODE", "FFTW"]
    assert "create_sysimage(packages;" in said[said.index("-e") + 1]
    assert use == ""  # nothing that the packages' own images do not have
    assert sorted(path.name for path in julia.iterdir()) == [
        "Manifest.toml",
        "Project.toml",
        image.name,
        image.name + ".json",
    ]


def test_adjoints_are_compiled_where_their_package_is_in_the_image(julia: Path) -> None:
    compile_image(["FFTW", "SciMLSensitivity"])
    use = json.loads((julia.parent / "said").read_text())[-1]
    assert use.startswith("using PyNODE, FFTW, SciMLSensitivity\n")
    assert ":gauss" in use


def test_a_dry_run_makes_nothing(julia: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["julia", "compile", "--dry-run"]) == 0
    assert capsys.readouterr().out == f"{image_of(julia)}\n"
    assert not (julia.parent / "said").exists()


def test_what_fails_leaves_the_image_that_is_there(julia: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = image_of(julia)
    image.write_bytes(b"the last one")
    monkeypatch.setenv("COMPILES", "badly")
    with pytest.raises(EngineUnavailable, match="Julia ended with exit code 1"):
        compile_image()
    monkeypatch.setenv("COMPILES", "absent")
    with pytest.raises(EngineUnavailable, match=r"PackageCompiler, which is not there\. Run: .*Pkg\.add"):
        compile_image()
    assert image.read_bytes() == b"the last one"
    assert sorted(path.name for path in julia.iterdir()) == ["Manifest.toml", "Project.toml", image.name]


def test_what_cannot_be_in_an_image_is_refused(julia: Path) -> None:
    with pytest.raises(InputError, match="does not have the package Nothing"):
        compile_image(["Nothing"])
    with pytest.raises(InputError, match="PythonCall cannot be in an image"):
        compile_image(["PythonCall"])


def test_without_julia(monkeypatch: pytest.MonkeyPatch, julia: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PYTHON_JULIACALL_EXE", "/nowhere/julia")
    assert cli.main(["julia", "compile"]) == 1
    assert "there is no Julia to compile for" in capsys.readouterr().err


def change_julia(project: Path) -> None:
    exe = project.parent / "julia"
    exe.write_text(exe.read_text() + "\n")


def change_packages(project: Path) -> None:
    manifest = project / "Manifest.toml"
    manifest.write_text(manifest.read_text().replace("1.8.0", "1.9.0"))


def change_sources(project: Path) -> None:
    (project.parent / "sources" / "src" / "more.jl").write_text("f() = 1")


CHANGES = [(change_julia, "Julia has"), (change_packages, "the environment has"), (change_sources, "PyNODE has")]


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_a_stale_image_is_not_used(julia: Path, monkeypatch: pytest.MonkeyPatch, change, said: str) -> None:
    image = compile_image()
    with started_with():
        assert os.environ[VARIABLE] == str(image)  # which juliacall reads when Julia is started
    assert VARIABLE not in os.environ
    change(julia)
    warned = pytest.warns(PyNODEWarning, match=f"starts without the system image .*: {said} changed since it was made")
    with warned, started_with():
        assert VARIABLE not in os.environ
    assert julia_runtime.available().ok
    monkeypatch.setenv(VARIABLE, str(image))  # asked for by name: no silent substitute
    state = julia_runtime.available()
    assert not state.ok
    assert f"the system image {image} is stale: {said} changed" in state.why
    assert state.fix.startswith("Unset PYTHON_JULIACALL_SYSIMAGE; `pynode julia compile`")
    assert compile_image() == image  # also then
    assert julia_runtime.available().ok


def test_an_image_of_the_users_own(julia: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = julia.parent / "own.so"
    monkeypatch.setenv(VARIABLE, str(own))
    assert f"{str(own)!r}, and there is no such file" in julia_runtime.available().why
    own.write_bytes(b"")
    assert julia_runtime.available().ok
    compile_image()
    with started_with():
        assert os.environ[VARIABLE] == str(own)


def test_a_record_that_cannot_be_read(julia: Path) -> None:
    image = compile_image()
    record = record_of(os.environ["PYTHON_JULIACALL_EXE"], julia)
    assert stale(image, record) == ""
    image.with_name(image.name + ".json").write_text("{")
    assert stale(image, record) == "its record cannot be read"
    write_record(image, {**record, "julia": "another", "juliacall": "0.0.1"})
    assert stale(image, record) == "Julia and juliacall have changed since it was made"
