"""What is known of objects for as long as they live, and signals that come while these are taken apart."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from typing import Any

import pytest

from pynode import weak
from pynode.weak import Departure, WeakMap


class Key:
    def __init__(self, name: str = "") -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


def test_map() -> None:
    known: WeakMap[Key, int] = WeakMap()
    a, same, b = Key("a"), Key("a"), Key("b")
    assert known.get(a) is None
    assert known.setdefault(a, 1) == 1
    assert known.setdefault(same, 2) == 1
    assert known.get(same) == 1
    assert known.setdefault(b, 3) == 3
    del a
    gc.collect()
    assert known.get(same) is None
    assert known.get(b) == 3
    assert len(known._values) == 1
    with pytest.raises(TypeError, match="weak reference"):
        known.get(3)  # type: ignore[arg-type]


def test_departure() -> None:
    gone: list[Any] = []
    key, held = Key(), Key("held")
    watched = weakref.ref(held)
    living = {Departure.of(key, gone.append, 7, held)}
    del held
    assert not gone
    del key
    assert [(x.number, x.holds.name, x in living) for x in gone] == [(7, "held", True)]
    living.discard(gone.pop())
    assert watched() is None


# In a process of its own, where nothing else runs when a signal comes.
INTERRUPTED = """
import ctypes, runpy, signal, sys, weakref
weak = runpy.run_path(sys.argv[1])
lost = []
sys.unraisablehook = lambda found: lost.append(found.exc_type.__name__)
signal.signal(signal.SIGINT, signal.default_int_handler)
class Owner:
    pass
class Sends(weakref.ref):  # as an argument to a C function it is the number of SIGINT
    _as_parameter_ = int(signal.SIGINT)
first, trigger = Owner(), Owner()
known = weakref.WeakKeyDictionary() if sys.argv[2] == "python" else weak["WeakMap"]()
known.setdefault(first, 1)
gone = []
departure = weak["Departure"].of(first, gone.append, 1)
sends = Sends(trigger, ctypes.PyDLL(None)["raise"])
whole = [first, trigger]  # which goes from its end
del first, trigger
try:
    del whole
    for _ in range(3):
        pass
    print("nothing", lost, gone == [departure])
except KeyboardInterrupt:
    print("raised", lost, gone == [departure])
"""


@pytest.mark.parametrize(
    ("kind", "found"), [("python", "nothing ['KeyboardInterrupt'] True"), ("pynode", "raised [] True")]
)
def test_an_interrupt_while_objects_are_taken_apart(kind: str, found: str) -> None:
    """It is raised by what comes next, where Python code in between would lose it."""
    command = [sys.executable, "-c", INTERRUPTED, weak.__file__, kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout.strip() == found, done.stderr
