"""What README shows works as it is shown."""

import re
import shlex
from pathlib import Path

import pytest

from pynode.cli.main import _parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def test_the_example_runs_and_learns(capsys):
    (code,) = blocks("python")
    assert len(code.strip().splitlines()) <= 16
    scope = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert scope["loss"].item() < 0.1
    assert re.search(r"loss 0\.\d+, field evaluations \d+ forward, \d+ backward", capsys.readouterr().out)


def test_the_two_commands_name_what_exists():
    commands = [block.strip() for block in blocks("sh") if "pip install" in block]
    assert commands == [
        'python -m venv .venv && .venv/bin/pip install -c constraints.txt -e ".[plot]" && .venv/bin/pynode demo',
        'python -m venv .venv && .venv/bin/pip install -c constraints.txt -e ".[test]" && .venv/bin/pytest',
    ]
    ci = (ROOT / ".ci" / "run").read_text()
    assert "install --quiet --no-compile -c constraints.txt -e" in ci
    assert '".[test,docs]"' in ci
    assert "pytest" in ci


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`pynode ([a-z][^`]*)`", README))))
def test_every_command_that_is_named_is_accepted(command):
    assert callable(_parser().parse_args(shlex.split(command)).run)


def test_links_lead_somewhere():
    targets = [t for t in re.findall(r"\]\(([^)]+)\)", README) if not t.startswith("http")]
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target
