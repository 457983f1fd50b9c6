"""How far a solve is, shown while it runs."""

from __future__ import annotations

import contextlib
import io
import math
import time
from typing import Any

import pytest
import torch
from torch import Tensor

import pynode
from pynode.problem import progress as reports

D = torch.float64
Z0 = torch.ones(1, 2, dtype=D)


def slow(t: Tensor, z: Tensor) -> Tensor:
    """It keeps a solve busy for about a second on either engine."""
    return torch.sin(1000 * t) - 0.1 * z


def solve(engine: str, progress: Any, **options: Any) -> pynode.Solution:
    span = 0.8 if engine == "torch" else 400.0
    options = {"rtol": 1e-6, "max_steps": 10**8, "engine": engine, **options}
    with torch.no_grad():
        return pynode.solve(slow, Z0, [0.0, span], progress=progress, **options)


def test_a_callable_gets_the_numbers(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "_EVERY", 0.01)
    found: list[pynode.Progress] = []
    began = time.perf_counter()
    sol = solve(engine, found.append)
    seconds = time.perf_counter() - began
    assert 2 <= len(found) <= 100 * seconds + 2
    times = [p.t for p in found]
    assert times == sorted(times)
    assert len({p.t for p in found}) > 2  # it moves
    assert all(0 < p.dt < 1 for p in found[1:-1] if math.isfinite(p.dt))
    assert any(math.isfinite(p.dt) for p in found)
    last = found[-1]
    assert (last.t, last.fraction, last.samples) == (sol.t[-1].item(), 1.0, None)
    assert last.seconds <= seconds
    assert last.rate == pytest.approx(last.t / last.seconds)
    torch.testing.assert_close(sol.z, solve(engine, False).z, rtol=0, atol=0)


def test_independent_samples(engine: str) -> None:
    found: list[pynode.Progress] = []
    with torch.no_grad():
        z0, span = Z0.expand(6, 2), 0.1 if engine == "torch" else 60.0
        pynode.solve(
            slow, z0, [0.0, span], batching="independent", max_steps=10**8, progress=found.append, engine=engine
        )
    counts = [p.samples for p in found]
    assert counts == sorted(counts)
    assert counts[-1] == 6
    assert found[-1].fraction == 1.0


def test_a_bar(engine: str) -> None:
    """In what is no terminal it is drawn at the start and at the end."""
    with contextlib.redirect_stderr(io.StringIO()) as log:
        solve(engine, True)
    assert "100%" in log.getvalue()
    assert "t/s" in log.getvalue()
    assert log.getvalue().count("\r") <= 6


def test_pieces_and_gradients(engine: str) -> None:
    found: list[pynode.Progress] = []
    z0 = Z0.clone().requires_grad_()
    sol = pynode.solve(slow, z0, [0.0, 1.0], tstops=[0.3, 0.6], progress=found.append, engine=engine, max_steps=10**6)
    sol.z[-1].sum().backward()
    assert found[-1].fraction == 1.0
    assert found[-1].t == 1.0


def test_a_failure_and_its_event(engine: str) -> None:
    """What was reached is shown, and the failure is the solve's."""
    found: list[pynode.Progress] = []
    with pytest.raises(pynode.SolveError):
        pynode.solve(lambda t, z: z**2, Z0, [0.0, 2.0], progress=found.append, engine=engine)
    assert found
    sol = pynode.solve(
        lambda t, z: z * 0 + 1, Z0, [0.0, 2.0], event=lambda t, z: z[0, 0] - 1.5, progress=found.append, engine=engine
    )
    assert found[-1].t == pytest.approx(0.5)
    assert sol.event_t is not None


def test_an_error_of_the_callable_is_raised(engine: str) -> None:
    def broken(progress: pynode.Progress) -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        solve(engine, broken)


@pytest.mark.parametrize("progress", [1, "yes", None])
def test_refusals(progress: Any) -> None:
    with pytest.raises(pynode.InputError, match="progress must be True, False, or a callable"):
        solve("torch", progress)


IN_A_KERNEL = """
{before}
import torch, pynode
with torch.no_grad():
    pynode.solve(
        lambda t, z: torch.sin(1000 * t) - 0.1 * z, torch.ones(1, 2, dtype=torch.float64), [0.0, {span}],
        progress=True, rtol=1e-6, max_steps=10**8, engine="{engine}",
    )
"""


@pytest.mark.slow
@pytest.mark.parametrize("widgets", [True, False])
def test_a_notebook(engine: str, widgets: bool) -> None:
    """The bar moves while the solve runs, as a widget, or as text where there are none."""
    from jupyter_client.manager import start_new_kernel

    before = "" if widgets else "import sys; sys.modules['ipywidgets'] = None"
    manager, client = start_new_kernel(kernel_name="python3")
    shown: list[str] = []
    try:
        span = 4.0 if engine == "torch" else 10_000.0
        message = client.execute(IN_A_KERNEL.format(before=before, span=span, engine=engine))
        while True:
            found = client.get_iopub_msg(timeout=500)
            kind, content = found["msg_type"], found["content"]
            assert kind != "error", content["traceback"]
            if kind == "stream":
                shown += content["text"].split("\r")
            if kind == "comm_msg":
                shown.append(str(content["data"]["state"].get("value")))
            if (
                kind == "status"
                and content["execution_state"] == "idle"
                and found["parent_header"]["msg_id"] == message
            ):
                break
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    reached = {text for text in shown if "t=" in text}
    assert len(reached) >= 5, shown
    assert any("100%" in text for text in shown)
