"""Makes what comes with pynode: `python -m pynode.study.library.make_references [names] [--out FOLDER]`."""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import jax
import scipy
import torch
import torchdiffeq

from pynode.study.library import make, problems
from pynode.study.library.shipped import write
from pynode.study.truth import reference

_BY_TORCH = ("digits", "ffjord", "latent_ode")  # whose gradients are by backpropagation, which is PyTorch's
# Sensitivities at a jump of 10⁶ times the speed lose six digits, see `differences`.
WAYS = {"van_der_pol_stiff": ("LSODA by differences", "Radau")}
_FOLDER = Path(__file__).parent / "data" / "references"


def main() -> None:
    """Make those that are asked for, all by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="of problems; all by default")
    parser.add_argument("--out", type=Path, default=_FOLDER, help="folder of the files")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    jax.config.update("jax_enable_x64", True)
    notes = {
        "torch": torch.__version__,
        "torchdiffeq": torchdiffeq.__version__,
        "scipy": scipy.__version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "script": "python -m pynode.study.library.make_references",
    }
    for name in given.names or problems():
        start, problem = time.perf_counter(), make(name)
        found = reference(problem, jitted=name not in _BY_TORCH, ways=WAYS.get(name))
        path = write(given.out, name, problem, found, notes)
        print(
            f"{name}: {path.stat().st_size / 1000:.0f} kB in {time.perf_counter() - start:.0f} s, agree to "
            f"{found.agreement:.1e}, gradients to {found.gradient_agreement:.1e}: {found.how}",
            flush=True,
        )


if __name__ == "__main__":
    main()
