"""Who takes part in the benchmarks: each solves a case, and differentiates the mean square of the result."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torchdiffeq
from _cases import Case
from torch import Tensor, nn

import pynode

RTOL_TO_ATOL = 1e-3
DIFFEQFLUX = "DiffEqFlux"
FIELD_ALONE = "the field's products alone"


@dataclass
class Runs:
    """What a contender does with a case at one tolerance.

    Attributes:
        forward: the states at the times, `(time, batch, …)`.
        gradient: of the mean square of the states, with respect to each parameter.
        nfe: evaluations of the field in the last forward solve; `None` where it does not tell.
    """

    forward: Callable[[], Any]
    gradient: Callable[[], Sequence[Any]] | None
    nfe: Callable[[], int | None] = lambda: None


class _Counted(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.count = inner, 0

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        self.count += 1
        return self.inner(t, z)


def _torch_runs(solve: Callable[[], Tensor], parameters: list[Tensor], nfe: Callable[[], int | None]) -> Runs:
    def forward() -> Tensor:
        with torch.no_grad():
            return solve()

    return Runs(forward, lambda: torch.autograd.grad(solve().square().mean(), parameters), nfe)


def with_torchdiffeq(case: Case, tolerance: float, adjoint: bool) -> Runs:
    """By torchdiffeq's dopri5, or SciPy's Radau through it for a stiff field."""
    counted = _Counted(case.field)
    method: dict[str, Any] = {"method": "dopri5"}
    if case.stiff:
        method = {"method": "scipy_solver", "options": {"solver": "Radau"}}
    odeint = torchdiffeq.odeint_adjoint if adjoint else torchdiffeq.odeint

    def solve() -> Tensor:
        counted.count = 0
        return odeint(counted, case.z0, case.t, rtol=tolerance, atol=tolerance * RTOL_TO_ATOL, **method)

    return _torch_runs(solve, list(case.field.parameters()), lambda: counted.count)


def with_torchdyn(case: Case, tolerance: float, sensitivity: str) -> Runs:
    """By torchdyn's dopri5."""
    from torchdyn.core import ODEProblem

    problem = ODEProblem(
        case.field,
        solver="dopri5",
        sensitivity=sensitivity,
        rtol=tolerance,
        atol=tolerance * RTOL_TO_ATOL,
        rtol_adjoint=tolerance,
        atol_adjoint=tolerance * RTOL_TO_ATOL,
    )
    return _torch_runs(lambda: problem(case.z0, case.t)[1], list(case.field.parameters()), lambda: None)


def with_pynode(case: Case, tolerance: float, engine: str, sensitivity: str) -> Runs:
    """By pynode's default solver, or Rodas5P for a stiff field."""
    stats: list[pynode.Stats] = []
    solver = "auto" if not case.stiff else "rodas5p" if engine == "julia" else "radau"

    def solve() -> Tensor:
        atol = tolerance * RTOL_TO_ATOL
        options: dict[str, Any] = {"engine": engine, "solver": solver, "sensitivity": sensitivity, "max_steps": 10**6}
        sol = pynode.solve(case.field, case.z0, case.t, rtol=tolerance, atol=atol, **options)
        stats[:] = [sol.stats]
        return sol.z

    return _torch_runs(solve, list(case.field.parameters()), lambda: stats[0].nfe)


def with_diffrax(case: Case, tolerance: float) -> Runs:
    """By diffrax's Tsit5 (Kvaerno5 for a stiff field), jitted, with its default adjoint."""
    import diffrax
    import jax
    import jax.numpy as jnp

    if case.z0.dtype == torch.float64:
        jax.config.update("jax_enable_x64", True)
    parameters = [jnp.asarray(p.detach().numpy()) for p in case.field.parameters()]
    z0, t = jnp.asarray(case.z0.numpy()), jnp.asarray(case.t.numpy())
    solver = diffrax.Kvaerno5() if case.stiff else diffrax.Tsit5()
    assert case.jax is not None

    def solve(p: Any) -> Any:
        return diffrax.diffeqsolve(
            diffrax.ODETerm(case.jax),
            solver,
            t[0],
            t[-1],
            None,
            z0,
            args=p,
            saveat=diffrax.SaveAt(ts=t),
            stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance * RTOL_TO_ATOL),
            max_steps=16**4,
        ).ys

    forward, gradient = jax.jit(solve), jax.jit(jax.grad(lambda p: jnp.mean(solve(p) ** 2)))
    wait = jax.block_until_ready
    return Runs(lambda: wait(forward(parameters)), lambda: wait(gradient(parameters)))


_DIFFEQFLUX = """
begin
    using DiffEqFlux, OrdinaryDiffEqTsit5, Lux, Random, Zygote, ComponentArrays, SciMLSensitivity
    function (widths, cubed, z0, ts, rtol, atol)
        n = length(widths) - 1
        layers = [Lux.Dense(widths[i] => widths[i + 1], i < n ? tanh : identity) for i in 1:n]
        model = cubed ? Lux.Chain(x -> x .^ 3, layers...) : Lux.Chain(layers...)
        ts, u0 = Float32.(ts), permutedims(Float32.(z0))
        node = NeuralODE(
            model, (first(ts), last(ts)), Tsit5(); saveat = ts, reltol = Float32(rtol), abstol = Float32(atol),
            sensealg = InterpolatingAdjoint(; autojacvec = ZygoteVJP()),
        )
        ps, st = Lux.setup(Xoshiro(0), node)
        p = ComponentArray(ps)
        loss(p) = (u = first(node(u0, p, st)).u; sum(x -> sum(abs2, x), u) / (length(u) * length(u0)))
        return () -> (node(u0, p, st); nothing), () -> (Zygote.gradient(loss, p); nothing)
    end
end
"""


def with_diffeqflux(case: Case, tolerance: float) -> Runs:
    """DiffEqFlux's NeuralODE as it comes, in this process; its weights are its own, so that only time is compared."""
    from pynode.engine.julia import runtime as julia_runtime

    julia_runtime.start()
    from juliacall import Main  # only now: it starts Julia

    make = Main.seval(_DIFFEQFLUX)
    cubed = "spiral" in case.name
    forward, gradient = make(
        list(case.widths), cubed, case.z0.numpy(), case.t.numpy(), tolerance, tolerance * RTOL_TO_ATOL
    )
    return Runs(forward, gradient)


def field_alone(case: Case, nfe: int) -> Runs:
    """What no solver can do without: a network's matrix products and tanh, and their adjoints, `nfe` times each.

    In PyTorch, into memory that is there already. Nothing is integrated: each evaluation is of the initial state.
    """
    parameters = [p.detach() for p in case.field.parameters()]
    z, weights, biases = case.z0, parameters[::2], parameters[1::2]
    sizes = [w.shape[0] for w in weights]
    kept = [[z.new_empty(len(z), n) for n in sizes] for _ in range(nfe)]
    back = [torch.empty_like(z), *(z.new_empty(len(z), n) for n in sizes)]
    gradients = [torch.zeros_like(p) for p in parameters]

    def evaluate(values: list[Tensor]) -> None:
        x = z
        for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
            torch.addmm(b, x, w.T, out=values[i])
            x = torch.tanh(values[i], out=values[i]) if i + 1 < len(weights) else values[i]

    def pull_back(values: list[Tensor]) -> None:
        for i in reversed(range(len(weights))):
            if i + 1 < len(weights):
                torch.ops.aten.tanh_backward(back[i + 1], values[i], grad_input=back[i + 1])
            gradients[2 * i].addmm_(back[i + 1].T, values[i - 1] if i else z)
            gradients[2 * i + 1].add_(back[i + 1].sum(0))
            torch.mm(back[i + 1], weights[i], out=back[i])

    def forward() -> None:
        for values in kept:
            evaluate(values)

    def gradient() -> None:
        forward()
        for values in reversed(kept):
            back[-1].copy_(values[-1])
            pull_back(values)

    return Runs(forward, gradient, lambda: nfe)


def names(case: Case) -> dict[str, Callable[[float], Runs]]:
    """The contenders that can take part in a case here, each as a function of its relative tolerance."""
    found: dict[str, Callable[[float], Runs]] = {}
    if not case.stiff:
        found["torchdiffeq discretise"] = lambda tol: with_torchdiffeq(case, tol, False)
    found["torchdiffeq adjoint"] = lambda tol: with_torchdiffeq(case, tol, True)
    if not case.stiff and _installed("torchdyn.core"):
        for how in ("autograd", "adjoint"):
            found[f"torchdyn {how}"] = lambda tol, how=how: with_torchdyn(case, tol, how)
    if case.jax is not None and _installed("diffrax"):
        found["diffrax (jit)"] = lambda tol: with_diffrax(case, tol)
    engines = [name for name, status in pynode.engines().items() if status.ok]
    hows = {"julia": ("discrete", "gauss", "interpolating"), "torch": ("discrete",)}
    if case.stiff:
        hows = {"julia": ("gauss", "interpolating"), "torch": ("backsolve",)}
    for engine, how in itertools.chain(*([(e, h) for h in hows[e]] for e in engines)):
        found[f"pynode {engine} {how}"] = lambda tol, engine=engine, how=how: with_pynode(case, tol, engine, how)
    if case.widths and pynode.engines()["julia"].ok:
        found[DIFFEQFLUX] = lambda tol: with_diffeqflux(case, tol)
    return found


def _installed(module: str) -> bool:
    import importlib

    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True
