"""What all tests share: the local environment, and the engines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# The first of these that exists says where Julia is; what is set in the environment already stays.
_ENV_FILES = (
    Path(os.environ.get("PYNODE_ENV_FILE", "")),
    Path(__file__).resolve().parent.parent / ".env",
    Path.home() / ".config" / "pynode" / "env",
)
for _file in _ENV_FILES:
    if _file.is_file():  # before anything imports juliacall, which reads the environment when it is imported
        for line in _file.read_text().splitlines():
            key, separator, value = line.partition("=")
            if separator and not key.lstrip().startswith("#"):
                os.environ.setdefault(key.strip(), value.strip().strip("\"'"))
        break

ENGINES = ("torch", pytest.param("julia", marks=pytest.mark.julia))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("julia")]
    if not marked:
        return
    from pynode import engines

    julia = engines()["julia"]
    if not julia.ok:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"{julia.why}. {julia.fix}"))


@pytest.fixture(autouse=True)
def _seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test draws the same numbers, whichever ran before it, and chooses its engine itself."""
    torch.manual_seed(0)
    monkeypatch.delenv("PYNODE_ENGINE", raising=False)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """The name of each engine in turn."""
    return str(request.param)
