"""Fields that take the state alone are autonomous, in `solve` and in every model; on both engines."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode import models
from pynode.field import Field
from pynode.nn import HigherOrder, TimeConcat, TimeSequential
from pynode.nn._signature import with_time

A = torch.tensor([[-0.3, 1.1], [-0.9, -0.2]])


def linear() -> nn.Linear:
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(A)
    return layer


class Decay(nn.Module):
    def forward(self, z: Tensor, scale: float = 1.0) -> Tensor:
        return -scale * z

    def doubled(self, z: Tensor) -> Tensor:
        return -2 * z


class Called:
    def __call__(self, z: Tensor) -> Tensor:
        return -z


class Overridden(Decay):
    """Its `forward` is the instance's own."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = lambda t, z: t * z  # type: ignore[method-assign, assignment]


class Decorated(nn.Module):
    @torch.no_grad()
    def forward(self, z: Tensor) -> Tensor:
        return -z


class Static(nn.Module):
    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return -z


def timed(t: Tensor, z: Tensor) -> Tensor:
    return -z * t


@torch.no_grad()
def without_gradient(z: Tensor) -> Tensor:
    return -z


AUTONOMOUS: dict[str, Callable[[], Any]] = {
    "linear": linear,
    "sequential": lambda: nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)),
    "module with a default": Decay,
    "method": lambda: Decay().doubled,
    "lambda": lambda: lambda z: -z,
    "object": Called,
    "decorated": lambda: without_gradient,
    "decorated forward": Decorated,
    "decorated method": lambda: Decorated().forward,
    "static forward": Static,
    "compiled": lambda: torch.compile(linear(), backend="eager"),
    "partial": lambda: functools.partial(lambda k, z: -k * z, 2.0),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(linear()),
    "data parallel": lambda: nn.DataParallel(linear()),
    "average": lambda: torch.optim.swa_utils.AveragedModel(linear()),
    "transposed convolution": lambda: nn.ConvTranspose2d(2, 2, 1),
}

OF_TIME: dict[str, Callable[[], Any]] = {
    "function": lambda: timed,
    "layers with time": lambda: TimeSequential(TimeConcat(nn.Linear(3, 2))),
    "time alone by name": lambda: lambda t, z=None: -t * z,
    "any": lambda: lambda *args: -args[1],
    "more": lambda: lambda t, *rest: -rest[0],
    "own forward": Overridden,
    "of torch": lambda: torch.mul,
}


@pytest.mark.parametrize("name", AUTONOMOUS)
def test_which_fields_take_the_state_alone(name: str) -> None:
    field = AUTONOMOUS[name]()
    called = with_time(field)
    assert called is not field
    if name != "transposed convolution":
        z = torch.ones(1, 2)
        assert torch.equal(called(torch.tensor(5.0), z), field(z))
    with pytest.raises(pynode.FieldError, match="takes the state alone, and would not see the 2 tensors of args"):
        with_time(field, 2)


@pytest.mark.parametrize("name", OF_TIME)
def test_which_fields_take_the_time(name: str) -> None:
    field = OF_TIME[name]()
    assert with_time(field) is field


def test_forward_that_is_replaced_in_its_class() -> None:
    class Module(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return -z

    field = Module()
    assert with_time(field) is not field
    Module.forward = lambda self, t, z: -t * z  # type: ignore[method-assign, assignment, misc]
    assert with_time(field) is field


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_fields_of_torchscript() -> None:
    traced = torch.jit.trace(linear(), torch.ones(1, 2))
    assert with_time(traced) is not traced
    scripted = torch.jit.script(timed)
    assert with_time(scripted) is scripted


@pytest.mark.parametrize(
    ("field", "text"),
    [
        (lambda: 1, r"f\(t, z\) .* alone, f\(z\): got one of no positional parameters"),
        (lambda t: t, "got one of 1 positional parameters, the first of which is 't'"),
        (lambda a, b, c: a, "got one of 3 positional parameters, the first of which is 'a'"),
        (lambda a, b, c, d=0: a, "got one of 3 to 4 positional parameters"),
        (lambda a, b, c, *d: a, "got one of 3 or more positional parameters"),
    ],
)
def test_what_can_be_called_in_neither_way(engine: str, field: Any, text: str) -> None:
    with pytest.raises(pynode.FieldError, match=text):
        pynode.solve(field, torch.ones(1, 2), [0.0, 1.0], engine=engine)


def test_args_that_the_field_does_not_take(engine: str) -> None:
    z0, u = torch.ones(1, 2), torch.ones(1, 2)
    with pytest.raises(pynode.FieldError, match=r"f\(t, z, a1\) of the time.* got one of 2 positional parameters"):
        pynode.solve(timed, z0, [0.0, 1.0], args=(u,), engine=engine)
    with pytest.raises(pynode.FieldError, match="takes the state alone"):
        models.NODE(linear(), control=True, engine=engine)(z0)


def test_values_and_gradients(engine: str) -> None:
    field, z0 = linear(), torch.tensor([[1.0, 0.5], [0.2, -1.0]])
    reference = linear()
    keywords: dict[str, Any] = {"engine": engine, "rtol": 1e-6, "atol": 1e-7}
    for how in ("discrete", "backsolve"):
        field.zero_grad()
        reference.zero_grad()
        z = pynode.solve(field, z0, [0.0, 1.0, 2.0], sensitivity=how, **keywords).z
        torch.testing.assert_close(z[-1], z0 @ torch.linalg.matrix_exp(2 * A).T, rtol=1e-4, atol=1e-5)
        z[-1].sum().backward()
        pynode.solve(lambda t, z: reference(z), z0, [0.0, 1.0, 2.0], sensitivity=how, **keywords).z[-1].sum().backward()
        torch.testing.assert_close(field.weight.grad, reference.weight.grad)
    sol = pynode.solve(field, z0, [0.0, 1.0], running_cost=lambda t, z: z.sum(-1), batching="independent", **keywords)
    assert sol.running_cost.shape == (2,)


def test_every_model(engine: str) -> None:
    torch.manual_seed(1)
    x, keywords = torch.randn(4, 2), {"engine": engine, "rtol": 1e-5, "atol": 1e-6}

    def net() -> nn.Sequential:
        torch.manual_seed(2)
        return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))

    class WithTime(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return self.net(z)

    def standard() -> torch.distributions.Distribution:
        return torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), torch.ones(2)), 1)

    makes: dict[str, Callable[[Any], Any]] = {
        "NODE": lambda make: models.NODE(make(), **keywords)(x),
        "cost": lambda make: models.NODE(make(), running_cost=lambda t, z: z.sum(-1), **keywords)(x),
        "ANODE": lambda make: models.ANODE(make(), 1, **keywords)(x[:, :1]),
        "stacked": lambda make: models.StackedNODE([make(), make()], **keywords)(x),
        "depth": lambda make: models.AdaptiveDepthNODE(make(), lambda x: x[:, :1] ** 2 + 0.5, **keywords)(x),
        "CNF": lambda make: models.CNF(make(), standard(), trace="exact", **keywords).log_prob(x),
        "kinetic": lambda make: models.CNF(make(), standard(), kinetic=0.1, jacobian=0.1, **keywords).loss(x),
    }
    for name, run in makes.items():
        torch.manual_seed(3)
        got = run(net)
        torch.manual_seed(3)
        torch.testing.assert_close(got, run(WithTime), msg=name)
    assert "field.0.weight" in models.NODE(net()).state_dict()


def test_higher_order(engine: str) -> None:
    class Spring(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return -z[:, :1]

    z = pynode.solve(HigherOrder(Spring(), 2), torch.tensor([[1.0, 0.0]]), [0.0, 1.0], engine=engine, rtol=1e-6).z
    torch.testing.assert_close(z[-1], torch.tensor([[0.5403, -0.8415]]), rtol=1e-3, atol=1e-4)


def test_what_is_known_of_a_field_is_kept_for_as_long_as_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    examined = []
    original = Field._examine
    monkeypatch.setattr(Field, "_examine", lambda self, *a: examined.append(1) or original(self, *a))
    field = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    for _ in range(4):
        seen = len(examined)
        pynode.solve(field, torch.ones(1, 2), [0.0, 1.0], engine="torch")
        pynode.solve(field, torch.ones(1, 2), [0.0, 1.0], engine="torch", running_cost=lambda t, z: z.sum(-1))
    assert seen == len(examined) < 4
    gone = weakref.ref(field)
    del field
    gc.collect()
    assert gone() is None
