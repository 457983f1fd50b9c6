"""Fields that Julia calls in Python at each evaluation: as exact as traced ones, whatever they do on their way."""

from __future__ import annotations

import gc
import math
import os
import signal
import traceback
import warnings
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode.engine.julia import runtime as julia_runtime
from pynode.field._memory import memory_of
from pynode.models import NODE

CALLBACK: dict[str, Any] = {"engine": "julia", "lowering": "callback"}
TRACE: dict[str, Any] = {"engine": "julia", "lowering": "trace"}
TIGHT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
Z0 = torch.tensor([[1.0, 0.5], [0.3, -0.7], [-1.2, 0.1]], dtype=torch.float64)


class Where(nn.Module):
    """A field with two branches, which a graph can hold."""

    def __init__(self, rate: float = 1.0) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.tensor([[-0.3, 1.1], [-0.9, -0.2]], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([0.1, -0.4], dtype=torch.float64))
        self.rate = rate

    def pushed(self, t: Tensor, z: Tensor, a: Tensor) -> Tensor:
        return torch.tanh(z @ self.W) * torch.cos(t) + a - self.rate * z

    def forward(self, t: Tensor, z: Tensor, a: Tensor) -> Tensor:
        pushed = self.pushed(t, z, a)
        return torch.where(z.sum() > 10, pushed, pushed + self.b)


class Branch(Where):
    """The same, by control flow on values."""

    def forward(self, t: Tensor, z: Tensor, a: Tensor) -> Tensor:
        pushed = self.pushed(t, z, a)
        return pushed if z.sum().item() > 10 else pushed + self.b


def cost(t: Tensor, z: Tensor, a: Tensor) -> Tensor:
    return (z**2).sum(1) * t + a.sum(1)


def results(field: nn.Module, **options: Any) -> tuple[Tensor, ...]:
    """States, running costs, and the gradients of both to all that they depend on."""
    z0, a = Z0.clone().requires_grad_(), (0.1 * Z0).requires_grad_()
    t = torch.tensor([0.2, 0.7, 1.5], dtype=torch.float64, requires_grad=True)
    solution = pynode.solve(field, z0, t, args=(a,), running_cost=cost, **options)
    assert solution.running_cost is not None
    loss = (solution.z**2).sum() + solution.running_cost.sum()
    assert isinstance(solution.z, Tensor)
    return (solution.z, solution.running_cost, *torch.autograd.grad(loss, [z0, t, a, *field.parameters()]))


def assert_equal(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], atol: float = 1e-10) -> None:
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=atol)


@pytest.mark.julia
@pytest.mark.parametrize("solver", ["tsit5", "dopri5", "bosh3", "vern7", "dopri8", "rk4"])
def test_explicit_solvers(solver: str) -> None:
    """Values and discrete gradients are those of the same field's graph, whose steps are the same."""
    options = {"solver": solver, "dt": 0.1} if solver == "rk4" else {"solver": solver, "rtol": 1e-6, "atol": 1e-6}
    assert_equal(results(Branch(), **options, **CALLBACK), results(Where(), **options, **TRACE))


@pytest.mark.julia
@pytest.mark.parametrize("sensitivity", ["gauss", "interpolating", "quadrature", "backsolve", "forward"])
def test_sensitivities(sensitivity: str) -> None:
    options = {"solver": "tsit5", "rtol": 1e-6, "atol": 1e-6, "sensitivity": sensitivity}
    assert_equal(results(Branch(), **options, **CALLBACK), results(Where(), **options, **TRACE))


@pytest.mark.julia
@pytest.mark.parametrize(
    "solver", ["rodas5p", *(pytest.param(s, marks=pytest.mark.exhaustive) for s in ("fbdf", "kencarp4_krylov"))]
)
def test_stiff_solvers(solver: str) -> None:
    """The Jacobian, or its products with vectors, are torch's."""
    options = {"solver": solver, "rtol": 1e-6, "atol": 1e-6, "sensitivity": "gauss"}
    found, expected = results(Branch(100.0), **options, **CALLBACK), results(Where(100.0), **options, **TRACE)
    # Rounding is amplified by GMRES, up to its own tolerance, and by the differences that the backward solve takes.
    assert_equal(found[:2], expected[:2], 1e-6 if "krylov" in solver else 1e-9)
    assert_equal(found[2:], expected[2:], 1e-6)


class Sine(torch.autograd.Function):
    """By NumPy, with a derivative of its own."""

    fails = False

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.from_numpy(np.sin(x.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        if Sine.fails:
            raise ZeroDivisionError("in the backward pass")
        (x,) = ctx.saved_tensors
        return g * torch.from_numpy(np.cos(x.numpy()))


@pytest.mark.julia
def test_numpy_with_a_derivative() -> None:
    """z' = sin z has the solution 2 atan(tan(z0 / 2) eᵗ), which has the derivative sin z / sin z0."""
    z0 = Z0.clone().requires_grad_()
    solution = pynode.solve(lambda t, z: Sine.apply(z), z0, [0.0, 1.0], rtol=1e-12, atol=1e-12, **CALLBACK)
    z = solution.z[-1]
    torch.testing.assert_close(z, 2 * torch.atan(torch.tan(Z0 / 2) * math.e), rtol=0, atol=1e-10)
    (found,) = torch.autograd.grad(z.sum(), z0)
    torch.testing.assert_close(found, z.sin() / Z0.sin(), rtol=0, atol=1e-10)


@pytest.mark.julia
@pytest.mark.parametrize("solver", ["rodas5p", "kencarp4_krylov"])
def test_what_autograd_does_not_see(solver: str) -> None:
    """A stiff solver takes differences where a part of the field is hidden: z' = -50 (z - cos t)."""
    options: dict[str, Any] = {"solver": solver, "rtol": 1e-7, "atol": 1e-9, "max_steps": 1000}
    found = pynode.solve(
        lambda t, z: torch.from_numpy(-50 * (z.detach().numpy() - np.cos(t.item()))),
        Z0,
        [0.0, 1.0],
        **options,
        **CALLBACK,
    )
    a, t = 50.0, 1.0
    exact = (a * a * math.cos(t) + a * math.sin(t)) / (a * a + 1) + (Z0 - a * a / (a * a + 1)) * math.exp(-a * t)
    torch.testing.assert_close(found.z[-1], exact, rtol=0, atol=1e-6)


@pytest.mark.julia
@pytest.mark.parametrize("solver", ["tsit5", "rodas5p"])
def test_exceptions(solver: str) -> None:
    """They end the solve at once and come out as they were raised, with the field's line."""
    seen = []

    def field(t: Tensor, z: Tensor) -> Tensor:
        seen.append(t.item())
        if t > 0.5:
            raise KeyError("mine")
        return -z

    with pytest.raises(KeyError, match="mine") as caught:
        pynode.solve(field, Z0, [0.0, 1.0], solver=solver, **CALLBACK)
    assert seen[-1] > 0.5
    assert sum(t > 0.5 for t in seen) == 1
    assert 'raise KeyError("mine")' in "".join(traceback.format_tb(caught.value.__traceback__))
    solution = pynode.solve(lambda t, z: -z, Z0, [0.0, 1.0], solver=solver, **TIGHT, **CALLBACK)
    torch.testing.assert_close(solution.z[-1], Z0 / math.e, rtol=0, atol=1e-7)


@pytest.mark.julia
@pytest.mark.parametrize("sensitivity", ["discrete", "gauss"])
def test_exceptions_of_gradients(sensitivity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    z0 = Z0.clone().requires_grad_()

    def solve() -> Tensor:
        options = {"solver": "tsit5", "sensitivity": sensitivity}
        return pynode.solve(lambda t, z: Sine.apply(z), z0, [0.0, 1.0], **options, **TIGHT, **CALLBACK).z[-1]

    failing = solve()
    with monkeypatch.context() as patch:
        patch.setattr(Sine, "fails", True)
        with pytest.raises(ZeroDivisionError, match="in the backward pass"):
            failing.sum().backward()
    z = solve()
    (found,) = torch.autograd.grad(z.sum(), z0)
    torch.testing.assert_close(found, (z.sin() / Z0.sin()).detach(), rtol=0, atol=1e-7)


@pytest.mark.julia
@pytest.mark.usefixtures("interruptible")
def test_interrupt() -> None:
    """A signal that comes while the field runs, or while Julia does, is a KeyboardInterrupt, and then all works."""
    count = 0

    def field(t: Tensor, z: Tensor) -> Tensor:
        nonlocal count
        count += 1
        if count == 60:
            os.kill(os.getpid(), signal.SIGINT)
        return -z

    with pytest.raises(KeyboardInterrupt):
        pynode.solve(field, Z0, [0.0, 1000.0], solver="rk4", dt=0.01, max_steps=10**6, **CALLBACK)
    assert count < 65
    solution = pynode.solve(field, Z0, [0.0, 1.0], **TIGHT, **CALLBACK)
    torch.testing.assert_close(solution.z[-1], Z0 / math.e, rtol=0, atol=1e-7)


@pytest.mark.julia
def test_nothing_outlives_a_field() -> None:
    field = Branch()
    z0 = Z0.clone().requires_grad_()
    solution = pynode.solve(field, z0, [0.0, 1.0], args=(Z0,), **CALLBACK)
    solution.z.sum().backward()
    gone = weakref.ref(field)
    del field, solution
    gc.collect()
    assert gone() is None


@pytest.mark.julia
def test_graphs_within_the_memory_allowed() -> None:
    """Without graphs, or with checkpoints alone, gradients are the same; graphs of no use are let go of."""
    field = Branch()

    def gradients(memory: int) -> tuple[tuple[Tensor, ...], pynode.Solution]:
        z0 = Z0.clone().requires_grad_()
        options = {"solver": "tsit5", "sensitivity": pynode.Discrete(memory=memory)}
        solution = pynode.solve(field, z0, [0.0, 0.5, 5.0], args=(Z0,), **options, **TIGHT, **CALLBACK)
        return torch.autograd.grad((solution.z**2).sum(), [z0, *field.parameters()]), solution

    (expected, whole), (light, some), (thin, few) = gradients(2**30), gradients(30_000), gradients(1)
    assert_equal(light, expected)
    assert_equal(thin, expected)
    backward = [solution.stats.nfe_backward for solution in (whole, some, few)]
    assert backward[0] is not None
    assert backward[2] is not None
    assert backward[2] > 2 * backward[0]


@pytest.mark.julia
def test_a_graph_is_dropped_with_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the graphs that a solve keeps there are no more than its accepted steps have evaluations."""
    from pynode.engine.julia.callback import PythonField

    fields = []
    keep = PythonField.keep
    monkeypatch.setattr(PythonField, "keep", lambda self: (fields.append(self), keep(self))[-1])
    z0 = Z0.clone().requires_grad_()

    def field(t: Tensor, z: Tensor) -> Tensor:
        return -z if t < 1 else -200 * z * torch.sin(5 * t)

    solution = pynode.solve(field, z0, [0.0, 2.0], solver="tsit5", tstops=None, **TIGHT, **CALLBACK)
    assert solution.stats.n_rejected
    assert solution.stats.n_accepted
    assert len(fields[0].graphs) == 6 * solution.stats.n_accepted + 1


@pytest.mark.julia
@pytest.mark.parametrize("how", [pynode.Discrete(memory=1), "gauss", "discrete"])
def test_a_field_that_has_changed(how: Any) -> None:
    """Backward uses what forward used, or says that it cannot."""
    field = Branch()
    z0 = Z0.clone().requires_grad_()
    solution = pynode.solve(field, z0, [0.0, 1.0], args=(Z0,), sensitivity=how, solver="tsit5", **CALLBACK)
    with torch.no_grad():
        field.W.mul_(1.1)
    with pytest.raises((pynode.FieldError, RuntimeError), match=r"has changed|has been modified"):
        solution.z.sum().backward()


@pytest.mark.julia
def test_events() -> None:
    threshold = nn.Parameter(torch.tensor(0.4, dtype=torch.float64))

    def event(t: Tensor, z: Tensor, a: Tensor) -> Tensor:
        return z[0, 0] - threshold

    def branching(t: Tensor, z: Tensor, a: Tensor) -> Tensor:
        return event(t, z, a) if z[0, 0].item() < 5 else z[0, 0]

    found = []
    for field, function, options in ((Branch(), branching, CALLBACK), (Where(), event, TRACE)):
        z0 = Z0.clone().requires_grad_()
        solution = pynode.solve(field, z0, [0.0, 5.0], args=(-0.5 * Z0,), event=function, **TIGHT, **options)
        assert solution.event_t is not None
        wrt = [z0, threshold, *field.parameters()]
        found.append((solution.event_t, *torch.autograd.grad(solution.event_t + solution.event_z.sum(), wrt)))
    assert_equal(*found)


@pytest.mark.julia
def test_independent_samples_and_interpolation() -> None:
    found = []
    for field, options in ((Branch(), CALLBACK), (Where(), TRACE)):
        z0 = Z0.clone().requires_grad_()
        each = pynode.solve(field, z0, [0.0, 0.5, 1.0], args=(Z0,), batching="independent", **TIGHT, **options)
        dense = pynode.solve(field, Z0, [0.0, 1.0], args=(Z0,), solver="tsit5", dense=True, **TIGHT, **options)
        at = dense(torch.tensor([0.3, 0.8], dtype=torch.float64))
        found.append((each.z, at, *torch.autograd.grad((each.z**2).sum(), [z0, *field.parameters()])))
    assert_equal(*found)


@pytest.mark.julia
@pytest.mark.parametrize("sensitivity", ["discrete", "gauss"])
def test_second_and_forward_derivatives(sensitivity: str) -> None:
    found = []
    for field, options in ((Branch(), CALLBACK), (Where(), TRACE)):
        z0 = Z0.clone().requires_grad_()
        t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
        wrt = [z0, t, *field.parameters()]

        def states(x: Tensor, field: Any = field, t: Tensor = t, options: Any = options) -> Tensor:
            return pynode.solve(field, x, t, args=(Z0,), solver="tsit5", sensitivity=sensitivity, **TIGHT, **options).z

        first = torch.autograd.grad((states(z0) ** 2).sum(), wrt, create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), wrt)
        _, forward = torch.func.jvp(states, (Z0,), (Z0.sin(),))
        found.append((*(g.detach() for g in first), *second, forward.detach()))
    assert_equal(*found, atol=1e-8)


class Conditioned(nn.Module):
    """dz/dt = m (e_l - z), with labels l, a mask m that was drawn once, and |c| = 0.5 for a complex parameter c."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 2, dtype=torch.float64)
        self.register_buffer("mask", torch.tensor([1.0, 0.0], dtype=torch.float64))
        self.c = nn.Parameter(torch.tensor(0.3 + 0.4j, dtype=torch.complex128))

    def forward(self, t: Tensor, z: Tensor, labels: Tensor) -> Tensor:
        return self.mask * (self.embedding(labels) - z) * 2 * self.c.abs()


@pytest.mark.julia
def test_tensors_of_other_types() -> None:
    field, labels = Conditioned(), torch.tensor([0, 2, 2])
    z0 = Z0.clone().requires_grad_()
    solution = pynode.solve(field, z0, [0.0, 1.0], args=(labels,), rtol=1e-11, atol=1e-11, **CALLBACK)
    c = field.c.detach().clone().requires_grad_()
    e = field.embedding.weight.detach().clone().requires_grad_()
    exact = torch.where(field.mask > 0, e[labels] + (Z0 - e[labels]) * torch.exp(-2 * c.abs()), Z0)
    torch.testing.assert_close(solution.z[-1], exact, rtol=0, atol=1e-9)
    found = torch.autograd.grad((solution.z[-1] ** 2).sum(), [field.c, field.embedding.weight])
    assert_equal(found, torch.autograd.grad((exact**2).sum(), [c, e]), atol=1e-9)


class Late(nn.Module):
    """dz/dt = cos(t - t0), in float32 with times that only double holds."""

    time_dtype = torch.float64

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        assert t.dtype == torch.float64
        return torch.cos(t - 1.7e9).to(z.dtype).expand_as(z)


@pytest.mark.julia
def test_time_in_double() -> None:
    t = torch.tensor([1.7e9, 1.7e9 + 1], dtype=torch.float64)
    with pytest.raises(pynode.TraceError, match="numbers of one type"):
        pynode.solve(Late(), torch.zeros(1, 1), t, **TRACE)
    solution = pynode.solve(Late(), torch.zeros(1, 1), t, rtol=1e-6, atol=1e-7, **CALLBACK)
    assert solution.z[-1].item() == pytest.approx(math.sin(1), abs=1e-6)


@pytest.mark.julia
def test_a_solve_within_a_field() -> None:
    """The outer field is -z(1) of the inner solve, of dz/dt = -z: so it is -z/e."""

    def inner(t: Tensor, z: Tensor) -> Tensor:
        return -z

    def outer(t: Tensor, z: Tensor) -> Tensor:
        return -pynode.solve(inner, z, [0.0, 1.0], solver="tsit5", **TIGHT, **CALLBACK).z[-1]

    z0 = Z0.clone().requires_grad_()
    z = pynode.solve(outer, z0, [0.0, 1.0], solver="tsit5", **TIGHT, **CALLBACK).z[-1]
    factor = math.exp(-math.exp(-1))
    torch.testing.assert_close(z, factor * Z0, rtol=0, atol=1e-7)
    (found,) = torch.autograd.grad(z.sum(), z0)
    torch.testing.assert_close(found, torch.full_like(Z0, factor), rtol=0, atol=1e-7)


@pytest.mark.julia
def test_a_field_that_solves_itself() -> None:
    """Each solve has memory of its own, although the fields are the same."""
    depth = 0

    def field(t: Tensor, z: Tensor) -> Tensor:
        nonlocal depth
        if depth:
            return -z
        depth += 1
        try:
            return -pynode.solve(field, z, [0.0, 1.0], solver="tsit5", **TIGHT, **CALLBACK).z[-1]
        finally:
            depth -= 1

    z = pynode.solve(field, Z0, [0.0, 1.0], solver="tsit5", **TIGHT, **CALLBACK).z[-1]
    torch.testing.assert_close(z, math.exp(-math.exp(-1)) * Z0, rtol=0, atol=1e-7)


@pytest.mark.julia
def test_memory_is_used_again_and_forgotten() -> None:
    """Solves that are alike share what Julia knows; it is forgotten with the field."""
    module = julia_runtime.module()

    def solve(field: nn.Module) -> None:
        pynode.solve(field, Z0, [0.0, 1.0], args=(Z0,), **CALLBACK)

    field = Branch()
    solve(field)
    ((known,),) = memory_of(field).callbacks.values()
    number, gone, before = known.kernel, weakref.ref(known), int(module.kernel_count())
    for _ in range(3):
        solve(field)
    assert int(module.kernel_count()) == before
    assert module.KERNELS[number - 1] is not None
    del field, known
    gc.collect()
    solve(Where())
    assert gone() is None
    assert module.KERNELS[number - 1] is None


@pytest.mark.julia
def test_auto_says_once_why_it_calls() -> None:
    field = Branch()
    with pytest.warns(
        pynode.PyNODEWarning, match=r"lowering='auto': Julia calls the field .* depends on the values"
    ) as told:
        found = pynode.solve(field, Z0, [0.0, 1.0], args=(Z0,), engine="julia", lowering="auto")
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = pynode.solve(field, Z0, [0.0, 1.0], args=(Z0,), engine="julia", lowering="auto")
        traced = pynode.solve(Where(), Z0, [0.0, 1.0], args=(Z0,), engine="julia", lowering="auto")
    torch.testing.assert_close(found.z, traced.z, rtol=0, atol=1e-12)
    torch.testing.assert_close(again.z, found.z, rtol=0, atol=0)


@pytest.mark.julia
def test_a_trace_error_names_the_way_out() -> None:
    with pytest.raises(pynode.TraceError, match="lowering='callback'"):
        pynode.solve(Branch(), Z0, [0.0, 1.0], args=(Z0,), **TRACE)


@pytest.mark.julia
def test_models_pass_it_on() -> None:
    net = nn.Linear(2, 2).double()
    called, traced = (NODE(net, engine="julia", lowering=how)(Z0) for how in ("callback", "trace"))
    torch.testing.assert_close(called, traced, rtol=0, atol=1e-12)


def test_names() -> None:
    with pytest.raises(pynode.InputError, match="unknown lowering 'calback': expected one of 'callback'"):
        pynode.solve(lambda t, z: -z, Z0, [0.0, 1.0], engine="torch", lowering="calback")
    with pytest.raises(pynode.InputError, match="unknown lowering"):
        NODE(nn.Linear(2, 2), lowering="calls")


def test_the_torch_engine_calls_anyway() -> None:
    solutions = [
        pynode.solve(Branch(), Z0, [0.0, 1.0], args=(Z0,), engine="torch", lowering=how)
        for how in ("trace", "callback", "auto")
    ]
    for solution in solutions[1:]:
        torch.testing.assert_close(solution.z, solutions[0].z, rtol=0, atol=0)
