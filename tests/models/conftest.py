import pytest


@pytest.fixture(autouse=True)
def _engine_of_the_models(request, monkeypatch):
    """Models solve on the engine that the test asks for by the fixture `engine`, on torch where it asks for none."""
    name = request.getfixturevalue("engine") if "engine" in request.fixturenames else "torch"
    monkeypatch.setenv("PYNODE_ENGINE", name)
