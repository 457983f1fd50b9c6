"""The field's calling convention, its checks, and how it follows what changes between solves."""

from __future__ import annotations

import copy
import functools
import gc
import types
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from modules import Case, Of, linear
from reference import check
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import pynode
from pynode import FieldError
from pynode.field import Field, interpret
from pynode.field import _field as fields
from pynode.field import _trace as tracing
from pynode.field._derived import derived_field

T = torch.tensor(0.5, dtype=torch.float64)
Z = torch.tensor([[0.3, -0.2], [1.0, 0.7], [-0.5, 0.1]], dtype=torch.float64)


def value(function: Any, z: Tensor = Z) -> Tensor:
    """What the field's graph gives."""
    field = Field(function, (z,), T)
    found = tracing.trace_field(field, (z,), T, ())
    (dz,), _ = interpret(found.graph, [T, z, *found.bound(field)])
    return dz


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that a field is examined."""
    found: list[int] = []
    examine = fields.Field._examine

    def counted(self: Field, *args: Any) -> Any:
        found.append(1)
        return examine(self, *args)

    monkeypatch.setattr(fields.Field, "_examine", counted)
    return found


# ---- checks -----------------------------------------------------------------------------------------


def field_error(function: Any, z: Any = Z) -> str:
    states = z if isinstance(z, tuple) else (z,)
    with pytest.raises(FieldError) as caught:
        Field(function, states, T, (), isinstance(z, tuple))
    return str(caught.value)


def test_field_that_cannot_be_called() -> None:
    assert field_error(3) == "field must be an nn.Module or a callable f(t, z, *args), got int"


def test_wrong_shape() -> None:
    assert field_error(lambda t, z: z[:, :1]) == (
        "the field must return dz/dt with the shape of the state: expected (3, 2), got (3, 1). "
        "Check the last layer's width, and that the field keeps the batch dimension first"
    )


def test_wrong_dtype() -> None:
    assert "with the dtype of the state: expected torch.float64, got torch.float32. Convert the field with" in (
        field_error(lambda t, z: z.float())
    )


def test_wrong_device() -> None:
    assert "with the device of the state: expected cpu, got meta. Move the field and z0 to the same device" in (
        field_error(lambda t, z: z.to("meta"))
    )


def test_no_tensor() -> None:
    assert field_error(lambda t, z: 1.0) == "the field must return a tensor for dz/dt, got float"


def test_wrong_tuple() -> None:
    assert field_error(lambda t, z: z[0], (Z, Z)) == (
        "the field must return a tuple of 2 tensors, as its state is, got Tensor"
    )
    assert field_error(lambda t, z: z[:1], (Z, Z)).endswith("got 1 of them")
    assert "component 1 of dz/dt with the shape" in field_error(lambda t, z: (z[0], z[1][:1]), (Z, Z))


def test_captured_tensor_that_was_computed() -> None:
    w = torch.ones(2, dtype=torch.float64, requires_grad=True)
    doubled = 2 * w
    field = Field(lambda t, z: z * doubled, (Z,), T)
    assert field.names == ("doubled",)
    assert field.parameters[0] is doubled


def test_errors_of_the_field_pass_through() -> None:
    def f(t: Tensor, z: Tensor) -> Tensor:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        Field(f, (Z,), T)
    assert "__getattribute__" not in nn.Module.__dict__


# ---- parameters -------------------------------------------------------------------------------------


def test_parameters_in_order_each_once() -> None:
    layer = linear(2, 2)
    net = Of(layer, nn.Tanh(), layer, linear(2, 2))
    net.net[3].bias.requires_grad_(False)
    field = Field(net, (Z,), T)
    assert field.names == ("net.0.weight", "net.0.bias", "net.3.weight")
    assert [id(p) for p in field.parameters] == [id(p) for p in net.parameters() if p.requires_grad]


def test_parameters_of_what_a_function_reads() -> None:
    net = linear(2, 2)
    w = torch.ones(2, dtype=torch.float64, requires_grad=True)
    hidden = [torch.ones(2, dtype=torch.float64, requires_grad=True)]

    def f(t: Tensor, z: Tensor, scale: float = 2.0) -> Tensor:
        return net(z) * w * hidden[0] * scale

    field = Field(f, (Z,), T)
    assert field.names == ("net.weight", "net.bias", "hidden.0", "w")
    assert set(map(id, field.parameters[2:])) == {id(w), id(hidden[0])}


def test_leaf_that_cannot_be_found_by_name() -> None:
    w = torch.ones(2, dtype=torch.float64, requires_grad=True)
    held = weakref.ref(w)
    text = field_error(lambda t, z: z * held())  # the lambda's line is named
    assert "a tensor of shape (2,) that requires a gradient and is kept where it cannot be found" in text
    assert "pass it in solve(args=(…,))" in text


def test_leaf_deep_within() -> None:
    w = torch.ones(2, dtype=torch.float64, requires_grad=True)
    held = iter(range(3)), {"deep": {"er": {"and": {"deeper": w}}}}

    def f(t: Tensor, z: Tensor) -> Tensor:
        return z * held[1]["deep"]["er"]["and"]["deeper"]

    field = Field(f, (Z,), T)
    assert field.names == ("held.1.deep.er.and.deeper",)
    assert field.parameters[0] is w
    check(Case(f, (2,)), 3)


def test_module_in_a_comprehension_of_a_function() -> None:
    f = global_function
    assert Field(f, (Z,), T).names == ("NETS.0.weight", "NETS.1.weight")


NETS = [linear(2, 2, bias=False), linear(2, 2, bias=False)]


def global_function(t: Tensor, z: Tensor) -> Tensor:
    return sum(net(z) for net in NETS)  # type: ignore[return-value]


# ---- what changes between solves --------------------------------------------------------------------


class Scaled(nn.Module):
    """f = factor · z, and attributes that matter or do not."""

    kind = "times"

    def __init__(self) -> None:
        super().__init__()
        self.factor = 2.0
        self.options = {"shift": 0.0}
        self.layers = [1.0]
        self.config = types.SimpleNamespace(power=1)
        self._hidden = 1.0
        self.nfe = 0
        self.log: list[float] = []
        self.untouched = 0

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        self.nfe += 1
        self.log.append(1.0)
        out = z**self.config.power * self.factor * self.layers[0] * self._hidden + self.options["shift"]
        return out if self.kind == "times" else -out


def test_counters_do_not_matter(recordings: list[int], examined: list[int]) -> None:
    f = Scaled()
    for i in range(3):
        assert torch.equal(value(f), 2 * Z)
        f.nfe = 100 * i
        f.untouched += 1
    assert (len(recordings), len(examined)) == (1, 1)


def test_attributes_that_are_read_matter(recordings: list[int]) -> None:
    f = Scaled()
    assert torch.equal(value(f), 2 * Z)
    changes: list[tuple[Any, Tensor]] = [
        (lambda: setattr(f, "factor", 3.0), 3 * Z),
        (lambda: f.options.update(shift=1.0), 3 * Z + 1),
        (lambda: f.layers.__setitem__(0, 2.0), 6 * Z + 1),
        (lambda: setattr(f.config, "power", 2), 6 * Z**2 + 1),
        (lambda: setattr(f, "_hidden", 0.5), 3 * Z**2 + 1),
        (lambda: setattr(f, "kind", "negative"), -(3 * Z**2 + 1)),
    ]
    for i, (change, expected) in enumerate(changes):
        change()
        torch.testing.assert_close(value(f), expected, rtol=1e-15, atol=0)
        assert len(recordings) == 2 + i
    f.kind = "times"
    torch.testing.assert_close(value(f), 3 * Z**2 + 1, rtol=1e-15, atol=0)
    assert len(recordings) == 1 + len(changes)  # known from before


def test_attribute_of_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    f = Scaled()
    assert torch.equal(value(f), 2 * Z)
    monkeypatch.setattr(Scaled, "kind", "negative")
    assert torch.equal(value(f), -2 * Z)


def test_submodule_and_mode() -> None:
    net = Of(nn.Identity(), nn.Dropout(0.5)).eval()
    assert torch.equal(value(net), Z)
    net.net[0] = nn.Tanh()
    assert torch.equal(value(net), torch.tanh(Z))
    net.train()
    with pytest.raises(pynode.TraceError, match="random numbers"):
        value(net)
    net.eval()
    assert torch.equal(value(net), torch.tanh(Z))


def test_hooks_and_replaced_methods() -> None:
    net = Of(nn.Identity())
    assert torch.equal(value(net), Z)
    handle = net.net.register_forward_hook(lambda module, inputs, out: 2 * out)
    assert torch.equal(value(net), 2 * Z)
    handle.remove()
    assert torch.equal(value(net), Z)
    net.forward = lambda t, z: -z  # type: ignore[method-assign]
    assert torch.equal(value(net), -Z)


def test_parameters_that_are_replaced(recordings: list[int]) -> None:
    net = Of(linear(2, 2))
    value(net)
    net.net[0].weight = nn.Parameter(torch.eye(2, dtype=torch.float64))
    net.net[0].bias.data = torch.ones(2, dtype=torch.float64)
    assert torch.equal(value(net), Z + 1)
    net.load_state_dict({"net.0.weight": torch.zeros(2, 2), "net.0.bias": torch.ones(2)})
    assert torch.equal(value(net), torch.ones_like(Z))
    assert len(recordings) == 1
    net.net[0].bias.requires_grad_(False)
    assert Field(net, (Z,), T).names == ("net.0.weight",)
    assert torch.equal(value(net), torch.ones_like(Z))
    assert len(recordings) == 2


def test_masks_and_indices_are_read_anew() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([True, False]))
            self.register_buffer("scale", torch.ones(2, dtype=torch.float64))

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return torch.where(self.mask, z, 0.0) * self.scale

    f = Net()
    first = torch.where(torch.tensor([True, False]), Z, 0.0)
    assert torch.equal(value(f), first)
    f.scale.mul_(2)
    assert torch.equal(value(f), 2 * first)
    f.mask.logical_not_()
    assert torch.equal(value(f), 2 * (Z - first))
    f.mask = torch.tensor([True, True])
    assert torch.equal(value(f), 2 * Z)


def test_a_leaf_that_the_field_makes_itself_is_no_parameter() -> None:
    """As where a field differentiates on its way; each call makes another."""
    net = linear(2, 2)

    def field(t: Tensor, z: Tensor) -> Tensor:
        with torch.enable_grad():
            z = z if z.requires_grad else z.detach().requires_grad_()
            value = net(z).tanh()
            (slope,) = torch.autograd.grad(value.sum(), z, create_graph=True)
        return value + slope

    found = Field(field, (Z,), T)
    assert found.parameters == (net.weight, net.bias)


def test_numbers_and_functions_that_a_function_captures(recordings: list[int]) -> None:
    factor = 2.0
    count = 0
    inner = torch.sin

    def outer(z: Tensor) -> Tensor:
        return inner(z) * factor

    def f(t: Tensor, z: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return outer(z)

    assert torch.equal(value(f), 2 * Z.sin())
    assert torch.equal(value(f), 2 * Z.sin())
    assert len(recordings) == 1
    factor = 3.0
    assert torch.equal(value(f), 3 * Z.sin())
    inner = torch.cos
    assert torch.equal(value(f), 3 * Z.cos())


def test_partials_and_methods_made_anew(recordings: list[int]) -> None:
    class Plain:
        def __init__(self, factor: float) -> None:
            self.factor = factor

        def f(self, t: Tensor, z: Tensor) -> Tensor:
            return self.factor * z

    def g(factor: float, t: Tensor, z: Tensor) -> Tensor:
        return factor * z

    plain = Plain(2.0)
    for _ in range(2):
        assert torch.equal(value(plain.f), 2 * Z)
        assert torch.equal(value(functools.partial(g, 3.0)), 3 * Z)
        assert torch.equal(value(functools.partial(g, 4.0)), 4 * Z)
    assert len(recordings) == 3
    plain.factor = 5.0
    assert torch.equal(value(plain.f), 5 * Z)


def test_a_field_and_one_made_of_it_are_told_apart() -> None:
    field = Of(linear(2, 2), nn.Tanh())
    field.scale = 2.0

    def doubled(field: Any, owner: object, t: Tensor, z: Tensor) -> Tensor:
        return field.scale * field(t, z)

    for function in (derived_field(doubled, field), field, derived_field(doubled, field)):
        torch.testing.assert_close(value(function), function(T, Z))


def test_a_copy_is_another_field() -> None:
    net = Of(linear(2, 2))
    expected = value(net)
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.net[0].weight.zero_()
    assert torch.equal(value(net), expected)
    assert torch.equal(value(other), other.net[0].bias.detach().expand(3, 2))


def test_what_is_known_of_a_field_dies_with_it() -> None:
    net = Of(linear(2, 2))
    value(net)
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None


def test_attribute_that_changes_at_each_solve() -> None:
    """Keeps a bounded number of traces."""
    f = Scaled()
    for i in range(70):
        f.factor = float(i)
        Field(f, (Z,), T)
    assert len(Field(f, (Z,), T).memory.facts) == 64


# ---- parametrized tensors ---------------------------------------------------------------------------


class Counted(nn.Module):
    """The exponential of a matrix, and how often it was computed."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.linalg.matrix_exp(x)


def parametrized() -> tuple[nn.Module, Counted]:
    net, counted = Of(linear(2, 2), nn.Tanh()), Counted()
    parametrize.register_parametrization(net.net[0], "weight", counted)
    return net, counted


@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve"])
def test_parametrization_is_computed_once_for_each_solve(sensitivity: str) -> None:
    net, counted = parametrized()
    z0 = Z.clone().requires_grad_()

    def solve() -> Tensor:
        options: dict[str, Any] = {"solver": "dopri5", "rtol": 1e-9, "atol": 1e-9, "sensitivity": sensitivity}
        return pynode.solve(net, z0, [0.0, 1.0], engine="torch", **options).z[-1]

    solve()
    before = counted.calls
    z = solve()
    assert counted.calls == before + 1
    original = net.net[0].parametrizations.weight.original
    grads = torch.autograd.grad((z**2).sum(), [original, net.net[0].bias, z0])
    assert counted.calls == before + 1

    def plain(t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(z @ torch.linalg.matrix_exp(original).T + net.net[0].bias)

    from torchdiffeq import odeint

    expected_z = odeint(plain, z0, torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=1e-9, atol=1e-9)[-1]
    expected = torch.autograd.grad((expected_z**2).sum(), [original, net.net[0].bias, z0])
    torch.testing.assert_close(z, expected_z, rtol=1e-8, atol=1e-9)
    for a, b in zip(grads, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_gradient_of_a_parametrization(engine: str) -> None:
    """Through every engine to the tensors that the parametrization is made of."""
    net = Of(parametrizations.orthogonal(linear(2, 2)), nn.Tanh(), parametrizations.weight_norm(linear(2, 2)))
    z0 = Z.clone().requires_grad_()

    def run(*_: Tensor) -> Tensor:
        return pynode.solve(net, z0, [0.0, 0.5], solver="rk4", dt=0.25, sensitivity="discrete", engine=engine).z[-1]

    assert torch.autograd.gradcheck(run, (z0, *net.parameters()))


def test_parametrizations_without_gradients() -> None:
    """Under no_grad, frozen, and in the user's own cache."""
    net, counted = parametrized()
    z0, t = Z, [0.0, 1.0]
    free = pynode.solve(net, z0, t, engine="torch").z
    with torch.no_grad():
        assert torch.equal(pynode.solve(net, z0, t, engine="torch").z, free)
    with parametrize.cached():
        before = counted.calls
        held = net.net[0].weight
        assert torch.equal(pynode.solve(net, z0, t, engine="torch").z, free)
        assert net.net[0].weight is held
        assert counted.calls == before + 1
    net.requires_grad_(False)
    assert Field(net, (Z,), T).parameters == ()
    assert torch.equal(pynode.solve(net, z0, t, engine="torch").z, free)
    check(Case(net, (2,)), 3)


@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, torch.nn.utils.spectral_norm])
def test_spectral_norm_in_training_steps_once_for_each_solve(norm: Callable[..., Any]) -> None:
    """Also that of a hook."""
    net = Of(norm(linear(2, 2)), nn.Tanh())
    u = next(x for name, x in net.named_buffers() if name.endswith("_u"))
    Field(net, (Z,), T)
    before = u.clone()
    z = pynode.solve(net, Z, [0.0, 1.0], engine="torch", solver="rk4", dt=0.1).z
    once = u.clone()
    net.eval()
    assert not torch.equal(before, once)
    torch.testing.assert_close(pynode.solve(net, Z, [0.0, 1.0], engine="torch", solver="rk4", dt=0.1).z, z)


def test_methods_of_one_object_are_told_apart_where_their_code_is_a_librarys() -> None:
    # A library's functions are not looked through; these two would then be one and the same field.
    from pynode.models import LatentSDE

    model = LatentSDE(1, 2, context_dim=3, dt=0.1)
    z, t, context = torch.randn(4, 2), torch.tensor([0.0, 1.0]), torch.randn(4, 3)
    drift, diffusion = (Field(f, (z,), t, (context,)) for f in (model._posterior, model._of_state))
    assert drift.key is not diffusion.key
    again = [Field(model._posterior, (z,), t, (context,)).key for _ in range(2)]
    assert again[0] is again[1]
    graphs = [tracing.trace_field(f, (z,), t, (context,)).graph.key for f in (drift, diffusion)]
    assert graphs[0] != graphs[1]
