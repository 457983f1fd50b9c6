"""`pynode trace`: fields in files, and what is said of them and of what is no field."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pynode import cli

FILE = """
import torch
from torch import nn
from beside import WIDTH

class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 2))

    def forward(self, t, z):
        return self.net(z)

class Wide(nn.Module):
    def __init__(self, width):
        super().__init__()

field = Field()
number = 3

def image(t, z):
    return torch.tanh(z)

def driven(t, z, a):
    return z * a

def pair(t, z):
    return z[1], -z[0]

def three(t, z):
    return z * torch.ones(3, 1)

def branch(t, z):
    return z if z.sum() > 0 else -z
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file with fields, and one beside it that it imports."""
    (tmp_path / "beside.py").write_text("WIDTH = 3\n")
    (tmp_path / "model.py").write_text(FILE)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.delitem(sys.modules, "beside", raising=False)
    return str(tmp_path / "model.py")


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["trace", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", ["Field", "field"])
def test_a_class_and_an_instance(name: str, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The numbers of batch size 5: see `test_explain.test_network`."""
    text = printed(capsys, f"{file}:{name}", "--state", "2", "--batch", "5", "--dtype", "float64")
    lines = text.splitlines()
    assert lines[:2] == ["batch size: any, by one graph", "costs at batch size 5, float64"]
    assert lines[3] == "dz/dt: 2 mm, 2 add, 1 tanh"
    assert [line.split() for line in lines[4:9] if "--" not in line] == [
        ["step", "times", "flops", "bytes"],
        ["mm,", "add", "2", "145", "536"],
        ["tanh", "1", "15", "240"],
        ["total", "3", "160", "776"],
    ]


def test_functions(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, f"{file}:image", "--state", "3,8,8")
    assert "costs at batch size 32, float32" in text
    assert ["tanh", "1", f"{32 * 192:,}", f"{2 * 4 * 32 * 192:,}"] in [line.split() for line in text.splitlines()]
    rows = printed(capsys, f"{file}:driven", "--state", "2", "--args", "2").splitlines()
    assert rows[6].split() == ["mul", "1", "64", "768"]
    assert "neg" in printed(capsys, f"{file}:pair", "--state", "2", "--state", "2")


def test_what_binds_the_batch(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, f"{file}:three", "--state", "2", "--batch", "3")
    assert text.startswith(f"batch size: this one only: an operation fails at {file}:")
    assert "`return z * torch.ones(3, 1)`" in text


@pytest.mark.parametrize(
    ("name", "options", "code", "message"),
    [
        (
            "Wide",
            (),
            2,
            "a class whose constructor needs arguments (missing a required argument: 'width'): make an inst",
        ),
        ("Fild", (), 2, "has no 'Fild': it has Field, Wide, field, image, driven, pair, three, branch"),
        ("number", (), 2, "is a int: a field is a module, or a function f(t, z, *args)"),
        ("Field", ("--state", "2"), 2, "does not take a state of shape (32, 2), (32, 2) in float32"),
        ("driven", (), 1, "f(t, z) of the time, the state and the tensors of args"),
        ("branch", (), 1, "depends on the values of its tensors at"),
    ],
)
def test_errors(
    name: str, options: tuple[str, ...], code: int, message: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["trace", f"{file}:{name}", "--state", "2", *options]) == code
    assert message in capsys.readouterr().err


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.py").write_text("import no_such_package\n")
    for target, message in {
        "model": "expected FILE.py:NAME, e.g. model.py:Field, got 'model'",
        "model.py": "expected FILE.py:NAME",
        "none.py:Field": "there is no file none.py",
        f"{tmp_path / 'bad.py'}:Field": "cannot be run: ModuleNotFoundError: No module named 'no_such_package'",
    }.items():
        assert cli.main(["trace", target, "--state", "2"]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["trace", "model.py:Field", "--state", "2;3"])
    assert "sizes with commas between them" in capsys.readouterr().err


@pytest.mark.slow
def test_no_julia_is_needed(file: str) -> None:
    code = (
        f"import sys; from pynode import cli; assert cli.main(['trace', {file!r} + ':field', '--state', '2']) == 0; "
        "assert 'juliacall' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
