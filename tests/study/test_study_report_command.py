"""`pynode study report` and `pynode study diff` on stores."""

import importlib.util

import made_rows
import pytest

from pynode import cli
from pynode.errors import InputError, StudyError
from pynode.study import Result, Store, compare, report
from pynode.study.environment import identity
from pynode.study.row import COLUMNS

HAS_PAGES = all(importlib.util.find_spec(name) for name in ("jinja2", "plotly"))
needs_pages = pytest.mark.skipif(not HAS_PAGES, reason="the extra `study` is not installed")


def write(path, rows, name="made"):
    """A store with these rows."""
    with Store(path) as store:
        store.define(name, {"name": name}, made_rows.PROBLEMS, [row["key"] for row in rows])
        for row in rows:
            assert list(row)[: len(COLUMNS)] == list(COLUMNS)  # the rows are made as studies make them
            store.add(row | {"study": name, "environment": identity(made_rows.ENVIRONMENT)}, made_rows.ENVIRONMENT)
    return path


@pytest.fixture
def stores(tmp_path):
    before = made_rows.study_rows(1, 2, (1e-3,))
    after = made_rows.study_rows(2, 2, (1e-3,), lambda contender: 2.0 if contender == "scipy RK45" else 1.0)
    return write(tmp_path / "a.db", before), write(tmp_path / "b.db", after)


@needs_pages
def test_report_writes_beside_the_store(stores, capsys):
    assert cli.main(["study", "report", str(stores[0])]) == 0
    path = stores[0].with_suffix(".html")
    assert capsys.readouterr().out == f"{path}\n"
    text = path.read_text(encoding="utf-8")
    for words in ("Example CPU 9000", "Prey and predators", "Hairer &amp; Wanner 1996"):
        assert words in text


def test_report_writes_the_formats_asked(stores, tmp_path, capsys):
    assert cli.main(["study", "report", str(stores[0]), "--out", str(tmp_path / "out"), "--formats", "latex,csv"]) == 0
    assert [line.rpartition("/")[2] for line in capsys.readouterr().out.splitlines()] == [
        *("report-lotka_volterra.tex", "report-van_der_pol.tex", "report.csv")
    ]
    assert cli.main(["study", "report", str(stores[0]), "--formats", "html,pdf"]) == 2
    assert "unknown format of a report 'pdf'" in capsys.readouterr().err
    assert cli.main(["study", "report", str(tmp_path / "none.db")]) == 1
    assert "there is no store" in capsys.readouterr().err


def test_diff_tells_by_its_exit_code(stores, tmp_path, capsys):
    a, b = map(str, stores)
    assert cli.main(["study", "diff", a, b]) == 3
    printed = capsys.readouterr().out
    assert "Slower (2):" in printed
    assert "lotka_volterra, scipy RK45 (rtol 1e-3), state: " in printed
    assert cli.main(["study", "diff", b, a]) == 0  # faster is not worse
    assert "Faster (2):" in capsys.readouterr().out
    assert cli.main(["study", "diff", a, a]) == 0
    assert "No difference is shown." in capsys.readouterr().out
    assert cli.main(["study", "diff", a, b, "--least", "3"]) == 0
    assert cli.main(["study", "diff", a, b, "--least", "0.5"]) == 2
    assert cli.main(["study", "diff", a, str(tmp_path / "none.db")]) == 1


@needs_pages
def test_diff_writes_a_page(stores, tmp_path, capsys):
    out = tmp_path / "diff.html"
    assert cli.main(["study", "diff", *map(str, stores), "--out", str(out)]) == 3
    assert capsys.readouterr().out.endswith(f"\n{out}\n")
    assert "Slower (2)" in out.read_text(encoding="utf-8")


def test_one_of_several_studies_is_named(tmp_path):
    path = tmp_path / "two.db"
    for name, seed in (("one", 1), ("two", 2)):
        write(path, made_rows.study_rows(seed, 2, (1e-3,)), name)
    with pytest.raises(InputError, match="has the studies one, two: name one of them"):
        report(path, tmp_path / "r.html", "csv")
    found = compare(path, path, study_a="one", study_b="two")
    assert (found.a, found.b, found.slower) == ("one", "two", [])
    with Store(path) as store:
        (file,) = report(store, tmp_path / "r.html", "csv", study="two")
    result = Result.load(path, "two")
    assert file.read_text().count("\n") >= len(result.rows)
    (again,) = report(result, tmp_path / "s.html", "csv")
    assert again.read_text() == file.read_text()


def test_what_is_no_study_is_refused(tmp_path):
    with pytest.raises(StudyError, match="a report needs a Result, a Store or the path of a store, got int"):
        report(3, tmp_path / "r.html")
