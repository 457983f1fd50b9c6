"""Events that change the state, doses, and what a solve with them reports: against closed forms, on every engine."""

from __future__ import annotations

import functools
import math
import pickle
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode import At, EngineUnavailable, Event, InputError, Retcode, SolveError

DOUBLE = torch.float64
FINE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


def number(x: float, grad: bool = True) -> Tensor:
    return torch.tensor(x, dtype=DOUBLE, requires_grad=grad)


def check(got: Tensor, want: Tensor, inputs: list[Tensor], rtol: float = 1e-7, atol: float = 1e-9) -> None:
    """Values and gradients, with random weights."""
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol)
    assert got.requires_grad == want.requires_grad
    if not got.requires_grad:
        return
    weights = torch.rand_like(want)
    keywords: dict[str, Any] = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    a = torch.autograd.grad((weights * got).sum(), inputs, **keywords)
    b = torch.autograd.grad((weights * want).sum(), inputs, **keywords)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=10 * rtol, atol=10 * atol)


class Ball(nn.Module):
    """A ball in free fall: height and velocity, `(batch, 2)`."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(number(9.81))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.stack([z[:, 1], (-self.g).expand(z.shape[0])], 1)


class Bounce(nn.Module):
    """Turns the velocity round; loses some of it."""

    def __init__(self) -> None:
        super().__init__()
        self.restitution = nn.Parameter(number(0.8))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.stack([z[:, 0], -self.restitution * z[:, 1]], 1)


def ground(t: Tensor, z: Tensor) -> Tensor:
    return z[0, 0]


def bounces(h: Tensor, g: Tensor, e: Tensor, n: int) -> Tensor:
    """The times of the first bounces from rest at a height."""
    fall = torch.sqrt(2 * h / g)
    return torch.stack([fall * (1 + 2 * sum((e**k for k in range(1, m + 1)), torch.zeros(()))) for m in range(n)])


@pytest.mark.parametrize("batching", ["joint", "independent"])
def test_ten_bounces(engine: str, batching: str) -> None:
    """Times, states before and after, and a state between two bounces, with gradients to all there is."""
    field, bounce = Ball(), Bounce()
    h, g, e = number(1.0), field.g, bounce.restitution
    z0 = torch.stack([h, torch.zeros_like(h)])[None]
    event = Event(ground, direction=-1, affect=bounce)
    t = torch.tensor([0.0, 0.1, 3.62], dtype=DOUBLE)
    sol = pynode.solve(field, z0, t, event=event, engine=engine, batching=batching, dense=True, **FINE)
    log = sol.events if batching == "joint" else sol.events[0]
    times = bounces(h, g, e, 10)
    assert len(log) == 10
    inputs = [h, g, e]
    check(log.t, times, inputs, 1e-8)
    speed = torch.sqrt(2 * g * h) * e ** torch.arange(11)
    before, after = (x if batching == "joint" else x[:, None] for x in (log.before, log.after))
    check(before[:, 0, 1], -speed[:10], inputs, 1e-8)
    check(after[:, 0, 1], speed[1:], inputs, 1e-8)
    torch.testing.assert_close(before[:, 0, 0], torch.zeros(10, dtype=DOUBLE), rtol=0, atol=1e-10)
    s = 3.62 - times[-1]
    last = torch.stack([speed[10] * s - g * s**2 / 2, speed[10] - g * s])
    check(sol.z[-1, 0], last, inputs, 1e-7)
    check(sol.z[1, 0, 0], h - g * 0.1**2 / 2, inputs)
    assert sol.event_t is None if batching == "joint" else sol.event_t.isnan().all()
    assert log.index.tolist() == log.value.tolist() == [0] * 10
    # Between the third and the fourth, from the interpolant.
    at = (times[2] + times[3]).detach() / 2
    s = at - times[2].detach()
    torch.testing.assert_close(sol(at)[0, 0], (speed[3] * s - g * s**2 / 2).detach(), rtol=1e-6, atol=1e-6)


class Absorption(nn.Module):
    """A depot that empties into the blood, which is cleared: amounts `(batch, 2)`."""

    def __init__(self) -> None:
        super().__init__()
        self.ka, self.k = nn.Parameter(number(1.1)), nn.Parameter(number(0.3))

    def forward(self, t: Tensor, z: Tensor, *args: Tensor) -> Tensor:
        absorbed = self.ka * z[:, 0]
        return torch.stack([-absorbed, absorbed - self.k * z[:, 1]], 1)

    def exact(self, t: Tensor, times: Tensor, doses: Tensor) -> Tensor:
        """The amounts at times `t` that come of doses, `(t, batch, 2)`, doses and their times `(batch, n)`."""
        s = (t[:, None, None] - times).clamp(min=0)
        given = doses * (t[:, None, None] > times)
        depot = given * torch.exp(-self.ka * s)
        blood = given * self.ka / (self.ka - self.k) * (torch.exp(-self.k * s) - torch.exp(-self.ka * s))
        return torch.stack([depot.sum(-1), blood.sum(-1)], -1)


def dose(t: Tensor, z: Tensor, doses: Tensor, *, index: Tensor) -> Tensor:
    amount = doses.index_select(-1, index.reshape(1))
    return z + nn.functional.pad(amount.reshape(-1, 1), (0, 1))


@pytest.mark.parametrize("batching", ["joint", pytest.param("independent", marks=pytest.mark.slow)])
def test_twenty_doses(engine: str, batching: str) -> None:
    """Superposition, with gradients to doses, their times, the rates and the times asked for."""
    field = Absorption()
    z0 = torch.zeros(3, 2, dtype=DOUBLE)
    doses = torch.rand(3, 20, dtype=DOUBLE).requires_grad_()
    times = (torch.arange(20.0, dtype=DOUBLE) * 0.7).requires_grad_()  # the first at the start
    t = torch.tensor([0.0, 0.35, 2.1, 2.2, 15.0], dtype=DOUBLE, requires_grad=True)
    sol = pynode.solve(
        field, z0, t, args=(doses,), event=At(times.flip(0), functools.partial(backwards_dose, 20)), engine=engine,
        batching=batching, **FINE,
    )  # fmt: skip
    want = field.exact(t, times.expand(3, 20), doses)
    check(sol.z, want, [doses, times, t, field.ka, field.k], 1e-7)
    log = sol.events if batching == "joint" else sol.events[1]
    torch.testing.assert_close(log.t, times, rtol=0, atol=0)
    assert log.value.tolist() == list(range(20))[::-1]
    got = (log.after - log.before)[:, 1, 0] if batching == "joint" else (log.after - log.before)[:, 0]
    torch.testing.assert_close(got, doses[1], rtol=1e-12, atol=1e-12)


def backwards_dose(n: int, t: Tensor, z: Tensor, doses: Tensor, *, index: Tensor) -> Tensor:
    return dose(t, z, doses, index=n - 1 - index)


def test_doses_of_each_sample(engine: str) -> None:
    """Times of each sample's own, in no order, some outside of the span, NaN where it has fewer."""
    field = Absorption()
    nan = math.nan
    rows = [[0.5, 0.0, 3.0, 5.0], [2.0, nan, nan, nan], [4.9, -1.0, 2.0, nan], [nan, nan, nan, nan]]
    times = torch.tensor(rows, dtype=DOUBLE, requires_grad=True)
    doses = torch.rand(4, 4, dtype=DOUBLE).requires_grad_()
    t = torch.tensor([0.0, 2.0, 5.0], dtype=DOUBLE)
    sol = pynode.solve(
        field, torch.zeros(4, 2, dtype=DOUBLE), t, args=(doses,), event=At(times, dose), batching="independent",
        engine=engine, dense=True, **FINE,
    )  # fmt: skip
    inside = (times >= 0) & (times < 5)
    where, given = torch.where(inside, times, 9.0), torch.where(inside, doses, 0.0)
    check(sol.z, field.exact(t, where, given), [doses, times, field.ka, field.k], 1e-7)
    assert [len(log) for log in sol.events] == [3, 1, 2, 0]
    torch.testing.assert_close(sol.events[0].t, times[0, [1, 0, 2]], rtol=0, atol=0)
    assert sol.events[2].value.tolist() == [2, 0]
    assert sol.events[3].before.shape == (0, 2)
    at = torch.tensor([0.5, 1.0, 4.95], dtype=DOUBLE)  # before the dose, and after
    torch.testing.assert_close(sol(at), field.exact(at, where, given).detach(), rtol=1e-6, atol=1e-6)


def test_a_shared_tensor_with_as_many_rows_as_samples_are_left(engine: str) -> None:
    """Two of three samples go on from the second dose: an arg of two rows stays what all share."""
    weights = torch.tensor([0.2, 0.5], dtype=DOUBLE, requires_grad=True)
    times = torch.tensor([[1.0], [1.5], [math.nan]], dtype=DOUBLE)
    event = At(times, lambda t, z, w: z + w[1])
    z0 = torch.tensor([[1.0], [2.0], [3.0]], dtype=DOUBLE, requires_grad=True)
    sol = pynode.solve(
        lambda t, z, w: -w.sum() * z, z0, [0.0, 2.0], args=(weights,), event=event, batching="independent",
        engine=engine, dense=True, **FINE,
    )  # fmt: skip
    added = torch.exp(-weights.sum() * (2.0 - times.nan_to_num(0.0))) * weights[1]
    want = z0 * torch.exp(-2 * weights.sum()) + torch.where(times.isnan(), 0.0, added)
    check(sol.z[-1], want, [z0, weights])
    torch.testing.assert_close(sol(2.0), want.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        sol(1.75).detach(), (want * torch.exp(0.25 * weights.sum())).detach(), rtol=1e-6, atol=1e-6
    )


class Room(nn.Module):
    """Temperature and whether the heating is on, `(batch, 2)`."""

    def __init__(self) -> None:
        super().__init__()
        self.k, self.outside, self.power = (nn.Parameter(number(x)) for x in (0.5, 5.0, 12.0))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        rate = self.k * (self.outside - z[:, 0]) + self.power * z[:, 1]
        return torch.stack([rate, torch.zeros_like(rate)], 1)


class Level(nn.Module):
    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = nn.Parameter(number(level))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return z[0, 0] - self.level


def switch(on: float, t: Tensor, z: Tensor) -> Tensor:
    return torch.stack([z[:, 0], torch.full_like(z[:, 1], on)], 1)


@pytest.mark.parametrize("batching", ["joint", "independent"])
def test_thermostat(engine: str, batching: str) -> None:
    """Hysteresis by two events; the switching times follow the levels, the room and the heating."""
    room, low, high = Room(), Level(18.0), Level(22.0)
    events = [
        Event(high, direction=1, affect=functools.partial(switch, 0.0)),
        Event(low, direction=-1, affect=functools.partial(switch, 1.0)),
    ]
    start = number(20.0)
    z0 = torch.stack([start, torch.ones_like(start)])[None]
    sol = pynode.solve(room, z0, [0.0, 6.0], event=events, engine=engine, batching=batching, **FINE)
    log = sol.events if batching == "joint" else sol.events[0]
    hot = room.outside + room.power / room.k

    def passage(a: Tensor, b: Tensor, towards: Tensor) -> Tensor:
        return torch.log((towards - a) / (towards - b)) / room.k

    first = passage(start, high.level, hot)
    down, up = passage(high.level, low.level, room.outside), passage(low.level, high.level, hot)
    n = len(log)
    assert n >= 8
    want = first + torch.stack([(i + 1) // 2 * down + i // 2 * up for i in range(n)])
    inputs = [start, low.level, high.level, *room.parameters()]
    check(log.t, want, inputs, 1e-8)
    assert log.index.tolist() == [i % 2 for i in range(n)]
    mode = log.after[..., 1].flatten()
    assert mode.tolist() == [float(i % 2) for i in range(n)]
    base, towards = (high.level, room.outside) if n % 2 else (low.level, hot)
    check(sol.z[-1, 0, 0], towards + (base - towards) * torch.exp(-room.k * (6.0 - want[-1])), inputs, 1e-8)


class Oscillator(nn.Module):
    """z(t) = (sin ωt, cos ωt) from z(0) = (0, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.omega = nn.Parameter(number(1.3))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.omega * torch.stack([z[:, 1], -z[:, 0]], 1)


@pytest.mark.slow
@pytest.mark.parametrize("backwards", [False, True])
def test_nth_occurrence_and_directions(engine: str, backwards: bool) -> None:
    """Rising and falling are meant along the solve: sin(-ωs) falls through each level where sin(ωs) rises."""
    field, z0 = Oscillator(), torch.tensor([[0.0, 1.0]], dtype=DOUBLE)
    level, sign = 0.5, -1.0 if backwards else 1.0
    rise, fall = math.asin(level), math.pi - math.asin(level)
    period = 2 * math.pi
    for direction in (0, 1, -1):
        for n in (1, 3):
            event = Event(lambda t, z: z[0, 0] - sign * level, direction=int(sign) * direction, terminal=n)
            sol = pynode.solve(field, z0, [0.0, sign * 30.0], event=event, engine=engine, **FINE)
            phases = {0: [rise, fall], 1: [rise], -1: [fall]}[direction]
            all_phases = sorted(phase + period * k for k in range(3) for phase in phases)[:n]
            want = sign * torch.tensor(all_phases, dtype=DOUBLE) / field.omega
            check(sol.events.t, want, [field.omega], 1e-8)
            assert torch.equal(sol.event_t, sol.events.t[-1])
            assert torch.equal(sol.t_end, sol.event_t)
            assert sol.event_index == 0
            torch.testing.assert_close(sol.event_z[0, 0], number(sign * level, False), rtol=1e-9, atol=1e-9)


def test_events_that_only_look(engine: str) -> None:
    """terminal=False: the solve goes on as it would, and all zeros are in the log."""
    field, z0 = Oscillator(), torch.tensor([[0.0, 1.0]], dtype=DOUBLE)
    looks = Event(lambda t, z: torch.stack([z[0, 0], z[0, 1]]), terminal=False)
    sol = pynode.solve(field, z0, [0.0, 7.0], event=looks, engine=engine, **FINE)
    count = int(7.0 * 1.3 / (math.pi / 2))
    quarters = torch.arange(1, count + 1, dtype=DOUBLE) * (math.pi / 2)
    check(sol.events.t, quarters / field.omega, [field.omega], 1e-8)
    assert sol.events.value.tolist() == [(i + 1) % 2 for i in range(count)]
    torch.testing.assert_close(sol.events.before, sol.events.after, rtol=0, atol=0)
    want = torch.stack([torch.sin(7 * field.omega), torch.cos(7 * field.omega)])
    check(sol.z[-1, 0], want, [field.omega], 1e-7)


def test_joint_is_independent(engine: str) -> None:
    """Samples with events and doses of their own are what solves of each alone are."""
    field, bounce = Ball(), Bounce()
    z0 = torch.tensor([[1.0, 0.0], [0.3, 1.0], [2.0, -1.0], [50.0, 0.0]], dtype=DOUBLE, requires_grad=True)
    kick = At([0.2, 0.9], lambda t, z: z + torch.tensor([0.0, 0.5], dtype=DOUBLE))
    events = [Event(ground, -1, affect=bounce), kick, Event(lambda t, z: t - 5.0)]
    t = [0.0, 0.5, 1.0, 1.5]

    def cost(t: Tensor, z: Tensor) -> Tensor:
        return z[:, 0]

    keywords: dict[str, Any] = {"event": events, "engine": engine, "running_cost": cost, **FINE}
    sol = pynode.solve(field, z0, t, batching="independent", **keywords)
    inputs = [z0, field.g, bounce.restitution]
    alone = [pynode.solve(field, z0[b : b + 1], t, **keywords) for b in range(4)]
    check(sol.z, torch.cat([x.z for x in alone], 1), inputs, 1e-8)
    check(sol.running_cost, torch.cat([x.running_cost for x in alone]), inputs, 1e-8)
    for log, one in zip(sol.events, alone, strict=True):
        assert log.index.tolist() == one.events.index.tolist()
        check(log.t, one.events.t, inputs, 1e-9)
        check(log.after, one.events.after[:, 0], inputs, 1e-8)
    assert len(sol.events[1]) > len(sol.events[3]) == 2
    assert sol.stats.nfe == sol.stats.per_sample.nfe.sum()


@pytest.mark.slow
def test_a_ball_that_comes_to_rest(engine: str) -> None:
    """Infinitely many bounces by t = 4.0643…: a clear end, and what was reached."""
    field, bounce = Ball(), Bounce()
    z0 = torch.tensor([[1.0, 0.0]], dtype=DOUBLE)
    event = Event(ground, affect=bounce)
    end = math.sqrt(2 / 9.81) * (1 + 2 * 4)
    with pytest.raises(SolveError, match=rf"stopped at t={end:.4f}.*event \(ground\).*without time passing") as error:
        pynode.solve(field, z0, [0.0, 10.0], event=event, engine=engine, **FINE)
    assert error.value.retcode is Retcode.ZENO
    for batching in ("joint", "independent"):
        keywords: dict[str, Any] = {"engine": engine, "batching": batching, "throw": False}
        sol = pynode.solve(field, z0, [0.0, 1.0, 10.0], event=event, **FINE, **keywords)
        assert sol.retcode is Retcode.ZENO
        assert sol.t_end.item() == pytest.approx(end, abs=1e-6)
        assert sol.z.isfinite().flatten(1).all(1).tolist() == [True, True, False]
        assert sol.z_end.abs().max().item() < 1e-4
        sol = pynode.solve(field, z0, [0.0, 10.0], event=event, max_events=5, **FINE, **keywords)
        assert sol.retcode is Retcode.MAX_EVENTS
        assert sol.t_end.item() == pytest.approx(bounces(*map(number, (1.0, 9.81, 0.8)), 5)[-1].item(), abs=1e-7)
    stopped = [event, Event(lambda t, z: z[0, 1].abs() + z[0, 0] - 0.05, -1)]
    sol = pynode.solve(field, z0, [0.0, 10.0], event=stopped, engine=engine, **FINE)
    assert sol.event_index == 1


class Pair(NamedTuple):
    x: Tensor
    v: Tensor


@pytest.mark.parametrize("form", ["tuple", "named", "dict"])
def test_forms_of_the_state(engine: str, form: str) -> None:
    make = {"tuple": lambda x, v: (x, v), "named": Pair, "dict": lambda x, v: {"x": x, "v": v}}[form]
    parts = (lambda z: (z["x"], z["v"])) if form == "dict" else tuple

    def field(t: Tensor, z: Any) -> Any:
        x, v = parts(z)
        return make(v, -9.81 * torch.ones_like(x))

    def affect(t: Tensor, z: Any) -> Any:
        x, v = parts(z)
        v *= -0.5  # in place: the state before stays what it was
        return make(x, v)

    z0 = make(torch.ones(1, 1, dtype=DOUBLE), torch.zeros(1, 1, dtype=DOUBLE))
    sol = pynode.solve(
        field, z0, [0.0, 0.5], event=Event(lambda t, z: parts(z)[0][0, 0], affect=affect), engine=engine, **FINE
    )
    assert type(sol.events.after) is type(z0)
    _, v = parts(sol.events.before)
    speed = math.sqrt(2 * 9.81)
    assert v.flatten().tolist() == pytest.approx([-speed])
    assert parts(sol.events.after)[1].flatten().tolist() == pytest.approx([speed / 2])
    s = 0.5 - math.sqrt(2 / 9.81)
    assert parts(sol.z)[0][-1].item() == pytest.approx(speed / 2 * s - 9.81 * s**2 / 2, rel=1e-7)


def test_what_comes_at_one_time(engine: str) -> None:
    """A stop of the field and doses in their order, then an event and a dose; and states reported there."""
    k = number(0.5)

    def field(t: Tensor, z: Tensor) -> Tensor:
        return -k * z + 3.0 * (t >= 1.0).to(z.dtype)

    times = torch.tensor([1.0, 1.5], dtype=DOUBLE, requires_grad=True)
    twice, more = At(times, lambda t, z: 2 * z), At([1.0, 2.0], lambda t, z: z + 1)
    seen = Event(lambda t, z: t - 1.5, terminal=False, affect=lambda t, z: z - 1)
    z0 = torch.ones(2, 1, dtype=DOUBLE, requires_grad=True)
    sol = pynode.solve(field, z0, [0.0, 1.0, 1.5, 2.0], event=[twice, seen, more], engine=engine, **FINE)

    def on(z: Tensor, s: Tensor | float) -> Tensor:
        return z * torch.exp(-k * s) + 3 / k * (1 - torch.exp(-k * s))

    first = z0 * torch.exp(-k * times[0])
    second = on(2 * first + 1, times[1] - times[0])
    last = on(2 * (second - 1), 2.0 - times[1])
    check(sol.z[1], z0 * torch.exp(-k), [z0, k])
    torch.testing.assert_close(sol.z[2:], torch.stack([second, last]), rtol=1e-8, atol=0)
    (got,) = torch.autograd.grad(sol.z[-1].sum(), times)
    # A later second dose comes after the event: what flows in between is doubled, and what would have flowed after not.
    y = second - 1
    slope = (2 * (3 - k * y) - (3 - k * 2 * y)) * torch.exp(-k * 0.5)
    assert got[1].item() == pytest.approx(slope.sum().item(), rel=1e-6)
    assert sol.events.index.tolist() == [0, 2, 1, 0]  # the dose at the last time belongs to what follows
    later = pynode.solve(field, sol.z[-1], [2.0, 3.0], event=[twice, seen, more], engine=engine, **FINE)
    torch.testing.assert_close(later.events.after[0], sol.z[-1] + 1, rtol=1e-12, atol=1e-12)


def test_functions_of_events_read_the_control(engine: str) -> None:
    """z falls at the rate of a path X(t) = 1 + t, and is lifted by X where it comes to zero and at a dose."""
    x = torch.tensor([[1.0], [4.0]], dtype=DOUBLE, requires_grad=True)
    path = pynode.control.Linear([0.0, 3.0], x)
    events = [
        Event(lambda t, z, X: z[0, 0] + 0 * X(t)[0], affect=lambda t, z, X, index: z + X(t) + index),
        At([1.5], lambda t, z, X: z + X(t)),
    ]
    z0 = number(1.5).reshape(1, 1)
    sol = pynode.solve(
        lambda t, z, X: -X(t).expand_as(z), z0, [0.0, 3.0], control=path, event=events, engine=engine, **FINE
    )
    assert sol.events.index.tolist()[:2] == [0, 1]
    torch.testing.assert_close(sol.events.t[:2].tolist(), [1.0, 1.5], rtol=1e-8, atol=0)
    torch.testing.assert_close(sol.events.after[0, 0, 0].item(), 2.0, rtol=1e-8, atol=0)
    assert torch.autograd.grad(sol.events.after[1].sum(), x)[0].abs().min() > 0.01


def test_a_jump_across_zero_is_no_event(engine: str) -> None:
    z0 = torch.ones(1, 1, dtype=DOUBLE)
    event = [At([0.5], lambda t, z: z - 3.0), Event(lambda t, z: z[0, 0])]
    sol = pynode.solve(lambda t, z: -z, z0, [0.0, 1.0], event=event, engine=engine, **FINE)
    assert sol.event_t is None
    torch.testing.assert_close(sol.z[-1, 0, 0].item(), (math.exp(-0.5) - 3) * math.exp(-0.5), rtol=1e-8, atol=0)


def test_two_balls_on_the_ground_at_once(engine: str) -> None:
    """Events of one time both happen, and neither falls through the floor."""
    field = Ball()

    def turned(b: int, t: Tensor, z: Tensor) -> Tensor:
        sign = torch.ones(2, 2, dtype=DOUBLE)
        sign[b, 1] = -1.0
        return sign * z

    events = [Event(lambda t, z, b=b: z[b, 0], affect=functools.partial(turned, b)) for b in range(2)]
    z0 = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=DOUBLE)
    sol = pynode.solve(field, z0, [0.0, 2.0], event=events, engine=engine, **FINE)
    assert bool((sol.z[-1, :, 0] > 0).all())
    torch.testing.assert_close(sol.z[:, 0], sol.z[:, 1], rtol=1e-9, atol=1e-9)
    assert sorted(sol.events.index.tolist()) == [0, 0, 1, 1]


def test_gradients_of_jumps_by_every_sensitivity(engine: str) -> None:
    for how in ("discrete", "gauss") if engine == "julia" else ("discrete", "backsolve", "forward"):
        field, bounce = Ball(), Bounce()
        h = number(1.0)
        z0 = torch.stack([h, torch.zeros_like(h)])[None]
        event = Event(ground, affect=bounce)
        sol = pynode.solve(field, z0, [0.0, 1.0], event=event, sensitivity=how, engine=engine, **FINE)
        times = bounces(h, field.g, bounce.restitution, 1)
        speed, s = torch.sqrt(2 * field.g * h) * bounce.restitution, 1.0 - times[0]
        check(sol.z[-1, 0, 0], speed * s - field.g * s**2 / 2, [h, field.g, bounce.restitution], 1e-6)


def test_max_steps_failures_and_no_gradient(engine: str) -> None:
    field, z0 = Absorption().requires_grad_(False), torch.ones(2, 2, dtype=DOUBLE)
    at = At(torch.arange(1.0, 9.0, dtype=DOUBLE), lambda t, z: z + 1)
    for batching in ("joint", "independent"):
        keywords: dict[str, Any] = {"event": at, "engine": engine, "batching": batching}
        whole = pynode.solve(field, z0, [0.0, 9.0], **keywords)
        assert not whole.z.requires_grad
        few = whole.stats.n_accepted // (2 if batching == "joint" else 4)
        sol = pynode.solve(field, z0, [0.0, 0.5, 9.0], max_steps=few, throw=False, **keywords)
        assert sol.retcode is Retcode.MAX_STEPS
        assert 1.0 < sol.t_end.max().item() < 9.0
        assert bool(sol.z[1].isfinite().all())
        assert bool(sol.z[2].isnan().all())
        blow = pynode.solve(
            lambda t, z: z**2, torch.full((2, 1), 0.1), [0.0, 5.0, 9.0], event=At([1.0], lambda t, z: 4 * z),
            engine=engine, batching=batching, throw=False,
        )  # fmt: skip
        assert blow.retcode is not Retcode.SUCCESS
        assert blow.t_end.max().item() == pytest.approx(1 + 9 / 4, abs=1e-2)
        logs = [blow.events] if batching == "joint" else blow.events
        assert all(len(log) == 1 for log in logs)


def test_float32_and_pickle(engine: str) -> None:
    z0 = torch.ones(2, 1, requires_grad=True)
    event = [At([0.5], lambda t, z: z + 1), Event(lambda t, z: z[:, 0].amin() - 1.0)]
    for batching in ("joint", "independent"):
        sol = pynode.solve(lambda t, z: -z, z0, [0.0, 2.0], event=event, engine=engine, batching=batching)
        logs = [sol.events] if batching == "joint" else sol.events
        assert all(log.t.dtype == log.after.dtype == torch.float32 for log in logs)
        want = 0.5 + math.log1p(math.exp(-0.5))
        torch.testing.assert_close(sol.event_t.detach().flatten()[0].item(), want, rtol=1e-4, atol=0)
        again = pickle.loads(pickle.dumps(sol))
        copies = [again.events] if batching == "joint" else again.events
        assert [log.t.tolist() for log in copies] == [log.t.tolist() for log in logs]


def test_transforms(engine: str) -> None:
    """Doses pass torch.func's transforms; events by a function's sign refuse them."""
    field = Absorption().requires_grad_(False)

    def total(doses: Tensor, *more: Event) -> Tensor:
        at = At([0.0, 0.5, 1.0], lambda t, z, index: z + doses[index])
        z0 = torch.zeros(1, 2, dtype=DOUBLE)
        return pynode.solve(field, z0, [0.0, 2.0], event=[at, *more], engine=engine, **FINE).z[-1].sum()

    doses = torch.rand(3, 2, dtype=DOUBLE)
    leaf = doses.clone().requires_grad_()
    (want,) = torch.autograd.grad(total(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(total)(doses), want, rtol=1e-9, atol=1e-9)
    with pytest.raises(EngineUnavailable, match="no forward derivatives"):
        torch.func.grad(lambda x: total(x, Event(lambda t, z: z[0, 0] - 9.0)))(doses)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (lambda: [3.0], "a pynode.Event, a pynode.At or a sequence"),
        (lambda: Event(3.0), "callable g"),
        (lambda: Event(ground, direction=2), "direction must be"),
        (lambda: Event(ground, terminal=0), "terminal must be"),
        (lambda: Event(ground, affect=3.0), "affect must be a callable"),
        (lambda: At([[1.0], [2.0]], Bounce()), "batching='independent'"),
        (lambda: At([math.inf], Bounce()), "must be finite"),
        (lambda: At([0.5], lambda t, z: z[0]), r"expected \(1, 2\).*got \(2,\)"),
        (lambda: At([0.5], lambda t, z: (z, z)), "in the form of z"),
        (lambda: At([0.5], lambda t, z: z.float()), "torch.float32"),
        (lambda: At([0.5], lambda t, z: z / 0), r"finite numbers, got inf in z0 at t=0.5"),
    ],
)
def test_refusals(event: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pynode.solve(Ball(), torch.ones(1, 2, dtype=DOUBLE), [0.0, 1.0], event=event(), engine="torch")


def test_recording_refuses() -> None:
    def recorded(z: Tensor) -> Tensor:
        event = At([0.5], lambda t, z: z + 1)
        return pynode.solve(lambda t, z: -z, z, [0.0, 1.0], event=event, engine="torch", solver="rk4", dt=0.1).z

    with pytest.raises(InputError, match="event"):
        torch.jit.trace(recorded, torch.ones(1, 1))


@pytest.mark.parametrize("state_is_mapped", [True, False])
def test_times_of_doses_that_vmap_maps_over(engine: str, state_is_mapped: bool) -> None:
    """The order of the first ones was taken for that of all, and their numbers were wrong without an error."""
    z0 = torch.tensor([[[1.0]], [[2.0]]], dtype=DOUBLE)

    def end(times: Tensor, z: Tensor, t: Tensor) -> Tensor:
        dose = At(times, lambda t, z: 2 * z + t)
        return pynode.solve(lambda t, z: -z, z, t, event=dose, rtol=1e-10, atol=1e-10, engine=engine).z[-1]

    def mapped(times: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        z = z0 if state_is_mapped else z0[0]
        spans = t if t.dim() == 2 else t.expand(2, -1)
        dims = (0 if times.dim() == 2 else None, 0 if state_is_mapped else None, 0 if t.dim() == 2 else None)
        alone = [
            end(times[i] if times.dim() == 2 else times, z0[i] if state_is_mapped else z, spans[i]) for i in (0, 1)
        ]
        return torch.vmap(end, dims)(times, z, t), torch.stack(alone)

    span = torch.tensor([0.0, 1.0, 2.0], dtype=DOUBLE)
    for times in ([[0.2, 1.6], [0.3, 1.7]], [[-0.2, 1.6], [-0.3, 1.7]], [[1.6, 0.2], [1.7, 0.3]]):
        torch.testing.assert_close(*mapped(torch.tensor(times, dtype=DOUBLE), span), rtol=1e-9, atol=1e-9)
    spans = torch.tensor([[0.0, 1.0], [0.1, 1.3]], dtype=DOUBLE)
    torch.testing.assert_close(*mapped(torch.tensor([0.5], dtype=DOUBLE), spans), rtol=1e-9, atol=1e-9)
    for times in ([[0.2, 0.6], [0.6, 0.2]], [[0.6], [1.4]], [[0.5], [-0.5]], [[0.5], [1.0]], [[0.5], [2.5]]):
        with pytest.raises(EngineUnavailable, match="other orders"):
            mapped(torch.tensor(times, dtype=DOUBLE), span)
    with pytest.raises(EngineUnavailable, match="other orders"):
        mapped(torch.tensor([0.5], dtype=DOUBLE), torch.tensor([[0.0, 1.0], [0.6, 1.3]], dtype=DOUBLE))


@pytest.mark.parametrize("batching", ["joint", "independent"])
def test_a_jump_at_the_last_time(batching: str) -> None:
    """The state there is that before it, and nothing comes after."""
    z0, t = torch.zeros(2, 1, dtype=DOUBLE), [0.0, 1.0, 2.0]

    def value(t: Tensor, z: Tensor) -> Tensor:
        return (z[0, 0] if batching == "joint" else z[:, 0]) - 2.0

    sol = pynode.solve(
        lambda t, z: torch.ones_like(z), z0, t, event=Event(value, affect=lambda t, z: z + 10), batching=batching,
        running_cost=lambda t, z: z[:, 0], engine="torch",
    )  # fmt: skip
    assert sol.retcode is Retcode.SUCCESS
    torch.testing.assert_close(sol.z, torch.tensor(t, dtype=DOUBLE)[:, None, None].expand(3, 2, 1))
    torch.testing.assert_close(sol.z_end, sol.z[-1])
    torch.testing.assert_close(sol.running_cost, torch.full((2,), 2.0, dtype=DOUBLE))
    logs = [sol.events] if batching == "joint" else list(sol.events)
    for log in logs:
        torch.testing.assert_close(log.after - log.before, torch.full_like(log.before, 10.0))


def test_a_value_that_is_flat_where_it_is_zero(engine: str) -> None:
    sol = pynode.solve(
        lambda t, z: torch.ones_like(z), torch.zeros(1, 1, dtype=DOUBLE), [0.0, 2.0],
        event=Event(lambda t, z: (z[0, 0] - 0.7) ** 3), rtol=1e-10, atol=1e-10, engine=engine,
    )  # fmt: skip
    assert sol.event_t is not None
    assert sol.event_t.item() == pytest.approx(0.7, abs=1e-4)


@pytest.mark.parametrize("batching", ["joint", "independent"])
@pytest.mark.parametrize("tracked", [False, True])
def test_a_state_reported_at_the_time_of_an_event(engine: str, batching: str, tracked: bool) -> None:
    """It is one at a time of its own: its derivatives are not those of the event's, which moves."""
    k = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    hit = pynode.Event(
        lambda t, z: z[0, 0] - 1, direction=1, affect=lambda t, z: torch.stack([z[:, 0] + 0.5, z[:, 1]], 1)
    )

    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.stack([k + 0 * z[:, 0], z[:, 0]], 1)

    t = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64, requires_grad=tracked)
    z0 = torch.zeros(1, 2, dtype=torch.float64)
    sol = pynode.solve(field, z0, t, event=hit, engine=engine, rtol=1e-9, atol=1e-9, batching=batching)
    torch.testing.assert_close(sol.z[1, 0], torch.tensor([1.0, 0.5], dtype=torch.float64))
    (found,) = torch.autograd.grad(sol.z[1, 0, 1], k, retain_graph=True)
    assert found.item() == pytest.approx(0.5)
    if tracked:
        (found,) = torch.autograd.grad(sol.z[1, 0, 1], t, retain_graph=True)
        torch.testing.assert_close(found, torch.tensor([-1.0, 1.0, 0.0], dtype=torch.float64))
    # Behind it the jump's time counts: y(2) = 1/(2k) + 3/2 (2 - 1/k) + k/2 (2 - 1/k)².
    (found,) = torch.autograd.grad(sol.z[2, 0, 1], k)
    assert found.item() == pytest.approx(-0.5 + 1.5 + 0.5 + 1.0)
