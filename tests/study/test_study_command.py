import re
from pathlib import Path

import pytest

from pynode import cli
from pynode.study import Result

HERE = Path(__file__).parent
TOML = """
name = "of a file"
measures = ["state"]
budget = 0.01
problems = ["made.py:made"]
contenders = [{ package = "decay_adapter:Exact", behave = ["ok", "raise"] }]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "study.toml").write_text(TOML)
    (tmp_path / "made.py").write_text(
        "import decay_adapter\nmade = decay_adapter.problem(settings=(decay_adapter.Setting(1e-3),))\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_study_of_a_file(folder, capsys):
    assert cli.main(["study", "run", "study.toml", "--passes", "2"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"Exact ok +rtol 1e-03 +1.0e-03", printed)
    assert "Exact raise, rtol 1e-03: failed: RuntimeError: no good" in printed
    assert "The rows are in out/studies.db, as the study 'of a file'" in printed
    first = Result.load("out/studies.db")
    assert len(first) == 4
    assert cli.main(["study", "run", "study.toml", "--passes", "2"]) == 0
    assert Result.load("out/studies.db").rows == first.rows


@pytest.mark.slow
def test_problems_by_name_and_contenders_by_package(folder, capsys):
    command = ["study", "run", "made.py:made", "--quick", "--package", "pynode", "--engine", "torch"]
    assert cli.main([*command, "--store", "s.db", "--time-limit", "100"]) == 0
    assert "pynode torch dopri8  rtol 1e-03" in capsys.readouterr().out
    result = Result.load("s.db", "made quick")
    assert {row["contender"] for row in result} == {"pynode torch dopri5", "pynode torch dopri8"}
    assert all(row["status"] == "ok" and row["error_end"] < 0.05 and row["peak_mb"] is None for row in result)
    assert all(row["gradient_status"] == "ok" and row["gradient_error"] < 0.05 for row in result)


@pytest.mark.parametrize(
    ("command", "says", "code"),
    [
        (["run", "nowhere.toml"], "there is no file nowhere.toml", 2),
        (["run", "made.py:unmade"], "has no 'unmade' for the problem", 2),
        (["run", "study.toml", "study.toml"], "one file is a study of its own", 2),
        (["run", "study.toml", "--package", "scipy"], "no contender of decay is left: it has decay_adapter:Exact", 2),
        (["run", "study.toml", "--workers", "0"], "workers must be a positive int", 2),
        (["run", "study.toml", "--passes", "0"], "passes must be a positive int, got 0", 2),
        (["run", "study.toml", "--threads", "0"], "threads must be a positive int, got 0", 2),
        (["run", "study.toml", "--time-limit", "0"], "time_limit must be positive and finite, got 0.0", 2),
        (["run", "study.toml", "--name", ""], "a study needs a name", 2),
        (["run", "study.toml", "--store", "study.toml"], "is no store of studies", 1),
    ],
)
def test_what_is_wrong_is_said(folder, capsys, command, says, code):
    assert cli.main(["study", *command]) == code
    assert says in capsys.readouterr().err


def test_nothing_that_went_well_is_an_error(folder):
    (folder / "study.toml").write_text(TOML.replace('["ok", "raise"]', '"raise"'))
    assert cli.main(["study", "run", "study.toml"]) == 1


def test_the_packages_with_their_options(capsys):
    assert cli.main(["study", "contenders"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("torchdiffeq 0.") for line in lines)
    assert "    batching: 'joint', 'independent' (default: 'joint')" in lines
