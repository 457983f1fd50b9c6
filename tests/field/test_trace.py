"""The trace: graph value and vector-Jacobian product against the module and autograd."""

from __future__ import annotations

import gc
import json
import linecache
from collections.abc import Callable

import pytest
import torch
from modules import Case, Of, linear
from reference import check, check_tangent, error, sample
from torch import Tensor, nn
from zoo import CASES, EVERY, QUICK, UNTRACED

import pynode
from pynode.field import Field, FieldGraph, interpret, supported_ops, trace
from pynode.field import _trace as tracing
from pynode.field._tangents import TangentField

Z = torch.randn(3, 2, dtype=torch.float64)


def test_the_zoo() -> None:
    """Its size, and the share that a trace holds."""
    assert len(EVERY) >= 90
    assert len(CASES) >= 0.9 * len(EVERY)
    assert set(CASES) >= QUICK


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CASES])
def test_value_and_products(name: str, recordings: list[int]) -> None:
    """For several batch sizes, by one graph, which survives JSON."""
    case = CASES[name]()
    first = check(case, case.batches[0])
    if tuple(map(int, torch.__version__.split(".")[:2])) < case.needs:
        pytest.skip(f"this torch records it for one batch size at a time, which is as right, {first.graph.batch}")
    assert first.graph.batch is None
    for batch in case.batches[1:]:
        assert check(case, batch) is first
    assert len(recordings) <= 1
    text = json.dumps(first.graph.to_dict(), allow_nan=False)
    read = FieldGraph.from_dict(json.loads(text))
    assert json.dumps(read.to_dict()) == text
    assert read.key == first.graph.key


@pytest.mark.parametrize("name", UNTRACED)
def test_what_no_trace_holds(name: str) -> None:
    """It is refused with the reason; Julia solves it by calling it, see `test_julia`."""
    make, reason = UNTRACED[name]
    with pytest.raises(pynode.TraceError) as caught:
        sample(make(), 3)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        *("entry_of_each_sample", "nearest_neighbour", "state_space"),
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("running", "norms_of_matrices", "singular_values")),
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("least_squares", "orthogonal_factors")),
    ],
)
def test_tangents(name: str) -> None:
    """The derivative in a direction, against forward-mode differentiation."""
    check_tangent(CASES[name](), 3)


@pytest.mark.parametrize(
    "f",
    [
        pytest.param(lambda x: torch.copysign(x, x.new_tensor([-0.0, 0.0])), id="copysign"),
        pytest.param(lambda x: x * torch.signbit(x * x.new_tensor([0.0, -0.0])), id="signbit"),
        pytest.param(lambda x: torch.copysign(x, -2.0) + torch.ldexp(x, torch.tensor([3, -2])), id="scalars"),
        pytest.param(lambda x: x.masked_scatter(x > 0, x.flip(1).exp()), id="masked_scatter"),
        pytest.param(lambda x: x + x.take(torch.tensor([[0, 0], [2, 1], [3, 3]])), id="take"),
        pytest.param(lambda x: x * x.take(torch.tensor([[-1, 0], [2, -3], [3, 3]])), id="take from the end"),
        pytest.param(lambda x: x.put(torch.tensor([1, 4]), x[0]) + x.put(torch.tensor([2]), x[1, 1], True), id="put"),
    ],
)
def test_signs_and_places(f: Callable[[Tensor], Tensor]) -> None:
    """Of minus zero too; places are counted over all samples, so that a graph is for one batch size."""
    check(Case(lambda t, z: torch.tanh(f(z)), (2,)), 3)


def test_a_mask_that_changes(recordings: list[int]) -> None:
    """A mask is part of the graph: another one is another graph."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([True, False, True, True]))

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return torch.cat([z, z], 1)[:, self.mask][:, :2] * 2

    net = Masked()
    for new in ([True, False, True, True], [False, True, False, True], [True, True, False, False]):
        net.mask.copy_(torch.tensor(new))
        check(Case(net, (2,)), 3)
    assert len(recordings) == 3


def test_another_version_is_refused() -> None:
    data = trace(lambda t, z: -z, Z).to_dict() | {"version": 99}
    with pytest.raises(ValueError, match="expected a graph of version 1, got 99"):
        FieldGraph.from_dict(data)


def test_float32() -> None:
    """The graph is of no type of its own."""
    net = Of(linear(2, 8), nn.Tanh(), linear(8, 2))
    double, single = trace(net, Z), trace(net.float(), Z.float())
    assert single.key == double.key


def test_one_architecture_has_one_key() -> None:
    def make(width: int) -> FieldGraph:
        return trace(Of(linear(2, width), nn.Tanh(), linear(width, 2)), Z)

    assert make(8).key == make(8).key != make(7).key
    assert make(8).inputs[2].name == "net.0.weight"


def test_names_and_kinds_of_inputs() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(2, dtype=torch.float64))
            self.register_buffer("b", torch.ones(2, dtype=torch.float64))
            self.frozen = nn.Parameter(torch.ones(2, dtype=torch.float64), requires_grad=False)

        def forward(self, t: Tensor, z: Tensor, x: Tensor) -> Tensor:
            return z * self.w + self.b + x + torch.tensor([1.0, 2.0], dtype=z.dtype)

    graph = trace(Net(), Z, args=(Z,))
    assert [(i.kind, i.name, i.shape) for i in graph.inputs] == [
        ("t", "0", ()),
        ("z", "0", ((1, 0), 2)),
        ("arg", "0", ((1, 0), 2)),
        ("parameter", "w", (2,)),
        ("buffer", "b", (2,)),
        ("constant", "0", (2,)),
        ("cotangent", "0", ((1, 0), 2)),
    ]
    assert [graph.inputs[i].name for i in graph.differentiable()] == ["0", "0", "0", "w"]


def test_what_the_value_does_not_depend_on_has_no_product() -> None:
    graph = trace(CASES["frozen_and_unused"]().field, torch.zeros(3, 3, dtype=torch.float64))
    by_name = dict(zip([graph.inputs[i].name for i in graph.differentiable()], graph.vjp, strict=True))
    assert by_name["unused"] is None
    assert by_name["net.0.bias"] is not None
    assert "net.0.weight" not in by_name  # frozen: a buffer


def test_argument_that_is_no_sample_of_the_batch() -> None:
    """Conditioning tensors of another first dimension, and of the batch size by accident."""
    w = torch.randn(2, 2, dtype=torch.float64)

    def f(t: Tensor, z: Tensor, w: Tensor) -> Tensor:
        return torch.tanh(z @ w)

    graph = trace(f, Z, args=(w,))
    assert (graph.batch, graph.inputs[2].shape) == (None, (2, 2))
    square = trace(f, Z[:2], args=(w,))
    assert (square.batch, square.inputs[2].shape) == (None, (2, 2))


def test_batch_size_that_the_field_looks_at(recordings: list[int]) -> None:
    """A field that branches on the batch size gets a graph for each branch."""

    def f(t: Tensor, z: Tensor) -> Tensor:
        return z * 2 if z.shape[0] > 4 else z * 3

    field = f
    for batch, factor in ((3, 3.0), (5, 2.0), (3, 3.0), (5, 2.0)):
        z, t = torch.ones(batch, 2), torch.tensor(0.0)
        wrapped = Field(field, (z,), t)
        found = tracing.trace_field(wrapped, (z,), t, ())
        (value,), _ = interpret(found.graph, [t, z])
        assert torch.equal(value, factor * z)
    assert len(recordings) <= 4


def test_fixed_batch_size() -> None:
    """A field made for one batch size is traced for that one."""
    w = torch.randn(3, 3, dtype=torch.float64)
    graph = trace(lambda t, z: w @ z, Z)
    assert graph.batch == 3
    s = sample(Case(lambda t, z: w @ z, (2,)), 3)
    assert error(interpret(s.found.graph, s.inputs)[0], s.value) < 1e-14


def test_number_of_nodes() -> None:
    """Common terms are shared, identities and unused operations are gone."""
    assert len(trace(lambda t, z: z * 1 + 0, Z).nodes) == 3  # t, z, its cotangent
    graph = trace(Of(linear(2, 50), nn.Tanh(), linear(50, 2)), Z)
    assert len(graph.nodes) - len(graph.inputs) <= 20


def test_no_module_is_called_by_the_graph() -> None:
    net = Of(linear(2, 2))
    graph = trace(net, Z)
    calls: list[int] = []
    net.register_forward_hook(lambda *_: calls.append(1))
    interpret(graph, [torch.tensor(0.0), Z, *net.parameters()])
    assert calls == []


def test_modules_are_as_before() -> None:
    """Tracing leaves parameters, gradients, random state and the mode as they were."""
    net = Of(linear(2, 2))
    before = list(net.parameters())
    state = torch.get_rng_state()
    with torch.no_grad():
        trace(net, Z)
    assert [id(p) for p in net.parameters()] == list(map(id, before))
    assert all(p.grad is None and p.requires_grad for p in before)
    assert torch.equal(torch.get_rng_state(), state)
    assert "__getattribute__" not in nn.Module.__dict__


@pytest.mark.parametrize("name", ["mlp", "buffer_and_attribute", "weight_norm", "closure_over_leaves"])
def test_the_graph_reads_tensors_anew(name: str, recordings: list[int]) -> None:
    """Values that change in place, and `.data`, are seen without another trace."""
    case = CASES[name]()
    first = check(case, 3)
    t, z, args = case.draw(3)
    with torch.no_grad():
        for p in Field(case.field, z, t, args).reads.leaves():
            p.mul_(1.3)
            p.data = p.data + 0.1
    assert check(case, 3) is first
    assert len(recordings) <= 1


def test_supported_ops() -> None:
    ops = supported_ops()
    assert ops == sorted(set(ops))
    assert {"mm", "convolution", "tanh", "index_put", "max_pool2d_with_indices"} <= set(ops)


def test_closures_made_anew_share_a_trace(recordings: list[int]) -> None:
    """A lambda in a loop: one recording, each time its own tensors and modules."""

    def make(w: Tensor, net: nn.Module) -> Callable[..., Tensor]:
        return lambda t, z: torch.tanh(net(z)) * w

    for _ in range(3):
        w = torch.randn(2, dtype=torch.float64, requires_grad=True)
        check(Case(make(w, linear(2, 2)), (2,)), 3)
    assert len(recordings) == 1


NOT_FINITE = {
    "no derivative at the origin": (lambda t, z: 1 - z.square().sum(1, keepdim=True).sqrt() + 0 * z, 0.0),
    "infinite derivative": (lambda t, z: z.sqrt(), 0.0),
    "infinite derivative at the end of the domain": (lambda t, z: (1 - z).sqrt(), 1.0),
    "infinite derivative in the time": (lambda t, z: t.sqrt() * z, 1.0),
    "infinite value": (lambda t, z: 1 / z, 0.0),
    "no value": (lambda t, z: z / z, 0.0),
    "no value anywhere": (lambda t, z: (-1 - z.square()).log(), 1.0),
}


@pytest.mark.parametrize("name", NOT_FINITE)
def test_numbers_that_are_not_finite_at_the_start(name: str) -> None:
    """The graph is right all the same: at the start, where the numbers are the module's, and elsewhere."""
    f, at = NOT_FINITE[name]
    graph = trace(f, torch.full((3, 2), at, dtype=torch.float64))
    for place in (torch.full((3, 2), at, dtype=torch.float64), torch.rand(3, 2, dtype=torch.float64)):
        t = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
        z = place.clone().requires_grad_()
        value, v = f(t, z), torch.ones_like(z)
        (product,) = torch.autograd.grad(value, z, v)
        (got,), vjp = interpret(graph, [t.detach(), place, v], vjp=True)
        torch.testing.assert_close(got, value.detach(), equal_nan=True)
        torch.testing.assert_close(vjp[1], product, equal_nan=True)


def test_complex_constant_that_changes() -> None:
    """What is written to a complex tensor that the field reads, or put in its place, is in the next trace."""

    class Turn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("turn", torch.tensor(2 + 1j, dtype=torch.complex128))

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return torch.view_as_real(torch.view_as_complex(z.contiguous()) * self.turn)

    net, t = Turn(), torch.zeros((), dtype=torch.float64)

    def turned() -> complex:
        field = Field(net, (Z,), t)
        found = tracing.trace_field(field, (Z,), t, ())
        (value,), _ = interpret(found.graph, [t, Z, *found.bound(field)])
        return complex((torch.view_as_complex(value) / torch.view_as_complex(Z))[0])

    assert turned() == pytest.approx(2 + 1j)
    net.turn.mul_(1j)
    assert turned() == pytest.approx(-1 + 2j)
    net.turn = torch.tensor(3j, dtype=torch.complex128)
    assert turned() == pytest.approx(3j)


def test_a_refusal_is_remembered_until_the_field_is_another(recordings: list[int]) -> None:
    """What calls the field again and again, to run it elsewhere, does not record it each time."""

    class Switched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.smooth = False

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return -z if self.smooth or t < 0.5 else z

    field, z = Switched(), torch.ones(3, 2)
    messages = set()
    for _ in range(3):
        with pytest.raises(pynode.TraceError, match=r"t < 0\.5") as caught:
            trace(field, z)
        messages.add(str(caught.value))
    assert len(messages) == 1
    before = len(recordings)
    with pytest.raises(pynode.TraceError):
        trace(field, z)
    assert len(recordings) == before
    field.smooth = True
    assert trace(field, z).nodes


def test_anomaly_mode() -> None:
    """It looks for NaN in gradients: those of a recording have no numbers, those at the start may have none yet."""

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.eye(2, dtype=torch.float64))

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return (z.pow(2) @ self.weight).sqrt()

    z0, t0 = torch.zeros(3, 2, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    expected = trace(Root(), z0).key
    with torch.autograd.set_detect_anomaly(True):
        assert trace(Root(), z0).key == expected
        tangents = TangentField(Field(Root(), (z0,), t0, (), False), 1, 4, (), (0,))
        assert tracing.trace_field(tangents, (z0, z0.new_zeros(3, 4, 2)), t0, ()).graph.nodes
        assert torch.is_anomaly_enabled()


@pytest.mark.slow
def test_traces_leave_nothing_in_torchs_caches() -> None:
    """torch keeps what it learnt of fake tensors and symbolic sizes, and the source of each recording."""
    z0, t = (torch.ones(3, 2),), torch.tensor([0.0, 1.0])

    class Timed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(3, 2)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return torch.tanh(self.net(torch.cat([z, t.expand(z.shape[0], 1)], 1)))

    sizes = []
    for _ in range(4):
        tracing.trace_field(Field(Timed(), z0, t), z0, t, ())
        gc.collect()
        kinds = [type(x).__name__ for x in gc.get_objects()]
        left = [kinds.count(name) for name in ("_DispatchCacheKey", "ShapeEnv", "SymNode", "FakeTensorMode")]
        sizes.append([*left, len(linecache.cache), len(torch.fx.graph_module._loader.eval_cache)])
    assert sizes[1] == sizes[2] == sizes[3]  # the first trace fills what torch keeps once


def test_tanh_of_large_complex_numbers() -> None:
    """Its hyperbolic functions would be infinite."""

    def field(t: Tensor, z: Tensor) -> Tensor:
        w = torch.tanh(torch.complex(z, z / 3))
        return w.real + w.imag

    z = torch.tensor([[-800.0, -30.0, 0.3, 20.0, 700.0]], dtype=torch.float64)
    graph = trace(field, z)
    values = {"t": torch.zeros((), dtype=torch.float64), "z": z, "cotangent": torch.ones_like(z)}
    (value,), (*_, product) = interpret(graph, [values[i.kind] for i in graph.inputs], vjp=True)
    x = z.clone().requires_grad_()
    expected = field(values["t"], x)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(product, *torch.autograd.grad(expected.sum(), x), rtol=1e-12, atol=1e-15)
