"""How steps are chosen, and tolerances of each component."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import pynode
from pynode import StepControl

D = torch.float64
Z0 = torch.tensor([[1.0, 0.0]], dtype=D)


def field(t: Tensor, z: Tensor) -> Tensor:
    return torch.stack([z[:, 1], -z[:, 0] * (1 + 50 * torch.exp(-20 * (t - 1) ** 2))], 1)


def steps(engine: str, **options: Any) -> Tensor:
    with torch.no_grad():
        return pynode.solve(field, Z0, [0.0, 2.0], save="steps", solver="dopri5", engine=engine, **options).t.diff()


def test_bounds(engine: str) -> None:
    free = steps(engine, rtol=1e-3, atol=1e-6)
    assert free.max() > 0.1
    bounded = steps(engine, rtol=1e-3, atol=1e-6, step_control=StepControl(dt_max=0.03))
    assert bounded.max() <= 0.03 * (1 + 1e-9)
    assert len(bounded) >= 66
    first = steps(engine, rtol=1e-3, atol=1e-6, step_control=StepControl(dt_first=1e-4, factor_max=1.05))
    assert first[0].item() == pytest.approx(1e-4)
    heeded = first[2:-1] / first[1:-2]  # on julia not after the very first
    assert heeded.max() <= 1.05 * (1 + 1e-9)
    assert (free[2:-1] / free[1:-2]).max() > 1.2
    careful = steps(engine, rtol=1e-3, atol=1e-6, step_control=StepControl(safety=0.5))
    assert len(careful) > len(free)


def test_a_least_step(engine: str) -> None:
    """julia fails where it would need a shorter one, torch takes it."""
    control = StepControl(dt_min=0.3)
    options: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10, "solver": "dopri5", "engine": engine}
    if engine == "julia":
        with pytest.raises(pynode.SolveError) as caught:
            pynode.solve(field, Z0, [0.0, 2.0], step_control=control, **options)
        assert caught.value.retcode is pynode.Retcode.STEP_UNDERFLOW
    else:
        assert steps(engine, rtol=1e-10, atol=1e-10, step_control=control)[:-1].min() >= 0.3 * (1 - 1e-9)


@pytest.mark.julia
@pytest.mark.parametrize("controller", ["i", "pi", "pid", (0.7, -0.23, 0.0)])
@pytest.mark.parametrize("solver", ["tsit5", "vern7", "rodas5p"])
def test_controllers(controller: Any, solver: str) -> None:
    """The solution is right by each, and the discrete gradient is that of the steps that were taken."""
    options: dict[str, Any] = {"solver": solver, "rtol": 1e-8, "atol": 1e-8, "engine": "julia"}
    expected = pynode.solve(field, Z0, [0.0, 2.0], solver="vern9", rtol=1e-12, atol=1e-12, engine="julia").z
    z0 = Z0.clone().requires_grad_()
    sol = pynode.solve(field, z0, [0.0, 2.0], step_control=StepControl(controller), **options)
    torch.testing.assert_close(sol.z, expected, rtol=0, atol=1e-5)
    plain = pynode.solve(field, Z0, [0.0, 2.0], **options)
    if solver == "tsit5":  # whose own is "i"
        assert (sol.stats.n_accepted == plain.stats.n_accepted) == (controller == "i")
    other = Z0.clone().requires_grad_()
    whole = pynode.solve(field, other, [0.0, 2.0], solver="vern9", rtol=1e-12, atol=1e-12, engine="julia").z
    ours, theirs = (torch.autograd.grad(y[-1].sum(), x)[0] for y, x in ((sol.z, z0), (whole, other)))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.julia
@pytest.mark.parametrize(
    ("solver", "controller"), [("tsit5", "pi"), ("tsit5", "pid"), ("vern7", None), ("rdpk3spfsal49", None)]
)
def test_every_controller_heeds_the_bounds(solver: str, controller: Any) -> None:
    options: dict[str, Any] = {"solver": solver, "save": "steps", "rtol": 1e-5, "atol": 1e-7, "engine": "julia"}
    with torch.no_grad():
        free, bounded, careful = (
            pynode.solve(field, Z0, [0.0, 2.0], step_control=control, **options).t.diff()
            for control in (
                None,
                StepControl(controller, dt_first=1e-3, factor_max=1.1),
                StepControl(controller, safety=0.5),
            )
        )
    ratios = bounded[2:-1] / bounded[1:-2]
    assert ratios.max() <= 1.1 * (1 + 1e-6)
    assert (free[2:-1] / free[1:-2]).max() > 1.2
    assert len(careful) > len(free)


def test_torchs_controller() -> None:
    assert torch.equal(steps("torch"), steps("torch", step_control=StepControl("i")))
    with pytest.raises(pynode.EngineUnavailable, match="controller 'i' alone"):
        steps("torch", step_control=StepControl("pi"))


@pytest.mark.julia
@pytest.mark.parametrize("solver", ["fbdf", "vcabm"])
def test_solvers_with_controllers_of_their_own(solver: str) -> None:
    with pytest.raises(pynode.EngineUnavailable, match="a controller of its own"):
        pynode.solve(field, Z0, [0.0, 0.1], solver=solver, step_control=StepControl("pi"), engine="julia")


@pytest.mark.parametrize("is_tuple", [False, True])
def test_norms(engine: str, is_tuple: bool) -> None:
    """By the greatest of the samples one in a large batch is as accurate as alone; by the mean of all it is not."""
    z0 = torch.zeros(400, 2, dtype=D)
    z0[7] = Z0

    def solve(z0: Tensor, norm: str) -> pynode.Solution:
        options: dict[str, Any] = {"step_control": StepControl(norm=norm), "solver": "dopri5", "engine": engine}
        options |= {"rtol": 1e-6, "atol": 1e-9}
        if not is_tuple:
            return pynode.solve(field, z0, [0.0, 2.0], **options)

        def parts(t: Tensor, z: Any) -> Any:
            dz = field(t, torch.cat(z, 1))
            return dz[:, :1], dz[:, 1:]

        return pynode.solve(parts, (z0[:, :1], z0[:, 1:]), [0.0, 2.0], **options)

    with torch.no_grad():
        alone = solve(z0[7:8], "rms")
        found = {norm: solve(z0, norm) for norm in ("rms", "max", "sample_max")}
    accepted = {norm: sol.stats.n_accepted or 0 for norm, sol in found.items()}
    assert accepted["sample_max"] == alone.stats.n_accepted
    assert accepted["max"] >= accepted["sample_max"]
    assert accepted["rms"] < 0.8 * accepted["sample_max"]
    with torch.no_grad():
        exact = pynode.solve(field, Z0, [0.0, 2.0], rtol=1e-12, atol=1e-12, engine=engine).z[-1, 0]

    def error(sol: pynode.Solution) -> float:
        z = torch.cat(sol.z, -1) if is_tuple else sol.z
        return float((z[-1, 7] - exact).abs().max())

    assert error(found["sample_max"]) < 0.2 * error(found["rms"])


def test_tolerances_of_each_component(engine: str) -> None:
    """The second component is large and need not be accurate; that of the first is what counts."""

    def both(t: Tensor, z: Tensor) -> Tensor:
        return torch.stack([-z[:, 0], 2000 * torch.cos(30 * t) + 0 * z[:, 1]], 1)

    z0 = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=D)

    def solve(rtol: Any, atol: Any, **options: Any) -> pynode.Solution:
        return pynode.solve(both, z0, [0.0, 1.0], rtol=rtol, atol=atol, solver="dopri5", engine=engine, **options)

    each = torch.tensor([1e-9, 1e9], dtype=D)
    sol = solve(1e-9, each)
    strict = solve(1e-9, 1e-9)
    assert sol.stats.nfe < 0.5 * strict.stats.nfe
    torch.testing.assert_close(sol.z[-1, :, 0], z0[:, 0] * torch.exp(-torch.ones(1, dtype=D)), rtol=1e-7, atol=0)
    same = solve(torch.full((2, 1), 1e-9, dtype=D), torch.full((2,), 1e-9, dtype=D))
    torch.testing.assert_close(same.z, strict.z, rtol=1e-13, atol=1e-13)
    independent = solve(1e-9, each, batching="independent")
    torch.testing.assert_close(independent.z[-1, :, 0], sol.z[-1, :, 0], rtol=1e-6, atol=0)


def adaptive_solvers() -> list[Any]:
    def marks(engine: str, solver: str) -> list[pytest.MarkDecorator]:
        if engine != "julia":
            return []
        return [pytest.mark.julia, *([] if solver in ("rodas5p", "fbdf", "tsit5") else [pytest.mark.exhaustive])]

    return [
        pytest.param(name, info.name, marks=marks(name, info.name), id=f"{name}-{info.name}")
        for name in pynode.engines()
        for info in pynode.solvers()
        if name in info.engines and info.adaptive and not info.of_pairs
    ]


@pytest.mark.parametrize(("engine", "solver"), adaptive_solvers())
def test_every_solver_takes_tolerances_of_each_component(engine: str, solver: str) -> None:
    """A tensor of equal numbers is that number; a loose tolerance of one component saves steps."""
    z0 = torch.tensor([[1.0, 2.0], [0.5, 1.0]], dtype=D)

    def solve(rtol: Any, atol: Any) -> pynode.Solution:
        return pynode.solve(two_rates, z0, [0.0, 1.0], rtol=rtol, atol=atol, solver=solver, engine=engine)

    if solver in ("lsoda", "bdf", "radau"):
        with pytest.raises(pynode.EngineUnavailable, match="takes two tolerances"):
            solve(1e-3, torch.full((2,), 1e-4, dtype=D))
        return
    strict = solve(1e-3, 1e-4)
    equal = solve(torch.full((2,), 1e-3, dtype=D), torch.full((2, 2), 1e-4, dtype=D))
    torch.testing.assert_close(equal.z, strict.z, rtol=1e-9, atol=1e-9)
    for rtol, atol in ((1e-3, torch.tensor([1e-4, 1e6], dtype=D)), (torch.tensor([1e-3, 1e6], dtype=D), 1e-4)):
        loose = solve(rtol, atol)
        assert loose.stats.nfe < strict.stats.nfe
        torch.testing.assert_close(loose.z[-1, :, 0], z0[:, 0] * math.exp(-1), rtol=1e-1, atol=0)


def two_rates(t: Tensor, z: Tensor) -> Tensor:
    """The second component oscillates fast, and the first does not depend on it."""
    return torch.stack([-z[:, 0], 10 * torch.cos(10 * t) + 0 * z[:, 1]], 1)


def test_tolerances_of_tuples_and_complex_states(engine: str) -> None:
    z0 = (torch.ones(1, 2, dtype=D), torch.ones(1, 1, dtype=torch.complex128, requires_grad=True))

    def both(t: Tensor, z: Any) -> Any:
        return -z[0], 1j * z[1]

    options: dict[str, Any] = {"engine": engine, "running_cost": lambda t, z: z[0].sum(1)}
    sol = pynode.solve(both, z0, [0.0, 1.0], atol=(torch.tensor([1e-9, 1e-8], dtype=D), 1e-9), rtol=1e-9, **options)
    e = torch.exp(torch.ones((), dtype=D))
    torch.testing.assert_close(sol.z[0][-1], 1 / e.expand(1, 2), rtol=1e-6, atol=0)
    torch.testing.assert_close(sol.running_cost, (2 - 2 / e).expand(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(sol.z[1][-1].real, torch.cos(torch.ones(1, 1, dtype=D)), rtol=1e-6, atol=0)
    grad = torch.autograd.grad(sol.z[1][-1].real.sum(), z0[1])[0]
    torch.testing.assert_close(grad, torch.exp(-1j * torch.ones(1, 1, dtype=torch.complex128)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve", "forward"])
def test_gradients(engine: str, sensitivity: str) -> None:
    """Those of extended systems too, which have more components than there are tolerances."""
    z0 = Z0.clone().requires_grad_()
    sol = pynode.solve(
        field,
        z0,
        [0.0, 2.0],
        rtol=1e-8,
        atol=torch.tensor([1e-8, 1e-9], dtype=D),
        step_control=StepControl(norm="sample_max", dt_max=0.2),
        solver="dopri5",
        sensitivity=sensitivity,
        engine=engine,
    )
    other = Z0.clone().requires_grad_()
    exact = pynode.solve(field, other, [0.0, 2.0], rtol=1e-10, atol=1e-10, engine=engine)
    ours, theirs = (torch.autograd.grad(y.z[-1, 0, 0], x)[0] for y, x in ((sol, z0), (exact, other)))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"controller": "pi2"}, "'pi'"),
        ({"controller": (0.7, 0.1)}, "three exponents"),
        ({"dt_min": 0.0}, "dt_min must be a number above 0"),
        ({"dt_min": 2.0, "dt_max": 1.0}, "dt_min must not be above dt_max"),
        ({"safety": 1.5}, "safety must be a number above 0 and below 1"),
        ({"factor_max": 0.5}, "factor_max must be a number above 1"),
        ({"norm": "l2"}, "'rms'"),
        ({"dt_first": True}, "dt_first"),
    ],
)
def test_refused_controls(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(pynode.InputError) as caught:
        StepControl(**arguments)
    assert message in str(caught.value)


def test_refusals(engine: str) -> None:
    three = torch.ones(3, dtype=D)
    for options, message in (
        ({"step_control": "pi"}, "must be a pynode.StepControl"),
        ({"step_control": StepControl(), "solver": "rk4", "dt": 0.1}, "does not choose its steps"),
        ({"step_control": StepControl(dt_first=0.1), "dt": 0.1}, "give one of them"),
        ({"rtol": three}, "rtol must broadcast against z0, of shape (1, 2), got shape (3,)"),
        ({"atol": -three[:2]}, "atol must be positive and finite"),
        ({"z0": (Z0, Z0), "atol": (1e-3,)}, "hold what the state holds, z0[0], z0[1]"),
        ({"rtol": "small"}, "rtol must be a positive number"),
    ):
        with pytest.raises(pynode.InputError) as caught:
            pynode.solve(**{"field": field, "z0": Z0, "t": [0.0, 1.0], "engine": engine, **options})
        assert message in str(caught.value)
    atol = torch.tensor([[1e-3], [1e-4]], dtype=D)
    with pytest.raises(pynode.InputError, match="the same for each"):
        pynode.solve(field, Z0.expand(2, 2), [0.0, 1.0], atol=atol, batching="independent", engine=engine)


def test_independent_samples_with_events_and_stops(engine: str) -> None:
    """Parts of a solve have fewer samples."""
    atol = torch.full((3, 2), 1e-7, dtype=D)
    bounce = pynode.Event(lambda t, z: z[:, 0].amin(), terminal=False, affect=lambda t, z: 0.5 * z + 0.25)
    z0 = torch.tensor([[1.0, 0.0], [0.5, 0.0], [2.0, 1.0]], dtype=D)
    options: dict[str, Any] = {"event": bounce, "tstops": [0.7], "batching": "independent", "engine": engine}
    options |= {"rtol": 1e-7, "step_control": StepControl(norm="sample_max")}
    found = pynode.solve(field, z0, [0.0, 2.0], atol=atol, **options)
    expected = pynode.solve(field, z0, [0.0, 2.0], atol=1e-7, **options)
    torch.testing.assert_close(found.z, expected.z, rtol=1e-9, atol=1e-9)
    assert all(len(log.t) for log in found.events)


def test_recorded_solves_choose_no_steps() -> None:
    def run(z: Tensor, **how: Any) -> Tensor:
        return pynode.solve(field, z, [0.0, 0.1], solver="rk4", dt=0.05, engine="torch", **how).z

    torch.jit.trace(run, (Z0,))
    with pytest.raises(pynode.InputError, match="leave them out"):
        torch.jit.trace(lambda z: run(z, atol=torch.ones(2, dtype=D)), (Z0,))


def test_scipys_solvers_take_none() -> None:
    with pytest.raises(pynode.EngineUnavailable, match="takes two tolerances"):
        pynode.solve(field, Z0, [0.0, 0.1], solver="lsoda", step_control=StepControl(dt_max=0.1), engine="torch")


def test_tolerances_of_components_within_transforms(engine: str) -> None:
    """They are taken as they are, where they do not depend on what is differentiated or mapped over."""
    given = torch.tensor([1e-6, 1e-8], dtype=D)

    def end(z0: Tensor, rtol: Any = given) -> Tensor:
        return pynode.solve(field, z0, [0.0, 1.0], rtol=rtol, engine=engine).z[-1].sum()

    z0 = Z0.clone().requires_grad_()
    (expected,) = torch.autograd.grad(end(z0), z0)
    torch.testing.assert_close(torch.func.grad(end)(Z0), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.func.grad(lambda z: end(z, 1 * given))(Z0), expected, rtol=1e-9, atol=1e-12)
    mapped = torch.vmap(torch.func.grad(end))(torch.stack([Z0, Z0]))
    torch.testing.assert_close(mapped, torch.stack([expected] * 2), rtol=1e-6, atol=1e-6)
    with pytest.raises(pynode.InputError, match="a tensor that requires a gradient would get none"):
        torch.func.grad(lambda z: end(z, 1e-6 * (1 + z.abs())))(Z0)
    with pytest.raises(pynode.InputError, match="all that is mapped over is solved with one tolerance"):
        torch.vmap(lambda r: end(Z0, r))(torch.stack([given, given]))
