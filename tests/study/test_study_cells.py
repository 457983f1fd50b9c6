"""Whatever a contender does, a row comes of it."""

import platform
import re
import sys
import tempfile

import pytest
from decay_adapter import Exact, exact, problem

from pynode.errors import StudyError
from pynode.study import Contender, Setting, Store, Study, process, started
from pynode.study.beside import Presence
from pynode.study.measure import measure
from pynode.study.travel import packed

ONE = (Setting(1e-3),)


def study(behave, **keywords):
    contenders = Contender.grid(Exact, behave=list(behave))
    return Study("cells", [problem(settings=ONE)], contenders, **{"measures": ["gradient"], "budget": 0.05, **keywords})


def by_behaviour(result):
    return {row["options"]["behave"]: row for row in result}


@pytest.mark.slow
def test_each_failure_is_a_row_with_its_reason():
    expected = {
        "nan": ("not_finite", "the states are not finite from the time at position 0 on"),
        "raise": ("failed", "RuntimeError: no good"),
        "out of memory": ("memory", "MemoryError"),
        "refuse": ("not_comparable", "it is not its kind of problem"),
        "exit": ("crashed", "the process ended by itself with exit code 3, while solving"),
        "leave": ("crashed", "the process ended by itself with exit code 1, its last words 'farewell', while solving"),
        "segfault": ("crashed", "the process died of SIGSEGV, while solving"),
        "eat": ("memory", "of resident memory, of a limit of 700 MB, while solving"),
    }
    of_gradient = {
        "gradient nan": ("not_finite", "the gradient of rate is not finite"),
        "gradient incomplete": ("failed", "StudyError: the gradient must have the entries rate, z0, got z0"),
        "gradient segfault": ("crashed", "the process died of SIGSEGV, while differentiating"),
        "gradient refuse": ("not_comparable", "it is not its kind of problem"),
        "ok": ("ok", ""),
    }
    result = study([*expected, *of_gradient], memory_limit=700).run(workers=2, progress=False)
    rows = by_behaviour(result)
    assert len(rows) == len(result) == len(expected) + len(of_gradient)
    for behave, (status, reason) in expected.items():
        row = rows[behave]
        assert (row["status"], row["gradient_status"]) == (status, status), behave
        assert reason in row["reason"]
        assert row["seconds"] is row["gradient_error"] is None
    for behave, (status, reason) in of_gradient.items():
        row = rows[behave]
        assert (row["status"], row["reason"]) == ("ok", "")
        assert (row["gradient_status"], row["gradient_reason"]) == (status, reason)
        assert row["error_end"] == pytest.approx(1e-3)
        assert row["error_trajectory"] == pytest.approx(1e-3)
        assert (row["gradient_seconds"] is None) == (status != "ok")
    assert len(set(result.environments)) == 1
    assert all(row["environment"] in result.environments and row["beside"] >= 0 for row in result)


@pytest.mark.slow
def test_a_row_has_all_that_was_measured():
    made = problem(settings=ONE, invariants={"nothing": lambda z: z.sum((1, 2))})
    contenders = [Contender(Exact, {"scale": 0.5})]
    with_memory = Study("one", [made], contenders, repeats=3).run(progress=False)
    (row,) = with_memory
    loss = exact(made.z0.numpy(), made.t.numpy(), 2.0)[2]
    assert row["status"] == row["gradient_status"] == "ok"
    assert row["gradient_error"] == pytest.approx(5e-4)
    assert row["loss"] == pytest.approx(loss)
    assert row["drift"] == pytest.approx(1 - 2.718281828459045**-2)
    assert [row[n] for n in ("nfe", "nfe_backward", "n_accepted", "n_rejected", "jacobians")] == [7, 5, 3, 1, None]
    for prefix in ("", "gradient_"):
        seconds = row[f"{prefix}seconds_all"]
        assert len(seconds) == 3
        assert min(seconds) <= row[f"{prefix}seconds_q1"] <= row[f"{prefix}seconds"] <= row[f"{prefix}seconds_q3"]
        assert row[f"{prefix}seconds"] == sorted(seconds)[1]
        assert row[f"{prefix}seconds_first"] > 0 <= row[f"{prefix}cpu_seconds"]
    assert row["peak_mb"] is None or 0 <= row["peak_mb"] < 50
    assert (row["peak_mb"] is None) == (sys.platform != "linux")
    assert 0 < row["calibration"] < 10
    assert (row["threads"], row["dtype"], row["rtol"], row["atol"], row["dt"]) == (1, "float64", 1e-3, 1e-6, None)
    assert row["started"] < row["ended"]
    assert with_memory.problems["decay"]["how"] == "the exact solution"


@pytest.mark.slow
def test_all_packages_have_the_same_number_of_threads():
    (row,) = study(["tell"], threads=2).run(progress=False)
    assert row["reason"] == "RuntimeError: 2 2 2 2 2 2"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is known on Linux alone")
def test_the_peak_is_what_a_call_allocates():
    (row,) = study(["allocate"], measures=["gradient", "memory"]).run(progress=False)
    assert row["peak_mb"] == pytest.approx(16, abs=2)
    assert row["gradient_peak_mb"] == pytest.approx(48, abs=2)
    assert row["memory_reason"] is None


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone gives free memory back when it is told to")
def test_the_peak_counts_memory_that_was_free():
    """Free blocks of the heap, which a call would use first, have gone back to the system."""
    (row,) = study(["allocate in holes"], measures=["state", "memory"]).run(progress=False)
    assert row["peak_mb"] == pytest.approx(45, abs=6)


def test_no_second_call_where_there_is_no_time_for_it():
    (cell,) = study(["ok"], time_limit=50).cells()
    found = {}
    measure(cell, Exact, cell.problem.reference, lambda doing, **columns: found.update(columns), lambda: 0.0)
    assert found["status"] == found["gradient_status"] == "ok"
    for prefix in ("", "gradient_"):
        assert re.match(r"only the first call was timed: it took .* s of a limit of 50 s", found[f"{prefix}reason"])
        assert found[f"{prefix}seconds_first"] > 0
        assert f"{prefix}seconds" not in found


def test_who_is_beside_whom(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # not beside those of other tests
    with Presence() as first:
        with Presence() as second, Presence() as third:
            for each in (first, second, third):
                each.look()
            assert [first.most, second.most, third.most] == [2, 2, 2]
        with Presence() as last:
            assert last.most == 1
    (left,) = tmp_path.iterdir()
    (left / "1-1").touch()  # of a process that has died
    with Presence() as alone:
        assert alone.most == 0
    assert not list(left.iterdir())


def test_what_hangs_is_ended():
    rows = by_behaviour(study(["hang", "gradient hang"], time_limit=3.0).run(workers=2, progress=False))
    assert (rows["hang"]["status"], rows["hang"]["reason"]) == ("timeout", "stopped after 3 s, while solving")
    row = rows["gradient hang"]
    assert (row["status"], row["gradient_status"]) == ("ok", "timeout")
    assert row["gradient_reason"] == "stopped after 3 s, while differentiating"
    assert row["seconds"] is not None
    assert row["gradient_error"] is None


@pytest.mark.slow
def test_a_fresh_process_does_the_same(monkeypatch):
    """As they are where forks are not safe."""
    monkeypatch.setattr(process.started, "start", started._Fresh)
    (row,) = study(["gradient segfault"]).run(progress=False)
    assert row["error_end"] == pytest.approx(1e-3)
    assert row["gradient_status"] == "crashed"
    assert "the process died of SIGSEGV" in row["gradient_reason"]


OF_A_SCRIPT = """
from decay_adapter import Decay, Exact

class Mine(Decay):
    def forward(self, t, z):
        return super().forward(t, z)

class Halved(Exact):
    def prepare(self, problem, setting):
        super().prepare(problem, setting, scale=0.5)
        self.kind = type(problem.field).__name__
"""


@pytest.fixture
def script(monkeypatch):
    main = sys.modules["__main__"]
    names = {"__name__": "__main__"}
    exec(OF_A_SCRIPT, names)
    for name in ("Mine", "Halved"):
        monkeypatch.setattr(main, name, names[name], raising=False)
    return main


def test_what_a_script_defines_travels(script):
    pytest.importorskip("cloudpickle")
    field = script.Mine()
    made = problem(settings=ONE)
    for name, value in (("field", field), ("loss", lambda z: (z**2).mean())):
        object.__setattr__(made, name, value)
    (row,) = Study("script", [made], [Contender(script.Halved)], measures=["state"]).run(progress=False)
    assert (row["package"], row["status"], row["reason"]) == ("__main__:Halved", "ok", "")
    assert row["error_end"] == pytest.approx(5e-4)
    assert row["gradient_status"] is None


def test_without_cloudpickle_it_says_what_to_do(script, monkeypatch):
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    assert packed(problem(), "the problem")
    for x in (script.Mine(), script.Halved, lambda z: z):
        match = r"the field .* Install cloudpickle \(pip install 'pynode-sciml\[study\]'\)"
        with pytest.raises(StudyError, match=match):
            packed(x, "the field")


def test_a_field_of_a_file_travels(tmp_path):
    (tmp_path / "model.py").write_text(
        "import decay_adapter\nclass Field(decay_adapter.Decay):\n    pass\n"
        "def made():\n    found = decay_adapter.problem('of a file')\n"
        "    object.__setattr__(found, 'field', Field())\n    return found\n"
    )
    data = {
        "name": "file",
        "problems": [{"name": f"{tmp_path}/model.py:made", "rtol": 1e-2}],
        "contenders": [{"package": "decay_adapter:Exact"}],
        "measures": ["state"],
    }
    study = Study.from_dict(data)
    (row,) = study.run(tmp_path / "s.db", progress=False)
    assert (row["problem"], row["status"]) == ("of a file", "ok")
    assert row["error_end"] == pytest.approx(1e-2)
    file = tmp_path / "model.py"
    file.write_text(file.read_text().replace("    pass", "    factor = 2"))  # while the study is under way
    study.passes = 2
    with pytest.raises(StudyError, match="was its file edited"):
        study.run(tmp_path / "s.db", progress=False)
    assert len(Store(tmp_path / "s.db").keys("file")) == 1
