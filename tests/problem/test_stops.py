"""Fields that jump in time: stops that are given and that are found, against closed forms, on every engine."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode import InputError, Retcode, SolveError

DOUBLE = torch.float64
FINE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}
END = 10.0


class Dose(nn.Module):
    """dz/dt = -k z + rate from start to end: an infusion."""

    def __init__(self, start: float = 5.0, end: float = 5.02, dtype: torch.dtype = DOUBLE) -> None:
        super().__init__()
        for name, x in (("k", 0.1), ("rate", 50.0), ("start", start), ("end", end)):
            self.register_parameter(name, nn.Parameter(torch.tensor(x, dtype=dtype)))

    def forward(self, t: Tensor, z: Tensor, *args: Tensor) -> Tensor:
        return -self.k * z + self.rate * ((t >= self.start) & (t < self.end))

    def exact(self, z0: Tensor, t: Tensor | float, t0: Tensor | float = 0.0) -> Tensor:
        """The solution at one time, whichever side of the infusion it and `t0` are on."""
        t, t0 = torch.as_tensor(t, dtype=z0.dtype), torch.as_tensor(t0, dtype=z0.dtype)

        def since(a: Tensor) -> Tensor:  # what an infusion of unit rate that begins at `a`, and goes on, has added
            def part(x: Tensor) -> Tensor:
                return torch.where(x > a, 1 - torch.exp(-self.k * (x - a).clamp(min=0)), torch.zeros_like(x)) / self.k

            return part(t) - part(t0) * torch.exp(-self.k * (t - t0))

        return z0 * torch.exp(-self.k * (t - t0)) + self.rate * (since(self.start) - since(self.end))


def grads(outputs: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(outputs.sum(), inputs, retain_graph=True, allow_unused=True, materialize_grads=True)
    return list(found)


def start_state(*shape: int, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.rand(*(shape or (2, 1)), dtype=dtype).requires_grad_()


def solvers(engine: str) -> list[dict[str, Any]]:
    stiff = "radau" if engine == "torch" else "rodas5p"
    return [{"solver": "auto"}, {"solver": "dopri5"}, {"solver": "rk4", "dt": 0.05}, {"solver": stiff}]


@pytest.mark.parametrize("given", [{}, {"tstops": [5.0, 5.02]}, {"tstops": torch.tensor([5.02, 20.0, 5.0, 0.0])}])
def test_no_solver_steps_over_a_dose(engine: str, given: dict[str, Any]) -> None:
    field, z0 = Dose().requires_grad_(False), start_state().detach()
    for how in solvers(engine):
        for times in ([0.0, END], [0.0, 5.0, 5.01, 5.02, END]):
            sol = pynode.solve(field, z0, times, engine=engine, **FINE, **how, **given)
            want = torch.stack([field.exact(z0, t) for t in times])
            torch.testing.assert_close(sol.z, want, rtol=1e-7, atol=1e-9)


SENSITIVITIES = [("torch", how) for how in ("discrete", "backsolve", "forward")]
SENSITIVITIES += [
    pytest.param("julia", how, marks=pytest.mark.julia)
    for how in ("discrete", "backsolve", "interpolating", "quadrature", "gauss", "forward")
]


@pytest.mark.parametrize(("engine", "how"), SENSITIVITIES)
def test_gradients_to_all_that_a_dose_depends_on(engine: str, how: str) -> None:
    field, z0 = Dose(), start_state()
    t = torch.tensor([0.0, 3.0, 5.01, END], dtype=DOUBLE, requires_grad=True)
    inputs = [z0, t, *field.parameters()]
    sol = pynode.solve(field, z0, t, engine=engine, sensitivity=how, **FINE)
    want = torch.stack([field.exact(z0, s, t[0]) for s in t])
    torch.testing.assert_close(sol.z, want, rtol=1e-7, atol=1e-9)
    weights = torch.rand_like(want)
    for got, right in zip(grads(sol.z * weights, inputs), grads(want * weights, inputs), strict=True):
        torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-7)
    assert sol.stats.nfe_backward is not None
    assert (sol.stats.nfe_backward > 0) == (how != "forward")


def test_gradients_to_stops_that_are_given(engine: str) -> None:
    field, z0 = Dose(), start_state()
    stops = torch.tensor([5.0, 5.02], dtype=DOUBLE, requires_grad=True)

    def jumps(t: Tensor, z: Tensor) -> Tensor:  # without a gradient to where it jumps
        return -field.k * z + field.rate * ((t >= 5.0) & (t < 5.02))

    t = torch.tensor([0.0, 5.0, END], dtype=DOUBLE, requires_grad=True)
    sol = pynode.solve(jumps, z0, t, tstops=stops, engine=engine, **FINE)
    got = grads(sol.z * torch.tensor([0.0, 3.0, 1.0])[:, None, None], [stops, t])
    # A time asked for at a jump is reported from before it: it follows the time, what comes later follows the stop.
    shifted = t[1] + torch.zeros((), dtype=DOUBLE)
    before = z0 * torch.exp(-field.k * (shifted - t[0]))
    want = grads(3 * before, [t]) + grads(field.exact(z0, t[2], t[0]), [t, field.start, field.end])
    torch.testing.assert_close(got[0], torch.stack(want[2:]), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(got[1], want[0] + want[1], rtol=1e-6, atol=1e-8)


def test_backwards_in_time(engine: str) -> None:
    field, z0 = Dose(), start_state()
    sol = pynode.solve(field, z0, [END, 5.01, 0.0], engine=engine, **FINE)
    want = torch.stack([field.exact(z0, t, END) for t in (END, 5.01, 0.0)])
    torch.testing.assert_close(sol.z, want, rtol=1e-7, atol=1e-7)
    inputs = [z0, *field.parameters()]
    for got, right in zip(grads(sol.z, inputs), grads(want, inputs), strict=True):
        torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-6)


def test_jumps_at_the_ends_of_the_span_are_seen_from_within(engine: str) -> None:
    field, z0 = Dose(2.0, 3.0).requires_grad_(False), start_state().detach()
    for times in ([0.0, 2.0], [2.0, 3.0], [3.0, 4.0], [3.0, 2.0], [2.0, 0.0]):
        sol = pynode.solve(field, z0, times, solver="rk4", dt=0.1, engine=engine)
        torch.testing.assert_close(sol.z[-1], field.exact(z0, times[1], times[0]), rtol=1e-7, atol=1e-7)


def test_float32_and_double_time(engine: str) -> None:
    field, z0 = Dose(5.3, 5.35, torch.float32), start_state(dtype=torch.float32)
    sol = pynode.solve(field, z0, [0.0, END], rtol=1e-6, atol=1e-7, engine=engine)
    want = field.exact(z0, END)
    torch.testing.assert_close(sol.z[-1], want, rtol=1e-5, atol=1e-5)
    inputs = [z0, *field.parameters()]
    for got, right in zip(grads(sol.z[-1], inputs), grads(want, inputs), strict=True):
        torch.testing.assert_close(got, right, rtol=1e-3, atol=1e-4)


def test_double_time_beside_a_float32_state() -> None:
    epoch = 1.7e9

    class Late(nn.Module):
        time_dtype = DOUBLE

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return ((t >= epoch + 5) & (t < epoch + 5.02)).to(z.dtype).expand_as(z)

    sol = pynode.solve(Late(), torch.zeros(1, 1), torch.tensor([epoch, epoch + 10], dtype=DOUBLE), engine="torch")
    assert abs(sol.z[-1].item() - 0.02) < 1e-5


def test_a_dose_each_day(engine: str) -> None:
    k, rate = 0.15, 3.0

    def field(t: Tensor, z: Tensor) -> Tensor:
        return -k * z + rate * (t % 24 < 1).to(z.dtype)

    def exact(t: float) -> float:
        total = 0.0
        for day in range(5):
            a, b = 24.0 * day, min(24.0 * day + 1, t)
            total += rate / k * (math.exp(-k * (t - b)) - math.exp(-k * (t - a))) if a < t else 0.0
        return total

    times = [0.0, 0.5, 24.0, 96.5, 120.0]
    sol = pynode.solve(field, torch.zeros(1, 1, dtype=DOUBLE), times, engine=engine, **FINE)
    want = torch.tensor([exact(t) for t in times], dtype=DOUBLE)
    torch.testing.assert_close(sol.z[:, 0, 0], want, rtol=1e-8, atol=1e-9)


def test_forcing_from_a_table(engine: str) -> None:
    knots = torch.tensor([0.5, 1.25, 4.0], dtype=DOUBLE)
    values = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=DOUBLE, requires_grad=True)

    class Forced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.values = nn.Parameter(values.detach().clone())

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            inside = (t >= knots).to(t.dtype)  # one comparison for each knot
            first, steps = self.values[0], self.values.diff()
            return (first + (steps * inside).sum()).expand_as(z)

    field = Forced()
    sol = pynode.solve(field, torch.zeros(1, 1, dtype=DOUBLE), [0.0, 5.0], engine=engine)
    lengths = torch.tensor([0.5, 0.75, 2.75, 1.0], dtype=DOUBLE)
    torch.testing.assert_close(sol.z[-1, 0, 0], lengths @ values, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads(sol.z[-1], [field.values])[0], lengths, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("lookup", ["bucketize", "searchsorted", "floor", "long", "argmin"])
def test_lookups_on_the_torch_engine(lookup: str) -> None:
    knots = torch.tensor([0.5, 1.25, 4.0], dtype=DOUBLE)
    values = torch.tensor([1.0, -2.0, 3.0, 0.5, 0.0, 7.0], dtype=DOUBLE)
    index = {
        "bucketize": lambda t: torch.bucketize(t, knots),
        "searchsorted": lambda t: torch.searchsorted(knots, t, right=True),
        "floor": lambda t: torch.floor(t).int(),
        "long": lambda t: t.long(),
        "argmin": lambda t: (t - knots).abs().argmin(),
    }[lookup]
    lengths = {"floor": [1.0] * 5, "long": [1.0] * 5, "argmin": [0.875, 1.75, 2.375]}.get(
        lookup, [0.5, 0.75, 2.75, 1.0]
    )
    sol = pynode.solve(
        lambda t, z: values[index(t)].expand_as(z), torch.zeros(1, 1, dtype=DOUBLE), [0.0, 5.0], engine="torch"
    )
    want = sum(a * b for a, b in zip(lengths, values.tolist(), strict=False))
    assert abs(sol.z[-1].item() - want) < 1e-12


def test_a_comparison_with_a_curve(engine: str) -> None:
    def field(t: Tensor, z: Tensor) -> Tensor:
        return (torch.sin(t) > 0.5).to(z.dtype).expand_as(z)

    sol = pynode.solve(field, torch.zeros(1, 1, dtype=DOUBLE), [0.0, 60.0], engine=engine)
    # From π/6 to 5π/6 in each period: nine whole ones, and the tenth up to 60 where sin(60) < 0.5.
    whole = sum(
        max(0.0, min(60.0, 5 * math.pi / 6 + 2 * math.pi * n) - (math.pi / 6 + 2 * math.pi * n)) for n in range(10)
    )
    assert abs(sol.z[-1].item() - whole) < 1e-9


def test_python_branches_on_the_torch_engine() -> None:
    def field(t: Tensor, z: Tensor) -> Tensor:
        if t < 0.5:
            return torch.ones_like(z)
        if t < 0.75:  # not seen at the first time
            return 100 * torch.ones_like(z)
        return torch.zeros_like(z)

    sol = pynode.solve(field, torch.zeros(1, 1, dtype=DOUBLE), [0.0, 1.0], engine="torch")
    assert abs(sol.z[-1].item() - 25.5) < 1e-12


def test_scripted_fields_on_the_torch_engine() -> None:
    field, z0 = Scripted(), torch.zeros(1, 1, dtype=DOUBLE)
    for made in (torch.jit.script(field), torch.compile(field, backend="eager")):
        for _ in range(3):  # TorchScript optimises what it has seen
            sol = pynode.solve(made, z0, [0.0, END], engine="torch")
            assert abs(sol.z[-1].item() - 0.02) < 1e-12


class Scripted(nn.Module):
    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return ((t >= 5.0) & (t < 5.02)) * torch.ones_like(z)


def test_states_of_several_tensors_and_running_costs(engine: str) -> None:
    dose = Dose(2.0, 2.01)

    def field(t: Tensor, z: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"a": dose(t, z["a"]), "b": z["a"]}

    z0 = {"a": start_state(), "b": torch.zeros(2, 1, dtype=DOUBLE)}

    def cost(t: Tensor, z: dict[str, Tensor]) -> Tensor:  # the time between 7 and 7.01, and what has jumped by then
        return ((t >= 7.0) & (t < 7.01)) * torch.ones_like(z["a"][:, 0])

    sol = pynode.solve(field, z0, [0.0, END], running_cost=cost, engine=engine, **FINE)
    want = dose.exact(z0["a"], END)
    torch.testing.assert_close(sol.z["a"][-1], want, rtol=1e-8, atol=1e-10)
    # da/dt = -k a + u, so that k b is what went in less what is left.
    b = (z0["a"] + dose.rate * (dose.end - dose.start) - want) / dose.k
    torch.testing.assert_close(sol.z["b"][-1], b, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(sol.running_cost, torch.full((2,), 0.01, dtype=DOUBLE), rtol=1e-9, atol=1e-12)
    inputs = [z0["a"], *dose.parameters()]
    for got, right in zip(grads(sol.z["b"][-1], inputs), grads(b, inputs), strict=True):
        torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-6)


def test_thresholds_in_args(engine: str) -> None:
    starts = torch.tensor([[2.0], [3.0]], dtype=DOUBLE, requires_grad=True)
    z0 = start_state()

    def field(t: Tensor, z: Tensor, start: Tensor) -> Tensor:
        return -0.1 * z + 5 * (t >= start)

    for batching in ("joint", "independent"):
        want = z0 * math.exp(-1.0) + 50 * (1 - torch.exp(-0.1 * (END - starts)))
        sol = pynode.solve(field, z0, [0.0, END], args=(starts,), batching=batching, engine=engine, **FINE)
        torch.testing.assert_close(sol.z[-1], want, rtol=1e-8, atol=1e-9)
        got, right = grads(sol.z[-1], [z0, starts]), grads(want, [z0, starts])
        torch.testing.assert_close(got, right, rtol=1e-6, atol=1e-8)


def test_the_thresholds_are_those_of_each_solve(engine: str) -> None:
    field, z0 = Dose(), start_state()
    for start in (5.0, 3.0, 7.5):
        with torch.no_grad():
            field.start.fill_(start)
            field.end.fill_(start + 0.02)
        sol = pynode.solve(field, z0, [0.0, END], engine=engine, **FINE)
        torch.testing.assert_close(sol.z[-1], field.exact(z0, END), rtol=1e-8, atol=1e-10)


@pytest.mark.julia
def test_all_pieces_share_one_kernel() -> None:
    field, z0 = Dose(), start_state()
    pynode.solve(field, z0, [0.0, END], engine="julia", **FINE)
    from pynode.engine.julia import runtime

    module = runtime.module()
    before = int(module.kernel_count())
    for start in (5.0, 3.0):
        with torch.no_grad():
            field.start.fill_(start)
        sol = pynode.solve(field, z0, [0.0, 1.0, END], tstops=[7.0, 8.0, 9.0], engine="julia", **FINE)
        sol.z.sum().backward()
    assert int(module.kernel_count()) == before


@pytest.mark.julia
def test_stops_of_a_field_in_julia() -> None:
    field = pynode.JuliaField("(u, p, t) -> (5 <= t < 5.02 ? 50 : 0) .- 0.1 .* u")
    stops = torch.tensor([5.0, 5.02], dtype=DOUBLE, requires_grad=True)
    z0 = torch.zeros(1, 1, dtype=DOUBLE)
    sol = pynode.solve(field, z0, [0.0, END], tstops=stops, engine="julia", **FINE)
    torch.testing.assert_close(sol.z[-1], Dose().exact(z0, END).detach(), rtol=1e-8, atol=1e-10)
    slopes = 50 * torch.exp(0.1 * (stops.detach() - END)) * torch.tensor([-1.0, 1.0], dtype=DOUBLE)
    torch.testing.assert_close(grads(sol.z[-1], [stops])[0], slopes, rtol=1e-7, atol=1e-8)


def test_dense_pickle_and_stats(engine: str) -> None:
    field, z0 = Dose(5.0, 6.0), start_state()
    sol = pynode.solve(field, z0, [0.0, END], dense=True, engine=engine, **FINE)
    times = torch.tensor([0.0, 0.5, 5.0, 5.5, 6.0, 9.0, END], dtype=DOUBLE)
    want = torch.stack([field.exact(z0, t) for t in times])
    torch.testing.assert_close(sol(times), want.detach(), rtol=1e-5, atol=1e-6)
    assert "Stats(nfe=" in repr(sol)
    again = pickle.loads(pickle.dumps(sol))
    torch.testing.assert_close(again.z, sol.z.detach())
    assert again.stats.nfe == sol.stats.nfe > 0
    assert again.stats.nfe_backward is None


def test_the_event_after_and_at_a_stop(engine: str) -> None:
    field, z0 = Dose(5.0, 8.0), torch.zeros(1, 1, dtype=DOUBLE)
    level = 30.0
    sol = pynode.solve(
        field, z0, [0.0, 2.0, END], event=lambda t, z: z[0, 0] - level, engine=engine, rtol=1e-9, atol=1e-11
    )
    # rate / k (1 - exp(-k (t - start))) = level
    want = field.start - torch.log(1 - level * field.k / field.rate) / field.k
    torch.testing.assert_close(sol.event_t, want, rtol=1e-7, atol=1e-7)
    inputs = [field.k, field.rate, field.start]
    for got, right in zip(grads(sol.event_t, inputs), grads(want, inputs), strict=True):
        torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-7)
    assert bool(sol.z[-1].isnan().all())
    assert not bool(sol.z[1].isnan().any())
    # At a stop: by a function that is zero there, by one that jumps there, and by one that is met before.
    for event in (lambda t, z: t - 5.0, lambda t, z: torch.where(t < 5.0, -torch.ones_like(t), torch.ones_like(t))):
        sol = pynode.solve(field, z0 + 1, [0.0, END], event=event, engine=engine, rtol=1e-9, atol=1e-11)
        assert abs(sol.event_t.item() - 5.0) < 1e-9
        torch.testing.assert_close(sol.event_z, torch.full((1, 1), math.exp(-0.5), dtype=DOUBLE), rtol=1e-7, atol=1e-8)
    sol = pynode.solve(field, z0, [0.0, END], event=lambda t, z: z[0, 0] - 1e6, engine=engine)
    assert sol.event_t is None
    assert sol.retcode is Retcode.SUCCESS


def test_the_event_that_jumps_follows_its_threshold(engine: str) -> None:
    until = torch.tensor(4.0, dtype=DOUBLE, requires_grad=True)
    z0 = torch.ones(1, 1, dtype=DOUBLE)

    class Alarm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.until = nn.Parameter(until.detach().clone())

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return torch.where(t < self.until, -torch.ones_like(t), torch.ones_like(t))

    alarm = Alarm()
    sol = pynode.solve(lambda t, z: -0.3 * z, z0, [0.0, END], event=alarm, engine=engine, rtol=1e-9, atol=1e-11)
    assert sol.event_t.item() == 4.0
    (by_time,) = grads(sol.event_t, [alarm.until])
    (by_state,) = grads(sol.event_z, [alarm.until])
    assert abs(by_time.item() - 1) < 1e-12
    assert abs(by_state.item() + 0.3 * math.exp(-1.2)) < 1e-7


def test_samples_with_times_of_their_own(engine: str) -> None:
    field, z0 = Dose(5.0, 5.5), start_state(4, 1)
    nan = math.nan
    times = torch.tensor(
        [[0.0, 5.0, 5.25, 10.0], [1.0, 2.0, 3.0, 4.0], [5.2, 6.0, nan, nan], [5.6, 7.0, 8.0, nan]], dtype=DOUBLE
    )
    sol = pynode.solve(field, z0, times, engine=engine, **FINE)
    known = times.nan_to_num(9.0)
    want = torch.stack(
        [torch.stack([field.exact(z, t, row[0]) for t in row]) for z, row in zip(z0, known, strict=True)]
    )
    want = torch.where(times.isnan()[..., None], nan, want).transpose(0, 1)
    torch.testing.assert_close(sol.z, want, rtol=1e-7, atol=1e-9, equal_nan=True)
    inputs = [z0, *field.parameters()]
    got, right = grads(sol.z[~sol.z.isnan()], inputs), grads(want[~want.isnan()], inputs)
    torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-7)
    each = sol.stats.per_sample
    assert each.nfe.sum() == sol.stats.nfe
    assert bool((each.nfe > 0).all())
    assert each.nfe_backward is not None
    assert each.nfe_backward.sum() == sol.stats.nfe_backward
    torch.testing.assert_close(sol.t_end, torch.tensor([10.0, 4.0, 6.0, 8.0], dtype=DOUBLE))


def test_the_event_of_each_sample(engine: str) -> None:
    field = Dose(5.0, 8.0)
    z0 = torch.tensor([[0.0], [20.0], [40.0]], dtype=DOUBLE)
    sol = pynode.solve(
        field,
        z0,
        [0.0, 4.0, END],
        event=lambda t, z: z[0, 0] - 30.0,
        batching="independent",
        engine=engine,
        rtol=1e-9,
        atol=1e-11,
    )
    before = z0[:, 0] * torch.exp(-field.k * field.start)
    rise = field.start - torch.log((field.rate / field.k - 30) / (field.rate / field.k - before)) / field.k
    fall = -torch.log(30.0 / z0[2, 0]) / field.k
    want = torch.cat([rise[:2], fall[None]])
    torch.testing.assert_close(sol.event_t, want, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(grads(sol.event_t, [field.k, field.start]), grads(want, [field.k, field.start]))
    assert sol.event_index.tolist() == [0, 0, 0]
    torch.testing.assert_close(sol.z_end, torch.full((3, 1), 30.0, dtype=DOUBLE), rtol=1e-7, atol=1e-7)


def test_a_failure_in_a_later_piece(engine: str) -> None:
    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.where(t < 1.0, torch.zeros_like(z), z * z)  # blows up at 1 + 1/z0

    z0 = torch.tensor([[1.0]], dtype=DOUBLE)
    sol = pynode.solve(field, z0, [0.0, 0.5, 1.0, 1.5, 3.0], throw=False, engine=engine)
    assert sol.retcode is not Retcode.SUCCESS
    assert 1.9 < float(sol.t_end) < 2.1
    assert sol.z[:3].flatten().tolist() == [1.0, 1.0, 1.0]
    assert bool(sol.z[-1].isnan().all())
    with pytest.raises(SolveError, match=r"stopped at t=(1\.9|2)"):
        pynode.solve(field, z0, [0.0, 3.0], engine=engine)
    both = torch.tensor([[0.1], [1.0], [0.2]], dtype=DOUBLE)
    sol = pynode.solve(
        field,
        both,
        [0.0, 1.0, 3.0],
        tstops=[2.5],
        batching="independent",
        throw=False,
        engine=engine,
        max_steps=500,
        **FINE,
    )
    codes = [code is Retcode.SUCCESS for code in sol.stats.per_sample.retcode]
    assert codes == [True, False, True]
    assert sol.retcode is sol.stats.per_sample.retcode[1]
    torch.testing.assert_close(sol.z[-1, ::2], both[::2] / (1 - 2 * both[::2]), rtol=1e-7, atol=1e-9)
    assert bool(sol.z[-1, 1].isnan())
    assert 1.9 < float(sol.t_end[1]) < 2.1
    assert float(sol.t_end[0]) == 3.0
    torch.testing.assert_close(sol.z_end[::2], sol.z[-1, ::2])
    with pytest.raises(SolveError, match="sample 1"):
        pynode.solve(field, both, [0.0, 3.0], tstops=[2.5], batching="independent", engine=engine, max_steps=500)


def test_the_steps_of_all_pieces_count(engine: str) -> None:
    field, z0 = Dose(), start_state().detach()
    used = pynode.solve(field, z0, [0.0, END], engine=engine, rtol=1e-7, atol=1e-9).stats.n_accepted
    assert used is not None
    assert used > 6
    with pytest.raises(SolveError, match="max_steps"):
        pynode.solve(field, z0, [0.0, END], max_steps=used - 3, engine=engine, rtol=1e-7, atol=1e-9)


def test_second_derivatives_across_a_stop(engine: str) -> None:
    field, z0 = Dose(2.0, 4.0), torch.full((1, 1), 0.7, dtype=DOUBLE, requires_grad=True)
    inputs = [z0, *field.parameters()]

    def hessian(value: Tensor) -> list[list[Tensor]]:
        first = torch.autograd.grad(value, inputs, create_graph=True)
        return [grads(g, inputs) for g in first]

    sol = pynode.solve(field, z0, [0.0, 6.0], engine=engine, sensitivity="discrete", **FINE)
    got, want = hessian(sol.z[-1].sum() ** 2), hessian(field.exact(z0, 6.0).sum() ** 2)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_transforms_of_torch_func() -> None:
    field, z0 = Dose().requires_grad_(False), torch.full((1, 1), 0.7, dtype=DOUBLE)

    def end(z0: Tensor, rate: Tensor) -> Tensor:
        values = {**dict(field.named_parameters()), "rate": rate}
        return torch.func.functional_call(_Solved(field), {f"field.{n}": x for n, x in values.items()}, (z0,)).sum()

    got = torch.func.grad(end, argnums=(0, 1))(z0, field.rate.detach())
    z, rate = z0.clone().requires_grad_(), field.rate.detach().clone().requires_grad_()
    field.rate.data = rate.data
    (by_z,) = grads(field.exact(z, END), [z])
    torch.testing.assert_close(got[0], by_z, rtol=1e-6, atol=1e-8)
    unit = (field.exact(z0, END) - z0 * torch.exp(-field.k * END)) / field.rate
    torch.testing.assert_close(got[1], unit.sum(), rtol=1e-6, atol=1e-8)

    def by_start(start: Tensor) -> Tensor:
        values = {**dict(field.named_parameters()), "start": start}
        return torch.func.functional_call(_Solved(field), {f"field.{n}": x for n, x in values.items()}, (z0,)).sum()

    with pytest.raises(pynode.EngineUnavailable, match="tstops"):
        torch.func.grad(by_start)(field.start.detach())
    with pytest.raises(pynode.EngineUnavailable, match="tstops"):
        torch.func.vmap(by_start)(torch.tensor([4.0, 5.0], dtype=DOUBLE))


class _Solved(nn.Module):
    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(self, z0: Tensor) -> Tensor:
        return pynode.solve(self.field, z0, [0.0, END], engine="torch", **FINE).z[-1]


def test_a_field_without_comparisons_costs_no_evaluation_more() -> None:
    counts = []

    class Counted(nn.Module):
        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            counts.append(1)
            return -z * torch.cos(t)

    field, z0 = Counted(), torch.ones(1, 1, dtype=DOUBLE)
    pynode.solve(field, z0, [0.0, 1.0], engine="torch")
    counts.clear()
    sol = pynode.solve(field, z0, [0.0, 1.0], engine="torch")
    assert len(counts) == sol.stats.nfe


def test_no_search_where_none_is_wanted() -> None:
    field, z0 = Dose(), torch.zeros(1, 1, dtype=DOUBLE)
    sol = pynode.solve(field, z0, [0.0, END], tstops=None, engine="torch")
    assert sol.z[-1].item() == 0.0  # stepped over


def test_refusals() -> None:
    field, z0 = Dose(), torch.zeros(1, 1, dtype=DOUBLE)
    for wrong, match in (([math.nan], "finite"), (torch.zeros(1, 2), "1-d"), (3.0, "1-d"), (["a"], "tstops")):
        with pytest.raises(InputError, match=match):
            pynode.solve(field, z0, [0.0, END], tstops=wrong, engine="torch")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="tstops=None"):
        pynode.solve(lambda t, z: z * (t % 1e-3 < 5e-4), z0, [0.0, 2.0], engine="torch")
    recorded = _Recorded(field)
    with pytest.raises(InputError, match="tstops=None"):
        torch.jit.trace(recorded, (z0,))
    apart = nn.Parameter(torch.tensor(5.0, dtype=DOUBLE))

    def meet(t: Tensor, z: Tensor) -> Tensor:
        return field.rate * (t >= field.start) + field.rate * (t >= apart) + 0 * z

    with pytest.raises(InputError, match="meet at t=5"):
        pynode.solve(meet, z0, [0.0, END], engine="torch")


class _Recorded(nn.Module):
    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(self, z0: Tensor) -> Tensor:
        return pynode.solve(self.field, z0, [0.0, END], solver="rk4", dt=0.1, engine="torch").z[-1]
