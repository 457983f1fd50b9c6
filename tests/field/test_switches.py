"""The search for the times at which what a field computes from the time alone jumps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pynode import InputError
from pynode.field._switch_times import switch_times
from pynode.field._switches import Switch, has_switches, switches
from pynode.field._tape import Tape

DOUBLE = torch.float64
KNOTS = torch.tensor([0.5, 1.0, 2.25, 7.0], dtype=DOUBLE)


def tape_of(f: Callable[[Tensor, Tensor], Any], t: Tensor) -> Tape:
    z = torch.ones(3, 2, dtype=t.dtype)
    tape = Tape(t, [z])
    with tape:
        f(t, z)
    return tape


def search(f: Callable[[Tensor, Tensor], Any], first: float, last: float, dtype: torch.dtype = DOUBLE) -> list[Switch]:
    return switches(lambda t: tape_of(f, t), torch.zeros((), dtype=dtype), first, last)


def in_place(t: Tensor, z: Tensor) -> Tensor:
    twice = t * 2
    twice.floor_()
    return z * twice


def branches(t: Tensor, z: Tensor) -> Tensor:
    if t < 0.5:
        return z
    return 2 * z if t < 0.75 else z


HALF = math.pi / 6, 5 * math.pi / 6  # where the sine is a half
FOUND = [
    (lambda t, z: z * ((t >= 5) & (t < 5.02)), (0, 10), [5, 5.02]),
    (lambda t, z: z * ((t > 5) & (t <= 5.02)), (0, 10), [5, 5.02]),
    (lambda t, z: z * (t % 24 < 1), (1.5, 72.5), [24, 25, 48, 49, 72]),
    (lambda t, z: z * torch.fmod(t, 3), (-4, 4), [-3, 3]),
    (lambda t, z: z * torch.frac(t), (-1.5, 1.5), [-1, 1]),
    (lambda t, z: z * (torch.sin(t) > 0.5), (0, 7), [*HALF, HALF[0] + 2 * math.pi]),
    (
        lambda t, z: z * (torch.sin(20 * t) > 0.5),
        (0, 39.6),
        [(a + 2 * math.pi * n) / 20 for n in range(126) for a in HALF],
    ),
    (lambda t, z: z * t.floor(), (-2.5, 2.5), [-2, -1, 0, 1, 2]),
    (lambda t, z: z * t.ceil(), (-2.5, 2.5), [-2, -1, 0, 1, 2]),
    (lambda t, z: z * t.trunc(), (-2.5, 2.5), [-2, -1, 1, 2]),
    (lambda t, z: z * t.long(), (-2.5, 2.5), [-2, -1, 1, 2]),
    (lambda t, z: z * t.round(), (-1.7, 1.7), [-1.5, -0.5, 0.5, 1.5]),
    (lambda t, z: z * (3 - t).sign(), (0, 10), [3]),
    (lambda t, z: z * torch.heaviside(t - 3, KNOTS[0]), (0, 10), [3]),
    (lambda t, z: z * (t // 0.75), (0.1, 2), [0.75, 1.5]),
    (lambda t, z: z * torch.div(t, 0.75, rounding_mode="floor"), (0.1, 2), [0.75, 1.5]),
    (lambda t, z: z * torch.bucketize(t, KNOTS), (0, 10), KNOTS.tolist()),
    (lambda t, z: z * torch.searchsorted(KNOTS, t, right=True), (0, 10), KNOTS.tolist()),
    (lambda t, z: z * (t >= KNOTS).sum(), (0, 10), KNOTS.tolist()),
    (lambda t, z: z * (t - KNOTS).abs().argmin(), (0, 10), [0.75, 1.625, 4.625]),
    (in_place, (0.1, 1.7), [0.5, 1, 1.5]),
    (branches, (0, 1), [0.5, 0.75]),
    (lambda t, z: z * (t > 0) * (t >= 10), (0, 10), [0, 10]),  # seen from within
    (lambda t, z: z * (t >= 0) * (t > 10), (0, 10), []),
]


@pytest.mark.parametrize(("f", "span", "times"), FOUND)
def test_what_jumps_is_found(f: Callable[..., Any], span: tuple[float, float], times: list[float]) -> None:
    found = [x.t for x in search(f, *span)]
    assert len(found) == len(times)
    torch.testing.assert_close(torch.tensor(found), torch.tensor([float(t) for t in times]), rtol=1e-13, atol=1e-13)


def test_times_are_of_the_dtype_of_the_time() -> None:
    f: Callable[..., Any] = lambda t, z: z * ((t >= 5.3) & (t < 5.7))  # noqa: E731
    assert [x.t for x in search(f, 0, 10, torch.float32)] == [float(torch.tensor(x)) for x in (5.3, 5.7)]


NONE = [
    lambda t, z: z * torch.cos(t) + t.abs(),  # a kink is no jump
    lambda t, z: torch.relu(z + t) * torch.sigmoid(t),
    lambda t, z: torch.where(z > t, z, -z),  # of the state too
    lambda t, z: z * (KNOTS > 1).sum(),
]


@pytest.mark.parametrize("f", NONE)
def test_what_does_not_jump_in_time(f: Callable[..., Any]) -> None:
    assert not has_switches(tape_of(f, torch.zeros((), dtype=DOUBLE)))


def test_what_is_written_by_the_state_is_not_of_the_time_alone() -> None:
    def f(t: Tensor, z: Tensor) -> Tensor:
        both = torch.zeros(2, dtype=DOUBLE)
        both[0], both[1] = t, z[0, 0]
        return z * (both > 1).all()

    assert not has_switches(tape_of(f, torch.zeros((), dtype=DOUBLE)))


def test_the_times_as_functions_of_thresholds() -> None:
    p, q = (torch.tensor(x, dtype=DOUBLE, requires_grad=True) for x in (5.0, 3.0))

    def root(p: Tensor, q: Tensor) -> Tensor:  # of t² + q t = exp(p)
        return (-q + torch.sqrt(q * q + 4 * p.exp())) / 2

    like = torch.zeros((), dtype=DOUBLE)
    (time,) = switch_times(search(lambda t, z: z * (t * q + t**2 >= p.exp()), 0, 100), like)
    torch.testing.assert_close(time, root(p, q))
    for got, want in zip(*(torch.autograd.grad(x, [p, q], create_graph=True) for x in (time, root(p, q))), strict=True):
        torch.testing.assert_close(got, want)
        second = [torch.autograd.grad(x, [p, q], retain_graph=True) for x in (got, want)]
        torch.testing.assert_close(*second)
    times = switch_times(search(lambda t, z: z * (t % q < 1), 0.5, 9.5), like)
    assert [x.item() for x in times] == [1, 3, 4, 6, 7, 9]
    assert [torch.autograd.grad(x, q)[0].item() for x in times] == [0, 1, 1, 2, 2, 3]
    knots = KNOTS.clone().requires_grad_()
    times = switch_times(search(lambda t, z: z * torch.bucketize(t, knots), 0, 10), like)
    assert torch.equal(torch.stack([torch.autograd.grad(x, knots)[0] for x in times]), torch.eye(4, dtype=DOUBLE))
    times = switch_times(search(lambda t, z: z * (t < p) + z * (t >= p), 0, 10), like)  # one and the same
    assert torch.autograd.grad(times[0], p)[0].item() == 1


def test_complex_numbers_do_not_jump() -> None:
    """What they come to may."""
    assert search(lambda t, z: z * torch.exp(1j * t).real, 0, 7) == []
    found = search(lambda t, z: z * (torch.exp(1j * t).real > 0.5), 0, 7)
    assert [x.t for x in found] == pytest.approx([math.pi / 3, 5 * math.pi / 3])


def test_refusals_of_thresholds() -> None:
    p, q = (torch.tensor(x, dtype=DOUBLE, requires_grad=True) for x in (5.0, 5.0))
    like = torch.zeros((), dtype=DOUBLE)
    with pytest.raises(InputError, match="meet at t=5"):
        switch_times(search(lambda t, z: z * (t < p) + z * (t < q), 0, 10), like)
    knots = KNOTS.clone().requires_grad_()
    with pytest.raises(InputError, match="argmin"):
        switch_times(search(lambda t, z: z * (t - knots).abs().argmin(), 0, 10), like)
    with pytest.raises(InputError, match="without a slope"):
        switch_times(search(lambda t, z: z * (t.detach() >= p), 0, 10), like)
    with pytest.raises(InputError, match="more than 1000"):
        search(lambda t, z: z * (1e4 * t).floor(), 0, 1)
