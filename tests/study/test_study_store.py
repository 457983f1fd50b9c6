import concurrent.futures
import sqlite3

import numpy as np
import pytest
from decay_adapter import Exact, problem

from pynode.errors import InputError, StudyError
from pynode.study import Contender, Result, Store, Study
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
            store.define(name, {"name": name}, {"decay": {"how": name}})
            for row in rows(name):
                store.add(row, ENVIRONMENT)
    with pytest.raises(InputError, match="has the studies one, two: name one"):
        Result.load(tmp_path / "s.db")
    with pytest.raises(InputError, match="unknown study"):
        Result.load(tmp_path / "s.db", "three")
    result = Result.load(tmp_path / "s.db", "two")
    assert result.rows == rows("two")
    assert (result.definition, result.problems) == ({"name": "two"}, {"decay": {"how": "two"}})


def test_of_a_cell_that_was_measured_again_the_latest_row_counts(tmp_path):
    (first, second) = rows()
    again = {**first, "key": "by another version", "ended": 9.0}
    with Store(tmp_path / "s.db") as store:
        store.define("one", {}, {})
        for row in (first, second, again):
            store.add(row, ENVIRONMENT)
    assert {row["key"] for row in Result.load(tmp_path / "s.db")} == {second["key"], again["key"]}


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
