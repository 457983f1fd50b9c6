"""Peak memory of a gradient against the length of the integration, for each engine and sensitivity.

Each line is a process of its own. It computes a gradient for a few samples first, so that whatever an engine loads and
compiles is there, and then the gradient for all of them over longer and longer spans. Before each, the peak of the
resident memory is reset; what counts is how far it then rises above what was resident before the first. The step is
fixed, so that a span eight times as long has eight times as many steps.

    python benchmarks/memory.py

Needs Linux, which can reset the peak of a process (/proc/self/clear_refs).
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
from pathlib import Path

LENGTHS = (1, 2, 4, 8)
SENSITIVITIES = {
    "torch": ("discrete", "backsolve"),
    "julia": ("discrete", "discrete 32MiB", "backsolve", "interpolating", "gauss", "quadrature"),
}
STEP, BATCH, FEATURES = 0.1, 4096, 32  # a state of 1 MB in float64


def resident(key: str) -> float:
    """`VmRSS`, the resident memory, or `VmHWM`, its peak, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(key)


def measure(engine: str, sensitivity: str, unit: float) -> list[float]:
    """The peak of memory, in MB, that one gradient needs, for each length."""
    import torch
    from torch import nn

    import pynode
    from pynode.nn import TimeSequential

    torch.manual_seed(0)
    torch.set_num_threads(1)
    field = TimeSequential(nn.Linear(FEATURES, FEATURES), nn.Tanh(), nn.Linear(FEATURES, FEATURES)).double()
    z0 = torch.randn(BATCH, FEATURES, dtype=torch.float64)

    name, _, memory = sensitivity.partition(" ")
    how = pynode.Discrete(memory=memory) if memory else name

    def gradient(z0: torch.Tensor, end: float) -> None:
        keywords = {"solver": "rk4", "dt": STEP, "sensitivity": how, "engine": engine}
        pynode.solve(field, z0, [0.0, end], **keywords).z[-1].sum().backward()

    def collect() -> None:
        gc.collect()
        if engine == "julia":
            from juliacall import Main

            Main.seval("GC.gc()")

    gradient(z0[:8], 4 * STEP)
    collect()
    before, peaks = resident("VmRSS"), []
    for length in LENGTHS:
        Path("/proc/self/clear_refs").write_text("5")
        gradient(z0, length * unit)
        peaks.append(resident("VmHWM") - before)
        collect()
    return peaks


def main(engines: list[str], unit: float) -> None:
    print(f"MB above what was resident before; a state of {BATCH * FEATURES * 8 / 2**20:.0f} MB, {unit / STEP:.0f} to "
          f"{8 * unit / STEP:.0f} steps of rk4\n")  # fmt: skip
    print("| engine | sensitivity |", " | ".join(f"{n}×" for n in LENGTHS), "| 8× / 1× |")
    print("| --- | ---", "| ---:" * (len(LENGTHS) + 1), "|")
    # Large blocks go back to the system when they are freed, so that the peak is of what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    for engine in engines:
        for sensitivity in SENSITIVITIES[engine]:
            command = [sys.executable, __file__, "--measure", engine, sensitivity, str(unit)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            if done.returncode:
                print(f"| {engine} | {sensitivity} | failed: {done.stderr.strip().splitlines()[-1]} |", flush=True)
                continue
            peaks = [float(value) for value in done.stdout.split()]
            cells = " | ".join(f"{value:.1f}" for value in peaks)
            print(f"| {engine} | {sensitivity} | {cells} | {peaks[-1] / peaks[0]:.2f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(*measure(sys.argv[2], sys.argv[3], float(sys.argv[4])))
    else:
        parser = argparse.ArgumentParser(
            description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        parser.add_argument("--engines", nargs="+", choices=SENSITIVITIES, default=list(SENSITIVITIES))
        parser.add_argument("--unit", type=float, default=1.0, help="the shortest span")
        options = parser.parse_args()
        main(options.engines, options.unit)
