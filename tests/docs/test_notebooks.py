"""The notebooks run, what they claim holds, and the outputs that the site shows are those of their code."""

import importlib.util
import re

import pytest
from pages import DOCS, NOTEBOOKS, ROOT

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install -e '.[test]'")


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def form(cell):
    """What a cell shows, without the numbers, which differ from machine to machine, and the widths of columns."""
    shown = []
    for output in cell.outputs:
        if output.output_type == "stream":
            words = re.sub(r"\s*[-+]?\d[\d.,e+-]*", " #", output.text).split()
            shown.append((output.name, [word for word in words if word.strip("-")]))  # no rules of tables
        else:
            shown.append(sorted(set(output.data) & {"image/png"}))
    return shown


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_and_shows_what_is_stored(name):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install -e '.[plot]'")
    path = DOCS / name
    stored = nbformat.read(path, as_version=4)
    executed = module(DOCS / "notebooks" / "make.py").executed(path)
    assert [form(cell) for cell in code(executed)] == [form(cell) for cell in code(stored)]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_stored_with_its_outputs_and_checks_what_it_claims(name):
    cells = code(nbformat.read(DOCS / name, as_version=4))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(re.search(r"^ *(assert |torch\.testing\.)", cell.source, re.MULTILINE) for cell in cells)
    for cell in cells:
        shown = [output for output in cell.outputs if output.output_type != "stream"]
        assert all("image/png" in output.get("data", {}) for output in shown), "show text by print()"
        assert all(output.get("name") != "stderr" for output in cell.outputs)
        pictures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        assert not pictures or len(cell.metadata["alt"]) > 20, "a picture needs words for those who do not see it"
        assert sum(len(output.data["image/png"]) for output in pictures) < 200_000
    assert f"{name.removesuffix('.ipynb')}.md" in (ROOT / "mkdocs.yml").read_text()


def test_the_page_of_a_notebook_has_all_of_it():
    path = DOCS / NOTEBOOKS[0]
    notebook = nbformat.read(path, as_version=4)
    page, pictures = module(DOCS / "hooks.py").notebook_page(path)
    for cell in notebook.cells:
        for line in cell.source.splitlines():
            assert line in page
        for output in cell.get("outputs", []):
            assert output.get("text", "").strip() in page
    assert len(pictures) == sum("image/png" in o.get("data", {}) for c in code(notebook) for o in c.outputs) > 0
    assert all(f"]({name})" in page and data.startswith(b"\x89PNG") for name, data in pictures.items())
