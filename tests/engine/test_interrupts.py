"""Ctrl-C and other signals: they are Python's, in the midst of a solve and after Julia has started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("interrupted_script.py")
# Far more than it takes, about 0.2 s: the machine may have other things to do.
PATIENCE = 20.0


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
    assert list(found)[:8] == ["python", "asleep", "solve", "samples", "event", "stiff", "pullback", "compiling"]
    for name in list(found)[:8]:
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
sender = subprocess.Popen(["sh", "-c", f"sleep 1; kill -INT {os.getpid()}"])
started = time.perf_counter()
try:
    with torch.no_grad():
        solve(1e7, rtol=1e-13, atol=1e-13)
except KeyboardInterrupt:
    print("samples", time.perf_counter() - started - 1)
after = gradient()
for a, b in zip(after, before):
    assert torch.equal(a, b)
from pynode.engine.julia import runtime
print("threads", runtime.start().seval("Threads.nthreads()"))
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


NOTEBOOK = (
    "import torch, pynode, time\n"
    "net = torch.nn.Linear(2, 2).double(); z0 = torch.ones(1, 2).double()\n"
    "def solve(end, **k): return pynode.solve(lambda t, z: torch.tanh(net(z)) + torch.sin(3 * t), z0, [0.0, end],"
    ' solver="dopri5", engine="{engine}", max_steps=10**9, **k).z.detach()\n'
    "kept = solve(1.0)",
    "solve(1e7, rtol=1e-13, atol=1e-13)",
    "assert torch.equal(kept, solve(1.0)); print('same')",
)


@pytest.mark.slow
def test_notebook(engine: str) -> None:
    """In a Jupyter kernel: a cell is interrupted, and the next one has the variables and the same numbers."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3")

    def reply(message: str) -> dict[str, object]:
        while True:
            found = client.get_shell_msg(timeout=500)
            if found["parent_header"].get("msg_id") == message:
                return dict(found["content"])

    try:
        first, long, last = (cell.replace("{engine}", engine) for cell in NOTEBOOK)
        assert reply(client.execute(first))["status"] == "ok"
        running = client.execute(long)
        time.sleep(2)
        manager.interrupt_kernel()
        started = time.perf_counter()
        stopped = reply(running)
        print(engine, "notebook", time.perf_counter() - started)
        assert stopped["ename"] == "KeyboardInterrupt"
        assert time.perf_counter() - started < PATIENCE
        assert reply(client.execute(last))["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


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
