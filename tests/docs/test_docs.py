"""What the site shows works as it is shown: every block of a page runs, in order and in one namespace."""

import contextlib
import importlib
import io
import re
import runpy
import shlex
import subprocess
import sys

import pytest
from pages import DOCS, PAGES, ROOT, blocks

import pynode
from pynode.cli.main import _parser
from pynode.study import adapters
from pynode.study.description import arguments

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SLOW = {"guides/threads.md", "guides/time_series.md", "guides/choosing.md", "guides/physics.md", "guides/flows.md"}
WITH_CODE = [page for page in PAGES if blocks(page)]
NEED_JULIA = [page for page in WITH_CODE if any("julia" in block.classes for block in blocks(page))]


def slow(pages):
    return [pytest.param(page, marks=pytest.mark.slow) if page in SLOW else page for page in pages]


@pytest.mark.parametrize("page", slow(WITH_CODE))
def test_every_block_runs(page, tmp_path, monkeypatch):
    run(page, with_julia=False, folder=tmp_path, monkeypatch=monkeypatch)


@pytest.mark.julia
@pytest.mark.slow
@pytest.mark.parametrize("page", NEED_JULIA)
def test_every_block_runs_with_julia(page, tmp_path, monkeypatch):
    run(page, with_julia=True, folder=tmp_path, monkeypatch=monkeypatch)


def run(page, with_julia, folder, monkeypatch):
    """Run the blocks of a page on the torch engine, but for those that name another, and compare what they print."""
    monkeypatch.setenv("PYNODE_ENGINE", "torch")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for programs
    monkeypatch.chdir(folder)
    namespace = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language == "sh":
            check_commands(block.code)
        elif block.language == "toml":
            for contender in arguments({"name": "shown", **tomllib.loads(block.code)})["contenders"]:
                adapters.check(contender.package, contender.options)
        else:
            assert block.language == "python", f"{page}:{block.line}: nothing tests a block of {block.language}"
            if with_julia or "julia" not in block.classes:
                run_python(page, block, folder, namespace)


def run_python(page, block, folder, namespace):
    printed = program(block, folder) if "title" in block.options else executed(page, block, namespace)
    assert block.shown is None or matches(block.shown, printed), f"{page}:{block.line} printed\n{printed}"


def executed(page, block, namespace):
    """What a block prints in this process, or the error that it is to end with."""
    code = "\n" * block.line + block.code  # so that the lines of a traceback are those of the page
    printed, expected = io.StringIO(), block.options.get("data-raises")
    with contextlib.redirect_stdout(printed):
        try:
            exec(compile(code, str(DOCS / page), "exec"), namespace)
        except Exception as error:
            if type(error).__name__ != expected:
                raise
            return f"{expected}: {error}"
    assert expected is None, f"{page}:{block.line} raises no {expected}"
    return printed.getvalue()


def program(block, folder):
    """What a block prints that is a file of its own."""
    (folder / block.options["title"]).write_text(block.code)
    command = [sys.executable, block.options["title"]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def matches(shown, printed):
    """Whether it is what was printed, however the lines are broken; `…` stands for anything."""
    parts = [re.escape(" ".join(part.split())) for part in shown.split("…")]
    return re.fullmatch(r"\s?.*?\s?".join(parts), " ".join(printed.split())) is not None


def check_commands(code):
    for line in code.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["pynode"]:
            assert callable(_parser().parse_args(words[1:]).run), line


def test_output_is_compared():
    assert matches("loss 0.1…, done", "loss 0.123,\n   done\n")
    assert not matches("loss 0.1…, done", "loss 0.2, done")
    assert not matches("a", "a b")


PACKAGES = ("", "compat", "control", "data", "field", "fit", "models", "nn", "plot", "study", "engine")


def public_names():
    for package in PACKAGES:
        module = importlib.import_module(f"pynode.{package}".rstrip("."))
        for name in module.__all__:
            yield f"{module.__name__}.{name}", getattr(module, name)


def test_the_reference_has_every_public_name():
    shown = re.findall(r"^::: (\S+)$", "".join(p.read_text() for p in (DOCS / "reference").glob("*.md")), re.MULTILINE)
    assert len(shown) == len(set(shown))
    objects = {}
    for path in shown:
        module, _, name = path.rpartition(".")
        objects[path] = getattr(importlib.import_module(module), name)
    by_name = {(path.rpartition(".")[2], id(x)) for path, x in objects.items()}
    for path, x in public_names():
        name = path.rpartition(".")[2]
        is_module = path.count(".") == 1 and sys.modules.get(path) is x
        assert is_module or name == "__version__" or (name, id(x)) in by_name, f"{path} is missing"
    public = {(path.rpartition(".")[2], id(x)) for path, x in public_names()}
    assert by_name <= public


def test_the_table_of_solvers_has_all():
    table = runpy.run_path(str(DOCS / "hooks.py"))["solvers_table"]()
    for solver in pynode.solvers():
        assert f"| `{solver.name}` " in table
    assert "<!-- solvers -->" in (DOCS / "solvers.md").read_text()


@pytest.mark.slow
def test_every_figure_is_made_by_the_script_and_shows_something():
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install -e '.[plot]'")
    made = runpy.run_path(str(DOCS / "figures" / "make.py"))["figures"](points=3)
    by_hand = {"how.svg"}
    assert set(made) | by_hand == {path.name for path in (DOCS / "figures").glob("*.svg")}
    shown = "".join((DOCS / page).read_text() for page in PAGES)
    for name, figure in made.items():
        assert f"figures/{name})" in shown
        for axis in figure.axes:
            assert axis.get_xlabel()
            assert axis.get_ylabel()
            assert axis.lines
            assert all(len(line.get_xdata()) >= 3 for line in axis.lines)
