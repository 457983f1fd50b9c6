"""Paths through data, by themselves and as what a field reads."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicHermiteSpline, CubicSpline
from torch import Tensor, nn

import pynode
from pynode import EngineUnavailable
from pynode.control import Control, CubicHermite, Linear, NaturalCubic, PiecewiseConstant
from pynode.field import _capture

D = torch.float64
NAN = math.nan
KINDS = (Linear, CubicHermite, NaturalCubic, PiecewiseConstant)
TIMES = torch.tensor([0.0, 0.4, 0.5, 1.1, 1.9, 2.0, 2.6], dtype=D)


def values(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=D)


def hermite(t: Any, x: Any) -> Callable[..., Any]:
    slopes = np.diff(x, axis=0) / np.diff(t).reshape(-1, *[1] * (x.ndim - 1))
    return CubicHermiteSpline(t, x, np.concatenate([slopes[:1], slopes]), axis=0)


def natural(t: Any, x: Any) -> Callable[..., Any]:
    return CubicSpline(t, x, axis=0, bc_type="natural")


@pytest.mark.parametrize(("kind", "reference"), [(CubicHermite, hermite), (NaturalCubic, natural)])
def test_cubic(kind: type[Control], reference: Callable[..., Any]) -> None:
    """Value and derivative against SciPy's."""
    x, s = values(7, 3), torch.linspace(0, 2.6, 41, dtype=D)
    path, expected = kind(TIMES, x), reference(TIMES.numpy(), x.numpy())
    torch.testing.assert_close(path(s), torch.from_numpy(expected(s.numpy())))
    torch.testing.assert_close(path.derivative(s), torch.from_numpy(expected(s.numpy(), 1)))


def test_linear_and_constant() -> None:
    x = torch.tensor([1.0, 3.0, NAN, 2.0], dtype=D)
    times = [0.0, 1.0, 2.0, 4.0]
    s = torch.tensor([-1.0, 0.0, 0.5, 1.0, 1.9, 3.0, 4.0, 5.0], dtype=D)
    line, steps = Linear(times, x), PiecewiseConstant(times, x)
    third = 1 / 3
    assert line(s).tolist() == pytest.approx([1, 1, 2, 3, 3 - 0.3, 3 - 2 * third, 2, 2])
    assert line.derivative(s).tolist() == pytest.approx([0, 2, 2, -third, -third, -third, -third, 0])
    assert steps(s).tolist() == [1, 1, 1, 3, 3, 3, 2, 2]
    assert steps.derivative(s).tolist() == [0] * 8


@pytest.mark.parametrize("kind", KINDS)
def test_shapes(kind: type[Control]) -> None:
    x, t, s = values(2, 7, 3), TIMES[2], TIMES[:4] + 0.01
    for of, shape in ((x, (2, 3)), (x[0], (3,)), (x[0, :, 0], ())):
        path = kind(TIMES, of)
        for call in (path, path.derivative):
            assert call(t).shape == shape
            assert call(s).shape == (*shape[:-1], 4, *shape[-1:])
            torch.testing.assert_close(call(s)[..., 1, :] if shape else call(s)[1], call(s[1]))
    each = kind(TIMES.expand(2, -1), x)
    torch.testing.assert_close(each(s), kind(TIMES, x)(s))
    torch.testing.assert_close(kind(TIMES, x)(s)[1], kind(TIMES, x[1])(s))


@pytest.mark.parametrize("kind", KINDS)
def test_each_channel_is_made_of_what_was_observed_of_it(kind: type[Control]) -> None:
    """Linear and natural splines leave out what is missing; Hermite's is filled in first."""
    x, s = values(2, 7, 2), torch.linspace(0, 2.6, 31, dtype=D)
    missing = torch.zeros(2, 7, 2, dtype=torch.bool)
    missing[0, 2:4, 0] = missing[1, 5, 1] = missing[1, 1:4, 1] = True
    path = kind(TIMES, x.masked_fill(missing, NAN))
    for b in range(2):
        for c in range(2):
            there = ~missing[b, :, c]
            known, t = x[b, there, c], TIMES[there]
            if kind is CubicHermite:
                known, t = torch.from_numpy(np.interp(TIMES.numpy(), t.numpy(), known.numpy())), TIMES
            torch.testing.assert_close(path(s)[b, :, c], kind(t, known)(s))


@pytest.mark.parametrize("kind", KINDS)
def test_ends_and_channels_without_observations(kind: type[Control]) -> None:
    x = values(2, 7, 2)
    x[0, :2, 0] = x[0, 6:, 0] = NAN
    x[1, :, 1] = NAN
    path = kind(TIMES, x)
    assert path(TIMES[0])[0, 0] == x[0, 2, 0]
    assert path(TIMES[-1])[0, 0] == pytest.approx(float(x[0, 5, 0]))
    assert not path(TIMES)[1, :, 1].any()
    torch.testing.assert_close(path(TIMES)[0, 2:6, 0], x[0, 2:6, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_samples_of_different_lengths(kind: type[Control]) -> None:
    """Each is the path of its own times, and constant after them."""
    x = values(2, 7, 2)
    rows = torch.stack([TIMES, TIMES * 0.7 + 0.1])
    rows[1, 5:] = NAN
    path, s = kind(rows, x), torch.linspace(0.1, 2.6, 31, dtype=D)
    alone = kind(rows[1, :5], x[1:, :5])
    torch.testing.assert_close(path(s)[1:], alone(s))
    torch.testing.assert_close(path.derivative(s)[1:], alone.derivative(s))
    assert path(s)[1, -1].tolist() == pytest.approx(x[1, 4].tolist())
    torch.testing.assert_close(path(s)[0], kind(TIMES, x[0])(s))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: type[Control]) -> None:
    x, t = values(2, 5, 2).requires_grad_(), TIMES[:5].clone().requires_grad_()
    hidden = torch.zeros(2, 5, 2, dtype=torch.bool)
    hidden[0, 2, 1] = hidden[1, 4, 0] = True
    s = torch.tensor([0.1, 0.45, 0.9, 1.5], dtype=D, requires_grad=True)

    def both(t: Tensor, x: Tensor, s: Tensor) -> Tensor:
        path = kind(t, x.masked_fill(hidden, NAN))
        return torch.cat([path(s), path.derivative(s)])

    assert torch.autograd.gradcheck(both, (t, x, s))


@pytest.mark.parametrize(
    ("times", "x", "message"),
    [
        ([0.0, 1.0], torch.ones(2, dtype=torch.long), "dtype torch.float32 or torch.float64, got torch.int64"),
        ([0.0, 1.0], torch.ones(3), "a row for each time"),
        ([0.0, 1.0], torch.ones(2, 3, 4, 5), "times must be (time,) or (batch, time)"),
        (torch.ones(2, 3), torch.ones(3, 2), "times must be (time,) or (batch, time)"),
        ([0.0], torch.ones(1), "at least 2 entries"),
        ([0.0, 0.0], torch.ones(2), "strictly increasing"),
        ([0.0, math.inf], torch.ones(2), "strictly increasing"),
        ([0.0, NAN, 1.0], torch.ones(3), "behind the last one"),
        ([1e9, 1e9 + 1], torch.ones(2), "told apart in the dtype of the values, torch.float32"),
        (torch.tensor([1e5, 1e5 + 0.1], dtype=D), torch.ones(2), "it moves some by 0.0016 where they are 0.1 apart"),
        ([0.0, 1.0], torch.tensor([1.0, math.inf]), "must be finite"),
        ([0.0, 1.0], torch.ones(2, 0), "must not be empty"),
    ],
)
def test_refusals(times: Any, x: Tensor, message: str) -> None:
    for kind in KINDS:
        with pytest.raises(pynode.InputError) as caught:
            kind(times, x)
        assert message in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_times_in_double_beside_float32(kind: type[Control]) -> None:
    """Times that float32 rounds a little are rounded once: the pieces meet, and irregular ones near zero are taken."""
    near = torch.rand(2000, generator=torch.Generator().manual_seed(0), dtype=D).sort().values
    near = near[torch.cat([torch.tensor([True]), near.float().diff() > 0])]
    kind(near, torch.ones(len(near)))
    path = kind(1000 + TIMES, values(7).float())
    torch.testing.assert_close(path(path.knots[0].double()), values(7).float(), rtol=1e-5, atol=1e-5, check_dtype=False)
    if kind is not PiecewiseConstant:
        before = path(path.knots[0, 1:].double() - 1e-9)
        torch.testing.assert_close(before, values(7)[1:].float(), rtol=1e-5, atol=1e-5, check_dtype=False)


@pytest.mark.parametrize("kind", [Linear, CubicHermite, NaturalCubic])
def test_ends_with_its_samples(kind: type[Control]) -> None:
    """The last time is one of a sample, not one that is made up behind a shorter one."""
    path = kind([[0.0, 1.0, NAN, NAN], [0.0, 0.5, 1.0, 2.0]], values(2, 4, 1))
    assert [x.item() for x in path.span] == [0, 2]
    with pytest.raises(pynode.InputError, match=r"within the control's times, \[0, 2\], got \[0, 2.5\]"):
        pynode.solve(lambda t, z, X: X(t) - z, torch.zeros(2, 1, dtype=D), [0.0, 2.5], control=path, engine="torch")


def test_refusals_of_a_solve() -> None:
    def field(t: Tensor, z: Tensor, X: Control) -> Tensor:
        return X(t) - z

    z0, path = torch.zeros(2, 1, dtype=D), Linear([0.0, 1.0], torch.ones(2, 2, 1, dtype=D))
    for options, message in (
        ({"control": torch.ones(2)}, "control must be a path"),
        ({"control": path, "z0": z0[:1]}, "a path for each sample, expected batch 1, got 2"),
        ({"control": path, "z0": z0.float()}, "the state's dtype torch.float32, got torch.float64"),
        ({"control": path, "t": [0.0, 1.5]}, "within the control's times, [0, 1], got [0, 1.5]"),
        ({"control": path, "t": [-0.5, 1.0]}, "within the control's times"),
        ({"control": path, "field": nn.Linear(1, 1).double()}, "the field takes the state alone"),
    ):
        with pytest.raises(pynode.PyNODEError) as caught:
            pynode.solve(**{"field": field, "z0": z0, "t": [0.0, 1.0], **options})
        assert message in str(caught.value)
    with pytest.raises(pynode.InputError, match="0-d or \\(n,\\)"):
        path(torch.ones(1, 1))


def oscillator(x: Tensor, times: Tensor, end: float) -> Tensor:
    """z'' = -z + u(t) from rest, u on straight lines: exactly, piece by piece."""
    # Of the state (z, z', u, u') the equation is linear with constant coefficients.
    matrix = torch.tensor([[0, 1, 0, 0], [-1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]], dtype=D)
    z = torch.zeros(2, dtype=D)
    for i, (a, b) in enumerate(itertools.pairwise(times)):
        slope = (x[i + 1] - x[i]) / (b - a)
        whole = torch.cat([z, torch.stack([x[i], slope])])
        z = (torch.linalg.matrix_exp(matrix * (b.clamp(max=end) - a.clamp(max=end))) @ whole)[:2]
    return z


def test_where_samples_end_the_derivative_jumps(engine: str) -> None:
    """A solve starts afresh there, whatever is smooth in between."""
    times = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 1.5, NAN]], dtype=D)
    x = values(2, 4, 1).requires_grad_()
    for kind in (CubicHermite, NaturalCubic):
        for how in ("control", "closure"):
            path = kind(times, x)
            given = (lambda t, z, X: X.derivative(t), path)
            field, control = given if how == "control" else (lambda t, z, path=path: path.derivative(t), None)
            sol = pynode.solve(
                field, torch.zeros(2, 1, dtype=D), [0.0, 3.0], control=control, rtol=1e-9, atol=1e-9, engine=engine
            )
            total = torch.stack([x[0, 3] - x[0, 0], x[1, 2] - x[1, 0]])
            torch.testing.assert_close(sol.z[-1], total, rtol=0, atol=1e-6)
            found, expected = (torch.autograd.grad(y.sum(), x)[0] for y in (sol.z[-1], total))
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)  # of kinks within steps; 0.01 without stops


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("kind", [CubicHermite, NaturalCubic])
def test_a_solve_that_steps_to_the_knots(kind: type[Control], per_sample: bool, engine: str) -> None:
    """dz = z dX along a cubic path, whose knots a solver steps over with errors of many times the tolerance."""
    x, z0 = values(2, 12, 1).requires_grad_(), torch.ones(2, 1, dtype=D)
    times = torch.linspace(0, 3, 12, dtype=D).repeat(2, 1) if per_sample else torch.linspace(0, 3, 12, dtype=D)
    if per_sample:
        times[1] *= 0.9
    path = kind(times.requires_grad_(), x)
    expected = (x[:, -1] - x[:, 0]).exp()

    def solved(**keywords: Any) -> Tensor:
        def field(t: Tensor, z: Tensor, X: Control) -> Tensor:
            return z * X.derivative(t)

        keywords = {"control": path, "rtol": 1e-6, "atol": 1e-6, "engine": engine, **keywords}
        return pynode.solve(field, z0, [0.0, 2.7 if per_sample else 3.0], **keywords).z[-1]

    found = solved(tstops="knots")
    if per_sample:  # which is the end of the second sample alone
        found, expected = found[1], expected[1]
    (by_x, by_times), (exact, _) = (
        torch.autograd.grad(y.sum(), (x, times), allow_unused=True) for y in (found, expected)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(by_x, exact, rtol=1e-4, atol=1e-4)
    inner = by_times[..., 1:-1]  # the ends move the end of the solution
    torch.testing.assert_close(inner, torch.zeros_like(inner), rtol=0, atol=1e-3)
    torch.testing.assert_close(solved(tstops=times.detach().flatten()), solved(tstops="knots"), rtol=1e-12, atol=0)
    off, over = ((z - (x[:, -1] - x[:, 0]).exp())[-1].abs() for z in (solved(tstops="knots"), solved(tstops=None)))
    assert off < over / 5


OF_ENGINES = [(s, e) for s in ("discrete", "backsolve", "forward") for e in ("torch", "julia")]
OF_ENGINES += [(s, "julia") for s in ("gauss", "interpolating", "quadrature")]


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("batching", ["joint", "independent"])
@pytest.mark.parametrize(
    ("sensitivity", "engine"),
    [pytest.param(s, e, marks=pytest.mark.julia if e == "julia" else ()) for s, e in OF_ENGINES],
)
def test_knots_that_all_samples_share_end_a_step(sensitivity: str, engine: str, batching: str, learned: bool) -> None:
    """dz = cos(z) dX, forwards and back: its end depends on the ends of the path alone, and not on its times."""
    x = values(2, 9, 1).requires_grad_()
    times = (torch.arange(9, dtype=D) + 0.2 * torch.sin(torch.arange(9, dtype=D))).requires_grad_(learned)
    path, z0 = CubicHermite(times, x), torch.zeros(2, 1, dtype=D)

    def field(t: Tensor, z: Tensor, X: Control) -> Tensor:
        return X.derivative(t) * z.cos()

    options: dict[str, Any] = {"control": path, "rtol": 1e-6, "atol": 1e-6, "engine": engine, "batching": batching}
    span = torch.stack([times[0], times[-1]]).detach()
    exact = torch.atan(torch.sinh(x[:, -1] - x[:, 0]))  # the Gudermannian function
    (expected,) = torch.autograd.grad(exact.sum(), x)
    for sign, t in ((1, span), (-1, span.flip(0))):
        end = sign * pynode.solve(field, z0, t, sensitivity=sensitivity, **options).z[-1]
        torch.testing.assert_close(end, exact.detach(), rtol=0, atol=1e-4)
        by_x, *by_times = torch.autograd.grad(end.sum(), (x, times) if learned else (x,), retain_graph=True)
        torch.testing.assert_close(by_x, expected, rtol=0, atol=2e-3)
        for g in by_times:
            torch.testing.assert_close(g[1:-1], torch.zeros(7, dtype=D), rtol=0, atol=2e-3)


def test_steps_that_end_at_knots(engine: str) -> None:
    x, times = values(1, 9, 1), torch.arange(9, dtype=D)

    def steps(**options: Any) -> Tensor:
        path = CubicHermite(times, x)
        return pynode.solve(
            lambda t, z, X: X(t) - z, torch.zeros(1, 1, dtype=D), [0.0, 8.0],
            control=path, save="steps", engine=engine, **options,
        ).t  # fmt: skip

    for options in ({}, {"solver": "bosh3", "rtol": 1e-2, "atol": 1e-2}, {"solver": "dopri8", "dt": 1.0}):
        assert set(times.tolist()) <= set(steps(**options).tolist())
    assert not set(times.tolist()) <= set(steps(tstops=None).tolist())
    equal = steps(solver="rk4", dt=1.6)  # whose steps the user has said
    torch.testing.assert_close(equal, 1.6 * torch.arange(6, dtype=D))


@pytest.mark.parametrize("engine", ["torch", pytest.param("julia", marks=pytest.mark.julia)])
def test_the_exact_gradient_to_times_over_knots(engine: str) -> None:
    """A Hermite path has jumps of its second derivative at the knots, at which steps end whose lengths depend on t."""
    knots = torch.tensor([0.0, 0.5, 0.7, 1.4, 2.0], dtype=torch.float64)
    values = 3 * torch.sin(5 * torch.arange(5, dtype=torch.float64) ** 2).reshape(1, 5, 1)
    path = CubicHermite(knots, values)
    z0 = torch.ones(1, 1, dtype=torch.float64)
    t = torch.tensor([0.1, 0.6, 1.9], dtype=torch.float64, requires_grad=True)
    fine: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10, "sensitivity": "discrete"}
    z = pynode.solve(lambda t, z, X: z.cos() * X.derivative(t), z0, t, control=path, engine=engine, **fine).z
    (got,) = torch.autograd.grad(z[-1].sum(), t)
    # dz/cos(z) = dX: z is a function of X(t[-1]) - X(t[0]) alone, with the derivative cos(z).
    slopes = torch.stack([-path.derivative(t[0]), path.derivative(t[0]) * 0, path.derivative(t[2])]).flatten()
    torch.testing.assert_close(got, (z[-1].cos() * slopes).flatten().detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("engine", ["torch", pytest.param("julia", marks=pytest.mark.julia)])
@pytest.mark.parametrize("kind", [CubicHermite, Linear])
def test_transforms_of_solves_with_a_path(kind: Any, engine: str) -> None:
    """`torch.func`, whose wrapped tensors have no memory; and a graph of one sample does not serve two paths."""
    knots = torch.tensor([0.0, 0.5, 0.7, 1.4, 2.0], dtype=torch.float64)
    values = torch.sin(5 * torch.arange(5, dtype=torch.float64) ** 2).reshape(1, 5, 1)
    z0, t = torch.full((1, 1), 0.5, dtype=torch.float64), torch.tensor([0.1, 1.9], dtype=torch.float64)

    def end(z0: Tensor, values: Tensor = values) -> Tensor:
        path = kind(knots, values)
        z = pynode.solve(
            lambda t, z, X: z.cos() * X.derivative(t), z0, t, control=path, engine=engine, rtol=1e-8, atol=1e-8
        ).z
        return z[-1].sum()

    def moved(x: Tensor, call: Any) -> Tensor:
        return (call(x + 1e-5) - call(x - 1e-5)) / 2e-5

    alone = torch.stack([end(z0), end(2 * z0)])
    torch.testing.assert_close(torch.vmap(end)(torch.stack([z0, 2 * z0])), alone, rtol=1e-6, atol=1e-6)
    _, slope = torch.func.jvp(end, (z0,), (torch.ones_like(z0),))
    torch.testing.assert_close(slope, moved(z0, end), rtol=1e-4, atol=1e-5)
    bump = torch.zeros_like(values).index_fill(1, torch.tensor([1]), 1.0)
    _, slope = torch.func.jvp(lambda v: end(z0, v), (values,), (bump,))
    torch.testing.assert_close(torch.func.grad(lambda v: end(z0, v))(values)[0, 1, 0], slope, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.vmap(end)(torch.stack([z0, 2 * z0])), alone, rtol=1e-6, atol=1e-6)


CUT = [(s, e) for s in ("auto", "bosh3") for e in ("torch", "julia")] + [("rodas5p", "julia")]


@pytest.mark.parametrize(
    ("solver", "engine"), [pytest.param(s, e, marks=pytest.mark.julia if e == "julia" else ()) for s, e in CUT]
)
def test_states_within_steps_that_knots_have_cut(solver: str, engine: str) -> None:
    """z = X, at times between the knots, of which the first lies within the first step."""
    x, times = 0.1 * torch.ones(1, 5, 1, dtype=D), torch.tensor([0.0, 0.05, 1.0, 1.4, 3.0], dtype=D)
    x = x * times[None, :, None] + 0.01 * values(1, 5, 1)
    path, t = CubicHermite(times, x), torch.linspace(0, 3, 61, dtype=D)
    for dt in (None, 1.0):
        sol = pynode.solve(
            lambda t, z, X: X.derivative(t) + 0 * z, x[:, 0], t, control=path, solver=solver, dt=dt, rtol=1e-6,
            atol=1e-6, engine=engine,
        )  # fmt: skip
        torch.testing.assert_close(sol.z[:, 0], path(t)[0], rtol=0, atol=1e-5)


def test_an_event_behind_knots(engine: str) -> None:
    """z = X² / 2 + 3 t, and the time at which it is 12."""
    x, times = values(1, 9, 1), torch.arange(9, dtype=D)

    def field(t: Tensor, z: Tensor, X: Control) -> Tensor:
        return X(t) * X.derivative(t) + 3 + 0 * z

    sol = pynode.solve(
        field, 0.5 * x[:, 0] ** 2, [0.0, 8.0], control=CubicHermite(times, x), event=lambda t, z, X: z[0, 0] - 12,
        rtol=1e-8, atol=1e-8, engine=engine,
    )  # fmt: skip
    at = sol.event_t
    spline = hermite(times.numpy(), x[0].numpy())
    assert 0.5 * float(spline(float(at))[0]) ** 2 + 3 * float(at) == pytest.approx(12, abs=1e-6)


def test_knots_that_a_solve_cannot_step_to() -> None:
    z0, many = torch.zeros(1, 1, dtype=D), torch.linspace(0, 1, 1200, dtype=D)
    with pytest.raises(pynode.InputError, match="tstops must be times, None, or with a control 'knots'"):
        pynode.solve(lambda t, z: -z, z0, [0.0, 1.0], tstops="knots")
    path = CubicHermite([0.0, 1.0], values(1, 2, 1))
    with pytest.raises(pynode.InputError, match="with a control 'knots', got 'knot'"):
        pynode.solve(lambda t, z, X: X(t) - z, z0, [0.0, 1.0], control=path, tstops="knot")
    path = CubicHermite(many, values(1, 1200, 1))
    with pytest.raises(pynode.InputError, match="1200 knots within the span"):
        pynode.solve(lambda t, z, X: X(t) - z, z0, [0.0, 1.0], control=path, tstops="knots")


@pytest.mark.parametrize("batching", ["joint", "independent"])
def test_a_forced_oscillator(engine: str, batching: str) -> None:
    """State and gradients to the forcing and to its times, against the exact solution."""
    x, times = values(7).requires_grad_(), TIMES.clone().requires_grad_()

    def field(t: Tensor, z: Tensor, X: Control, damping: Tensor) -> Tensor:
        return torch.stack([z[:, 1], X(t) - z[:, 0] - damping * z[:, 1]], 1)

    found = pynode.solve(
        field,
        torch.zeros(1, 2, dtype=D),
        [0.0, 2.3],
        args=(torch.zeros((), dtype=D),),
        control=Linear(times, x),
        batching=batching,
        rtol=1e-10,
        atol=1e-10,
        engine=engine,
    ).z[-1, 0]
    expected = oscillator(x, times, 2.3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
    inputs = (x, times) if batching == "joint" else (x,)
    for k in range(2):
        ours = torch.autograd.grad(found[k], inputs, retain_graph=True)
        exact = torch.autograd.grad(expected[k], inputs, retain_graph=True)
        torch.testing.assert_close(ours[0], exact[0], rtol=0, atol=1e-7)
        if batching == "joint":
            torch.testing.assert_close(ours[1][1:], exact[1][1:], rtol=0, atol=1e-7)  # the first moves its start alone


def test_a_short_pulse_is_not_stepped_over(engine: str) -> None:
    x = torch.tensor([0.0, 50.0, 0.0], dtype=D, requires_grad=True)
    pulse = PiecewiseConstant([0.0, 5.0, 5.02], x)
    sol = pynode.solve(
        lambda t, z, X: X(t) - 0 * z, torch.zeros(1, 1, dtype=D), [0.0, 10.0], control=pulse, engine=engine
    )
    assert sol.z[-1].item() == pytest.approx(1.0)
    assert torch.autograd.grad(sol.z[-1].sum(), x)[0].tolist() == pytest.approx([5.0, 0.02, 4.98])


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_controlled_equation(kind: type[Control], per_sample: bool, engine: str) -> None:
    """dz = z dX has the solution z0 exp(X(t) - X(0)); by dX/dt, or of what is constant, by X(t)."""
    x, z0 = values(2, 7, 1).requires_grad_(), torch.ones(2, 1, dtype=D)
    times = torch.stack([TIMES, TIMES * 0.7]) if per_sample else TIMES
    if per_sample:
        times[1, 5:] = NAN
    path = kind(times, x)
    constant = kind is PiecewiseConstant
    if constant:
        widths = torch.stack([TIMES.diff(), TIMES.diff() * 0.7]) if per_sample else TIMES.diff().expand(2, -1)
        total = (x[:, :-1, 0] * widths)[0].sum(), (x[:, :-1, 0] * widths)[1].sum()
        if per_sample:
            total = total[0], (x[1, :4, 0] * widths[1, :4]).sum() + x[1, 4, 0] * (2.6 - 0.7 * TIMES[4])
        expected = torch.stack(total).exp()[:, None]
    else:
        last = torch.stack([x[0, -1], x[1, 4 if per_sample else -1]])
        expected = (last - x[:, 0]).exp()

    def field(t: Tensor, z: Tensor, X: Control) -> Tensor:
        return z * (X(t) if constant else X.derivative(t))

    stops = times[~times.isnan()]  # where the second derivative jumps, if not the first
    sol = pynode.solve(field, z0, [0.0, 2.6], control=path, tstops=stops, rtol=1e-8, atol=1e-8, engine=engine)
    torch.testing.assert_close(sol.z[-1], expected, rtol=1e-6, atol=1e-6)
    ours, exact = (torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for y in (sol.z[-1], expected))
    torch.testing.assert_close(ours, exact, rtol=1e-6, atol=1e-6)


def test_costs_and_events_read_it(engine: str) -> None:
    """The running cost is the integral of the path; the event is where it reaches a value."""
    x = torch.tensor([0.0, 2.0, 6.0], dtype=D, requires_grad=True)
    ramp = Linear([0.0, 1.0, 2.0], x)
    sol = pynode.solve(
        lambda t, z, X: -z,
        torch.ones(1, 1, dtype=D),
        [0.0, 2.0],
        control=ramp,
        running_cost=lambda t, z, X: X(t).expand(1),
        event=lambda t, z, X: X(t) - 4.0,
        rtol=1e-9,
        atol=1e-9,
        engine=engine,
    )
    assert sol.event_t.item() == pytest.approx(1.5)
    assert sol.running_cost.item() == pytest.approx(1.0 + 1.5)
    # t = 1 + (4 - x1) / (x2 - x1)
    assert torch.autograd.grad(sol.event_t, x)[0].tolist() == pytest.approx([0, -0.125, -0.125], abs=1e-7)


@pytest.mark.julia
def test_one_graph_serves_all_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other values, knots, samples: the field is not traced again."""
    recordings: list[int] = []
    capture = _capture.capture
    monkeypatch.setattr(_capture, "capture", lambda *args: recordings.append(1) or capture(*args))

    class Driven(nn.Module):
        def forward(self, t: Tensor, z: Tensor, X: Control) -> Tensor:
            return X.derivative(t) - z

    field = Driven()
    for batch in (2, 3, 5):
        for n in (4, 7):
            path = CubicHermite(TIMES[:n] * batch, values(batch, n, 2))
            pynode.solve(field, torch.zeros(batch, 2, dtype=D), [0.0, 1.0], control=path, engine="julia")
    assert len(recordings) <= 2


@pytest.mark.julia
def test_julia_code_takes_none() -> None:
    field = pynode.JuliaField("(u, p, t, a) -> -u")
    with pytest.raises(pynode.InputError, match="a JuliaField takes tensors"):
        pynode.solve(field, torch.zeros(1, 1), [0.0, 1.0], control=Linear([0.0, 1.0], torch.ones(2)))


def test_vmap_is_refused() -> None:
    t, x = torch.tensor([0.0, 1.0, 2.0]), torch.randn(2, 3)
    with pytest.raises(EngineUnavailable, match="make one control of them all"):
        torch.vmap(lambda x: Linear(t, x)(torch.tensor(0.5)))(x)
