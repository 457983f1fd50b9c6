"""Tensors that a field reads, wherever it keeps them: their gradients, and what changes between solve and gradient."""

from __future__ import annotations

import dataclasses
import functools
import gc
import logging
import math
import sys
import threading
import types
import weakref
from collections import deque, namedtuple
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pynode
from pynode import FieldError
from pynode.field import Field
from pynode.field._bindings import Reads
from pynode.field._fingerprint import fingerprint
from pynode.models import NODE

Z0 = torch.tensor([[0.3, -0.2], [0.8, 0.5]], dtype=torch.float64)
Pair = namedtuple("Pair", "first second")


class Slotted:
    __slots__ = ("__private", "inner")

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.__private = inner

    @property
    def private(self) -> Any:
        return self.__private


@dataclasses.dataclass
class Record:
    inner: Any
    count: int = 0


class Config:
    """Has class attributes."""

    value: Any = None


holder = types.ModuleType("holder")
sys.modules["holder"] = holder
value_of_global: Any = None


# Each makes of a tensor a function that reads it.
def in_closure(x: Tensor) -> Callable[[], Tensor]:
    return lambda: x


def in_default(x: Tensor) -> Callable[[], Tensor]:
    return lambda x=x: x  # type: ignore[misc]


def in_keyword_default(x: Tensor) -> Callable[[], Tensor]:
    def read(*, y: Tensor = x) -> Tensor:
        return y

    return read


def in_partial(x: Tensor) -> Callable[[], Tensor]:
    return functools.partial(lambda y: y, x)


def in_list(x: Tensor) -> Callable[[], Tensor]:
    held = [1.0, [x]]
    return lambda: held[1][0]  # type: ignore[index, return-value]


def in_dict(x: Tensor) -> Callable[[], Tensor]:
    held = {"a": {"b": x}}
    return lambda: held["a"]["b"]


def in_tuple(x: Tensor) -> Callable[[], Tensor]:
    held = Pair(0, (x, 1))
    return lambda: held.second[0]  # type: ignore[no-any-return]


def in_deque(x: Tensor) -> Callable[[], Tensor]:
    held = deque([x], maxlen=3)
    return lambda: held[0]


def in_set(x: Tensor) -> Callable[[], Tensor]:
    held = {x}
    return lambda: next(iter(held))


def in_object(x: Tensor) -> Callable[[], Tensor]:
    held = Record(types.SimpleNamespace(x=x))
    return lambda: held.inner.x  # type: ignore[no-any-return]


def in_slots(x: Tensor) -> Callable[[], Tensor]:
    held = Slotted(x)
    return lambda: held.inner  # type: ignore[no-any-return]


def in_private_slots(x: Tensor) -> Callable[[], Tensor]:
    held = Slotted(x)
    return lambda: held.private  # type: ignore[no-any-return]


def in_class(x: Tensor) -> Callable[[], Tensor]:
    Config.value = x
    return lambda: Config.value  # type: ignore[no-any-return]


def in_class_of_object(x: Tensor) -> Callable[[], Tensor]:
    held = type("Owner", (), {"x": x})()
    return lambda: held.x  # type: ignore[no-any-return]


def in_class_of_module(x: Tensor) -> Callable[[], Tensor]:
    held = type("Owner", (nn.Module,), {"x": x})()
    return lambda: held.x  # type: ignore[no-any-return]


def in_python_module(x: Tensor) -> Callable[[], Tensor]:
    holder.x = x  # type: ignore[attr-defined]
    return lambda: holder.x  # type: ignore[attr-defined, no-any-return]


def in_global(x: Tensor) -> Callable[[], Tensor]:
    global value_of_global
    value_of_global = x
    return lambda: value_of_global


def in_global_of_method(x: Tensor) -> Callable[[], Tensor]:
    global value_of_global
    value_of_global = x
    return ReadsGlobal().read


class ReadsGlobal:
    def read(self) -> Tensor:
        return self.further()

    def further(self) -> Tensor:
        return value_of_global  # type: ignore[no-any-return]


def in_parameter(x: Tensor) -> Callable[[], Tensor]:
    held = nn.Module()
    held.register_parameter("x", None)
    held._parameters["x"] = x  # type: ignore[assignment]
    return lambda: held.x  # type: ignore[return-value]


def in_attribute_of_module(x: Tensor) -> Callable[[], Tensor]:
    held = nn.Module()
    held.x = x
    return lambda: held.x  # type: ignore[return-value]


def in_list_of_module(x: Tensor) -> Callable[[], Tensor]:
    held = nn.Module()
    held.xs = [[x]]
    return lambda: held.xs[0][0]  # type: ignore[index, return-value]


def in_function_of_function(x: Tensor) -> Callable[[], Tensor]:
    def inner() -> Tensor:
        return x

    def outer(f: Callable[[], Tensor] = inner) -> Tensor:
        return f()

    return outer


PLACES = [f for name, f in list(globals().items()) if name.startswith("in_")]


def leaves_and_tensors(computed: Sequence[bool]) -> tuple[list[Tensor], list[Tensor]]:
    leaves = [torch.tensor(0.4 - 0.3 * i, dtype=torch.float64, requires_grad=True) for i in range(len(computed))]
    return leaves, [2 * x * x if c else x for x, c in zip(leaves, computed, strict=True)]


def field_of(reads: Sequence[Callable[[], Tensor]], late: Sequence[bool], as_module: bool) -> Any:
    def f(t: Tensor, z: Tensor) -> Tensor:
        out = torch.zeros_like(z)
        for i, (read, is_late) in enumerate(zip(reads, late, strict=True)):
            if not is_late or t > 0.45:
                out = out + (read() * z) ** (i + 1) if i else out + read() * z
        return out

    if not as_module:
        return f

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = f

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return self.f(t, z)

    return Net()


@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve", "forward"])
@given(
    places=st.lists(st.sampled_from(PLACES), min_size=1, max_size=3, unique=True),
    computed=st.lists(st.booleans(), min_size=3, max_size=3),
    late=st.lists(st.booleans(), min_size=3, max_size=3),
    as_module=st.booleans(),
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_gradient_is_that_of_plain_parameters(
    sensitivity: str, places: list[Any], computed: list[bool], late: list[bool], as_module: bool
) -> None:
    if sum(p in (in_global, in_global_of_method) for p in places) > 1:  # they share the place
        places = places[:1]
    computed, late = computed[: len(places)], late[: len(places)]
    keywords: dict[str, Any] = {"solver": "rk4", "dt": 0.25, "engine": "torch"}

    def plain(leaf: Sequence[Tensor]) -> Callable[..., Tensor]:
        _, tensors = leaves_and_tensors(computed)
        tensors = [2 * x * x if c else x for x, c in zip(leaf, computed, strict=True)]
        return field_of([lambda x=x: x for x in tensors], late, False)  # type: ignore[misc]

    reference = [x.detach().requires_grad_() for x in leaves_and_tensors(computed)[0]]
    z = pynode.solve(plain(reference), Z0, [0.0, 1.0], sensitivity=sensitivity, **keywords).z[-1]
    expected = torch.autograd.grad((z**2).sum(), reference)
    leaves, tensors = leaves_and_tensors(computed)
    field = field_of([place(x) for place, x in zip(places, tensors, strict=True)], late, as_module)
    for _ in range(2):  # the second time with what is known from the first
        got = pynode.solve(field, Z0, [0.0, 1.0], sensitivity=sensitivity, **keywords).z[-1]
        torch.testing.assert_close(got, z, rtol=1e-14, atol=0)
        grads = torch.autograd.grad((got**2).sum(), leaves, retain_graph=True)
        for a, b in zip(grads, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("computed", [False, True])
def test_each_place(engine: str, place: Any, computed: bool) -> None:
    (leaf,), (x,) = leaves_and_tensors([computed])
    field = field_of([place(x)], [False], False)
    for _ in range(2):
        z = pynode.solve(field, Z0, [0.0, 1.0], engine=engine, rtol=1e-10, atol=1e-10).z[-1]
        torch.testing.assert_close(z, Z0 * x.detach().exp(), rtol=1e-8, atol=0)
        (g,) = torch.autograd.grad(z.sum(), leaf, retain_graph=True)
        expected = Z0.sum() * x.detach().exp() * (4 * leaf.detach() if computed else 1)
        torch.testing.assert_close(g, expected, rtol=1e-7, atol=0)


def test_a_tensor_that_cannot_be_found_late_in_the_solve() -> None:
    hidden = [torch.ones((), dtype=torch.float64, requires_grad=True)]
    reference = weakref.ref(hidden[0])
    with pytest.raises(FieldError, match="kept where it cannot be found"):
        pynode.solve(lambda t, z: z if t < 0.5 else z * reference(), Z0, [0.0, 1.0], engine="torch")


def test_what_is_not_read_has_no_gradient_and_no_part_in_the_solve() -> None:
    """As in torchdiffeq: a method of a large object has gradients to what it reads alone."""

    class Trainer:
        def __init__(self) -> None:
            self.rate = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
            self.other = nn.Linear(3, 3)
            loss = self.other(torch.ones(3)).sum()
            loss.backward()
            self.loss = loss  # a tensor whose graph is gone
            self.other.zero_grad()

        def field(self, t: Tensor, z: Tensor) -> Tensor:
            return self.rate * z

    trainer = Trainer()
    pynode.solve(trainer.field, Z0, [0.0, 1.0], engine="torch").z[-1].sum().backward()
    assert trainer.rate.grad is not None
    assert all(p.grad is None for p in trainer.other.parameters())


# ---- what a field has been seen to be holds no longer than it is so -------------------------------------


def test_a_shape_that_is_right_for_one_batch_size_only(engine: str) -> None:
    def mean(t: Tensor, z: Tensor) -> Tensor:
        return z.mean(0, keepdim=True)

    def pair(t: Tensor, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return z[0], z[1].mean(0, keepdim=True)

    for field, state in ((mean, Z0), (pair, (Z0, Z0))):
        one = Z0[:1] if field is mean else (Z0[:1], Z0[:1])
        pynode.solve(field, one, [0.0, 1.0], engine=engine)
        with pytest.raises((FieldError, pynode.TraceError), match="shape"):
            pynode.solve(field, state, [0.0, 1.0], engine=engine)


def test_numpy_arrays_that_change(engine: str) -> None:
    matrix = np.array([[0.0, 1.0], [-1.0, 0.0]])

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = matrix

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return z @ torch.tensor(self.matrix)

    def function(t: Tensor, z: Tensor) -> Tensor:
        return z @ torch.tensor(matrix)

    for field in (Net(), function):
        for _ in range(2):
            z = pynode.solve(field, Z0, [0.0, 1.0], engine=engine, rtol=1e-10, atol=1e-10).z[-1]
            torch.testing.assert_close(z, Z0 @ torch.linalg.matrix_exp(torch.tensor(matrix)), rtol=1e-7, atol=1e-9)
            np.multiply(matrix, 0.5, out=matrix)


def test_the_default_dtype(engine: str) -> None:
    def field(t: Tensor, z: Tensor) -> Tensor:
        return z * torch.tensor(1 / 3).to(z)  # which the default dtype rounds

    values = []
    for dtype in (torch.float32, torch.float64, torch.float32):
        torch.set_default_dtype(dtype)
        try:
            values.append(pynode.solve(field, Z0, [0.0, 1.0], engine=engine, rtol=1e-12, atol=1e-12).z[-1])
        finally:
            torch.set_default_dtype(torch.float32)
    assert torch.equal(values[0], values[2])
    assert not torch.equal(values[0], values[1])


def test_lazy_modules(engine: str) -> None:
    net = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(2)).double()
    z = pynode.solve(lambda t, z: net(z), Z0, [0.0, 1.0], engine=engine).z[-1]
    grads = torch.autograd.grad(z.sum(), list(net.parameters()))
    assert all(bool(g.any()) for g in grads)


def test_dictionaries_by_module(engine: str) -> None:
    layer, other = nn.Linear(2, 2, dtype=torch.float64), nn.Linear(2, 2, dtype=torch.float64)
    scales = {layer: 2.0, other: 3.0}
    chosen = {layer}

    def field(t: Tensor, z: Tensor) -> Tensor:
        return sum(scales[m] * m(z) for m in (layer, other) if m in chosen)  # type: ignore[return-value]

    z = pynode.solve(field, Z0, [0.0, 1.0], engine=engine, rtol=1e-9).z[-1]
    expected = pynode.solve(lambda t, z: 2 * layer(z), Z0, [0.0, 1.0], engine=engine, rtol=1e-9).z[-1]
    torch.testing.assert_close(z, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve", "forward"])
def test_weights_that_another_network_makes(engine: str, sensitivity: str) -> None:
    """`functional_call` with weights after one step of an inner optimizer, as in meta-learning."""
    x, step = Z0, torch.tensor(0.1, dtype=torch.float64, requires_grad=True)

    class Decay(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.tensor(-0.5, dtype=torch.float64))

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return self.a * z

    model = NODE(Decay(), sensitivity=sensitivity, engine=engine, rtol=1e-10, atol=1e-10)
    fast = {"field.a": model.field.a + 0.3 * step}
    y = torch.func.functional_call(model, fast, (x,)).sum()
    g, of_a = torch.autograd.grad(y, [step, model.field.a])
    expected = x.sum() * torch.tensor(-0.47, dtype=torch.float64).exp()
    torch.testing.assert_close(y.detach(), expected, rtol=1e-8, atol=0)
    torch.testing.assert_close(g, 0.3 * expected, rtol=1e-7, atol=0)
    torch.testing.assert_close(of_a, expected, rtol=1e-7, atol=0)


# ---- what the field writes ----------------------------------------------------------------------------


class Writes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(-0.5, dtype=torch.float64))
        self.nfe = 0
        self.log: list[float] = []
        self.states: list[Tensor] = []
        self.last: Tensor | None = None

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        self.nfe += 1
        self.log.append(float(t))
        self.states.append(z)
        self.last = self.a * z
        return self.last


@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve"])
def test_counters_lists_and_caches_are_the_users(sensitivity: str) -> None:
    field = Writes()
    count = 0

    def counted(t: Tensor, z: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return field(t, z)

    for f in (field, counted):
        before, calls = field.nfe, count
        solution = pynode.solve(f, Z0, [0.0, 1.0], engine="torch", solver="rk4", dt=0.25, sensitivity=sensitivity)
        extra = 1 if before == 0 or (f is counted and calls == 0) else 0  # the look at a field that is new
        assert field.nfe - before >= solution.stats.nfe
        assert field.nfe - before <= solution.stats.nfe + extra + 1
        assert len(field.log) == field.nfe == len(field.states)
        assert field.last is not None
    assert count > 0


def test_a_kept_tensor_has_no_gradient_but_an_error() -> None:
    field = Writes()
    z = pynode.solve(field, Z0, [0.0, 1.0], engine="torch", solver="rk4", dt=0.25).z[-1]
    assert field.last is not None
    with pytest.raises(FieldError, match=r"solve\(running_cost=…\)"):
        (z.sum() + field.last.sum()).backward()


# ---- changes between forward and backward, and between solves -----------------------------------------


class Changing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(-0.5, dtype=torch.float64))
        self.register_buffer("b", torch.tensor(0.3, dtype=torch.float64))
        self.rate = 1.0
        self.options = {"shift": 0.2}
        self.tensors = [torch.tensor(0.7, dtype=torch.float64)]
        self.inner = nn.ModuleList([nn.Linear(2, 2, bias=False, dtype=torch.float64)])
        self.array = np.array([1.0, 0.5])
        self.flip = False
        nn.init.constant_(self.inner[0].weight, 0.2)  # type: ignore[arg-type]

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        out = self.a * z * self.rate + self.b * z.sin() + self.options["shift"] * self.tensors[0] + self.inner[0](z)
        out = out * torch.as_tensor(self.array)
        return -out if self.flip else out


def _scale_buffer(f: Changing) -> None:
    f.b.mul_(2)


def _fill_parameter(f: Changing) -> None:
    with torch.no_grad():
        f.a.fill_(1.0)


CHANGES: dict[str, Callable[[Changing], Any]] = {
    "float": lambda f: setattr(f, "rate", 2.0),
    "buffer replaced": lambda f: setattr(f, "b", torch.tensor(1.0, dtype=torch.float64)),
    "buffer in place": _scale_buffer,
    "array": lambda f: setattr(f, "array", 2 * f.array),
    "array in place": lambda f: np.multiply(f.array, 2.0, out=f.array),
    "dict": lambda f: f.options.update(shift=-1.0),
    "list": lambda f: f.tensors.__setitem__(0, torch.tensor(-1.0, dtype=torch.float64)),
    "parameter replaced": lambda f: setattr(f, "a", nn.Parameter(torch.tensor(2.0, dtype=torch.float64))),
    "parameter in place": _fill_parameter,
    "layer": lambda f: f.inner.__setitem__(0, nn.Linear(2, 2, bias=False, dtype=torch.float64)),
    "flag": lambda f: setattr(f, "flip", True),
    "hook": lambda f: f.inner[0].register_forward_hook(lambda module, inputs, out: 3 * out),
    "mode": lambda f: f.eval(),
    "data": lambda f: setattr(f.a, "data", torch.tensor(3.0, dtype=torch.float64)),
}


def tensors_of(field: Changing) -> list[Tensor]:
    return [field.a, field.inner[0].weight]  # type: ignore[list-item]


def gradient(field: Changing, sensitivity: str, engine: str, between: Callable[[], Any] = lambda: None) -> list[Tensor]:
    tensors = tensors_of(field)
    z = pynode.solve(
        field, Z0, [0.0, 1.0], sensitivity=sensitivity, engine=engine, solver="dopri5", rtol=1e-6, atol=1e-6
    ).z
    between()
    return list(torch.autograd.grad((z[-1] ** 2).sum(), tensors))


@given(names=st.lists(st.sampled_from(sorted(CHANGES)), min_size=1, max_size=3, unique=True))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve", "forward"])
def test_changes_between_solve_and_gradient(engine: str, sensitivity: str, names: list[str]) -> None:
    """The gradient is that of the field which was solved, or an error."""
    expected = gradient(Changing(), sensitivity, engine)
    field = Changing()

    def between() -> None:
        for name in names:
            CHANGES[name](field)

    try:
        got = gradient(field, sensitivity, engine, between)
    except (FieldError, RuntimeError) as error:
        assert isinstance(error, FieldError) or "modified by an inplace operation" in str(error)  # noqa: PT017
        return
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def changes() -> list[Any]:
    """Where a continuous adjoint is compiled for each field, few of the changes by default."""
    some = ("array in place", "layer", "parameter in place")
    return [
        pytest.param(
            *(engine, how, name),
            marks=[
                *([pytest.mark.julia] if engine == "julia" else []),
                *([pytest.mark.exhaustive] if (engine, how) == ("julia", "backsolve") and name not in some else []),
            ],
        )
        for engine in ("torch", "julia")
        for how in ("discrete", "backsolve")
        for name in sorted(CHANGES)
    ]


@pytest.mark.parametrize(("engine", "sensitivity", "name"), changes())
def test_changes_between_two_solves(engine: str, sensitivity: str, name: str) -> None:
    """The second solve sees what is there then, and its gradient is that of a field made so."""
    field, fresh = Changing(), Changing()
    gradient(field, sensitivity, engine)
    torch.manual_seed(1)
    CHANGES[name](field)
    torch.manual_seed(1)
    CHANGES[name](fresh)
    for a, b in zip(gradient(field, sensitivity, engine), gradient(fresh, sensitivity, engine), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)


def test_a_change_that_a_copy_shares_is_named() -> None:
    field = Changing()
    with pytest.raises(FieldError, match=r"changed between the solve and its gradient.*options"):
        gradient(field, "backsolve", "torch", lambda: CHANGES["dict"](field))


@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve", "forward"])
def test_arrays_that_change_after_the_solve(engine: str, sensitivity: str) -> None:
    """Autograd does not see it where a tensor shares their memory; what the field itself writes to may change."""
    field = Changing()
    with pytest.raises(FieldError, match="array, NumPy's"):
        gradient(field, sensitivity, engine, lambda: CHANGES["array in place"](field))
    counts = np.zeros(1)

    def counted(t: Tensor, z: Tensor) -> Tensor:
        counts[0] += 1
        return field.a * z

    z = pynode.solve(counted, Z0, [0.0, 1.0], engine="torch", sensitivity=sensitivity).z[-1]
    pynode.solve(counted, Z0, [0.0, 1.0], engine="torch")
    assert torch.autograd.grad(z.sum(), field.a)[0] != 0


# ---- hooks, threads, and what is left behind ----------------------------------------------------------


@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve", "forward"])
def test_hooks_of_parameters_run_once(engine: str, sensitivity: str) -> None:
    field, calls = Changing(), []
    plain = gradient(field, sensitivity, engine)
    field.a.register_hook(lambda g: (calls.append(1), 0.1 * g)[1])
    hooked = gradient(field, sensitivity, engine)
    assert len(calls) == 1
    torch.testing.assert_close(hooked[0], 0.1 * plain[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(hooked[1], plain[1], rtol=1e-6, atol=0)


def test_parametrized_models_in_several_threads() -> None:
    """No thread sees what another one computes, nor does an ordinary call of the layer beside a solve."""
    layers = [nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)).double() for _ in range(2)]
    field = nn.Sequential(layers[0], nn.Tanh(), layers[1])

    def f(t: Tensor, z: Tensor) -> Tensor:
        return field(z)  # type: ignore[no-any-return]

    def run() -> list[Tensor]:
        z = pynode.solve(f, Z0, [0.0, 1.0], engine="torch", solver="rk4", dt=0.1).z[-1]
        beside = field(Z0)
        return list(torch.autograd.grad((z**2).sum() + beside.sum(), list(field.parameters())))

    expected = run()
    found: list[Any] = []

    def work() -> None:
        try:
            found.extend(run() for _ in range(10))
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 40
    for got in found:
        for a, b in zip(got, expected, strict=True):
            assert torch.equal(a, b)


def test_nothing_of_a_field_is_kept() -> None:
    field = Changing()
    model = NODE(field, engine="torch")
    model(Z0).sum().backward()
    gone = weakref.ref(field)
    del field, model
    gc.collect()
    assert gone() is None


# ---- modules of torch.jit and torch.compile -----------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", ["script", "trace", "compile"])
@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve", "forward"])
def test_modules_of_torchs_compilers(kind: str, sensitivity: str) -> None:
    layer = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    made = {
        "script": lambda: torch.jit.script(layer),
        "trace": lambda: torch.jit.trace(layer, (Z0,)),
        "compile": lambda: torch.compile(layer, backend="eager"),
    }[kind]()

    def run(f: Any) -> list[Tensor]:
        z = pynode.solve(
            lambda t, z: f(z), Z0, [0.0, 1.0], engine="torch", solver="rk4", dt=0.1, sensitivity=sensitivity
        )
        return list(torch.autograd.grad((z.z[-1] ** 2).sum(), list(layer.parameters())))

    for _ in range(2):
        for a, b in zip(run(made), run(layer), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    handle = layer[0].weight.register_hook(lambda g: g)
    if kind in ("script", "trace"):
        with pytest.raises(FieldError, match="a scripted module has a hook"):
            run(made)
    handle.remove()


@pytest.mark.parametrize("of", ["module", "function"])
def test_compiled_fields(engine: str, of: str) -> None:
    layer = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()

    def plain(t: Tensor, z: Tensor) -> Tensor:
        return layer(z)  # type: ignore[no-any-return]

    compiled = torch.compile(plain, backend="eager") if of == "function" else torch.compile(layer, backend="eager")
    field = compiled if of == "function" else lambda t, z: compiled(z)
    for _ in range(2):
        z, expected = (pynode.solve(f, Z0, [0.0, 1.0], engine=engine, rtol=1e-8).z[-1] for f in (field, plain))
        torch.testing.assert_close(z, expected, rtol=1e-12, atol=1e-13)
        for a, b in zip(*(torch.autograd.grad(x.sum(), list(layer.parameters())) for x in (z, expected)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_what_leads_everywhere_is_no_part_of_a_field() -> None:
    """A logger knows all other loggers, and objects may know one another: each is looked at once, or not at all."""
    log = logging.getLogger("pynode.test")

    def with_logger(t: Tensor, z: Tensor) -> Tensor:
        log.debug("evaluated")
        return -z

    assert set(Reads(with_logger).parts) == {""}

    class Station:
        def __init__(self) -> None:
            self.others: list[Station] = []
            self.rate = 1.0

    stations = [Station() for _ in range(12)]
    for station in stations:
        station.others = stations

    def among_stations(t: Tensor, z: Tensor) -> Tensor:
        return -stations[3].rate * z

    z0 = torch.ones(1, 1, dtype=torch.float64)
    z = pynode.solve(among_stations, z0, [0.0, 1.0], engine="torch", rtol=1e-8).z
    assert z[-1].item() == pytest.approx(math.exp(-1), rel=1e-6)
    before = fingerprint(Reads(among_stations), torch.float32)
    stations[3].rate = 2.0
    assert fingerprint(Reads(among_stations), torch.float32) != before


def test_recurrent_layers_keep_their_own_weights() -> None:
    """They list their weights a second time, which an evaluation by a copy writes anew."""
    layer = nn.GRU(2, 2, batch_first=True, dtype=torch.float64)
    field = Field(lambda t, z: layer(z)[0], (torch.zeros(3, 4, 2, dtype=torch.float64),), torch.tensor(0.0).double())
    assert len(field.parameters) == 4
    assert all(a is b for a, b in zip(layer._flat_weights, layer.parameters(), strict=True))
    assert all(ref() is p for ref, p in zip(layer._flat_weight_refs, layer.parameters(), strict=True))


def test_a_program_that_an_installed_module_runs() -> None:
    """As under `python -m pytest`: the file of `__main__` is an installed one, and what is in it the user's."""
    rate = torch.tensor(0.7, requires_grad=True)
    scope = {"__name__": "__main__", "__file__": "/lib/site-packages/runner/__main__.py", "rate": rate}
    exec("part = lambda t, z: -rate * z", scope)
    z = pynode.solve(pynode.Split(lambda t, z: -z, scope["part"]), torch.ones(1, 1), [0.0, 1.0], engine="torch").z
    (gradient,) = torch.autograd.grad(z[-1].sum(), rate)
    assert gradient.item() == pytest.approx(-math.exp(-1.7), rel=1e-2)
