"""Thousands of solves of every kind, failures among them, and hundreds that are interrupted: nothing stays behind."""

from __future__ import annotations

import collections
import ctypes
import gc
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from soak_cases import Case, Result, cases, same

import pynode
from pynode.engine.choose import get_engine
from pynode.engine.julia import runtime

MB = 2**20


class Malloc(ctypes.Structure):
    """What glibc says of its allocations (`struct mallinfo2`)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    ]


class Left:
    """What is there once the garbage is gone.

    Attributes:
        kept: solves that Julia keeps for a gradient or an interpolant.
        julias: bytes that live in Julia.
        tensors: Python's.
        blocks: of memory that Python's objects lie in.
        allocated: bytes that C's allocator has given out, as to torch and to LLVM; 0 where it cannot say.
        resident: bytes of the process that are in memory; pages of Julia's that are free come and go.
    """

    def __init__(self, engine: str) -> None:
        gc.collect()
        self.kept = self.julias = 0
        if engine == "julia":
            get_engine(engine).session.start()  # type: ignore[attr-defined]  # tells Julia what Python has let go of
            julia = runtime.module()
            self.kept = int(julia.seval("length(PyNODE.KEPT)"))
            self.julias = int(julia.seval("(GC.gc(); GC.gc(); Base.gc_live_bytes())"))
        self.tensors = sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())
        self.blocks = sys.getallocatedblocks()
        self.allocated = 0
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallinfo2"):
            libc.malloc_trim(0)
            libc.mallinfo2.restype = Malloc
            info = libc.mallinfo2()
            self.allocated = info.uordblks + info.hblkhd
        self.resident = 4096 * int(Path("/proc/self/statm").read_text().split()[1])

    def __repr__(self) -> str:
        return (
            f"kept {self.kept}, in Julia {self.julias / MB:.1f} MB, {self.tensors} tensors, {self.blocks} blocks, "
            f"allocated {self.allocated / MB:.1f} MB, resident {self.resident / MB:.1f} MB"
        )


def first_results(made: list[Case]) -> list[Result]:
    return [case()[0] for case in made]


def soak(made: list[Case], expected: list[Result], n: int, drawn: random.Random) -> None:
    """`n` of these solves; the latest ones are held, as a program would hold some."""
    held: collections.deque[Any] = collections.deque(maxlen=10)
    for _ in range(n):
        index = drawn.randrange(len(made))
        result, holds = made[index]()
        assert same(result, expected[index]), (index, result, expected[index])
        held.append(holds)


@pytest.mark.parametrize(
    "how",
    [
        (5, 50),
        pytest.param((60, 2_000), marks=[pytest.mark.exhaustive, pytest.mark.timeout(1800)]),
        pytest.param((150, 10_000), marks=[pytest.mark.exhaustive, pytest.mark.timeout(7200)]),
    ],
)
def test_many_solves(engine: str, how: tuple[int, int]) -> None:
    """Each gives the numbers, counts and messages of the first time; memory stays as it was after a fifth of them."""
    kinds, n = how
    long = n > 1000
    made, drawn = cases(engine, kinds, stiff=long, continuous=long), random.Random(1)
    expected = first_results(made)
    soak(made, expected, n // 5, drawn)
    before = Left(engine)
    soak(made, expected, n - n // 5, drawn)
    after = Left(engine)
    print(engine, before, "->", after)  # with -rP
    assert before.kept == after.kept == 0
    assert after.tensors <= before.tensors + 50
    if long:  # a leak of half a kilobyte in each solve were more
        assert after.allocated < before.allocated + 4 * MB
        assert after.blocks < before.blocks + 10_000
        assert after.julias < before.julias + 4 * MB
        assert after.resident < before.resident + 100 * MB


@pytest.fixture
def alarms() -> Iterator[None]:
    """The timer's signal raises KeyboardInterrupt, as SIGINT does."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    torch.set_grad_enabled(True)  # where one has cut torch's own code in two, other tests are not to fail as well


def interrupted(case: Case, delay: float) -> bool:
    """Whether a solve was interrupted after so many seconds; it may have ended before, or Python may have lost it."""
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, delay)
            case()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt as error:
        own = os.path.dirname(pynode.__file__)
        if not any(frame.filename.startswith(own) for frame in traceback.extract_tb(error.__traceback__)):
            torch.set_grad_enabled(True)  # it has cut torch's own code in two, where the case makes its field
        return True
    return False


@pytest.mark.usefixtures("alarms")
@pytest.mark.parametrize(
    "how", [(5, 15), pytest.param((80, 400), marks=[pytest.mark.exhaustive, pytest.mark.timeout(3600)])]
)
def test_many_interrupts(engine: str, how: tuple[int, int]) -> None:
    """They come at random points of solves and backward passes; what follows is right to the bit."""
    kinds, n = how
    made, drawn = cases(engine, kinds, stiff=False, continuous=n > 100), random.Random(2)
    expected = first_results(made)
    caught = 0
    for _ in range(n):
        index = drawn.randrange(len(made))
        started = time.perf_counter()
        made[index]()
        took = time.perf_counter() - started
        caught += interrupted(made[index], drawn.uniform(0, took))
        for again in (index, drawn.randrange(len(made))):
            result, _ = made[again]()
            assert same(result, expected[again]), (index, again, result, expected[again])
    print(engine, caught, "interrupts of", n)  # with -rP
    assert caught > n // 2
    soak(made, expected, 10, drawn)
    assert Left(engine).kept <= 1  # one that was cut off from its number goes as the next is kept
