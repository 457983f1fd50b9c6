"""The engines whose second derivatives are complete."""

import pytest


@pytest.fixture
def engine() -> str:
    """The torch engine."""
    return "torch"
