"""The lowered kernels against the module and autograd, in a real Julia."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from modules import Case
from reference import error, sample
from torch import Tensor
from zoo import CASES, EVERY, UNTRACED
from zoo import QUICK as COMMON

import pynode
from pynode.field import Field

pytestmark = pytest.mark.julia

# What differs from these by little more than its name, and takes seconds of compilation each, is `exhaustive`.
QUICK = {
    *("GELU", "Softplus", "Softmax", "mlp", "time_concatenated", "tuple_state", "arguments", "in_place", "reshapes"),
    *("gather_by_constants", "masked", "reductions", "products", "attention", "layer_norm", "weight_norm", "ffjord"),
    *(
        "conv, stride",
        "conv, groups",
        "max pooling, overlapping",
        "upsampling",
        "conv_with_time",
        "special_functions",
        "windows",
    ),
    *("entry_of_each_sample", "orthogonal_factors", "running", "running_logarithms", "singular_values", "state_space"),
    *("gat_over_edges", "neural_cde", "kuramoto", "double_pendulum", "gray_scott"),
}

# Of those, the kinds of which a sample depends on others.
TOGETHER = {"reductions", "orthogonal_factors"}

KERNEL = """
function (text, batches)
    kernel = PyNODE.Kernel{Float64}(PyNODE.Graph(text))
    run!(program, t) = (program(t); nothing)
    bytes(program, t) = (run!(program, t); @allocated run!(program, t))
    return map(batches) do (batch, t, u, θ, v)
        w = PyNODE.Workspace(kernel, batch)
        u2, du2 = copy(u), zero(w.du)
        copyto!(w.θ, θ), copyto!(w.u, u), copyto!(w.v, v)
        held = Any[w, u2, du2]  # programs do not keep the memory of these alive
        GC.@preserve held begin
            residuals = PyNODE.new_residuals(w)
            prologue, value, vjp = (PyNODE.bind(w, p) for p in (kernel.prologue, kernel.value, kernel.vjp))
            record = PyNODE.bind(w, kernel.record; u = u2, du = du2, residuals)
            replay = PyNODE.bind(w, kernel.replay; u = u2, residuals)
            # Each twice, so that what is left over from a run would show.
            prologue(t), run!(value, t), run!(vjp, t)
            allocated = (bytes(value, t), bytes(vjp, t))
            products = map(copy, (w.dz, w.dθ, w.dt))
            run!(record, t), run!(replay, t)
            recorded = (bytes(record, t), bytes(replay, t))
            whole = (allocated..., recorded..., w.du, products..., du2, w.dz, w.dθ, w.dt)
            batch > 1 && PyNODE.samples_apart(kernel.graph) || return whole
            parted = PyNODE.Workspace(kernel, batch; threads = 2, rows = 2)
            push!(held, parted)
            copyto!(parted.θ, θ), copyto!(parted.u, u), copyto!(parted.v, v)
            residuals = PyNODE.new_residuals(parted)
            record = PyNODE.bind(parted, kernel.record; u = u2, du = du2, residuals)
            replay = PyNODE.bind(parted, kernel.replay; u = u2, residuals)
            prologue, value, vjp = (PyNODE.bind(parted, p) for p in (kernel.prologue, kernel.value, kernel.vjp))
            foreach(p -> p(t), (prologue, value, vjp))
            once = map(copy, (parted.du, parted.dz, parted.dθ, parted.dt))
            record(t), replay(t)
            return (whole..., once..., du2, parted.dz, parted.dθ, parted.dt)
        end
    end
end
"""


# The same on a GPU, where every kind of operation is a kernel that has to compile there.
GPU_KERNEL = """
function (text, batches, number)
    device = PyNODE.DEVICES[number]
    kernel = PyNODE.Kernel{Float64}(PyNODE.Graph(text))
    return PyNODE.on(device) do
        map(batches) do (batch, t, u, θ, v)
            w = PyNODE.Workspace(kernel, batch, PyNODE.empty_vector(device, Float64))
            foreach((to, from) -> copyto!(to, Array{Float64}(from)), (w.θ, w.u, w.v), (θ, u, v))
            prologue, value, vjp = (PyNODE.bind(w, p) for p in (kernel.prologue, kernel.value, kernel.vjp))
            prologue(t)
            foreach(_ -> (value(t); vjp(t)), 1:2)
            return map(Array, (w.du, w.dz, w.dθ, w.dt))
        end
    end
end
"""


@pytest.fixture(scope="module")
def evaluate() -> Callable[..., Any]:
    """Lowers a graph and runs it on several inputs."""
    from pynode.engine.julia import runtime as julia_runtime

    return julia_runtime.module().seval(KERNEL)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def evaluate_on_a_gpu() -> Callable[..., Any]:
    from pynode.engine.julia import runtime as julia_runtime

    julia_runtime.open_cuda(0)
    return julia_runtime.module().seval(GPU_KERNEL)  # type: ignore[no-any-return]


def flat(tensors: Sequence[Tensor]) -> Any:
    return np.concatenate([np.zeros(0), *(x.detach().reshape(-1).numpy() for x in tensors)])


def parameters() -> list[Any]:
    assert set(CASES) >= QUICK
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.exhaustive) for name in CASES]


@pytest.mark.parametrize("name", parameters())
def test_kernel(name: str, evaluate: Callable[..., Any]) -> None:
    """Value and products to 1e-12, at once, by way of a record, and in blocks of samples; without allocating."""
    case = CASES[name]()
    text, inputs, outputs = drawn(case)
    for (batch, *_), result, expected in zip(inputs, evaluate(text, inputs), outputs, strict=True):
        ways = [[torch.from_numpy(np.array(x)) for x in result[i : i + 4]] for i in range(4, len(result), 4)]
        errors = [[error([x], [y]) for x, y in zip(way, expected, strict=True)] for way in ways]
        assert max(map(max, errors)) <= max(case.tolerance, 1e-12), (batch, errors)
        assert case.allocates or tuple(result[:4]) == (0, 0, 0, 0)
        # In blocks wherever that may be.
        assert batch == 1 or name not in QUICK or len(result) == (12 if name in TOGETHER else 20)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU")
@pytest.mark.parametrize("name", parameters())
def test_kernel_on_a_gpu(name: str, evaluate_on_a_gpu: Callable[..., Any]) -> None:
    """Value and products to 1e-11, by the functions that GPUs have."""
    case = CASES[name]()
    text, inputs, outputs = drawn(case)
    for result, expected in zip(evaluate_on_a_gpu(text, inputs, 0), outputs, strict=True):
        assert error([torch.from_numpy(np.array(x)) for x in result], expected) <= max(case.tolerance, 1e-11)


def drawn(case: Case) -> tuple[str, list[tuple[Any, ...]], list[list[Tensor]]]:
    """A kind's graph as text, and for each batch size what goes in, and PyTorch's value and products."""
    graph = sample(case, case.batches[0]).found.graph
    batches = case.batches if graph.batch is None else case.batches[:1]
    samples = [sample(case, batch) for batch in batches]
    first = 1 + sum(i.kind == "z" for i in graph.inputs)
    inputs = [
        (batch, s.inputs[0].item(), flat(s.inputs[1:first]), flat(s.inputs[first:]), flat(s.cotangents))
        for batch, s in zip(batches, samples, strict=True)
    ]
    outputs = [
        [torch.from_numpy(flat(x)) for x in (s.value, s.products[1:first], s.products[first:], s.products[:1])]
        for s in samples
    ]
    return json.dumps(graph.to_dict()), inputs, outputs


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.float64, torch.float32)])
@pytest.mark.parametrize("of", ["numbers", "softplus"])
def test_a_field_of_two_dtypes(of: str, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """The numbers in a field are those of the state's dtype, whatever the dtype of an earlier solve."""
    first = dtypes[0] is torch.float32  # the other order is that of another field
    net = torch.nn.Softplus(1.7 if first else 1.9)

    def field(t: Tensor, z: Tensor) -> Tensor:
        return net(z) if of == "softplus" else -0.1 * torch.sin(z) if first else -0.1 * torch.cos(z)

    torch.manual_seed(0)
    start = torch.randn(5, 4, dtype=torch.float64)
    for dtype in dtypes:
        found, expected = (
            gradient(field, start.to(dtype), engine=engine, solver="midpoint", dt=0.1) for engine in ("julia", "torch")
        )
        assert error(found, expected) <= (1e-5 if dtype is torch.float32 else 1e-14)


@pytest.mark.parametrize(
    "f",
    [
        pytest.param(lambda z, k: z * k, id="factors"),
        pytest.param(lambda z, k: torch.where(k >= 1, z.sin(), z) + (k + 1) % 2, id="compared"),
        pytest.param(lambda z, k: z * torch.cat([k[:, :2], k[:, 1:3]], 1).flip(1), id="put together"),
        pytest.param(lambda z, k: z * torch.where(k == z.argmax(1, keepdim=True), 2.0, 1.0), id="greatest entry"),
        pytest.param(lambda z, k: z.scatter(1, k[:, :2], z[:, 2:].sin()), id="replaced"),
        pytest.param(lambda z, k: z[:, :, None].expand(-1, -1, 2).gather(1, k[:, None, ::2]).sum(2), id="picked"),
    ],
)
def test_integers_for_each_sample(f: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Known ones that are spread over the batch, and not an index of which the graph holds the places."""
    z0 = torch.rand(3, 4, dtype=torch.float64)
    places = torch.tensor([[2, 0, 1, 3]])

    def field(t: Tensor, z: Tensor) -> Tensor:
        return f(z, places.expand(z.shape[0], 4)).expand(z.shape)

    options: dict[str, Any] = {"solver": "midpoint", "dt": 0.1}
    got, want = (gradient(field, z0, engine=engine, **options) for engine in ("julia", "torch"))
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("points", [4, 5, 128])
def test_the_phase_of_a_negative_mean(points: int) -> None:
    """It is π: the imaginary part of a real signal's sum is 0 and not -0, by products with matrices and by FFTW."""
    z0 = torch.rand(3, points, dtype=torch.float64) - 2
    options: dict[str, Any] = {"solver": "euler", "dt": 1.0}

    def field(t: Tensor, z: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(z)
        return (spectrum.angle()[:, :1] + spectrum.log().imag[:, :1]) * z

    got, want = (gradient(field, z0, engine=engine, **options) for engine in ("julia", "torch"))
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-9)


def gradient(field: Callable[..., Any], z0: Tensor, **options: Any) -> list[Tensor]:
    """The last state, and the gradient of its sum."""
    z0 = z0.clone().requires_grad_()
    z = pynode.solve(field, z0, [0.0, 1.0], **options).z[-1]
    return [z.detach(), *torch.autograd.grad(z.sum(), z0)]


@pytest.mark.parametrize("batch", [3, 300, 2000])
def test_what_samples_share_in_blocks(batch: int) -> None:
    """An embedding of the time, which all samples share, beside a batch that is parted into blocks."""
    torch.manual_seed(0)
    embed = torch.nn.Sequential(torch.nn.Linear(3, 128), torch.nn.Tanh(), torch.nn.Linear(128, 128), torch.nn.Tanh())
    into, out = torch.nn.Linear(2, 128), torch.nn.Linear(128, 2)
    module = torch.nn.ModuleList([embed, into, out]).double()

    def field(t: Tensor, z: Tensor) -> Tensor:
        return out(torch.tanh(into(z) + embed(torch.stack([t, t.sin(), t.cos()]))))  # type: ignore[no-any-return]

    z0, weights = torch.randn(batch, 2, dtype=torch.float64), list(module.parameters())
    found, expected = (
        torch.autograd.grad(
            pynode.solve(field, z0, [0.0, 1.0], engine=engine, solver="midpoint", dt=0.25).z.square().sum(), weights
        )
        for engine in ("julia", "torch")
    )
    assert error(found, expected) <= 1e-11


@pytest.mark.parametrize(
    "name",
    [
        *("conv_with_time", "max pooling, overlapping", "attention", "ffjord"),
        *("labels", "sparse_matrices", "fourier_neural_operator", "lagrangian", "mixture_of_experts"),
    ],
)
def test_solve(name: str) -> None:
    """A solve and its gradient on both engines, by the same steps."""
    case = CASES[name]()
    found, expected = (solved(case, [0.0, 0.25, 0.5], 0.1, engine=engine) for engine in ("julia", "torch"))
    assert error(found, [x.detach() for x in expected]) <= 1e-11


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in COMMON | set(UNTRACED) else pytest.mark.slow) for n in EVERY]
)
def test_callback(name: str) -> None:
    """Any kind is solved, with its gradients, by calling it: as the torch engine does, by the same steps."""
    case = EVERY[name]()
    times = [0.3, 0.302, 0.305]  # close together, so that no state leaves its domain
    found = solved(case, times, 0.002, engine="julia", lowering="callback")
    expected = [x.detach() for x in solved(case, times, 0.002, engine="torch")]
    assert error(found, expected) <= max(case.tolerance, 1e-10)


def solved(case: Case, times: list[float], dt: float, **options: Any) -> list[Tensor]:
    """The states of a solve by given steps, and the gradients in the state, conditioning tensors and parameters."""
    _, z0, args = case.draw(2)
    inputs = [x.requires_grad_(x.is_floating_point()) for x in (*z0, *args)]
    state = tuple(inputs[: len(z0)]) if case.is_tuple else inputs[0]
    options |= {"solver": "midpoint", "dt": dt, "sensitivity": "discrete"}
    sol = pynode.solve(case.field, state, times, args=tuple(inputs[len(z0) :]), **options)
    z = sol.z if case.is_tuple else (sol.z,)
    total = sum((x * torch.linspace(0.5, 1.5, x.numel(), dtype=x.dtype).reshape(x.shape)).sum() for x in z)
    reads = Field(case.field, z0, torch.zeros((), dtype=z0[0].dtype), args, case.is_tuple).reads
    own = {id(p): p for p in reads.leaves() if p.requires_grad}.values()
    wrt = [*(x for x in inputs if x.requires_grad), *own]
    found = torch.autograd.grad(total, wrt, allow_unused=True, materialize_grads=True)
    return [torch.view_as_real(x) if x.is_complex() else x for x in (*z, *found)]
