"""What could end the process is an exception."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.julia

SCRIPT = """
import pynode, torch
z0 = torch.ones(2, 3, dtype=torch.float64)
def solve(code):
    return pynode.solve(pynode.JuliaField(code), z0, [0.0, 1.0], engine="julia").z
right = solve("(u, p, t) -> -u")
for code in (
    "f(x) = 1 .+ f(x .+ 1); (u, p, t) -> f(u)",
    "(u, p, t) -> (zeros(10^14); -u)",
    "(u, p, t) -> exit(3)",
    "(u, p, t) -> (finalizer(x -> error(:finalizer), Ref(1)); GC.gc(); -u)",
    "exit()",
):
    try:
        z = solve(code)
        print("same" if torch.equal(z, right) else "other")
    except pynode.FieldError as error:
        print(str(error).replace(chr(10), " "))
    assert torch.equal(solve("(u, p, t) -> -u"), right)
"""


def test_what_could_end_the_process() -> None:
    """In a process of its own, which may end."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    overflow, memory, leave, finalizer, at_once = done.stdout.splitlines()
    assert "StackOverflowError" in overflow
    assert "OutOfMemoryError" in memory
    assert "it calls exit(), which would end Python" in leave
    assert finalizer == "same"
    assert "error in running finalizer" in done.stderr
    assert "it calls exit(), which would end Python" in at_once
