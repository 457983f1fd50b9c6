"""Peak memory of a gradient against the length of the integration, for each engine and sensitivity.

Each measurement is a process of its own: it computes the gradient over a short span, so that whatever an engine loads
and compiles is there, resets the peak of its resident memory, and computes the gradient over the span to be measured.
What counts is how much the second raised the peak above the memory that was resident before it. The step is fixed,
so that a span eight times as long has eight times as many steps.

    python benchmarks/memory.py

Needs Linux, which can reset the peak of a process (/proc/self/clear_refs).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

LENGTHS = (1, 2, 4, 8)
SENSITIVITIES = {
    "torch": ("discrete", "backsolve"),
    "julia": ("discrete", "backsolve", "interpolating", "gauss", "quadrature"),
}
STEP, BATCH, FEATURES = 0.02, 4096, 16  # a state of 0.5 MB in float64


def status(key: str) -> float:
    """A value of /proc/self/status in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(key)


def measure(engine: str, sensitivity: str, length: float) -> float:
    """The peak of memory, in MB, that one gradient over `length` needs."""
    import gc

    import torch
    from torch import nn

    import pynode

    torch.manual_seed(0)
    torch.set_num_threads(1)
    layers = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Tanh(), nn.Linear(FEATURES, FEATURES)).double()

    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers

        def forward(self, t, z):
            return self.layers(z)

    field, z0 = Field(), torch.randn(BATCH, FEATURES, dtype=torch.float64)
    collect = None

    def gradient(end: float) -> None:
        keywords = {"solver": "rk4", "dt": STEP, "sensitivity": sensitivity, "engine": engine}
        pynode.solve(field, z0, [0.0, end], **keywords).z[-1].sum().backward()

    gradient(4 * STEP)
    if engine == "julia":
        from juliacall import Main

        collect = Main.seval("GC.gc")
        collect()
    gc.collect()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    gradient(length)
    return status("VmHWM") - before


def table(found: dict[tuple[str, str], list[float]]) -> str:
    """The measurements in markdown."""
    head = " | ".join(f"{n}×" for n in LENGTHS)
    lines = [f"| engine | sensitivity | {head} | 8× / 1× |", "| --- | --- " + "| ---: " * (len(LENGTHS) + 1) + "|"]
    for (engine, sensitivity), values in found.items():
        cells = " | ".join(f"{v:.1f}" for v in values)
        lines.append(f"| {engine} | {sensitivity} | {cells} | {values[-1] / values[0]:.2f} |")
    return "\n".join(lines)


def main(engines: list[str], unit: float) -> None:
    found = {}
    for engine in engines:
        for sensitivity in SENSITIVITIES[engine]:
            values = []
            for length in LENGTHS:
                command = [sys.executable, __file__, "--measure", engine, sensitivity, str(unit * length)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(done.stderr)
                values.append(float(done.stdout))
            found[engine, sensitivity] = values
            print(f"{engine:<6} {sensitivity:<14}", *(f"{v:8.1f}" for v in values), flush=True)
    print(f"\nMB above what was resident before, integration over {unit:g} to {8 * unit:g}, rk4 with step {STEP}:\n")
    print(table(found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(measure(sys.argv[2], sys.argv[3], float(sys.argv[4])))
    else:
        parser = argparse.ArgumentParser(
            description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        parser.add_argument("--engines", nargs="+", choices=SENSITIVITIES, default=list(SENSITIVITIES))
        parser.add_argument("--unit", type=float, default=1.0, help="the shortest span")
        options = parser.parse_args()
        main(options.engines, options.unit)
