"""What runs in a cell's own process: `python -m pynode.study.child FOLDER PARENT`, started by `process`."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pickle
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from pynode.errors import StudyError

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1


def main(folder: Path, parent: int) -> None:
    """Do what the folder's `start.json` and `payload.pkl` say, and write what comes of it to `report.jsonl`."""
    start = json.loads((folder / "start.json").read_text())
    _end_with(parent, start["last"])
    os.environ.clear()
    os.environ.update(start["environ"])
    sys.path[:] = [*start["path"], *[p for p in sys.path if p not in start["path"]]]
    with (folder / "report.jsonl").open("a") as file:

        def report(doing: str, **columns: Any) -> None:
            file.write(json.dumps([doing, columns]) + "\n")
            file.flush()

        try:
            _run(start, folder, report)
        except Exception as error:
            traceback.print_exc()
            own = isinstance(error, StudyError)
            report("ended", broken=str(error) if own else f"{type(error).__name__}: {error}")
        except SystemExit as leaving:  # of a contender, which leaves in the middle of its work
            print(leaving, file=sys.stderr)
            _leave(1)
    _leave(0)


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # whatever a package does at the end of a process is no part of the cell


def _run(start: dict[str, Any], folder: Path, report: Any) -> None:
    """The errors of a contender are reported within; what is raised is the study's own.

    Raises:
        StudyError: the problem is not the one that was sent.
    """
    import torch

    from pynode.study.calibration import calibrate
    from pynode.study.named import load

    torch.set_num_threads(start["threads"])
    for name, path in start["files"].items():
        load(Path(path), name)
    payload = pickle.loads((folder / "payload.pkl").read_bytes())
    if start["task"] == "reference":
        from pynode.study.truth import reference

        (folder / "reference.npz").write_bytes(reference(payload, gradient=start["with_gradient"]).to_bytes())
        return report("ended")
    cell, make, right = payload
    _check_unchanged(cell)
    report("starting")
    if start["task"] == "peak":
        from pynode.study.peak import measure_peak

        measure_peak(cell, make, start["with_gradient"], report)
        return report("ended")
    until = time.monotonic() + start["time_limit"]
    before = calibrate()
    report("starting", calibration=before)
    if cell.problem.kind == "training":
        from pynode.study.training import measure as train

        train(cell, report)
    else:
        from pynode.study.measure import measure

        measure(cell, make, right, report, lambda: until - time.monotonic())
    return report("ended", calibration=(before + calibrate()) / 2)


def _check_unchanged(cell: Any) -> None:
    """Code travels by its name, and what is in the file may have changed since the study was started."""
    if cell.problem.kind == "solve" and cell.problem.content != cell.content:
        raise StudyError(
            f"the code or the numbers of the problem {cell.problem.name!r} are others here than where the study was "
            "started: was its file edited? Start the study again, for rows of the problem as it is now"
        )


def _end_with(parent: int, seconds: float) -> None:
    """Let this process end with the one that watches it, and in any case after so many seconds."""
    if sys.platform == "linux":
        import resource

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a contender that crashes leaves no file behind
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(seconds))
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
