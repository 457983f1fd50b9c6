import concurrent.futures
import os
import sqlite3

import numpy as np
import pytest
import torch
from decay_adapter import Exact, problem

from pynode.errors import InputError, PyNODEWarning, StudyError
from pynode.study import Contender, Result, Setting, Store, Study
from pynode.study.row import COLUMNS

ENVIRONMENT = {"python": "3", "packages": {"torch": "2"}}


def rows(name="one", contenders=("ok",)):
    study = Study(name, [problem()], Contender.grid(Exact, behave=list(contenders)))
    cells = sorted(study.cells(), key=lambda cell: -cell.setting.rtol)
    numbers = {"seconds_all": [1.0, 2.0], "nfe": 7, "status": "ok", "gradient_status": "ok"}
    return [
        {
            **{**cell.row(), **numbers, "seconds": 1.0 + i, "gradient_seconds": 9.0 - i},
            **{"error_trajectory": 10.0**-i, "gradient_error": 10.0**-i, "ended": float(i)},
        }
        for i, cell in enumerate(cells)
    ]


def test_a_row_comes_back_as_it_was_and_is_written_once(tmp_path):
    (first, second) = rows()
    assert list(first) == list(COLUMNS)
    with Store(tmp_path / "deep" / "s.db") as store:
        store.add(first, ENVIRONMENT)
        store.add({**first, "seconds": 99.0}, ENVIRONMENT)
    with Store(tmp_path / "deep" / "s.db") as store:
        assert store.rows("one") == [first]
        store.add(second, ENVIRONMENT)
        assert store.keys("one") == {first["key"], second["key"]}
        assert list(store.environments().values()) == [ENVIRONMENT]
        store.forget("one", [first["key"]])
        assert store.rows("one") == [second]


def test_studies_share_a_store(tmp_path):
    with Store(tmp_path / "s.db") as store:
        for name in ("one", "two"):
            store.define(name, {"name": name}, {"decay": {"how": name}}, [row["key"] for row in rows(name)])
            for row in rows(name):
                store.add(row, ENVIRONMENT)
    with pytest.raises(InputError, match="has the studies one, two: name one"):
        Result.load(tmp_path / "s.db")
    with pytest.raises(InputError, match="unknown study"):
        Result.load(tmp_path / "s.db", "three")
    result = Result.load(tmp_path / "s.db", "two")
    assert result.rows == rows("two")
    assert (result.definition, result.problems) == ({"name": "two"}, {"decay": {"how": "two"}})


def test_rows_of_what_a_study_was_before_are_not_shown(tmp_path):
    """Defined so, otherwise, and so again: by the latest rows, those of the other would be shown."""
    (first, second) = rows()
    other = {**first, "key": "of another problem of this name", "ended": 9.0}
    dropped = {**second, "key": "of it too", "contender": "dropped", "ended": 9.5}
    with Store(tmp_path / "s.db") as store:
        for row in (first, second, other, dropped):
            store.add(row, ENVIRONMENT)
        for wanted in ([second, first], [other], [second, first], [dropped, other]):
            store.define("one", {"of": len(wanted)}, {}, [*(row["key"] for row in wanted), "not yet measured"])
            found = Result.load(tmp_path / "s.db")
            assert found.rows == wanted
            assert found.definition == {"of": len(wanted)}
        assert len(store.rows("one")) == 4  # for when it is defined so again


@pytest.mark.slow
def test_a_study_that_is_changed_and_changed_back_has_its_own_rows(tmp_path):
    def run(rate):
        whole = problem(settings=(Setting(1e-3),), reference=None)
        with torch.no_grad():
            whole.field.rate.fill_(rate)
        return Study("one", [whole], [Contender(Exact)], ["state"], budget=0.01).run(tmp_path / "s.db", progress=False)

    for rate in (1.0, 5.0, 1.0):
        result = run(rate)
        loaded = Result.load(tmp_path / "s.db")
        assert loaded.rows == result.rows
        assert loaded.definition == result.definition
        assert loaded.problems == result.problems
        assert loaded.problems["decay"]["content"] == loaded.definition["problems"][0]["content"]


def test_a_store_of_an_earlier_pynode_is_opened(tmp_path):
    (first, second) = rows()
    again = {**first, "key": "by another version", "ended": 9.0}
    with Store(tmp_path / "s.db") as store:
        for row in (first, second, again):
            store.add(row, ENVIRONMENT)
        for statement in (
            "DROP TABLE studies",
            "CREATE TABLE studies (name TEXT PRIMARY KEY, definition TEXT, problems TEXT)",
            "INSERT INTO studies VALUES ('one', '{}', '{}')",
            "PRAGMA user_version = 1",
        ):
            store._db.execute(statement)
    with pytest.warns(PyNODEWarning, match="is of an earlier pynode, which did not keep the rows of a study apart"):
        found = Result.load(tmp_path / "s.db")
    assert {row["key"] for row in found} == {second["key"], again["key"]}  # the latest of each cell
    with Store(tmp_path / "s.db") as store:
        store.define("one", {}, {}, [first["key"], second["key"]])
    assert Result.load(tmp_path / "s.db").rows == [first, second]


def test_a_reference_is_kept(tmp_path):
    right = problem().reference
    with Store(tmp_path / "s.db") as store:
        assert store.reference("x") is None
        store.keep_reference("x", right)
        found = store.reference("x")
    assert np.array_equal(found.z, right.z)
    assert list(found.gradient) == list(right.gradient)
    assert all(np.array_equal(found.gradient[n], g) for n, g in right.gradient.items())
    assert (found.loss, found.how) == (right.loss, right.how)


def test_what_is_no_store_is_refused(tmp_path):
    (tmp_path / "text").write_text("no database at all, and long enough to see" * 20)
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE mine (x)").connection.close()
    with Store(tmp_path / "new.db") as store:
        store._db.execute("PRAGMA user_version = 99")
    for name, says in (("text", "no store"), ("other.db", "no store"), ("new.db", "schema 99")):
        with pytest.raises(StudyError, match=says):
            Store(tmp_path / name)
    with pytest.raises(StudyError, match="there is no store"):
        Result.load(tmp_path / "nowhere.db")


def test_a_store_that_cannot_be_opened_or_written_says_so(tmp_path):
    """It was said to be no store, or ended with an error of SQLite's own."""
    with pytest.raises(StudyError, match=r"cannot be opened, read or written: unable to open.*See that it is a file"):
        Store(tmp_path)
    row = rows()[0]
    with Store(tmp_path / "s.db") as store:
        store.add(row, ENVIRONMENT)
        store._db.execute("PRAGMA max_page_count = 1")  # as a disk without room
        large = {**row, "key": "large", "reason": "x" * 100_000}
        with pytest.raises(StudyError, match=r"s\.db cannot be .* full.*disk has room. The rows that are in it stay"):
            store.add(large, ENVIRONMENT)
        assert row["key"] in store.keys("one")


def test_a_store_that_may_not_be_written_can_be_read(tmp_path, monkeypatch):
    (first, second) = rows()
    folder = tmp_path / "kept"
    with Store(folder / "s.db") as store:
        store.define("one", {}, {}, [first["key"], second["key"]])
        store.add(first, ENVIRONMENT)
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, how: how != os.W_OK and may(path, how))  # root may, always
    assert Result.load(folder / "s.db").rows == [first]
    with (
        Store(folder / "s.db") as store,
        pytest.raises(StudyError, match="attempt to write a readonly database"),
    ):
        store.add(second, ENVIRONMENT)


def test_best_frame_and_table():
    result = Result("one", rows())
    loose, tight = result.rows
    assert result.best() is loose
    assert result.best("decay", error=0.5) is tight
    assert result.best(measure="gradient") is tight
    assert result.frame()["seconds"].tolist() == [1.0, 2.0]
    with pytest.raises(StudyError, match="no contender solved 'decay' with an error of at most 1e-09"):
        result.best(error=1e-9)
    with pytest.raises(InputError, match="unknown problem"):
        result.best("growth")
    tight |= {"status": "failed", "reason": "RuntimeError: no\ngood"}
    loose |= {"gradient_status": "not_comparable", "gradient_reason": "it has none"}
    lines = result.table().splitlines()
    assert lines[0] == "decay"
    assert lines[4].split() == ["Exact", "ok", "rtol", "1e-03", "1.0e+00", "1.0e+00", "7", "1e+03", "9e+03", "-"]
    assert lines[-2] == "Exact ok: gradient not comparable: it has none"
    assert lines[-1] == "Exact ok, rtol 1e-06: failed: RuntimeError: no good"


def test_a_new_store_is_made_by_several_at_once(tmp_path):
    def make(path):
        with Store(path) as store:
            return store.keys("s")

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for i in range(20):
            assert all(not keys for keys in pool.map(make, [tmp_path / f"{i}.db"] * 8))
