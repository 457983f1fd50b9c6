"""What the tests of the trace share."""

from __future__ import annotations

from typing import Any

import pytest

from pynode.field import _capture


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each recording that a test causes."""
    found: list[int] = []
    capture = _capture.capture

    def counted(*args: Any) -> Any:
        found.append(1)
        return capture(*args)

    monkeypatch.setattr(_capture, "capture", counted)
    return found
