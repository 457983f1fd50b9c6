"""Numbers that a user gives: real ones in whatever holds them, their gradients kept, complex ones refused."""

from __future__ import annotations

import math
import warnings
from collections import UserList, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode.models import NODE, LatentODE
from pynode.numeric import real_number, real_tensor

D = torch.float64


def decay(t: Tensor, z: Tensor) -> Tensor:
    return -z * torch.cos(t)


def solved(t: Any = (0.0, 1.0), **keywords: Any) -> pynode.Solution:
    return pynode.solve(decay, torch.ones(2, 1, dtype=D), t, engine="torch", **keywords)


@pytest.mark.parametrize(
    "given",
    [
        [0, 1.5],
        (0.0, np.float32(1.5)),
        range(2),
        np.array([0, 1], dtype=">i4"),
        np.array([1.5, 0.0])[::-1],
        [np.array(0.0), torch.tensor(1.5)],
        [[0.0, torch.tensor(1.5)], np.array([2.0, 3.0])],
        torch.tensor([True, False]),
        1.5,
    ],
)
def test_real_tensor(given: Any) -> None:
    found = real_tensor(given)
    assert found.dtype == D
    expected = [[0, 1.5], [2, 3]] if isinstance(given, list) and len(found.shape) == 2 else np.asarray(given, float)
    np.testing.assert_array_equal(found.numpy(), expected)


class Own(list):
    """A list of a user's own kind."""


def learned(parts: Any) -> nn.ParameterList:
    return nn.ParameterList([x if isinstance(x, Tensor) else torch.tensor(float(x)) for x in parts])


@pytest.mark.parametrize("make", [list, tuple, Own, deque, UserList])
def test_real_tensor_keeps_gradients_at_any_depth(make: Callable[[Any], Any]) -> None:
    x = torch.tensor(2.0, requires_grad=True)
    found = real_tensor(make([make([0.0, x]), make([x * x, 1.0])]))
    (grad,) = torch.autograd.grad(found.sum(), x)
    assert grad == 5


@pytest.mark.parametrize("make", [list, tuple, Own, deque, UserList, learned])
def test_times_in_any_sequence_keep_their_gradients(make: Callable[[Any], Any]) -> None:
    end = nn.Parameter(torch.tensor(1.0, dtype=D))
    solution = solved(t=make([torch.tensor(0.0, dtype=D), end]), rtol=1e-9, atol=1e-9)
    (grad,) = torch.autograd.grad(solution.z[-1].sum(), end)
    assert grad.item() == pytest.approx(-2 * math.exp(-math.sin(1)) * math.cos(1), rel=1e-6)


def test_an_array_is_copied() -> None:
    array = np.array([0.0, 1.0])
    found = real_tensor(array)
    array[1] = 7
    assert found.tolist() == [0, 1]


def test_masked_numbers_are_refused() -> None:
    masked = np.ma.array([0.0, 1.0, 5.0], mask=[0, 0, 1])
    with pytest.raises(
        pynode.InputError, match=r"^t must be a 1-d tensor or a sequence of real numbers, got MaskedArray"
    ):
        solved(t=masked)
    assert solved(t=masked[:2]).t.tolist() == [0, 1]


COMPLEX: dict[str, Any] = {
    "array": np.array([0.5 + 1j]),
    "tensor": torch.tensor([0.5 + 1j]),
    "list": [0.5 + 1j],
    "list of numpy's": [np.complex64(0.5 + 1j)],
    "list of tensors": [torch.tensor(0.5 + 1j)],
    "list of lists": [[torch.tensor(0.5 + 1j)], [torch.tensor(0.5)]],
    "own list": Own([np.complex128(0.5 + 1j)]),
    "deque": deque([np.complex128(0.5 + 1j)]),
}


@pytest.mark.parametrize("given", COMPLEX.values(), ids=COMPLEX)
def test_complex_numbers_are_refused(given: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TypeError):
            real_tensor(given)
        for keywords in ({"tstops": given}, {"event": pynode.At(given, lambda t, z: z + 1)}, {"atol": given}):
            with pytest.raises(pynode.InputError, match=r"tstops must be|At's times must be|atol must"):
                solved(**keywords)
        with pytest.raises(pynode.InputError, match=r"^t must be .*complex"):
            solved(t=[0.0, *given] if type(given) is list and not isinstance(given[0], list) else given)
        with pytest.raises(pynode.InputError, match=r"sol\(t\) takes .*complex"):
            solved(dense=True)(given)
        with pytest.raises(pynode.InputError, match=r"^times must be .*complex"):
            pynode.control.Linear(given, torch.ones(1, 1))


NUMBERS: dict[str, Any] = {
    "complex": 0.5 + 1j,
    "numpy's complex": np.complex128(0.5 + 1j),
    "numpy's narrow complex": np.complex64(0.5 + 1j),
    "complex tensor": torch.tensor(0.5 + 1j),
    "complex array": np.array(0.5 + 1j),
    "text": "half",
    "nothing": None,
    "several": torch.ones(2),
    "several in an array": np.ones(2),
    "one that learns": torch.tensor(0.5, requires_grad=True),
    "masked": np.ma.array(0.5, mask=True),
    "a duration": np.array(np.timedelta64(5, "ns")),
    "no number": torch.tensor(0.5, device="meta"),
}


@pytest.mark.parametrize("value", NUMBERS.values(), ids=NUMBERS)
def test_what_is_no_real_number_is_refused(value: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            real_number(value)
        if value is not None:
            with pytest.raises(pynode.InputError, match=r"^dt must be a positive number, got "):
                solved(solver="midpoint", dt=value)
        if not isinstance(value, Tensor) or value.dim() == 0:
            with pytest.raises(pynode.InputError, match=r"^rtol must be a positive number, got "):
                solved(rtol=value)
        with pytest.raises(pynode.InputError, match=r"^t must be two numbers"):
            NODE(nn.Linear(1, 1), t=(0.0, value))
        with pytest.raises(pynode.InputError, match=r"^t0 must be a finite number, got "):
            LatentODE(1, 2, t0=value)


def test_a_number_that_learns_is_refused_with_the_reason() -> None:
    with pytest.raises(pynode.InputError, match="a tensor that requires a gradient would get none"):
        solved(solver="midpoint", dt=torch.tensor(0.1, requires_grad=True))


@pytest.mark.parametrize("value", [0.5, 1, np.float32(0.5), torch.tensor(0.5), np.array(0.5), True])
def test_real_numbers(value: Any) -> None:
    assert real_number(value) == float(value)


def test_interpolation_at_a_time_in_a_list_that_learns() -> None:
    at = torch.tensor(0.5, dtype=D, requires_grad=True)
    z0 = torch.ones(2, 1, dtype=D, requires_grad=True)
    solution = pynode.solve(decay, z0, [0, 1], rtol=1e-9, atol=1e-9, dense=True, engine="torch")
    (grad,) = torch.autograd.grad(solution([0.25, at])[1].sum(), at)
    assert grad.item() == pytest.approx(-2 * math.exp(-math.sin(0.5)) * math.cos(0.5), rel=1e-6)


def test_times_of_each_sample_in_lists_that_learn() -> None:
    ends = [torch.tensor(x, dtype=D, requires_grad=True) for x in (0.5, 1.5)]
    solution = solved(t=[[0.0, x] for x in ends], batching="independent", rtol=1e-9, atol=1e-9)
    grads = torch.autograd.grad(solution.z[-1].sum(), ends)
    for grad, end in zip(grads, ends, strict=True):
        t = end.item()
        assert grad.item() == pytest.approx(-math.exp(-math.sin(t)) * math.cos(t), rel=1e-6)


@pytest.mark.parametrize("name", ["rtol", "atol", "dt"])
def test_derivatives_to_numbers_are_refused_in_forward_mode(name: str) -> None:
    def end(x: Tensor) -> Tensor:
        return solved(solver="midpoint", **{"dt": 0.1, name: x}).z[-1].sum()

    x = torch.tensor(0.1, dtype=D)
    with pytest.raises(pynode.InputError, match=rf"(?s)^{name} must be .*would get none"):
        torch.func.jvp(end, (x,), (x,))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(pynode.InputError, match=rf"^{name} must be "):
        end(torch.autograd.forward_ad.make_dual(x, x))
    assert torch.isfinite(end(x))


@pytest.mark.parametrize("make", [lambda x: x.reshape(1), lambda x: (x,), lambda x: (x.reshape(1),)])
def test_tolerances_that_learn_are_refused_in_any_form(make: Callable[[Tensor], Any]) -> None:
    x = torch.tensor(1e-5, dtype=D, requires_grad=True)
    for name in ("rtol", "atol"):
        with pytest.raises(pynode.InputError, match=rf"(?s)^{name} must be .*would get none"):
            solved(**{name: make(x)})
    assert torch.isfinite(solved(rtol=make(x.detach())).z).all()


@pytest.mark.parametrize(
    "times",
    [
        torch.tensor([0.0, 1.0], device="meta"),
        torch.tensor([0.0, 1.0]).to_sparse(),
        torch.nested.nested_tensor([torch.tensor([0.0, 1.0])]),
    ],
    ids=["meta", "sparse", "nested"],
)
def test_tensors_that_hold_no_plain_numbers_are_refused(times: Tensor) -> None:
    for keywords in ({"t": times}, {"tstops": times}, {"event": pynode.At(times, lambda t, z: z + 1)}):
        with pytest.raises(pynode.InputError):
            solved(**keywords)
    with pytest.raises(pynode.InputError, match=r"sol\(t\) takes "):
        solved(dense=True)(times)
    with pytest.raises(pynode.InputError, match=r"^times must be "):
        pynode.control.Linear(times, torch.ones(2, 1))
