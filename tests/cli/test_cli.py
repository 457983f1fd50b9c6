import json
import re

import pytest
import torch

import pynode
from pynode import cli, plot
from pynode.cli import demo, doctor, threads
from pynode.engine import Availability
from pynode.engine.julia import environment as julia_environment
from pynode.engine.julia import runtime as julia_runtime
from pynode.errors import EngineUnavailable, InputError
from pynode.text import table

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.slow
def test_demo_learns_the_digits(tmp_path, capsys, engine):
    """As a user runs it, with the default number of epochs."""
    assert cli.main(["demo", "--engine", engine, "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    node, resnet = results["runs"]
    assert (node["model"], resnet["model"]) == ("NODE", "ResNet")
    assert node["parameters"] == resnet["parameters"] == 65 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10
    assert node["test_accuracy"][-1] >= 0.95
    assert resnet["test_accuracy"][-1] >= 0.95
    assert node["loss"][-1] < 0.1 < 1.0 < node["loss"][0]
    assert len(node["loss"]) == results["epochs"] == 30
    assert resnet["nfe_forward"] == resnet["nfe_backward"] == [10.0] * 30
    assert all(n > 10 for n in node["nfe_forward"])
    assert all(n > 0 for n in node["nfe_backward"])
    assert all(run["first_gradient"] > 0 and run["seconds"] > 0 for run in (node, resnet))
    for figure in ("training.png", "flow.png"):
        assert (tmp_path / figure).read_bytes().startswith(PNG)
        assert (tmp_path / figure).stat().st_size > 20_000
    printed = capsys.readouterr().out
    for column in ("parameters", "test accuracy", "NFE forward", "NFE backward", "first gradient", "training"):
        assert column in printed
    assert f"{100 * node['test_accuracy'][-1]:.2f} %" in printed


def test_demo_without_matplotlib_says_how_to_get_figures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plot, "available", lambda: False)
    assert cli.main(["demo", "--engine", "torch", "--epochs", "1", "--out", str(tmp_path / "deep" / "out")]) == 0
    printed = capsys.readouterr().out
    assert 'No figures: matplotlib is not installed. To get them: pip install "pynode-sciml[plot]"' in printed
    assert [p.name for p in (tmp_path / "deep" / "out").iterdir()] == ["results.json"]


@pytest.mark.slow
def test_demo_repeats_itself_for_a_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(plot, "available", lambda: False)

    def losses(seed):
        return [run.loss for run in demo.run("torch", 1, tmp_path, seed)]

    first = losses(3)
    assert losses(3) == first
    assert losses(4) != first


def test_a_missing_engine_is_one_line_and_exit_code_1(monkeypatch, capsys):
    def unavailable(*_):
        raise EngineUnavailable("the julia engine is not available: no Julia. Run: pynode julia install")

    monkeypatch.setattr(demo, "run", unavailable)
    assert cli.main(["demo", "--engine", "julia"]) == 1
    captured = capsys.readouterr()
    assert captured.err == ("pynode: error: the julia engine is not available: no Julia. Run: pynode julia install\n")
    assert captured.out == ""


def test_bad_input_is_exit_code_2(monkeypatch, capsys):
    def wrong(*_):
        raise InputError("unknown engine 'jula'")

    monkeypatch.setattr(demo, "run", wrong)
    assert cli.main(["demo"]) == 2
    assert capsys.readouterr().err == "pynode: error: unknown engine 'jula'\n"


def test_an_unwritable_folder_is_exit_code_1(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["demo", "--engine", "torch", "--out", str(tmp_path / "file" / "out")]) == 1
    assert "pynode: error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["demonstrate"], "invalid choice: 'demonstrate'"),
        (["demo", "--epochs", "0"], "--epochs: must be at least 1, got 0"),
        (["demo", "--engine", "jax"], "invalid choice: 'jax'"),
        (["julia"], "the following arguments are required: ACTION"),
    ],
)
def test_wrong_use_is_exit_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_solvers_lists_every_solver(capsys):
    assert cli.main(["solvers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == [s.name for s in pynode.solvers()]
    (tsit5,) = (line for line in lines if line.startswith("tsit5 "))
    assert tsit5.split()[:7] == ["tsit5", "5", "adaptive", "no", "julia", "Tsit5", "-"]
    assert all(len(s.purpose) > 10 for s in pynode.solvers())


# -- doctor --------------------------------------------------------------------------------------------------


def test_doctor_tells_versions_and_engines(capsys):
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    words = dict(line.split(maxsplit=1) for line in printed.splitlines() if len(line.split(maxsplit=1)) == 2)
    assert "\n  torch                     ok\n" in printed
    assert words["torch"] == "1 thread"  # the last line of that name
    assert f"{pynode.__version__} (" in words["pynode"]
    assert words["torchdiffeq"][0].isdigit()
    assert "julia" in words


def test_doctor_names_the_remedy_and_fails_where_nothing_works(capsys, monkeypatch):
    state = Availability(False, "no Julia was found", "pynode julia install")
    monkeypatch.setattr(doctor, "engines", lambda: {"julia": state})
    assert cli.main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "not available: no Julia was found" in printed
    assert re.search(r"julia, remedy +pynode julia install", printed)


def test_doctor_measures_threads(monkeypatch):
    """What is told are the times of torch's present number of threads and of one, and the number stays."""
    assert threads.advice() == "1 thread"
    monkeypatch.setattr(threads, "_BUDGET", 0.01)
    torch.set_num_threads(2)
    try:
        told = threads.advice()
        assert torch.get_num_threads() == 2
        many, one = map(float, re.findall(r"(\d+\.\d) ms", told))
        assert many > 0 < one
        for slow, fast, advised in ((0.936, 0.037, True), (0.02, 0.037, False)):
            monkeypatch.setattr(threads, "seconds", lambda n, slow=slow, fast=fast: {2: slow, 1: fast}[n])
            told = threads.advice()
            assert f"2 threads: a small training step takes {slow * 1e3:.1f} ms, on one thread 37.0 ms" in told
            assert ("OMP_NUM_THREADS=1" in told) == advised
    finally:
        torch.set_num_threads(1)


@pytest.mark.slow
def test_doctor_times_the_first_gradient(capsys):
    assert cli.main(["doctor", "--time"]) == 0
    section = capsys.readouterr().out.split("From import to first gradient\n")[1]
    seconds = dict(line.split(maxsplit=1) for line in section.splitlines())["torch"]
    total, imported, torch_alone = map(float, re.findall(r"(\d+\.\d\d) s", seconds))
    assert 0 < imported < total < 120
    assert 0 < torch_alone < 120


def test_doctor_reports_as_json(capsys, monkeypatch):
    monkeypatch.setenv("PYNODE_ENGINE", "torch")
    state = Availability(False, "no Julia was found", "Run `pynode julia install`")
    monkeypatch.setattr(doctor, "engines", lambda: {"julia": state, "torch": Availability(True)})
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["Python", "Engines", "Julia", "Threads", "Environment"]
    assert found["Python"]["torch"] == torch.__version__
    assert found["Python"]["pynode"].startswith(pynode.__version__)
    assert found["Engines"] == {
        "julia": "not available: no Julia was found",
        "julia, remedy": "Run `pynode julia install`",
        "torch": "ok",
    }
    assert found["Environment"]["PYNODE_ENGINE"] == "torch"


# -- julia install -------------------------------------------------------------------------------------------


def test_julia_install_dry_run_prints_the_plan(capsys, monkeypatch):
    monkeypatch.delenv("PYTHON_JULIACALL_EXE", raising=False)
    monkeypatch.delenv("PYTHON_JULIACALL_PROJECT", raising=False)
    monkeypatch.setattr("juliapkg.resolve", lambda **_: pytest.fail("a dry run installs nothing"))
    assert cli.main(["julia", "install", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert f"PyNODE ({julia_runtime.julia_folder()})" in printed
    assert "SciMLSensitivity (7" in printed
    assert "CUDA" not in printed
    for told in ("julialang.org", "less than 1 GB", str(julia_environment.juliapkg_project()), "To remove it"):
        assert told in printed
    assert cli.main(["julia", "install", "--dry-run", "--cuda"]) == 0
    assert "CUDA (5.4, 6)" in capsys.readouterr().out


def test_julia_install_leaves_a_julia_of_ones_own_alone(capsys, monkeypatch):
    monkeypatch.setenv("PYTHON_JULIACALL_EXE", "julia")
    monkeypatch.setenv("PYTHON_JULIACALL_PROJECT", "somewhere")
    assert cli.main(["julia", "install"]) == 1
    assert "name a Julia of your own" in capsys.readouterr().err


def test_table_aligns_words_left_and_numbers_right():
    assert table(("name", "n"), [("a", 1), ("bcd", 123)]).splitlines() == [
        "name      n",
        "------  ---",
        "a         1",
        "bcd     123",
    ]


def test_table_shows_numbers_as_they_are_written():
    rows = [("a", "1.0e-03", "-", "x"), ("  b", "2", "1,234", "")]
    assert table(("name", "error", "bytes", "for"), rows).splitlines()[2:] == [
        "a       1.0e-03        -  x",
        "  b           2    1,234",
    ]
