"""What is known of objects for as long as they live, and signals that come while these are taken apart."""

from __future__ import annotations

import ctypes
import gc
import signal
import weakref
from typing import Any

import pytest
from torch import nn

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
    living = {Departure(key, gone.append, 7, held)}
    del held
    assert not gone
    del key
    assert [(x.number, x.holds.name, x in living) for x in gone] == [(7, "held", True)]
    living.discard(gone.pop())
    assert watched() is None


class _Sends(weakref.ref[Any]):
    """As an argument to a C function it is the number of SIGINT."""

    _as_parameter_ = int(signal.SIGINT)


@pytest.mark.parametrize("python", [True, False])
def test_an_interrupt_while_objects_are_taken_apart(python: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is raised by what comes next, where Python code in between would lose it."""
    lost: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", lambda found: lost.append(found.exc_type))
    first, trigger = nn.Identity(), nn.Identity()
    known: Any = weakref.WeakKeyDictionary() if python else WeakMap()
    known.setdefault(first, 1)
    raised: list[bool] = []
    gone: list[Any] = []
    departure = Departure(first, gone.append, 1)
    sends = _Sends(trigger, ctypes.PyDLL(None)["raise"])
    whole = [first, trigger]  # which goes from its end
    del first, trigger
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        del whole
        for _ in range(3):
            pass
        raised.append(False)
    except KeyboardInterrupt:
        raised.append(True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert sends() is None
    assert raised == [not python]
    assert lost == ([KeyboardInterrupt] if python else [])
    assert gone == [departure]
