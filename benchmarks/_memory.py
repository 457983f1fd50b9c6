"""Peak memory of one gradient, in a process of its own.

The process solves for one sample first, so that what a contender loads and compiles is there (diffrax, which compiles
for each shape, for all samples); what counts is how far the resident memory then rises above that during one gradient.
Needs Linux, which can reset the peak of a process.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import subprocess
import sys
from pathlib import Path

import torch
from _cases import cases
from _contenders import names
from memory import resident

__all__ = ["peak"]


def peak(case: str, contender: str, tolerance: float) -> float | None:
    """Peak memory of a gradient in MB; `None` where it cannot be measured."""
    # Large blocks go back to the system when they are freed, so that the peak is of what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, case, contender, str(tolerance)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        print(f"  memory: {done.stderr.strip()[-200:]}", file=sys.stderr)
        return None
    return float(done.stdout.split()[-1])


def measure(name: str, contender: str, tolerance: float) -> float:
    """The same, in this process."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    case = next(case for case in cases() if case.name == name)
    small = case if "diffrax" in contender else dataclasses.replace(case, z0=case.z0[:1])
    for _ in range(2):
        _gradient(names(small)[contender](tolerance).gradient)
    gradient = names(case)[contender](tolerance).gradient
    if "diffrax" in contender:
        _gradient(gradient)
    gc.collect()
    if "juliacall" in sys.modules:
        from juliacall import Main

        Main.seval("GC.gc()")
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    _gradient(gradient)
    return resident("VmHWM") - before


def _gradient(run: object) -> None:
    assert callable(run)
    run()


if __name__ == "__main__":
    print(measure(sys.argv[1], sys.argv[2], float(sys.argv[3])))
