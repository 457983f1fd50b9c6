"""What `explain` says of a field: steps, flops and bytes counted by hand, and what binds a graph to one batch size."""

from __future__ import annotations

import dataclasses
import gc
import json
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kinds import CASES
from reference import sample
from test_julia import parameters
from torch import Tensor, nn

import pynode
from pynode.field import explain
from pynode.field._steps import CHEAP, Plan, computed_once, steps
from pynode.field._trace import _readable

Z = torch.linspace(-1.0, 1.0, 10, dtype=torch.float64).reshape(5, 2)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()


def test_network() -> None:
    """Batch 5, widths 2, 3, 2, eight bytes a number."""
    found = explain(net(), Z)
    assert (found.batch, found.dtype, found.bound_by, found.once.steps) == (5, torch.float64, "", ())
    first, tanh, last = found.value.steps
    # A product starts from its bias: (5, 2) (2, 3) and a row of 3 make (5, 3).
    assert (first.ops, first.flops, first.bytes) == (("mm", "add"), 2 * 5 * 2 * 3 + 15, 8 * (10 + 6 + 3 + 15))
    assert (tanh.ops, tanh.flops, tanh.bytes) == (("tanh",), 15, 8 * (15 + 15))
    assert (last.ops, last.flops, last.bytes) == (("mm", "add"), 2 * 5 * 3 * 2 + 10, 8 * (15 + 6 + 2 + 10))
    assert found.value.ops == {"mm": 2, "add": 2, "tanh": 1}
    assert found.value.flops == 75 + 15 + 70
    assert found.value.bytes == 8 * (34 + 30 + 33)
    assert found.value.fused == (("mm", "add"), ("mm", "add"))


def test_products_of_a_network() -> None:
    """The hidden layer anew, the cotangent through both layers, and the two gradients of each."""
    found = explain(net(), Z).vjp
    assert found.ops == {"mm": 5, "sum": 2, "mul": 2, "add": 1, "tanh": 1, "sub": 1}
    products = sorted(s.flops or 0 for s in found.steps if s.ops == ("mm",))
    assert products == [2 * 5 * 2 * 3] * 4  # (5, 2) (2, 3) twice, (3, 5) (5, 2), (2, 5) (5, 3)
    assert [(s.ops, s.flops, s.bytes) for s in found.steps if "sub" in s.ops] == [
        (("mul", "sub", "mul"), 3 * 15, 8 * (15 + 15 + 15))  # v (1 - h²), which reads v and h
    ]
    assert sum(s.flops or 0 for s in found.steps if s.ops == ("sum",)) == 10 + 15
    assert found.flops == (60 + 15) + 15 + 4 * 60 + 45 + 25


def test_convolution() -> None:
    """Each of 3 × 6 × 6 pixels meets 2 × 3 × 3 weights."""
    field = nn.Conv2d(2, 2, 3, padding=1)
    found = explain(field, torch.randn(4, 2, 6, 6))
    convolution = 2 * (4 * 2 * 6 * 6) * (2 * 3 * 3)
    assert [(s.ops, s.flops) for s in found.value.steps] == [(("conv",), convolution), (("add",), 288)]
    assert found.value.steps[0].bytes == 4 * (288 + 36 + 288)
    assert found.value.steps[1].bytes == 4 * (288 + 2 + 288)
    by = {s.ops: s.flops for s in found.vjp.steps}
    assert (by["conv_input",], by["conv_weight",], by["sum",]) == (convolution, convolution, 288)


def test_convolution_with_the_time_as_a_channel() -> None:
    """The gradient to the weights of the time is a sum over boxes of the cotangent: each row of it for each column."""
    conv = nn.Conv2d(3, 2, 3, padding=1)

    def field(t: Tensor, z: Tensor) -> Tensor:
        return conv(torch.cat([z, t.expand(4, 1, 6, 6)], 1))

    found = explain(field, torch.randn(4, 2, 6, 6))
    products = sorted(s.flops or 0 for s in found.vjp.steps if s.ops == ("conv_weight",))
    assert products == [3 * (2 * 6 * 6), 2 * (4 * 2 * 6 * 6) * (2 * 3 * 3)]


def test_strided_convolution_and_its_transpose() -> None:
    field = nn.Sequential(nn.Conv1d(2, 4, 4, 2, 1, groups=2), nn.ConvTranspose1d(4, 2, 4, 2, 1))
    found = explain(field, torch.randn(3, 2, 8))
    by = {s.ops: s.flops for s in found.value.steps}
    assert by["conv",] == 2 * (3 * 4 * 4) * (1 * 4)
    assert by["conv_input",] == 2 * (3 * 4 * 4) * (2 * 4)
    back = {s.ops: s.flops for s in found.vjp.steps}
    # The gradients of the weights of both: (4, 1, 4) and (4, 2, 4).
    assert sum(s.flops or 0 for s in found.vjp.steps if s.ops == ("conv_weight",)) == 2 * 48 * 4 + 2 * 48 * 8
    assert back["conv_input",] == 2 * 48 * 4


def test_what_is_fused() -> None:
    """A chain of pointwise operations is one step, which leaves nothing between them in memory."""
    found = explain(lambda t, z: torch.sin(z * t) * torch.exp(-z) + 1, Z)
    (step,) = found.value.steps
    assert step.ops == ("mul", "sin", "neg", "exp", "mul", "add")
    assert (step.flops, step.bytes) == (60, 8 * (10 + 10))
    assert found.value.fused == (step.ops,)


def test_costly_operation_that_is_read_twice_is_kept() -> None:
    found = explain(lambda t, z: torch.exp(z) * torch.sin(torch.exp(z)), Z)
    assert [(s.ops, s.flops, s.bytes) for s in found.value.steps] == [
        (("exp",), 10, 8 * (10 + 10)),
        (("sin", "mul"), 20, 8 * (10 + 10)),
    ]


def test_copies() -> None:
    """A view that is the result, and one that a product needs in one piece."""
    found = explain(lambda t, z: z.flip(1), Z).value
    assert ([s.ops for s in found.steps], found.copies, found.flops, found.bytes) == ([()], 1, 0, 160)
    w = torch.ones(2, 2, dtype=torch.float64)
    found = explain(lambda t, z: z.flip(1) @ w, Z).value
    assert [(s.ops, s.bytes) for s in found.steps] == [((), 160), (("mm",), 8 * (10 + 4 + 10))]


def test_what_is_computed_once() -> None:
    """What depends on parameters alone is no part of an evaluation."""

    class Skew(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return z @ (self.w - self.w.T).exp()

    found = explain(Skew(), Z)
    assert found.once.ops["exp"] == 1
    assert found.value.ops == {"mm": 1}
    assert found.value.flops == 2 * 5 * 2 * 2


def test_linear_algebra() -> None:
    found = explain(lambda t, z: torch.linalg.cholesky(z @ z.mT + torch.eye(3).double()), torch.ones(4, 3, 3).double())
    assert found.value.ops["cholesky"] == 1
    assert next(s.flops for s in found.value.steps if s.ops == ("cholesky",)) == 4 * 27 // 3
    assert next(s.flops for s in found.value.steps if s.ops == ("bmm",)) == 4 * 2 * 27


def test_tables() -> None:
    knots, values = torch.linspace(0, 1, 1000).double(), torch.rand(1000).double()
    found = explain(lambda t, z: values[torch.searchsorted(knots, z)], Z).value
    assert next(s.flops for s in found.steps if s.ops == ("searchsorted",)) == 10 * 10  # of 1001 places
    gather = next(s for s in found.steps if "gather" in s.ops)
    assert (gather.flops, gather.bytes) == (0, 8 * (10 + 10 + 10))  # of the table, what is picked


def test_conditioning_tensors_and_tuples() -> None:
    a = torch.ones(5, 2).double()
    found = explain(lambda t, z, a: (z[0] * a[0] if isinstance(a, tuple) else z[0] * a, z[1]), (Z, Z), (a,))
    assert found.value.flops == 10
    assert found.value.copies == 1
    assert found.vjp.flops == 20  # in the state and in a; that in z[1] is the cotangent itself


# ---- the batch --------------------------------------------------------------------------------------

KEPT = torch.ones(3, 2, dtype=torch.float64)


def looks(t: Tensor, z: Tensor) -> Tensor:
    if z.shape[0] == 3:  # looks
        return 2 * z
    return z


def counts(t: Tensor, z: Tensor) -> Tensor:
    return torch.stack([2 * row for row in z])  # counts


def keeps(t: Tensor, z: Tensor) -> Tensor:
    return z + KEPT  # keeps


def tabulates(t: Tensor, z: Tensor) -> Tensor:
    return z - torch.searchsorted(z[:, 0].contiguous(), z)  # tabulates


REASONS: dict[Callable[..., Any], str] = {
    looks: "what is computed depends on the batch size at {place}",
    counts: "a number is made of the batch size at {place}",
    keeps: "an operation fails at {place}: RuntimeError: The size of tensor a (batch) must match the size of tensor b ",
    tabulates: "the field uses a table along the batch dimension: fields act on the features of each sample at {place}",
}


@pytest.mark.parametrize("field", REASONS, ids=lambda f: f.__name__)
def test_what_binds_a_graph_to_a_batch_size(field: Callable[..., Any]) -> None:
    with open(__file__) as text:
        lines = [(n, line.strip()) for n, line in enumerate(text, 1) if line.endswith(f"# {field.__name__}\n")]
    ((number, line),) = lines
    place = f"{__file__}:{number}: `{line}`"
    for _ in range(2):  # the second time from memory
        found = explain(field, Z[:3])
        assert (found.graph.batch, found.batch) == (3, 3)
        assert found.bound_by.startswith(REASONS[field].format(place=place))
        assert f"batch size: this one only: {found.bound_by}" in str(found)


@pytest.mark.parametrize("field", REASONS, ids=lambda f: f.__name__)
def test_what_binds_a_graph_holds_no_state(field: Callable[..., Any]) -> None:
    """Nor its history, in which all that was solved before may be."""

    z = 2 * Z[:3].clone().requires_grad_()
    of_state = weakref.ref(z)
    assert explain(lambda t, z: field(t, z), z).graph.batch == 3
    del z
    gc.collect()
    assert of_state() is None


def test_batch_size_that_another_graph_does_not_hold_for() -> None:
    """`looks` has a graph for all batch sizes but 3, which is met first."""

    def field(t: Tensor, z: Tensor) -> Tensor:
        return looks(t, z)

    assert explain(field, Z).bound_by == ""
    assert explain(field, Z[:3]).bound_by.startswith("what is computed depends on the batch size at ")
    assert explain(field, Z[:4]).graph.batch is None


def test_loop_over_the_samples_ends_the_recording_at_once() -> None:
    """The number that stands for the batch size is large, and no number of rounds."""
    rounds: list[int] = []

    class Loop(nn.Module):
        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            rows = []
            for row in z:
                rounds.append(1)
                rows.append(2 * row)
            return torch.stack(rows)

    assert explain(Loop(), Z[:3]).graph.batch == 3
    assert len(rounds) < 100


def test_state_without_a_batch() -> None:
    pair = (Z, Z[:2])
    found = explain(lambda t, z: (2 * z[0], 2 * z[1]), pair)
    assert found.bound_by == "the first dimension of the state's tensors is no batch: 5 and 2"


def test_what_cannot_be_traced_is_refused_as_ever() -> None:
    def branch(t: Tensor, z: Tensor) -> Tensor:
        return z if z.sum() > 0 else -z

    with pytest.raises(pynode.TraceError, match=r"depends on the values of its tensors at .*test_explain\.py"):
        explain(branch, Z)


# ---- as text ----------------------------------------------------------------------------------------


def test_text() -> None:
    assert str(explain(net(), Z)).startswith(
        """batch size: any, by one graph
costs at batch size 5, float64

dz/dt: 2 mm, 2 add, 1 tanh
step       times    flops    bytes
-------  -------  -------  -------
mm, add        2      145      536
tanh           1       15      240
total          3      160      776

vector-Jacobian products: 5 mm, 2 sum, 2 mul, 1 add, 1 tanh, 1 sub
"""
    )


def test_flops_that_are_not_known() -> None:
    """Code in Julia has a cost that no graph knows; the total says so."""
    found = explain(net(), Z)
    value = dataclasses.replace(found.value, steps=(*found.value.steps, pynode.field.StepCost(("julia",), None, 80)))
    assert (value.uncounted, value.flops, value.bytes) == (1, 160, 856)
    assert str(value).splitlines()[-1].split() == ["total", "4", "160", "+", "?", "856"]


# ---- what Julia does --------------------------------------------------------------------------------

PLANS = """
function (text)
    g = PyNODE.Graph(text)
    kernel = PyNODE.Kernel{Float64}(g)
    inputs = Dict(i => i for i in eachindex(g.inputs) if g.inputs[i].kind !== :t)
    front = PyNODE.frontier(g)
    given = merge(inputs, Dict(i => i for i in front))
    kinds = [g.inputs[i].kind for i in PyNODE.differentiable(g)]
    products = [g.vjp[k] for kind in (:z, :arg, :parameter, :t) for k in findall(==(kind), kinds) if g.vjp[k] != 0]
    programs = (inputs, front, kernel.prologue), (given, g.value, kernel.value), (given, products, kernel.vjp)
    plans = map(programs) do (given, outputs, program)
        order = PyNODE.live(g, outputs, given)
        l = PyNODE.Lowering(
            g, Float64, given, PyNODE.BufferSpec[], 0, copy(given), Bool[], Dict(), Dict(), Set(), Expr[], Dict(),
            Set(outputs), Dict(), Dict(), Dict(), Int[], 0, 1,
        )
        PyNODE.plan!(l, order)
        return sort!(collect(l.virtual)), sort!(collect(keys(l.sums))), count(s -> !s.alias, program.specs)
    end
    return front, plans, sort!(string.(collect(PyNODE.CHEAP)))
end
"""


@pytest.fixture(scope="module")
def plans() -> Any:
    from pynode.engine.julia import runtime as julia_runtime

    return julia_runtime.module().seval(PLANS)


def is_of_equal_numbers(graph: Any, i: int) -> bool:
    """Whether a node is the gradient to a convolution's weights of an image of equal numbers, which has no windows."""
    node = graph.nodes[i]
    return node.op == "conv_weight" and graph.nodes[node.inputs[0]].op == "full"


def shared_windows(graph: Any, computed: list[int]) -> int:
    """How many gradients to a convolution's weights find the windows that the one to its image has laid out."""
    nodes, images, found = graph.nodes, [i for i in computed if graph.nodes[i].op == "conv_input"], 0
    computed = [i for i in computed if not is_of_equal_numbers(graph, i)]
    for j in sorted(i for i in computed if nodes[i].op == "conv_weight"):
        x, dy = nodes[j].inputs
        for i in images:
            alike = nodes[i].inputs[0] == dy and nodes[i].attrs == nodes[j].attrs and x < i < j
            if alike and nodes[x].shape == nodes[i].shape and nodes[nodes[i].inputs[1]].shape == nodes[j].shape:
                images.remove(i)
                found += 1
                break
    return found


@pytest.mark.julia
@pytest.mark.parametrize("name", parameters())
def test_steps_are_those_of_julia(name: str, plans: Any) -> None:
    """What is fused, which products start from a bias, and how many tensors there are in memory, copies included."""
    case = CASES[name]()
    graph = sample(case, case.batches[0]).found.graph
    front, parts, cheap = plans(json.dumps(graph.to_dict()))
    once = computed_once(graph)
    assert [i - 1 for i in front] == once
    assert list(cheap) == sorted(CHEAP)
    inputs = range(len(graph.inputs))
    products = [
        node
        for kind in ("z", "arg", "parameter", "t")
        for i, node in zip(graph.differentiable(), graph.vjp, strict=True)
        if node is not None and graph.inputs[i].kind == kind
    ]
    for outputs, given, (inlined, sums, buffers) in zip(
        (once, graph.value, products), (inputs, {*inputs, *once}, {*inputs, *once}), parts, strict=True
    ):
        plan = Plan(graph, list(outputs), given)
        assert sorted(plan.inlined) == [i - 1 for i in inlined]
        assert sorted(plan.sums) == [i - 1 for i in sums]
        done = steps(graph, list(outputs), given)
        # Each step writes a tensor of its own but those that write the results; constants, workspaces, the positions of
        # indices that are known and what transforms need come on top.
        constants = sum(graph.nodes[i].op in ("const", "arange") and graph.nodes[i].dtype != "int" for i in plan.order)
        computed = [i for s in done for i, _ in s.computed]
        workspaces = 3 * sum(graph.nodes[i].op.startswith("conv") for i in computed) - shared_windows(graph, computed)
        workspaces -= 2 * sum(is_of_equal_numbers(graph, i) for i in computed)
        known = {"index_select", "index_add", "fourier", "fourier_sum"}
        prepared = sum(graph.nodes[i].op in known for s in done for i, _ in s.computed)
        assert buffers == len(done) - len(outputs) + constants + workspaces + prepared


def test_the_batch_size_is_named_but_for_code_and_paths() -> None:
    text = r"an operation fails at /home/s25/a.py:3: `s25 + 1`: size (s25, 3), C:\s25\a.py"
    assert _readable(text) == r"an operation fails at /home/s25/a.py:3: `s25 + 1`: size (batch, 3), C:\s25\a.py"
