"""Ctrl-C and other signals: they are Python's, in the midst of a solve and after Julia has started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("interrupted_script.py")
# Of seconds, in the best of a few tries, as the machine may have other things to do: ten times what it takes.
PATIENCE = 1.0
WORKS = ["python", "asleep", "solve", "samples", "event", "stiff", "pullback", "compiling", "join", "wait"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_interrupts(engine: str) -> None:
    """Work of every kind ends with a KeyboardInterrupt, after which solves are equal to those before, to the bit."""
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), engine], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    found: dict[str, str] = {}
    for line in process.stdout:
        name, _, value = line.strip().partition(" ")
        found[name] = value
        if name == "ready":
            time.sleep(1)
            process.send_signal(signal.SIGTERM)  # in the midst of a solve
    assert process.wait() == -signal.SIGTERM, process.stderr.read()
    print(engine, found)  # the seconds, with -rP
    for name in [*WORKS, "grid"] if engine == "julia" else WORKS:
        assert float(found[name]) < PATIENCE, name
    called, took = (float(x) for x in found["handler"].split(" of "))
    assert called < took
    if engine == "julia":
        assert "a solve is under way, which waits for this signal handler" in found["nested"]
        assert found["kept"] == "0"
        assert int(found["children"], 16) == 0


ON_THREADS = """
import os, signal, subprocess, sys, threading, time
import torch, pynode
torch.manual_seed(0)
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a process that a shell put in the background
net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()
z0 = torch.linspace(-1, 1, 10, dtype=torch.float64).reshape(5, 2)
def solve(end, **options):
    options = {"solver": "dopri5", "batching": "independent", "engine": "julia", "max_steps": 10**9, **options}
    return pynode.solve(lambda t, z: net(z) + torch.sin(3 * t), z0, [0.0, end], **options).z
def gradient():
    z = solve(1.0)
    return [z.detach(), *torch.autograd.grad((z ** 2).sum(), list(net.parameters()))]
before = gradient()
def interrupted():
    sender = subprocess.Popen(["sh", "-c", f"sleep 1; kill -INT {os.getpid()}"])
    started = time.perf_counter()
    try:
        with torch.no_grad():
            solve(1e7, rtol=1e-13, atol=1e-13)
    except KeyboardInterrupt:
        return time.perf_counter() - started - 1
print("samples", min(interrupted() for _ in range(3)))
after = gradient()
for a, b in zip(after, before):
    assert torch.equal(a, b)
from pynode.engine.julia import runtime
print("threads", runtime.module().seval("Threads.nthreads()"))
"""


@pytest.mark.julia
@pytest.mark.slow
def test_on_several_threads_of_julia() -> None:
    environment = {**os.environ, "PYTHON_JULIACALL_THREADS": "3", "OMP_NUM_THREADS": "3"}
    done = subprocess.run(
        [sys.executable, "-c", ON_THREADS], capture_output=True, text=True, timeout=500, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    found = dict(line.split() for line in done.stdout.splitlines())
    assert found["threads"] == "3"
    assert float(found["samples"]) < PATIENCE


NOTEBOOK = """
import time, torch, pynode
net = torch.nn.Linear(2, 2).double(); z0 = torch.ones(1, 2).double()
def solve(end, **how):
    field = lambda t, z: torch.tanh(net(z)) + torch.sin(3 * t)
    how = {{"solver": "dopri5", "engine": "{engine}", "max_steps": 10**9, **how}}
    return pynode.solve(field, z0, [0.0, end], **how).z.detach()
kept = solve(1.0)
"""
LONG = """
try:
    solve(1e7, rtol=1e-13, atol=1e-13)
finally:
    stopped = time.time()
"""


@pytest.mark.slow
def test_notebook(engine: str) -> None:
    """In a Jupyter kernel: a cell is interrupted, and the next one has the variables and the same numbers.

    The answer of the cell comes later than the KeyboardInterrupt, since IPython reads the source of all that is in its
    traceback, the first time for more than a second.
    """
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3")

    def run(code: str, interrupted: bool = False, **wanted: str) -> dict[str, Any]:
        message = client.execute(code, user_expressions=wanted, stop_on_error=False)  # else it may drop the next
        if interrupted:
            time.sleep(2)
            sent.append(time.time())
            manager.interrupt_kernel()
        while True:
            found = client.get_shell_msg(timeout=500)
            if found["parent_header"].get("msg_id") == message:
                return dict(found["content"])

    sent: list[float] = []
    seconds = []
    try:
        assert run(NOTEBOOK.format(engine=engine))["status"] == "ok"
        for _ in range(3):
            assert run(LONG, interrupted=True)["ename"] == "KeyboardInterrupt"
            after = run("same = torch.equal(kept, solve(1.0))", same="same", stopped="stopped")["user_expressions"]
            assert after["same"]["data"]["text/plain"] == "True"
            seconds.append(float(after["stopped"]["data"]["text/plain"]) - sent[-1])
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    print(engine, "notebook", seconds)
    assert min(seconds) < PATIENCE


STARTING = """
import atexit, ctypes, os, signal, subprocess, sys
import torch, pynode
from pynode.engine.julia import runtime
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a process that a shell put in the background
def solve():
    return pynode.solve(lambda t, z: -z, torch.ones(1, 1), [0.0, 1.0], engine="julia").z[-1].item()
def send():
    subprocess.Popen(["sh", "-c", f"sleep 0.1; kill -INT {os.getpid()}"])
class Library(ctypes.PyDLL):  # juliacall's: once while Julia is initialised
    def __getattr__(self, name):
        if name == "jl_parse_opts":
            send()
        return super().__getattr__(name)
ctypes.PyDLL, register = Library, atexit.register
def registers(function, *arguments):
    registered = register(function, *arguments)
    if function.__name__ == "at_jl_exit":  # once while PythonCall is loaded
        send()
    return registered
atexit.register = registers
try:
    solve()
except KeyboardInterrupt:
    print("interrupted", runtime._runs)
print(solve())
"""


@pytest.mark.julia
def test_while_julia_starts() -> None:
    """Signals wait until Julia has started, and what follows works."""
    done = subprocess.run([sys.executable, "-c", STARTING], capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    first, value = done.stdout.splitlines()
    assert first == "interrupted True"
    assert float(value) == pytest.approx(0.367879, rel=2e-3)


IMPORTING = """
import os, signal, sys
import torch, pynode
from pynode.field._field import Field
from pynode.field._trace import trace_field
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a process that a shell put in the background
net, z0, t = torch.nn.Linear(2, 2), (torch.ones(3, 2),), torch.tensor([0.0, 1.0])
def traced():
    return trace_field(Field(lambda t, z: torch.tanh(net(z)), z0, t), z0, t, ()).graph.key
class Interrupts:
    left = 100
    def find_spec(self, name, path=None, target=None):
        if name.startswith("torch."):
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts())
try:
    traced()
except KeyboardInterrupt:
    print(traced() == traced())
"""


@pytest.mark.slow
def test_while_torch_imports() -> None:
    """It imports much of itself at the first solve; what is imported in part cannot be imported again."""
    done = subprocess.run([sys.executable, "-c", IMPORTING], capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True"


WITH_CHILDREN = """
import os, signal, subprocess, time, torch, pynode
signal.signal(signal.SIGCHLD, lambda *_: None)
caught = []
signal.signal(signal.SIGTERM, lambda *_: caught.append(time.perf_counter()))
pynode.solve(lambda t, z: -z, torch.ones(1, 1), [0.0, 1.0], engine="julia")
for k in range(60):
    child = subprocess.Popen(["sh", "-c", f"sleep 0.05; kill -TERM {os.getpid()}"])
    child.wait()  # its end is another signal, which comes with the first
print(len(caught))
"""


@pytest.mark.julia
def test_a_signal_that_another_follows() -> None:
    """Julia's thread for signals took one now and then, on a busy machine, and ended the process at SIGTERM."""
    done = subprocess.run(
        [sys.executable, "-c", WITH_CHILDREN], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "60"
