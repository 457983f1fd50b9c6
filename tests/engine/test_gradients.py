"""The engine contract on gradients: every engine, solver and sensitivity, by `torch.autograd.gradcheck`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import PROBLEMS, draw, gradient_cases, settings
from torch import Tensor, nn

import pynode
from pynode.engine import SolverInfo

DOUBLE = torch.float64


# One of each kind: a continuous sensitivity is compiled for each solver, for ten seconds to minutes on julia.
ONE_OF_EACH = ("dopri5", "rk4", "rodas5p", "fbdf", "kencarp4_krylov")


def cases() -> list[Any]:
    """Every case on every problem; by default, what the solver plays no part in is left to few of the solvers."""

    def marks(case: Any, problem: str) -> list[Any]:
        engine, info, how = case.values
        if info.name in ("radau", "bdf", "lsoda") and how == "forward" and problem != "linear":
            return [pytest.mark.exhaustive]
        like_rodas5p = info.name in ("fbdf", "kencarp4_krylov") and how in ("backsolve", "interpolating", "quadrature")
        if how == "discrete" or (info.name in ONE_OF_EACH and problem == "driven" and not like_rodas5p):
            return list(case.marks)
        if info.name in ("dopri5", "rk4") or engine != "julia":
            by_solver = problem == "driven" and how != "forward"  # whose evaluations, all in Python, are many
            of_fields = info.name in ("dopri5", "rk4") and (how != "forward" or problem == "driven")
            quick = engine != "julia" and (by_solver or of_fields)
            if quick:
                return list(case.marks)
            less = info.name == "dopri5" or (info.name == "rk4" and engine != "julia")
            return [*case.marks, pytest.mark.slow if less else pytest.mark.exhaustive]
        return [*case.marks, pytest.mark.exhaustive]

    return [
        pytest.param(*case.values, problem, marks=marks(case, problem), id=f"{case.id}-{problem}")
        for case in gradient_cases()
        for problem in PROBLEMS
    ]


@pytest.mark.parametrize(("engine", "info", "how", "problem"), cases())
def test_gradcheck(engine: str, info: SolverInfo, how: str, problem: str) -> None:
    """With respect to z0, the entries of t, args and parameters at once."""
    chosen = settings(info)
    field, z0, args = draw(problem)
    states = z0 if isinstance(z0, tuple) else (z0,)
    # Three reported times with uneven gaps, none of them 0: the driven field vanishes there.
    t = 0.3 + chosen.span * torch.tensor([0.0, 0.37, 1.0], dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (*states, t, *args)] + list(field.parameters())

    def run(*given: Tensor) -> tuple[Tensor, ...]:
        z, rest = given[: len(states)], given[len(states) + 1 :]
        sol = pynode.solve(
            field,
            z if isinstance(z0, tuple) else z[0],
            given[len(states)],
            args=rest[: len(args)],
            solver=info.name,
            sensitivity=how,
            engine=engine,
            max_steps=100_000,
            **chosen.keywords,
        )
        return sol.z if isinstance(sol.z, tuple) else (sol.z,)

    exact = how == "discrete" and not info.adaptive
    tolerance: dict[str, Any] = {"atol": 1e-7, "rtol": 1e-6} if exact else {"atol": chosen.error, "rtol": 1e-4}
    assert torch.autograd.gradcheck(run, inputs, eps=chosen.eps, fast_mode=True, **tolerance)


def test_old_spectral_norm_in_training(engine: str) -> None:
    """As many solves as its power iteration takes to settle; then the gradient is that of evaluation mode."""
    net = nn.Sequential(torch.nn.utils.spectral_norm(nn.Linear(3, 3, dtype=DOUBLE)), nn.Tanh())
    z0 = torch.tensor([[0.3, -0.2, 0.9], [1.0, 0.1, -0.4]], dtype=DOUBLE)

    def gradient(engine: str) -> Tensor:
        (g,) = torch.autograd.grad(
            pynode.solve(lambda t, z: net(z), z0, [0.0, 1.0], engine=engine, solver="rk4", dt=0.1).z[-1].sum(),
            net[0].weight_orig,  # type: ignore[arg-type]
        )
        return g

    for _ in range(100):
        net[0](z0)  # a step
    trained = gradient(engine)
    net.eval()
    z = z0
    for _ in range(10):
        k1 = net(z)
        k2 = net(z + 0.05 * k1)
        k3 = net(z + 0.05 * k2)
        z = z + 0.1 / 6 * (k1 + 2 * k2 + 2 * k3 + net(z + 0.1 * k3))
    (expected,) = torch.autograd.grad(z.sum(), net[0].weight_orig)  # type: ignore[arg-type]
    torch.testing.assert_close(gradient(engine), trained, rtol=1e-8, atol=1e-10)
    # torch's rk4 is the 3/8 rule.
    torch.testing.assert_close(trained, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.julia
@pytest.mark.parametrize("batching", ["joint", "independent"])
def test_values_of_the_stages_are_kept_for_gradients_of_the_times_alone(batching: str) -> None:
    from juliacall import Main as jl

    for wanted in (False, True):
        z0 = torch.ones(3, 300, dtype=torch.float64, requires_grad=True)  # small states' stages are numbers alone
        t = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64, requires_grad=wanted)
        z = pynode.solve(lambda t, z: torch.tanh(z) * t, z0, t, engine="julia", batching=batching).z
        kept = jl.seval("PyNODE.KEPT[PyNODE.NEXT[]]")
        one = kept if batching == "joint" else kept.forwards[0]
        numbers = 900 if batching == "joint" else 300
        assert {len(stage.k) for stage in one.steps.stages.stages} == {numbers if wanted else 0}
        z.sum().backward()
        assert (t.grad is not None) == wanted


@pytest.mark.parametrize("solver", ["dopri5", "bosh3", "dopri8"])
@pytest.mark.parametrize("rtol", [1e-2, 1e-4])
def test_the_choice_of_the_first_step_is_not_differentiated(engine: str, solver: str, rtol: float) -> None:
    """The discrete gradient is that of the steps that were taken, as if the first had been given."""
    field, z0, args = draw("driven")
    assert isinstance(z0, Tensor)
    t = torch.tensor([0.0, 1.0], dtype=DOUBLE)
    how: dict[str, Any] = {"args": args, "engine": engine, "solver": solver, "rtol": rtol, "atol": rtol}

    def gradient(dt: float | None) -> list[Tensor]:
        z = z0.clone().requires_grad_()
        end = pynode.solve(field, z, t, dt=dt, sensitivity="discrete", **how).z[-1]
        return [end.detach(), *torch.autograd.grad(end.square().sum(), [z, *field.parameters()])]

    steps = pynode.solve(field, z0, t, save="steps", **how).t
    assert len(steps) > 2
    for a, b in zip(gradient(None), gradient((steps[1] - steps[0]).item()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
