"""What the files of a Julia environment say."""

from __future__ import annotations

from pathlib import Path

import pytest

from pynode.engine.julia import environment
from pynode.engine.julia import runtime as julia_runtime

MANIFEST = """
julia_version = "1.10.4"
manifest_format = "2.0"

[[deps.Adapt]]
deps = ["Requires"]
version = "4.1.0"

    [deps.Adapt.extensions]
    AdaptStaticArraysExt = "StaticArrays"

[[deps.Dates]]
uuid = "x"

[[deps.PyNODE]]
path = "../julia"
version = "0.1.0"
"""


def test_packages_and_versions(tmp_path: Path) -> None:
    (tmp_path / "Manifest.toml").write_text(MANIFEST)
    (tmp_path / "Project.toml").write_text('[deps]\nAdapt = "79e6"\n')
    found = environment.read(tmp_path)
    assert found.julia == "1.10.4"
    assert found.direct == {"Adapt": "79e6"}
    assert found.versions == {"Adapt": "4.1.0", "Dates": "without a version", "PyNODE": "0.1.0"}
    assert found.sources("PyNODE") == tmp_path / "../julia"
    assert found.sources("Adapt") is None
    assert found.sources("Zygote") is None


def test_julias_own_names_of_files_come_first(tmp_path: Path) -> None:
    (tmp_path / "Manifest.toml").write_text(MANIFEST)
    (tmp_path / "JuliaManifest.toml").write_text(MANIFEST.replace("4.1.0", "4.2.0"))
    assert environment.read(tmp_path).versions["Adapt"] == "4.2.0"


def test_a_folder_without_an_environment(tmp_path: Path) -> None:
    found = environment.read(tmp_path)
    assert (found.julia, found.direct, found.packages, found.broken) == ("", {}, {}, "")


def test_a_broken_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Manifest.toml").write_text("[[deps.Adapt]\n")
    assert environment.read(tmp_path).broken.startswith(f"{tmp_path / 'Manifest.toml'} is no TOML file: ")
    for name in ("PYTHON_JULIACALL_EXE", "PYTHON_JULIACALL_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(julia_runtime, "juliapkg_project", lambda: tmp_path)
    state = julia_runtime.available()
    assert not state.ok
    (tmp_path / "pyjuliapkg").mkdir()
    (tmp_path / "pyjuliapkg" / "meta.json").write_text("{}")
    assert "is no TOML file" in julia_runtime.available().why
