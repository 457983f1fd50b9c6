"""A problem with an exact solution, and an adapter that solves it, or does what its option says."""

import ctypes
import os
import sys
import time

import numpy as np
import torch
from torch import nn

from pynode.errors import NotComparable
from pynode.study import Counts, Gradient, Problem, Reference, Setting, Solved

RATE = 2.0


class Decay(nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(RATE, dtype=torch.float64))

    def forward(self, t, z):
        return -self.rate * z


def problem(name="decay", batch=3, **keywords):
    z0 = torch.arange(1.0, 2 * batch + 1, dtype=torch.float64).reshape(batch, 2)
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    z, gradient, loss = exact(z0.numpy(), t.numpy(), RATE)
    right = Reference(z, gradient, loss, 0.0, 0.0, "the exact solution")
    keywords = {"settings": (Setting(1e-3), Setting(1e-6)), "reference": right, **keywords}
    return Problem(Decay(), z0, t, name=name, **keywords)


def exact(z0, t, rate):
    """States, the gradient of their mean square, and that."""
    factor = np.exp(-rate * t).reshape(-1, 1, 1)
    z = factor * z0
    n = z.size
    gradient = {"rate": np.array((2 * z * -t.reshape(-1, 1, 1) * z).sum() / n), "z0": (2 * z * factor).sum(0) / n}
    return z, gradient, float((z**2).mean())


def wrong(t):
    return torch.ones(len(t), 3, 2, dtype=torch.float64)


class Exact:
    """Solves exactly, but for an error of the size of the tolerance; or behaves as it is told."""

    def prepare(self, problem, setting, behave="ok", scale=1.0, mark=""):
        self.behave, self.mark = behave, mark or os.environ.get("DECAY_MARK")
        self.state = problem.z0.numpy(), problem.t.numpy(), float(problem.field.rate.detach())
        self.wrong = 1 + scale * setting.rtol
        self._do("prepare")

    def solve(self):
        self._do("solve")
        z = exact(*self.state)[0] * self.wrong
        return Solved(np.where(z > 0, np.nan, z) if self.behave == "nan" else torch.as_tensor(z), Counts(7, None, 3, 1))

    def gradient(self):
        self._do("gradient")
        _, gradient, loss = exact(*self.state)
        gradient = {name: g * self.wrong for name, g in gradient.items()}
        if self.behave == "gradient nan":
            gradient["rate"] = float("nan")
        if self.behave == "gradient incomplete":
            del gradient["rate"]
        return Gradient(loss, gradient, Counts(7, 5))

    def _do(self, where):
        if self.mark and where == "prepare":
            with open(self.mark, "a") as file:
                file.write(f"{os.getpid()}\n")
        if self.behave == "allocate in holes" and where == "prepare":
            self.between_holes = [np.ones(4096) for _ in range(6000)][::2]
        what = self.behave.removeprefix("gradient ") if where == "gradient" else self.behave
        if where == "prepare" or (self.behave.startswith("gradient") and where != "gradient"):
            return
        if what == "hang":
            time.sleep(1000)
        elif what == "slow":
            time.sleep(0.5)
        elif what == "allocate":
            np.ones((2 if where == "solve" else 6) * 2**20)  # 16 MB, and 48
        elif what == "allocate in holes":
            [np.ones(4096) for _ in range(1536)]  # 48 MB
        elif what == "tell":
            variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "JULIA_NUM_THREADS", "PYTHON_JULIACALL_THREADS", "NPROC")
            raise RuntimeError(" ".join([str(torch.get_num_threads()), *map(os.environ.get, variables)]))
        elif what == "raise":
            raise RuntimeError("no good")
        elif what == "exit":
            os._exit(3)
        elif what == "leave":
            sys.exit("farewell")
        elif what == "segfault":
            ctypes.string_at(0)
        elif what == "eat":
            self.eaten = [bytearray(2**24) for _ in range(500)]
        elif what == "out of memory":
            raise MemoryError
        elif what == "refuse":
            raise NotComparable("it is not its kind of problem")
