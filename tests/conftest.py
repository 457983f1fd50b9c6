"""What all tests share: one thread, the local environment, the engines, and what is left out."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from dotenv import load_dotenv

# Small tensors: a second thread costs more than it gives, and there is a process of tests for each core. Before torch
# is imported, which reads it once, and for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import torch

torch.set_num_threads(1)

# The first of these that exists says where Julia is; what is set in the environment already stays.
_ENV_FILES = (
    Path(os.environ.get("PYNODE_ENV_FILE", "")),
    Path(__file__).resolve().parent.parent / ".env",
    Path.home() / ".config" / "pynode" / "env",
)
for _file in _ENV_FILES:
    if _file.is_file():  # before anything imports juliacall, which reads the environment when it is imported
        load_dotenv(_file)
        break

ENGINES = ("torch", pytest.param("julia", marks=pytest.mark.julia))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("julia")]
    if not marked:
        return
    from pynode import engines

    julia = engines()["julia"]
    for item in marked:
        if not julia.ok:
            item.add_marker(pytest.mark.skip(reason=f"{julia.why}. {julia.fix}"))
        elif not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(1800))  # the first in each process waits for Julia's precompilation


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What did not run, and why: a line for each reason, not for each place."""
    skipped = Counter(report.longrepr[2] for report in terminalreporter.stats.get("skipped", []))
    slow = config.option.markexpr == "not slow and not exhaustive"
    if skipped or slow:
        terminalreporter.section("not run")
    for reason, count in skipped.most_common():
        terminalreporter.line(f"{count} skipped: {reason.removeprefix('Skipped: ')}")
    if slow:
        terminalreporter.line(
            "Tests marked slow or exhaustive are left out: `pytest -m slow` runs the former, "
            '`pytest -m ""` all (with Julia hours).'
        )


@pytest.fixture(autouse=True)
def _seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test draws the same numbers, whichever ran before it, and chooses its engine itself."""
    torch.manual_seed(0)
    monkeypatch.delenv("PYNODE_ENGINE", raising=False)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt; whatever started the tests may have SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """The name of each engine in turn."""
    return str(request.param)
