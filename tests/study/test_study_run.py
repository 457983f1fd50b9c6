"""Runs that are stopped and gone on with, workers that die, executors."""

import concurrent.futures
import ctypes.util
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from decay_adapter import Exact, problem, wrong

from pynode.errors import InputError, PyNODEWarning, StudyError
from pynode.study import Contender, Setting, Store, Study, report
from pynode.study.process import make_reference

VARIES = ("seconds", "calibration", "started", "ended", "beside", "peak_mb", "environment")


def study(n=2, passes=2, behave=("ok",), **keywords):
    problems = [problem(f"decay {i}", settings=(Setting(1e-3),)) for i in range(n)]
    contenders = Contender.grid(Exact, behave=list(behave), **keywords)
    return Study("runs", problems, contenders, ["state"], passes=passes, budget=0.01)


def lasting(rows):
    """What does not vary from run to run."""
    return sorted(
        ({n: v for n, v in row.items() if not any(part in n for part in VARIES)} for row in rows),
        key=lambda row: row["key"],
    )


def test_cells_are_shuffled_by_the_seed_and_each_pass_anew():
    def order(study, number):
        return [(c.problem.name, c.contender.label) for c in study.cells() if c.number == number]

    whole = study(n=4, behave=("ok", "nan", "raise"))
    keys = [cell.key for cell in whole.cells()]
    assert keys == [cell.key for cell in study(n=4, behave=("ok", "nan", "raise")).cells()]
    assert len(set(keys)) == len(keys) == 4 * 3 * 2
    assert [cell.number for cell in whole.cells()] == [0] * 12 + [1] * 12
    assert order(whole, 0) != order(whole, 1)
    assert sorted(order(whole, 0)) == sorted(order(whole, 1))
    whole.seed = 1
    assert order(whole, 0) != order(study(n=4, behave=("ok", "nan", "raise")), 0)


@pytest.mark.parametrize(
    "change", [{"budget": 0.5}, {"repeats": 3}, {"threads": 2}, {"time_limit": 9}, {"memory_limit": 99}, {"seed": 3}]
)
def test_a_key_is_of_all_that_defines_a_cell(change):
    def keys(**keywords):
        return {c.key for c in Study("s", [problem()], [Contender(Exact)], **keywords).cells()}

    assert keys() == keys()
    assert not keys() & keys(**change)


@pytest.mark.slow
def test_a_finished_cell_is_not_run_again(tmp_path):
    mark = tmp_path / "mark"
    first = study(mark=str(mark)).run(tmp_path / "s.db", progress=False)
    assert len(mark.read_text().split()) == len(first) == 4
    again = study(mark=str(mark)).run(tmp_path / "s.db", progress=False)
    assert again.rows == first.rows
    assert len(mark.read_text().split()) == 4
    more = study(passes=3, mark=str(mark)).run(tmp_path / "s.db", progress=False)
    assert len(more) == 6
    assert len(mark.read_text().split()) == 6


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_the_cells_and_keeps_the_rows(tmp_path):
    """Ctrl-C while one cell hangs: the others are there, and no process is left."""
    mark = tmp_path / "mark"
    hanging = study(n=1, passes=1, behave=("hang", "ok"), mark=str(mark))

    def interrupt():
        with Store(tmp_path / "s.db") as store:
            while not store.keys("runs") or len(mark.read_text().split()) < 2:
                time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        hanging.run(tmp_path / "s.db", workers=2, progress=False)
    thread.join()
    assert [alive(int(pid)) for pid in mark.read_text().split()] == [False, False]
    with Store(tmp_path / "s.db") as store:
        assert [row["options"]["behave"] for row in store.rows("runs")] == ["ok"]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Failing(concurrent.futures.Executor):
    """Its workers die of the first cells, as those of Dask do when their machine is taken away."""

    def __init__(self, failures):
        self.failures, self.left = {}, failures

    def submit(self, function, task):
        future = concurrent.futures.Future()
        seen = self.failures[task.row["key"]] = self.failures.get(task.row["key"], 0) + 1
        if seen <= self.left:
            future.set_exception(RuntimeError("KilledWorker"))
        else:
            future.set_result(function(task))
        return future


def test_a_cell_whose_worker_dies_is_run_again():
    executor = Failing(2)
    result = study(n=1).run(executor=executor, progress=False)
    assert [row["status"] for row in result] == ["ok", "ok"]
    assert set(executor.failures.values()) == {3}


def test_a_cell_whose_workers_die_again_and_again_is_a_row():
    executor = Failing(99)
    result = study(n=1).run(executor=executor, progress=False)
    assert [row["status"] for row in result] == ["crashed", "crashed"]
    assert result.rows[0]["reason"] == "its worker died 3 times, at last of RuntimeError: KilledWorker"
    assert set(executor.failures.values()) == {3}


def test_what_is_wrong_is_refused_before_anything_runs():
    for refused in (
        lambda: Study("", [problem()], [Contender(Exact)]),
        lambda: Study("s", "decay", [Contender(Exact)]),
        lambda: Study("s", [3], [Contender(Exact)]).cells(),
        lambda: Study("s", [problem()], [Exact]),
        lambda: Study("s", [problem()], []),
        lambda: Study("s", [problem()], [Contender(Exact)], measures=["speed"]),
        lambda: Study("s", [problem()], [Contender("no_such_adapter")]).cells(),
        lambda: Study("s", [problem(), problem()], [Contender(Exact)]).cells(),
        lambda: Study("s", [problem()], [Contender(Exact)]).run(workers=0),
    ):
        with pytest.raises((InputError, StudyError)):
            refused()


@pytest.mark.slow
def test_a_study_that_is_killed_five_times_gives_the_same_rows(tmp_path):
    behave = ("ok", "raise", "segfault")
    whole = study(behave=behave, passes=1).run(progress=False)
    draw, context, left = random.Random(0), multiprocessing.get_context("fork"), []
    for attempt in range(5):
        mark = tmp_path / f"mark {attempt}"
        mark.touch()
        os.environ["DECAY_MARK"] = str(mark)
        runner = context.Process(
            target=study(behave=behave, passes=1).run,
            args=(tmp_path / "s.db",),
            kwargs={"workers": 2, "progress": False},
        )
        runner.start()
        enough = draw.randint(1, 4)
        while runner.is_alive() and len(mark.read_text().split()) < enough:
            time.sleep(0.01)
        runner.kill()
        runner.join()
        with Store(tmp_path / "s.db") as store:
            left.append(len(whole) - len(store.keys("runs")))
        until = time.monotonic() + 20  # nothing that it has started is left
        while any(alive(int(pid)) for pid in mark.read_text().split()):
            assert time.monotonic() < until
            time.sleep(0.05)
    del os.environ["DECAY_MARK"]
    assert left == sorted(left, reverse=True)
    assert left[0] > 0
    again = study(behave=behave, passes=1).run(tmp_path / "s.db", workers=2, progress=False)
    assert lasting(again) == lasting(whole)
    assert [row["key"] for row in again] == [row["key"] for row in whole]


@pytest.mark.slow
def test_a_killed_worker_of_a_pool_loses_its_cell_which_is_run_again(tmp_path):
    mark = tmp_path / "mark"
    slow = study(n=3, passes=1, behave=("slow",), mark=str(mark))
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:

        def kill():
            while not mark.exists():
                time.sleep(0.01)
            os.kill(next(iter(pool._processes)), signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        with pytest.warns(PyNODEWarning, match="a worker died"):
            result = slow.run(tmp_path / "s.db", executor=pool, progress=False)
        thread.join()
    assert [row["status"] for row in result] == ["ok"] * 3


@pytest.mark.slow
def test_on_dask(tmp_path):
    distributed = pytest.importorskip("distributed", reason="Dask's distributed is not installed")
    here = study(n=1, behave=("ok", "segfault")).run(progress=False)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=tmp_path
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        there = study(n=1, behave=("ok", "segfault")).run(executor=client.get_executor(), progress=False)
    assert lasting(there) == lasting(here)


MPI = """
import sys
from mpi4py.futures import MPIPoolExecutor
import test_study_run

if __name__ == "__main__":
    with MPIPoolExecutor() as pool:
        result = test_study_run.study(behave=("ok", "segfault")).run(sys.argv[1], executor=pool, progress=False)
        print(len(result), pool.num_workers)
"""


def debians_mpich(folder):
    """Debian's mpich has another name than the library of the same ABI that mpi4py's wheel looks for."""
    library = ctypes.util.find_library("mpich")
    if library is None:
        return {}
    real, *_ = {line.split()[-1] for line in subprocess.check_output(["/sbin/ldconfig", "-p"], text=True).splitlines()
               if line.strip().startswith(f"{library} ")}  # fmt: skip
    (folder / "libmpi.so.12").symlink_to(real)
    return {"LD_LIBRARY_PATH": str(folder), "MPI4PY_MPIABI": "mpich"}


@pytest.mark.slow
def test_on_mpi(tmp_path):
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    launcher = shutil.which("mpiexec")
    if launcher is None:
        pytest.skip("there is no mpiexec")
    (tmp_path / "script.py").write_text(MPI)
    command = [launcher, "-n", "2", sys.executable, "-m", "mpi4py.futures", tmp_path / "script.py", tmp_path / "s.db"]
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    variables = {**os.environ, "PYTHONPATH": path, **debians_mpich(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["8", "1"]
    here = study(behave=("ok", "segfault")).run(progress=False)
    with Store(tmp_path / "s.db") as store:
        assert lasting(store.rows("runs")) == lasting(here)


@pytest.mark.slow
def test_a_reference_is_made_in_a_process_of_its_own():
    whole = problem()
    found = make_reference(replace(whole, reference=None), False, 60.0, 4096.0)
    assert np.allclose(found.z, whole.reference.z, rtol=1e-10)


@pytest.mark.slow
def test_a_problem_without_a_reference_is_refused():
    lost = problem(reference=None, exact=wrong)
    with pytest.raises(StudyError, match="there is no reference for decay"):
        make_reference(lost, False, 60.0, 4096.0)


def test_a_problem_without_a_gradient_reference_is_solved_all_the_same(tmp_path, monkeypatch):
    asked = []

    def make(of, gradient, *limits):
        asked.append(gradient)
        if gradient:
            raise StudyError("its gradients differ by 2.0e-03")
        return replace(problem().reference, gradient={})

    monkeypatch.setattr("pynode.study.run.make_reference", make)
    lost = Study(
        "lost", [problem(reference=None, settings=(Setting(1e-3),))], [Contender(Exact)], ["state", "gradient"]
    )
    result = lost.run(tmp_path / "s.db", progress=False)
    (row,) = result.rows
    assert row["status"] == "ok"
    assert row["error_end"] == pytest.approx(1e-3)
    assert row["gradient_status"] == "not_comparable"
    assert row["gradient_reason"].endswith("to hold the gradient against: its gradients differ by 2.0e-03")
    assert result.problems["decay"]["no_gradient"] == "its gradients differ by 2.0e-03"
    report(result, tmp_path / "report.html")
    assert "Gradients are not compared: its gradients differ by 2.0e-03." in (tmp_path / "report.html").read_text()
    assert lost.run(tmp_path / "s.db", progress=False).rows == [row]
    assert asked == [True, False]


def without_a_gradient(z):
    return (z - z.detach()).square().sum().sqrt()


@pytest.mark.slow
def test_the_reference_of_a_loss_that_has_no_gradient_is_of_the_states():
    lost = problem(reference=None, loss=without_a_gradient, settings=(Setting(1e-3),))
    (row,) = Study("lost", [lost], [Contender(Exact)], ["state", "gradient"]).run(progress=False).rows
    assert row["error_end"] == pytest.approx(1e-3)
    assert "its gradients by SciPy's DOP853" in row["gradient_reason"]
