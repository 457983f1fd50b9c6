"""Numbers that a field reads from where no look at it finds them: a change of them is seen all the same."""

from __future__ import annotations

import functools
import gc
import os
import runpy
import sys
import textwrap
import types
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pynode
from pynode.field import Field, trace

# A user's package, in a file of its own.
PACKAGE = """
    from {name} import sub

    class Config:
        rate = 2.0

        class Inner:
            rate = 2.0

        @staticmethod
        def fixed(): return Config.rate

        @classmethod
        def own(cls): return cls.rate

        @property
        def computed(self): return Config.rate

    class Derived(Config): pass

    class Kind(type):
        @property
        def of_kind(cls): return Config.rate

    class Kinded(metaclass=Kind): pass

    def config(): return Config
    def later():
        from {name} import sub
        return sub.rate
"""


def package(folder: Path, name: str) -> types.ModuleType:
    (folder / name).mkdir()
    (folder / name / "sub.py").write_text("rate = 2.0\n")
    (folder / name / "__init__.py").write_text(textwrap.dedent(PACKAGE).format(name=name))
    sys.modules.pop(name, None)
    return __import__(name)


class Hidden(nn.Module):
    """Keeps its rate where attributes are not looked up."""

    def __getattr__(self, name: str) -> Any:
        return numbers.rate if name == "rate" else super().__getattr__(name)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return -self.rate * z


class OfClass(nn.Module):
    """Has a class, which is no instance, for its configuration."""

    def __init__(self, config: type) -> None:
        super().__init__()
        self.config = config

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return -self.config.rate * z  # type: ignore[attr-defined]


class ByType(nn.Module):
    rate = 2.0

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return -type(self).rate * z


class Constant:
    rate = 2.0


class Default:
    """An object whose class has its rate."""

    rate = 2.0


numbers = types.ModuleType("numbers_of_the_test")
numbers.rate = 2.0  # type: ignore[attr-defined]


@functools.wraps(F.normalize)
def scaled(z: Tensor) -> Tensor:
    return SCALE * z


SCALE = 2.0


def within(package: types.ModuleType) -> Callable[..., Tensor]:
    def field(t: Tensor, z: Tensor) -> Tensor:
        config = package.config()

        def rate() -> float:
            return config.rate  # type: ignore[no-any-return]

        return -rate() * z

    return field


def with_attribute(t: Tensor, z: Tensor) -> Tensor:
    return -with_attribute.rate * z  # type: ignore[attr-defined, no-any-return]


def given(one: Any, other: Any) -> Callable[..., Tensor]:
    """Calls a function with two classes in turn."""

    def rate_of(place: Any) -> Any:
        return place.rate

    return lambda t, z: -(rate_of(one) + rate_of(other)) * z / 2


def fields(package: types.ModuleType) -> dict[str, tuple[Callable[..., Tensor], Callable[[float], None]]]:
    """Fields dz/dt = -rate z, each with what sets its rate."""
    config, default, memory = package.Config, Default(), array("d", [2.0])

    def setter(place: Any, name: str = "rate") -> Callable[[float], None]:
        return functools.partial(setattr, place, name)

    of_config = setter(config)
    return {
        "a module within a module": (lambda t, z: -package.sub.rate * z, setter(package.sub)),
        "a class within a module": (lambda t, z: -package.Config.rate * z, of_config),
        "a class within a class": (lambda t, z: -config.Inner.rate * z, setter(config.Inner)),
        "a class that is derived": (lambda t, z: -package.Derived.rate * z, of_config),
        "a static method": (lambda t, z: -config.fixed() * z, of_config),
        "a class method": (lambda t, z: -config.own() * z, of_config),
        "a property": (lambda t, z: -config().computed * z, of_config),
        "a property of a metaclass": (lambda t, z: -package.Kinded.of_kind * z, of_config),
        "what a function returns": (lambda t, z: -package.config().rate * z, of_config),
        "what a function returns to one within another": (within(package), of_config),
        "an import within a function": (lambda t, z: -package.later() * z, setter(package.sub)),
        "sys.modules": (lambda t, z: -sys.modules[package.__name__].sub.rate * z, setter(package.sub)),
        "getattr": (lambda t, z: -getattr(numbers, "ra" + "te") * z, setter(numbers)),
        "vars": (lambda t, z: -vars(numbers)["rate"] * z, setter(numbers)),
        "eval": (lambda t, z: eval("-numbers.rate * z", globals(), {"z": z}), setter(numbers)),
        "the environment": (
            lambda t, z: -float(os.environ["PYNODE_TEST_RATE"]) * z,
            lambda x: os.environ.update(PYNODE_TEST_RATE=str(x)),
        ),
        "__getattr__": (Hidden(), setter(numbers)),
        "a class in an attribute": (OfClass(config), of_config),
        "the type of a module": (ByType(), setter(ByType)),
        "the class of an object": (lambda t, z: -default.rate * z, setter(Default)),
        "an attribute of a function": (with_attribute, setter(with_attribute)),
        "a class that is the second to be passed": (
            given(Constant, config),
            lambda x: of_config(2 * x - Constant.rate),
        ),
        "memory": (lambda t, z: -memory[0] * z, lambda x: memory.__setitem__(0, x)),
        "a function that wraps a library's": (
            lambda t, z: -scaled(z),
            lambda x: globals().update(SCALE=x),
        ),
    }


NAMES = list(fields(types.SimpleNamespace(Config=type("Config", (), {"Inner": None}), sub=None)))  # type: ignore[arg-type]


@pytest.fixture(params=["settings_of_the_test", "code"])
def users(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The user's package, also by the name of one of Python's own modules."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = {name: x for name, x in sys.modules.items() if name.partition(".")[0] == request.param}
    yield package(tmp_path, request.param)
    for name in [name for name in sys.modules if name.partition(".")[0] == request.param]:
        del sys.modules[name]
    sys.modules.update(before)


def factor(field: Callable[..., Tensor]) -> list[Any]:
    z = torch.ones(2, 3, dtype=torch.float64)
    return [[getattr(x, "value", None) for x in node.inputs] for node in trace(field, z).nodes if node.op != "input"]


@pytest.mark.parametrize("name", NAMES)
def test_a_trace_follows(name: str, users: Any) -> None:
    field, put = fields(users)[name]
    put(2.0)
    one = factor(field)
    assert factor(field) == one
    put(3.0)
    assert factor(field) != one
    put(2.0)
    assert factor(field) == one


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("users", ["settings_of_the_test"], indirect=True)
def test_a_solve_follows(engine: str, name: str, users: Any) -> None:
    """By `solve` and by a prepared one, whose first look is also its last."""
    field, put = fields(users)[name]
    z0 = torch.zeros(1, 1, dtype=torch.float64) + 2
    times, keywords = torch.tensor([0.0, 1.0], dtype=torch.float64), {"engine": engine, "rtol": 1e-6}
    put(2.0)
    prepared = pynode.prepare(field, (z0, times), **keywords)
    for rate in (2.0, 3.0, 3.0, 2.0):
        put(rate)
        expected = pytest.approx(2 * torch.tensor(-rate).exp().item(), rel=1e-4)
        assert pynode.solve(field, z0, times, **keywords).z[-1].item() == expected
        assert prepared(z0).z[-1].item() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_small_change(dtype: torch.dtype) -> None:
    """Of a field of small numbers by a few ten thousandths."""
    field = Default()
    z = torch.ones(2, 3, dtype=dtype)

    def numbers_of_graph() -> list[Any]:
        nodes = trace(lambda t, z: 1e-9 * field.rate * z, z).nodes
        return [[getattr(x, "value", None) for x in node.inputs] for node in nodes if node.op != "input"]

    one = numbers_of_graph()
    Default.rate = 2.0005
    other = numbers_of_graph()
    Default.rate = 2.0
    assert other != one


def test_a_number_that_vanishes_at_the_start(engine: str) -> None:
    """What tells the traces apart is looked at beside it: here value and derivatives are zero whatever the rate."""
    put, field = functools.partial(setattr, Default, "rate"), Default()
    for rate in (2.0, 3.0):
        put(rate)
        z = pynode.solve(
            lambda t, z: field.rate * (t**2 + z**2), torch.zeros(1, 1, dtype=torch.float64), [0.0, 0.5], engine=engine
        ).z[-1]
        assert z.item() == pytest.approx(rate * 0.5**3 / 3, rel=5e-2)
    put(2.0)


def test_a_field_that_refuses_other_states() -> None:
    """It is compared at the start where it cannot be evaluated beside it."""
    field = Default()

    def strict(t: Tensor, z: Tensor) -> Tensor:
        if type(z) is Tensor and (z != 1).any():  # as it is no tensor of a trace
            raise ValueError("out of the domain")
        return -field.rate * z

    one = factor(strict)
    Default.rate = 3.0
    other = factor(strict)
    Default.rate = 2.0
    assert other != one


class Plain(nn.Module):
    """A field like most."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 8), nn.Linear(8, 3)])
        self.rate, self.activation = 0.5, torch.tanh

    @property
    def first(self) -> nn.Module:
        return self.layers[0]

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.rate * self.layers[1](self.activation(self.first(z))) + F.softplus(t)


class Late:
    """Reads its class's rate by a property."""

    @classmethod
    def current(cls) -> float:
        return Default.rate


PLAIN = Plain()


@pytest.mark.parametrize(
    "field",
    [
        PLAIN,
        nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 3)),
        lambda t, z, net=PLAIN: net(t, z) - SCALE * z,
        functools.partial(lambda rate, t, z: -rate * z, 0.3),
        pynode.nn.TimeSequential(pynode.nn.TimeConcat(nn.Linear(4, 3)), nn.Tanh()),
    ],
)
def test_what_most_fields_read_is_seen(field: Any) -> None:
    """So that nothing is compared at their solves."""
    z = torch.ones(2, 3)
    assert not Field(pynode.nn._signature.with_time(field, 0), (z,), torch.zeros(())).facts.unseen


def test_a_solve_within_a_field() -> None:
    """What runs in it is noted for both."""
    inner = PLAIN

    def plain(t: Tensor, z: Tensor) -> Tensor:
        return pynode.solve(inner, z, [0.0, 0.1], engine="torch").z[-1]

    def hidden(t: Tensor, z: Tensor) -> Tensor:
        return pynode.solve(lambda t, z: -default.current() * z, z, [0.0, 0.1], engine="torch").z[-1]

    default = Late()
    z = (torch.ones(2, 3),)
    assert not Field(plain, z, torch.zeros(())).facts.unseen
    assert Field(hidden, z, torch.zeros(())).facts.unseen
    assert sys.getprofile() is None


def test_what_the_collector_calls_is_not_the_fields() -> None:
    def called(*_: object) -> None:
        numbers.calls = SCALE  # type: ignore[attr-defined]

    def field(t: Tensor, z: Tensor) -> Tensor:
        for _ in range(3000):
            z = -z + 0.0 * torch.stack([z, z]).sum(0)
        return z

    gc.callbacks.append(called)
    try:
        assert not Field(field, (torch.ones(1, 1),), torch.zeros(())).facts.unseen
        assert gc.isenabled()
    finally:
        gc.callbacks.remove(called)


def test_a_profiler_stays(tmp_path: Path) -> None:
    """Under one the code that runs is not noted, and each solve compares."""
    called = []
    sys.setprofile(lambda *_: called.append(1))
    try:
        field = Field(lambda t, z: -z, (torch.ones(2, 3),), torch.zeros(()))
        assert sys.getprofile() is not None
    finally:
        sys.setprofile(None)
    assert called
    assert field.facts.unseen


def test_a_module_that_is_called_like_one_of_pythons(tmp_path: Path) -> None:
    """Its functions are the user's."""
    (tmp_path / "profile.py").write_text("RATE = 2.0\ndef rates(z):\n    return -RATE * z\n")
    scope = runpy.run_path(str(tmp_path / "profile.py"), run_name="profile")
    rates = scope["rates"]

    def field(t: Tensor, z: Tensor) -> Tensor:
        return rates(z)  # type: ignore[no-any-return]

    one = factor(field)
    rates.__globals__["RATE"] = 3.0
    assert factor(field) != one
